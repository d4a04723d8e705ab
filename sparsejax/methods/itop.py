"""ITOP, in-time over-parameterization: large and rare updates, to the end of the run.

Liu et al., "Do We Actually Need Dense Over-Parameterization? In-Time
Over-Parameterization in Sparse Training", arXiv 2102.02887. A sparse network does as
well as a dense one once it has tried enough weights in time: what counts is the share
R_s of all weights that were ever active. So RigL (RigL-ITOP) or SET (SET-ITOP) explore
more: from random ERK masks, in each layer the fraction r(t) of smallest |w| is dropped
and as many of largest |dL/dw|, or at random, are grown, with

    r(t) = 0.005 + (r_0 - 0.005) (1 + cos(pi t / T)) / 2

over the whole run T, r_0 = 0.5, and long intervals, for the weights grown to train. The
authors' commands for CIFAR at batch size 128 have 4000 steps (RigL) and 1500 (SET).

R_s is the density of the union of all masks so far: start from those of the first state
and after each update take `explored = sj.union(explored, sj.get_masks(opt_state))`;
then R_s is `sj.itop_rate([explored])`. The image experiments record it.

What differs from the authors' code: first masks have exact counts instead of Bernoulli
ones; ties are broken by position, so that counts are exact; weights and gradients are
those of the same step. A weight that is dropped and chosen again goes on with its
value, as there (read in the source).
"""

from typing import Any

import optax

from sparsejax.chain import ScoreLike, drop_and_grow
from sparsejax.checks import check_fraction
from sparsejax.distributions import Distribution
from sparsejax.methods.start import start_at, until
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule, cosine_prune_rate
from sparsejax.scores import gradient, magnitude
from sparsejax.transform import Method, SparseTransformation, sparsify

FINAL_PRUNE_RATE = 0.005


def itop_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    grow: ScoreLike = gradient,
    prune_rate: Setting = 0.5,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at constant sparsity, exploring as many weights in time as it can.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out with `masks`.
        total_steps: T, the length of the run; the prune rate decays over all of it.
        update_interval: Steps between updates, at least 1; long ones, see above.
        grow: What grows, of `sparsejax.scores`: `gradient` for RigL-ITOP, `random` for
            SET-ITOP, `mean_gradient(steps)` for small batches.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is dropped and grown, or
            a function of the step instead of the cosine.
        begin_step: Updates start after this step.
        stop_step: The last step at which masks change; None for the whole run.
        distribution: The sparsity's distribution over layers: "erk", "er",
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
        >>> tx = sj.itop_transform(
        ...     optax.sgd(0.1), sparsity=0.9, total_steps=88_000, update_interval=4000)
    """
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: cosine_prune_rate(r_0, total_steps, FINAL_PRUNE_RATE),
    )
    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=drop_and_grow(drop=magnitude, grow=grow, fraction=r),
        when=until(update_interval, begin_step, total_steps, stop_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
