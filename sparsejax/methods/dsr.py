"""DSR, dynamic sparse reparameterization: one threshold for all layers, which adapts.

Mostafa & Wang, "Parameter Efficient Training of Deep Convolutional Neural Networks by
Dynamic Sparse Reparameterization", arXiv 1902.05967. From random masks of one sparsity
in every layer, at a sparsity that stays overall, at each update step:

1. all weights with |w| < H are dropped, in all layers, but one a layer is kept;
2. if more than (1 + delta) K were dropped, H is halved; if less than (1 - delta) K, it
   is doubled; delta = 0.1;
3. as many as were dropped are grown at random, each layer in proportion to the weights
   left in it, at places that have not just been emptied.

A layer that is full passes the rest of its share on. H starts at 1e-3.

What differs from the authors' code: K is a fraction of the active weights instead of a
number (its 400,000 for ResNet-50 on ImageNet are 8 % of those active at 80 % sparsity);
shares are rounded by largest remainder instead of at random; the weight that a layer
keeps is its largest; where a network has too few other places, places just emptied are
grown after all; the interval does not grow along the run, as it does there from 1000
to 8000 steps; weights are those of the same step as the gradients, which take no part.
Every weight that grows starts from 0, as there (read in the source).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import scores
from sparsejax.chain import Element, chain, grow, prune
from sparsejax.checks import check_fraction, check_range
from sparsejax.counts import apportion, drop_count
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active
from sparsejax.methods.start import start_at, until
from sparsejax.parameters import Prunable
from sparsejax.scores import Context
from sparsejax.transform import Method, SparseTransformation, sparsify
from sparsejax.trees import map_masked

PyTree = Any
TOLERANCE = 0.1


def dsr_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: float = 0.1,
    initial_threshold: float = 1e-3,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "uniform",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at constant overall sparsity, moving weights to layers that keep theirs.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`. The
    threshold is read with `optax.tree.get(state, "threshold")`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out with `masks`.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1.
        prune_rate: K in (0, 1), as a fraction of all active weights: how many the
            threshold is to drop at an update, give or take a tenth.
        initial_threshold: H at first, above 0.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run. The
            authors stop at 95 of 100 epochs on ImageNet.
        distribution: The first masks' distribution over layers: "uniform", "erk", "er",
            or a function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`. A layer of fixed
            sparsity starts there and takes part in the redistribution.
        masks: Masks to start from instead of random ones.
        seed: Seed of the random masks and of random growth.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `sparsity` and
            `masks` is given.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.dsr_transform(
        ...     optax.sgd(0.1), sparsity=0.9, total_steps=10_000, update_interval=500)
    """
    check_fraction("prune_rate", prune_rate)
    check_range(
        "initial_threshold",
        initial_threshold,
        lambda h: h > 0 and np.isfinite(h),
        "a finite number above 0",
    )

    def init(params: PyTree, rules: PyTree) -> PyTree:
        return {"threshold": jnp.float32(initial_threshold)}

    def below_threshold(ctx: Context) -> Any:
        """Steps 1 and 2: the masks without |w| < H, and the next H."""
        H = ctx.memory["threshold"]
        above = map_masked(
            lambda mask, w: _count_above(mask, w, H), ctx.masks, ctx.params
        )
        kept = prune(scores.magnitude, keep=lambda _: above).apply(ctx)
        dropped = (count_active(ctx.masks) - count_active(kept)).astype(jnp.float32)
        K = drop_count(prune_rate, count_active(ctx.masks)).astype(jnp.float32)
        many, few = dropped > (1 + TOLERANCE) * K, dropped < (1 - TOLERANCE) * K
        return kept, {"threshold": H * jnp.where(many, 0.5, jnp.where(few, 2.0, 1.0))}

    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=chain(
            Element(below_threshold, init, changes_memory=True),
            grow(scores.Score(_elsewhere, scores.as_it_is), count=_shares),
        ),
        when=until(update_interval, begin_step, total_steps, stop_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _count_above(mask: jax.Array, weight: jax.Array, H: jax.Array) -> jax.Array:
    """The active weights of a layer with |w| >= H, at least one."""
    above = mask & (jnp.abs(weight.astype(jnp.float32)) >= H)
    return jnp.maximum(jnp.sum(above, dtype=jnp.int32), 1)


def _shares(ctx: Context) -> PyTree:
    """How many weights each layer grows: in proportion to what is left in it."""
    before, left = (count_active(m, "layer") for m in (ctx.before, ctx.masks))
    total = count_active(ctx.before) - count_active(ctx.masks)
    free = map_masked(lambda mask, n: mask.size - n, ctx.masks, before)
    counts = apportion(total, left, free)
    # Where other places are too few, those just emptied.
    short = total - sum(jax.tree.leaves(counts), jnp.int32(0))
    emptied = jax.tree.map(jnp.subtract, before, left)
    return jax.tree.map(jnp.add, counts, apportion(short, left, emptied))


def _elsewhere(ctx: Context) -> PyTree:
    """Random scores; those of places just emptied are below all others."""
    drawn = scores.random_scores(ctx.key, ctx.masks)
    return map_masked(
        lambda mask, score: jnp.where(mask, -1 - (score >> 1), score), ctx.before, drawn
    )
