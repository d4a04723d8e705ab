"""SET, sparse evolutionary training: the weakest weights move to random places.

Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", 2018. From random Erdos-Renyi masks, at a
sparsity that stays, at each update step to the end of the run: in each layer the
fraction zeta of smallest |w| is dropped and as many are grown at random.

What differs from the paper: it drops the smallest positive and the largest negative
weights, which is smallest |w| but for the balance of signs.
"""

from typing import Any

import optax

from sparsejax import scores
from sparsejax.checks import check_start, check_stop, check_within
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import masks_by_rule
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule, constant_prune_rate, every
from sparsejax.topology import TopologyUpdate, exchange
from sparsejax.transform import Method, Snapshot, SparseTransformation, sparsify


def set_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: float = 0.3,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "er",
    prune_rate_schedule: Schedule | None = None,
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at constant sparsity, dropping by magnitude and growing at random.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out with `masks`.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1; an epoch in the paper.
        prune_rate: zeta in (0, 1), the fraction of a layer that is exchanged.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run.
        distribution: How the sparsity is shared out over layers: "er", "erk",
            "uniform", or a function; see `sparsejax.layer_counts`.
        prune_rate_schedule: Instead of the constant, a function of the step.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of random ones.
        seed: Seed of the random masks and of random growth.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `sparsity` and
            `masks` is given.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.set_transform(
        ...     optax.sgd(0.1), sparsity=0.9, total_steps=10_000, update_interval=500)
    """
    check_start(sparsity, masks)
    check_distribution(distribution)
    is_periodic = every(update_interval, begin_step)
    check_within("begin_step", begin_step, total_steps)
    check_within("update_interval", update_interval, total_steps)
    check_stop(stop_step)
    end = total_steps if stop_step is None else stop_step
    constant = constant_prune_rate(prune_rate)
    rate_at = prune_rate_schedule or constant

    def update(now: Snapshot) -> TopologyUpdate:
        return exchange(
            drop_score=now.params,
            grow_score=scores.random(now.key, now.masks),
            masks=now.masks,
            fraction=rate_at(now.step),
            key=scores.absolute,
        )

    method = Method(
        init=lambda key, params, rules: masks_by_rule(
            key, params, rules, sparsity, distribution
        ),
        update=update,
        is_update_step=lambda step: is_periodic(step) & (step <= end),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
