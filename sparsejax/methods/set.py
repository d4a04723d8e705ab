"""SET, sparse evolutionary training: the weakest weights move to random places.

Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", 2018. From random Erdos-Renyi masks, at a
sparsity that stays, at each update step to the end of the run: in each layer the
fraction zeta of smallest |w| is dropped and as many are grown at random. What is
dropped and grown again restarts from 0, as in the authors' Keras code (read in its
source); RigL's TF version of SET lets it go on.

What differs from the paper: it drops the smallest positive and the largest negative
weights, which is smallest |w| but for the balance of signs.
"""

from typing import Any

import optax

from sparsejax.chain import chain, drop, grow
from sparsejax.checks import check_fraction
from sparsejax.distributions import Distribution
from sparsejax.methods.start import start_at, until
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule, constant_prune_rate
from sparsejax.scores import magnitude, random
from sparsejax.transform import Method, SparseTransformation, sparsify


def set_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: Setting = 0.3,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "er",
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
        prune_rate: zeta in (0, 1), the fraction of a layer that is dropped and grown, a
            number or a function of the step.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run.
        distribution: The sparsity's distribution over layers: "er", "erk",
            "uniform", or a function; see `sparsejax.layer_counts`.
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
    zeta = as_schedule("prune_rate", prune_rate, check_fraction, constant_prune_rate)
    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=chain(drop(magnitude, fraction=zeta), grow(random)),
        when=until(update_interval, begin_step, total_steps, stop_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
