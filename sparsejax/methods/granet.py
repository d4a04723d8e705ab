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

A weight that 1. drops restarts from 0 if 2. grows it; one that 2. drops and chooses
again goes on with its value and momentum. It is so in the official code, which masks
weights and momentum after 1. and after the growth of 2. (read in its source).

What differs from it: masks at the start have exact counts instead of Bernoulli ones;
s_f is reached at t_end (the official schedule stops one update short); where t_end is
between two updates, the one there only prunes; ties are broken by position when pruning
and at random when growing, so that counts are exact; weights and gradients are those of
the same step.
"""

from typing import Any

import jax.numpy as jnp
import optax

from sparsejax.chain import ScoreLike, chain, drop_and_grow, prune
from sparsejax.checks import check_fraction, check_sparsity, check_within
from sparsejax.distributions import Distribution
from sparsejax.methods.start import NOMINAL, gradual_start, stop_at
from sparsejax.parameters import Prunable
from sparsejax.schedules import (
    Setting,
    as_schedule,
    cosine_prune_rate,
    cubic_sparsity,
    every,
)
from sparsejax.scores import gradient, magnitude
from sparsejax.transform import Method, SparseTransformation, sparsify

FINAL_PRUNE_RATE = 0.005


def granet_transform(
    inner: optax.GradientTransformation,
    *,
    total_steps: int,
    end_step: int,
    update_interval: int = 1000,
    initial_sparsity: float = 0.0,
    final_sparsity: Setting | None = None,
    begin_step: int = 0,
    prune_rate: Setting = 0.5,
    stop_step: int | None = None,
    scope: str = "global",
    grow: ScoreLike = gradient,
    distribution: Distribution = "erk",
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
        final_sparsity: s_f in [0, 1), or a function of the step instead of the cubic.
            None takes 0.9, or what layers add up to if `prunable` fixes it for each.
        begin_step: t_0, at least 0.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is regenerated, or a
            function of the step instead of the cosine.
        stop_step: The last step at which connections are regenerated; None for the
            whole run, as in the paper's code.
        scope: "global" prunes all layers together, "layer" each to s(t).
        grow: What grows, of `sparsejax.scores`: `gradient`, `random`,
            `momentum(decay)`, `mean_gradient(steps)`, or any other score.
        distribution: Of s_i over layers; see `sparsejax.layer_counts`.
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
    check_within("end_step", end_step, total_steps)
    check_within("update_interval", update_interval, total_steps, 1)
    stop = stop_at(stop_step, total_steps)
    s = as_schedule(
        "final_sparsity",
        NOMINAL if final_sparsity is None else final_sparsity,
        check_sparsity,
        lambda s_f: cubic_sparsity(initial_sparsity, s_f, begin_step, end_step),
    )
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: cosine_prune_rate(r_0, total_steps, FINAL_PRUNE_RATE),
    )
    on_grid, s_f = every(update_interval, begin_step), s(end_step)

    def regenerated(t: Any) -> Any:
        return jnp.where(on_grid(t) & (t <= stop), r(t), 0.0)

    method = Method(
        first=gradual_start(
            initial_sparsity,
            None if final_sparsity is None else s_f,
            distribution,
            default=NOMINAL,
        ),
        update=chain(
            prune(magnitude, to=s, scope=scope, final=s_f),
            drop_and_grow(drop=magnitude, grow=grow, fraction=regenerated),
        ),
        when=lambda t: on_grid(t) | (t == end_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
