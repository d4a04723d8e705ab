"""SNFS, sparse networks from scratch: momentum says which layers and weights may grow.

Dettmers & Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
Performance", arXiv 1907.04840. From random masks of one sparsity in every layer, at a
sparsity that stays overall, at each update step: with M <- alpha M + (1 - alpha) dL/dw,
the momentum of every weight, active or not,

1. in each layer the fraction r(t) of smallest |w| is dropped, with
   r(t) = 0.005 + (r_0 - 0.005) (1 + cos(pi t / T)) / 2;
2. layer i is to regrow, of all that was dropped, a share in proportion to the mean |M|
   of the weights that were active in it;
3. each layer grows the inactive weights of largest |M|.

A layer that is full passes the rest of its share on.

What differs from the authors' code: the share of a full layer is passed on in
proportion to the other layers' shares instead of equally, and a layer is full at 100 %
instead of 99 %; as many are grown as were dropped at each update, so that no residual
is made up for later; layers that are nearly dense are pruned like the others; M is the
method's own, so that any optimizer can be wrapped (the code takes the optimizer's
momentum, and with Adam that over the root of the second moment); first masks have exact
counts; weights and gradients are those of the same step; a weight dropped and grown in
one update restarts from zero.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.counts import share_out
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active
from sparsejax.methods.constant import steps_until, train_at
from sparsejax.methods.growth import momentum_memory
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule, cosine_prune_rate
from sparsejax.topology import TopologyUpdate, prune_magnitude, refill
from sparsejax.transform import Snapshot, SparseTransformation
from sparsejax.trees import map_masked

FINAL_PRUNE_RATE = 0.005


def snfs_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: float = 0.5,
    momentum: float = 0.9,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "uniform",
    prune_rate_schedule: Schedule | None = None,
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at constant overall sparsity, moving weights between layers by momentum.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out with `masks`.
        total_steps: T, the length of the run; the prune rate decays over all of it.
        update_interval: Steps between updates, at least 1; an epoch in the paper.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is dropped.
        momentum: alpha in [0, 1), of the method's own running mean of gradients, which
            it keeps beside the optimizer's: a float32 for each prunable weight.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run.
        distribution: How the sparsity is shared out over layers at first: "uniform",
            "erk", "er", or a function; see `sparsejax.layer_counts`.
        prune_rate_schedule: Instead of the cosine, a function of the step.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`. A layer of fixed
            sparsity starts there and takes part in the redistribution.
        masks: Masks to start from instead of random ones.
        seed: Seed of the random masks.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `sparsity` and
            `masks` is given.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.snfs_transform(
        ...     optax.sgd(0.1), sparsity=0.9, total_steps=10_000, update_interval=390)
    """
    is_update_step = steps_until(
        stop_step,
        default=total_steps,
        total_steps=total_steps,
        begin_step=begin_step,
        update_interval=update_interval,
    )
    cosine = cosine_prune_rate(
        prune_rate, total_steps, min(FINAL_PRUNE_RATE, prune_rate)
    )
    rate_at = prune_rate_schedule or cosine

    def update(now: Snapshot) -> TopologyUpdate:
        size_of_momentum = scores.magnitude(now.memory.slots["momentum"], now.masks)
        kept = prune_magnitude(
            now.params, now.masks, fraction=rate_at(now.step), scope="layer"
        )
        left = count_active(kept, "layer")
        counts = share_out(
            total=count_active(now.masks) - count_active(kept),
            shares=map_masked(_mean_of_active, now.masks, size_of_momentum),
            room=map_masked(lambda mask, n: mask.size - n, kept, left),
        )
        return refill(size_of_momentum, kept, counts)

    return train_at(
        inner,
        sparsity,
        distribution,
        update,
        is_update_step,
        memory=momentum_memory(momentum),
        prunable=prunable,
        masks=masks,
        seed=seed,
    )


def _mean_of_active(mask: jax.Array, score: jax.Array) -> jax.Array:
    """The mean score of a layer's active weights; 0 for a layer without any."""
    total = jnp.sum(jnp.where(mask, score, 0), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(mask), 1)
