"""GraNet: gradual pruning with zero-cost neuroregeneration.

Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
arXiv 2106.10404. At each update step t,

1. gradual pruning: the weights of smallest |w| of all layers together are dropped, to
   the sparsity s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_end - t_0))^3;
2. neuroregeneration: in each layer, the fraction r(t) of smallest |w| is dropped and as
   many of largest |dL/dw| are grown, with
   r(t) = 0.005 + (r_0 - 0.005) (1 + cos(pi t / T)) / 2.

Dense-to-sparse training starts from dense masks (s_i = 0), sparse-to-sparse (GraNet-ST)
from random ERK masks at s_i > 0. Pruning ends at t_end, regeneration goes on.

GraNet-uniform prunes each layer to s(t) by itself instead (`scope="layer"`, from sparse
with `distribution="uniform"`). Growth can also be by the momentum of the gradients, of
inactive weights too, or by the mean gradient of some steps, for small batches. (Growth
by momentum is an option of the official code as well, but momentum is masked there.)

What differs from the official code: masks at the start have exact counts instead of
Bernoulli ones; s_f is reached at t_end (the official schedule stops one update short);
ties are broken by position, so that counts are exact; weights and gradients are those
of the same step; a weight dropped and grown again in one update restarts from zero.
"""

from typing import Any

import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.checks import SCOPES, check_choice, check_stop, check_within
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.methods.gradual import PrunePlan, counts_of_plan, first_masks
from sparsejax.methods.growth import growth_by
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule, cosine_prune_rate, cubic_sparsity, every
from sparsejax.topology import TopologyUpdate, exchange
from sparsejax.transform import Method, Snapshot, SparseTransformation, sparsify

FINAL_PRUNE_RATE = 0.005


def granet_transform(
    inner: optax.GradientTransformation,
    *,
    total_steps: int,
    end_step: int,
    update_interval: int = 1000,
    initial_sparsity: float = 0.0,
    final_sparsity: float = 0.9,
    begin_step: int = 0,
    prune_rate: float = 0.5,
    stop_step: int | None = None,
    scope: str = "global",
    grow: str = "gradient",
    gradient_steps: int = 1,
    momentum: float = 0.9,
    distribution: Distribution = "erk",
    sparsity_schedule: Schedule | None = None,
    prune_rate_schedule: Schedule | None = None,
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Prunes gradually and regenerates connections while training.

    Updates are at `begin_step + i * update_interval` for i >= 1 and at `end_step`.

    Args:
        inner: The optimizer to wrap.
        total_steps: T, the length of the run; the prune rate decays over all of it.
        end_step: t_end, when gradual pruning ends; after `begin_step` and below
            `total_steps`. The paper ends at half of the run on CIFAR.
        update_interval: Steps between updates, at least 1.
        initial_sparsity: s_i in [0, s_f]: 0 starts dense, above it starts with random
            masks of that sparsity.
        final_sparsity: s_f in [0, 1).
        begin_step: t_0, at least 0.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is regenerated.
        stop_step: The last step at which connections are regenerated; None for the
            whole run, as in the paper's code.
        scope: "global" prunes all layers together, "layer" each to s(t).
        grow: "gradient" grows by |dL/dw|, "momentum" by the magnitude of its running
            mean, "random" at random.
        gradient_steps: With "gradient", grow by the mean gradient of the last so many
            steps, at most `update_interval`, those since the last update at most. This
            and "momentum" take a float32 for each prunable weight.
        momentum: With "momentum", how much of the mean stays at a step, in [0, 1).
        distribution: How s_i is shared out over layers; see `sparsejax.layer_counts`.
        sparsity_schedule: Instead of the cubic, a function of the step.
        prune_rate_schedule: Instead of the cosine, a function of the step.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of dense or random ones.
        seed: Seed of the random masks and of random growth.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.granet_transform(
        ...     optax.sgd(0.1, momentum=0.9, nesterov=True), total_steps=56_320,
        ...     end_step=28_160, update_interval=1000, final_sparsity=0.95)
    """
    cubic = cubic_sparsity(initial_sparsity, final_sparsity, begin_step, end_step)
    cosine = cosine_prune_rate(
        prune_rate, total_steps, min(FINAL_PRUNE_RATE, prune_rate)
    )
    is_periodic = every(update_interval, begin_step)
    check_within("end_step", end_step, total_steps)
    check_within("update_interval", update_interval, total_steps)
    check_stop(stop_step)
    check_distribution(distribution)
    check_choice("scope", scope, SCOPES)
    plan = PrunePlan(
        sparsity_schedule or cubic, begin_step, end_step, update_interval, scope
    )
    rate_at = prune_rate_schedule or cosine
    is_update_step = lambda step: is_periodic(step) | (step == end_step)
    growth = growth_by(
        grow,
        is_update_step,
        update_interval,
        gradient_steps=gradient_steps,
        momentum=momentum,
    )

    def update(now: Snapshot) -> TopologyUpdate:
        rate = rate_at(now.step)
        if stop_step is not None:
            rate = jnp.where(now.step <= stop_step, rate, 0.0)
        # 1. and 2. both drop the weights of smallest magnitude: what a layer keeps in
        # the end are its largest, and 1. only says how many are active.
        return exchange(
            drop_score=now.params,
            grow_score=growth.score(now, now.masks),
            masks=now.masks,
            fraction=rate,
            key=scores.rank_of_magnitude,
            counts=counts_of_plan(now, plan),
        )

    method = Method(
        init=lambda key, params, rules: first_masks(
            key, params, rules, plan, initial_sparsity, distribution
        ),
        update=update,
        is_update_step=is_update_step,
        memory=growth.memory,
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
