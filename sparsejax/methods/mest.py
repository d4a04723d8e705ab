"""MEST, memory-economic sparse training: mutate the network, ever less of it.

Yuan et al., "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the
Edge", arXiv 2110.14032. From random masks of one sparsity in every layer, at each
update step, in each layer, with the score |w| + lambda |dL/dw|:

EM    (elastic mutation) the fraction r of lowest score is dropped, and as many are
      grown at random;
EM&S  (soft memory bound) the layer, above its budget of weights since the last update,
      is pruned to the budget by score, and grows the fraction r of the budget at
      random: grown weights have an interval to prove themselves before others must go.

r goes down in stages: r_0, from 9/16 of the run on r_0 / 2, from 3/4 on 0, so that the
run ends at its budget. In the authors' commands for 90 % sparsity, EM prunes to 92, 91
and 90 %: r = 0.2, 0.1, 0; EM&S grows to 85, 87.5 and 90 %: r = 0.5, 0.25, 0. Updates
are five epochs apart. lambda is 0 in their code where it is not set.

What differs from the authors' code: counts are exact; EM&S, whose first update is there
at step 0, starts at its budget; a weight dropped and grown in one update restarts from
zero. Their blocks and patterns, and the removal of easy examples, are not here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.checks import (
    check_fraction,
    is_traced,
)
from sparsejax.counts import drop_count
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active, counts_by_rule
from sparsejax.methods.constant import steps_until, train_at
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule
from sparsejax.topology import TopologyUpdate, exchange, prune_by_score, refill
from sparsejax.transform import Snapshot, SparseTransformation
from sparsejax.trees import is_left_dense, map_masked

PyTree = Any


def mest_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    soft_bound: bool = False,
    prune_rate: float = 0.2,
    gradient_weight: float = 0.0,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "uniform",
    prune_rate_schedule: Schedule | None = None,
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at a sparsity, or up to a soft bound above it, mutating at random.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1), with `soft_bound` the one to end at; leave
            it out with `masks`.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1.
        soft_bound: False for EM, True for EM&S.
        prune_rate: r_0 in (0, 1): the fraction of a layer that is exchanged, or that it
            may hold above its budget.
        gradient_weight: lambda, at least 0.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run. With
            `soft_bound` and a stop before r is 0, the run ends above its budget.
        distribution: How the sparsity is shared out over layers: "uniform", "erk",
            "er", or a function; see `sparsejax.layer_counts`.
        prune_rate_schedule: Instead of the stages, a function of the step.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of random ones; their counts are the budget.
        seed: Seed of the random masks and of random growth.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `sparsity` and
            `masks` is given.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.mest_transform(optax.sgd(0.1), sparsity=0.9, total_steps=10_000,
        ...                        update_interval=500, soft_bound=True, prune_rate=0.5)
    """
    check_fraction("prune_rate", prune_rate)
    if not is_traced(gradient_weight) and not 0 <= gradient_weight < float("inf"):
        raise ValueError(
            f"gradient_weight must be a finite number of at least 0; got "
            f"{gradient_weight}."
        )
    is_update_step = steps_until(
        stop_step,
        default=total_steps,
        total_steps=total_steps,
        begin_step=begin_step,
        update_interval=update_interval,
    )

    # Rounded up: the first steps of the second and of the last stage.
    second, last = -(-total_steps * 9 // 16), -(-total_steps * 3 // 4)

    def staged(step: Any) -> Any:
        return prune_rate / 2 * (1.0 * (step < second) + 1.0 * (step < last))

    rate_at = prune_rate_schedule or staged

    def score(now: Snapshot) -> PyTree:
        def at_leaf(mask: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
            size, slope = (jnp.abs(x.astype(jnp.float32)) for x in (weight, grad))
            return scores.finite(size + gradient_weight * slope)

        return map_masked(at_leaf, now.masks, now.params, now.grads)

    def budgets(now: Snapshot) -> PyTree:
        if masks is None:
            return counts_by_rule(now.params, now.rules, sparsity, distribution)
        return jax.tree.map(_count_layers, masks, now.masks, is_leaf=is_left_dense)

    def update(now: Snapshot) -> TopologyUpdate:
        rate, chance = rate_at(now.step), scores.random(now.key, now.masks)
        if not soft_bound:
            return exchange(score(now), chance, now.masks, rate)
        budget = budgets(now)
        kept = prune_by_score(score(now), now.masks, keep=budget, scope="layer")
        return refill(chance, kept, jax.tree.map(lambda n: drop_count(rate, n), budget))

    return train_at(
        inner,
        sparsity,
        distribution,
        update,
        is_update_step,
        prunable=prunable,
        masks=masks,
        seed=seed,
    )


def _count_layers(mask: Any, layers: Any) -> Any:
    """Counts a mask, or each slice of one that the update sees as several layers."""
    if is_left_dense(mask):
        return mask
    if isinstance(layers, tuple):
        return tuple(count_active(layer) for layer in mask)
    return count_active(mask)
