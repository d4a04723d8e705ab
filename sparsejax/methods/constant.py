"""Training at one sparsity: random masks, and updates that drop and grow as many.

What SET, RigL, ITOP, SNFS, DSR and MEST share.
"""

from collections.abc import Callable
from typing import Any

import optax

from sparsejax import scores
from sparsejax.checks import check_start, check_stop, check_within
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import masks_by_rule
from sparsejax.methods.growth import Growth
from sparsejax.parameters import Prunable
from sparsejax.schedules import Schedule, every
from sparsejax.topology import TopologyUpdate, exchange
from sparsejax.transform import (
    MemoryRule,
    Method,
    Snapshot,
    SparseTransformation,
    sparsify,
)


def steps_until(
    stop_step: int | None,
    *,
    default: int,
    total_steps: int,
    begin_step: int,
    update_interval: int,
) -> Schedule:
    """Gives the update steps of a run, begin_step + i * update_interval up to an end.

    Args:
        stop_step: The last step at which masks may change; None for the default.
        default: The method's own last step.
        total_steps: The length of the run.
        begin_step: Updates come after it.
        update_interval: Steps between updates.

    Returns:
        A function step -> bool.

    Raises:
        ValueError: If an argument is out of range.
    """
    is_periodic = every(update_interval, begin_step)
    check_within("begin_step", begin_step, total_steps)
    check_within("update_interval", update_interval, total_steps)
    check_stop(stop_step)
    end = default if stop_step is None else stop_step
    return lambda step: is_periodic(step) & (step <= end)


def exchange_by(growth: Growth, rate_at: Schedule) -> Callable[..., TopologyUpdate]:
    """Makes the update that drops by magnitude and grows, each layer by itself.

    Args:
        growth: What is grown.
        rate_at: The prune rate over time.

    Returns:
        `Method.update`.
    """

    def update(now: Snapshot) -> TopologyUpdate:
        return exchange(
            drop_score=now.params,
            grow_score=growth.score(now, now.masks),
            masks=now.masks,
            fraction=rate_at(now.step),
            key=scores.rank_of_magnitude,
        )

    return update


def train_at(
    inner: optax.GradientTransformation,
    sparsity: Any,
    distribution: Distribution,
    update: Callable[..., TopologyUpdate],
    is_update_step: Schedule,
    *,
    memory: MemoryRule | None = None,
    prunable: Prunable,
    masks: Any,
    seed: int,
) -> SparseTransformation:
    """Wraps an optimizer with a method that starts from random masks.

    Args:
        inner: The optimizer to wrap.
        sparsity: The overall sparsity, in [0, 1); None where `masks` is given.
        distribution: How it is shared out over layers.
        update: `Method.update`.
        is_update_step: `Method.is_update_step`.
        memory: `Method.memory`.
        prunable: Which leaves get a mask.
        masks: Masks to start from instead.
        seed: Seed of random masks and random growth.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If not exactly one of sparsity and masks is given, or one of the
            arguments is out of range.
    """
    check_start(sparsity, masks)
    check_distribution(distribution)
    method = Method(
        init=lambda key, params, rules: masks_by_rule(
            key, params, rules, sparsity, distribution
        ),
        update=update,
        is_update_step=is_update_step,
        memory=memory,
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
