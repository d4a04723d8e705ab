"""RigL: the weakest weights of a sparse network move to where the gradient is largest.

Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134. From
random ERK masks, at a sparsity that stays, at each update step up to T_end: in each
layer the fraction r(t) of smallest |w| is dropped and as many of largest |dL/dw| are
grown, with

    r(t) = r_0 (1 + cos(pi t / T_end)) / 2.

A weight that is dropped and chosen again goes on with its value, as in the official TF
code (`reinit_when_same=False`, read in its source). With small batches the gradient of
one is noisy: `grow=mean_gradient(steps)` ranks by the mean gradient over the steps up
to the update, which is not in the paper.

What differs from the official code: on update steps, which it spends on the masks
alone, the weights that go on take their optimizer step too; |w| gets no noise against
ties; ceil(r n) weights are dropped, not floor(r n); the first update is not at step 0.
"""

from typing import Any

import optax

from sparsejax.chain import ScoreLike, drop_and_grow
from sparsejax.checks import check_fraction, check_step
from sparsejax.distributions import Distribution
from sparsejax.methods.start import start_at, stop_at, until
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule, cosine_prune_rate
from sparsejax.scores import gradient, magnitude
from sparsejax.transform import Method, SparseTransformation, sparsify


def rigl_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: Setting = 0.3,
    grow: ScoreLike = gradient,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains at constant sparsity, dropping by magnitude and growing by gradient.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out with `masks`.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1; 100 in the paper.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is dropped and grown, or
            a function of the step instead of the cosine.
        grow: What grows: `sparsejax.scores.gradient`, or `mean_gradient(steps)`.
        begin_step: Updates start after this step.
        stop_step: T_end, the last step at which masks change and where the prune rate
            reaches 0; None for 75 % of the run, as in the paper.
        distribution: The sparsity's distribution over layers: "erk", "er",
            "uniform", or a function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of random ones.
        seed: Seed of the random masks.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of `sparsity` and
            `masks` is given.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.rigl_transform(
        ...     optax.sgd(0.1), sparsity=0.9, total_steps=32_000, update_interval=100)
    """
    check_step("total_steps", total_steps, 1)
    T_end = stop_at(stop_step, total_steps * 3 // 4)
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: cosine_prune_rate(r_0, T_end),
    )
    method = Method(
        first=start_at(sparsity, distribution, masks, prunable),
        update=drop_and_grow(drop=magnitude, grow=grow, fraction=r),
        when=until(update_interval, begin_step, total_steps, T_end),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
