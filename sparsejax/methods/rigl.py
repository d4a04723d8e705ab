"""RigL: the weakest weights of a sparse network move to where the gradient is largest.

Evci et al., "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134. From
random ERK masks, at a sparsity that stays, at each update step up to T_end: in each
layer the fraction r(t) of smallest |w| is dropped and as many of largest |dL/dw| are
grown, with

    r(t) = r_0 (1 + cos(pi t / T_end)) / 2.

With small batches the gradient of one is noisy: `gradient_steps` ranks by the mean
gradient over the last steps up to the update, which is not in the paper.

What differs from the official code: on update steps, which it spends on the masks
alone, the kept weights take their optimizer step too; |w| gets no noise against ties.
"""

from typing import Any

import optax

from sparsejax.distributions import Distribution
from sparsejax.methods.constant import exchange_by, steps_until, train_at
from sparsejax.methods.growth import growth_by
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule, cosine_prune_rate
from sparsejax.transform import SparseTransformation


def rigl_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: float = 0.3,
    begin_step: int = 0,
    stop_step: int | None = None,
    gradient_steps: int = 1,
    distribution: Distribution = "erk",
    prune_rate_schedule: Schedule | None = None,
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
        prune_rate: r_0 in (0, 1), the fraction of a layer that is exchanged.
        begin_step: Updates start after this step.
        stop_step: T_end, the last step at which masks change and where the prune rate
            reaches 0; None for 75 % of the run, as in the paper.
        gradient_steps: Grow by the mean gradient of the last so many steps, at most
            `update_interval`; above 1 it takes a float32 for each prunable weight.
        distribution: How the sparsity is shared out over layers: "erk", "er",
            "uniform", or a function; see `sparsejax.layer_counts`.
        prune_rate_schedule: Instead of the cosine, a function of the step.
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
    three_quarters = max(total_steps * 3 // 4, 1)
    is_update_step = steps_until(
        stop_step,
        default=three_quarters,
        total_steps=total_steps,
        begin_step=begin_step,
        update_interval=update_interval,
    )
    end = three_quarters if stop_step is None else stop_step
    cosine = cosine_prune_rate(prune_rate, end)
    rate_at = prune_rate_schedule or cosine
    growth = growth_by(
        "gradient", is_update_step, update_interval, gradient_steps=gradient_steps
    )

    return train_at(
        inner,
        sparsity,
        distribution,
        exchange_by(growth, rate_at),
        is_update_step,
        memory=growth.memory,
        prunable=prunable,
        masks=masks,
        seed=seed,
    )
