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
counts; weights and gradients are those of the same step. A weight that is dropped and
chosen again goes on with its value, as there (read in the source).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.chain import Element, drop
from sparsejax.checks import check_fraction
from sparsejax.counts import apportion
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active
from sparsejax.methods.start import start_at, until
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule, cosine_prune_rate
from sparsejax.scores import Context
from sparsejax.topology import regrow_by_score
from sparsejax.transform import Method, SparseTransformation, sparsify
from sparsejax.trees import map_masked

PyTree = Any
FINAL_PRUNE_RATE = 0.005


def snfs_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: Setting = 0.5,
    momentum: float = 0.9,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "uniform",
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
        prune_rate: r_0 in (0, 1), the fraction of a layer that is dropped, or a
            function of the step instead of the cosine.
        momentum: alpha in [0, 1), of the method's own running mean of gradients, which
            it keeps next to the optimizer's: a float32 for each prunable weight.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run.
        distribution: The first masks' distribution over layers: "uniform", "erk", "er",
            or a function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`. A layer of fixed
            sparsity starts there and takes part in the redistribution.
        masks: Masks to start from instead of random ones.
        seed: Seed of the random masks and of ties in growth.

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
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: cosine_prune_rate(r_0, total_steps, FINAL_PRUNE_RATE),
    )
    M = scores.momentum(momentum)

    def update(ctx: Context) -> PyTree:
        masks, rank = ctx.masks, scores.rank_of_magnitude
        kept = drop(scores.magnitude, fraction=r).apply(ctx)  # 1.
        left = count_active(kept, "layer")
        counts = apportion(  # 2.
            total=count_active(masks) - count_active(kept),
            shares=map_masked(_mean_of_active, masks, ctx.memory),
            room=map_masked(lambda mask, n: mask.size - n, kept, left),
        )
        return regrow_by_score(ctx.memory, kept, counts, rank=rank, key=ctx.key)  # 3.

    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=Element(update, M.init, M.update, settings=(r,)),
        when=until(update_interval, begin_step, total_steps, stop_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _mean_of_active(mask: jax.Array, momentum: jax.Array) -> jax.Array:
    """The mean |M| of a layer's active weights; 0 for a layer without any."""
    total = jnp.sum(jnp.where(mask, jnp.abs(momentum), 0), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(mask), 1)
