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
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import scores
from sparsejax.checks import (
    check_fraction,
    is_traced,
)
from sparsejax.counts import drop_count, share_out
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active
from sparsejax.methods.constant import steps_until, train_at
from sparsejax.parameters import Prunable
from sparsejax.topology import TopologyUpdate, prune_magnitude, refill
from sparsejax.transform import (
    Memory,
    MemoryRule,
    Snapshot,
    SparseTransformation,
)
from sparsejax.trees import map_masked

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
        distribution: How the sparsity is shared out over layers at first: "uniform",
            "erk", "er", or a function; see `sparsejax.layer_counts`.
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
    _check_threshold(initial_threshold)
    is_update_step = steps_until(
        stop_step,
        default=total_steps,
        total_steps=total_steps,
        begin_step=begin_step,
        update_interval=update_interval,
    )

    def update(now: Snapshot) -> TopologyUpdate:
        threshold = now.memory.scalars["threshold"]

        def count_above(mask: jax.Array, weight: jax.Array) -> jax.Array:
            above = mask & (jnp.abs(weight.astype(jnp.float32)) >= threshold)
            return jnp.maximum(jnp.sum(above, dtype=jnp.int32), 1)

        keep = map_masked(count_above, now.masks, now.params)
        kept = prune_magnitude(now.params, now.masks, keep=keep, scope="layer")
        before, left = count_active(now.masks, "layer"), count_active(kept, "layer")
        total = count_active(now.masks) - count_active(kept)

        free = map_masked(lambda mask, n: mask.size - n, now.masks, before)
        counts = share_out(total, left, free)
        emptied = jax.tree.map(jnp.subtract, before, left)
        short = total - sum(jax.tree.leaves(counts), jnp.int32(0))
        counts = jax.tree.map(jnp.add, counts, share_out(short, left, emptied))
        # All bits turned, a score of 31 random bits is below all others.
        chance = map_masked(
            lambda mask, score: jnp.where(mask, ~score, score),
            now.masks,
            scores.random(now.key, now.masks),
        )

        wanted = drop_count(prune_rate, count_active(now.masks)).astype(jnp.float32)
        factor = jnp.where(
            total > (1 + TOLERANCE) * wanted,
            0.5,
            jnp.where(total < (1 - TOLERANCE) * wanted, 2.0, 1.0),
        )
        refilled = refill(chance, kept, counts)
        return refilled._replace(scalars={"threshold": factor * threshold})

    def init_memory(params: Any, rules: Any) -> Memory:
        return Memory(scalars={"threshold": jnp.float32(initial_threshold)})

    return train_at(
        inner,
        sparsity,
        distribution,
        update,
        is_update_step,
        memory=MemoryRule(init_memory),
        prunable=prunable,
        masks=masks,
        seed=seed,
    )


def _check_threshold(value: Any) -> None:
    if not is_traced(value) and not (value > 0 and np.isfinite(value)):
        raise ValueError(
            f"initial_threshold must be a finite number above 0; got {value}."
        )
