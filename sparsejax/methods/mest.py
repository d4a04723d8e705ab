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
at step 0, starts at its budget. A weight dropped and grown in one update restarts from
0, as there (read in the source), and so does its momentum, which goes on there. Their
blocks and patterns, and the removal of easy examples, are not here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.chain import chain, drop, grow, prune
from sparsejax.checks import check_fraction, check_range, check_step
from sparsejax.counts import drop_count
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active, counts_by_rule
from sparsejax.methods.start import start_at, until
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule
from sparsejax.scores import Context, finite, random
from sparsejax.transform import Method, SparseTransformation, sparsify
from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


def mest_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    soft_bound: bool = False,
    prune_rate: Setting = 0.2,
    gradient_weight: float = 0.0,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "uniform",
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
        prune_rate: r_0 in (0, 1): the fraction of a layer that is dropped and grown, or
            that it may hold above its budget; a function of the step instead of the
            stages.
        gradient_weight: lambda, at least 0.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run. With
            `soft_bound` and a stop before r is 0, the run ends above its budget.
        distribution: The sparsity's distribution over layers: "uniform", "erk", "er",
            or a function; see `sparsejax.layer_counts`.
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
    check_range(
        "gradient_weight",
        gradient_weight,
        lambda a: 0 <= a < float("inf"),
        "a finite number of at least 0",
    )
    check_step("total_steps", total_steps, 1)
    # Rounded up: the first steps of the second and of the last stage.
    second, last = -(-total_steps * 9 // 16), -(-total_steps * 3 // 4)
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: lambda t: r_0 / 2 * (1.0 * (t < second) + 1.0 * (t < last)),
    )

    def score(ctx: Context) -> PyTree:
        def at_leaf(mask: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
            size, slope = (jnp.abs(x.astype(jnp.float32)) for x in (weight, grad))
            return finite(size + gradient_weight * slope)

        return map_masked(at_leaf, ctx.masks, ctx.params, ctx.grads)

    def budget(ctx: Context) -> PyTree:
        if masks is None:
            return counts_by_rule(ctx.params, ctx.rules, sparsity, distribution)
        counts = [_count_of_layer(masks, path) for path in mask_leaves(ctx.masks)]
        return jax.tree.unflatten(jax.tree.structure(ctx.masks), counts)

    def mutants(ctx: Context) -> PyTree:
        return map_masked(
            lambda rule, n: drop_count(r(ctx.step), n), ctx.rules, budget(ctx)
        )

    em = chain(drop(score, fraction=r), grow(random))
    mutate = grow(random, count=mutants)._replace(settings=(r,))
    em_and_s = chain(prune(score, keep=budget), mutate)
    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=em_and_s if soft_bound else em,
        when=until(update_interval, begin_step, total_steps, stop_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _count_of_layer(masks: PyTree, path: str) -> jax.Array:
    """Counts a mask, or the slice of one that the chain sees as a layer of its own."""
    at = mask_leaves(masks)
    stack, _, i = path.rpartition("/")
    return count_active(at[path] if path in at else at[stack][int(i)])
