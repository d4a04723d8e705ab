"""Where methods start, and until when they change masks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import (
    check_sparsity,
    check_step,
    check_within,
    is_traced,
)
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import counts_by_rule, masks_by_rule
from sparsejax.schedules import Schedule, every
from sparsejax.trees import map_masked

PyTree = Any
First = Callable[[jax.Array, PyTree, PyTree], PyTree]

# The final sparsity where none is given. Where every layer has its own, only the shape
# of a curve to it counts.
NOMINAL = 0.9


def dense_start(key: jax.Array, params: PyTree, rules: PyTree) -> PyTree:
    """Starts with every weight active; for `Method.first`.

    Args:
        key: A PRNG key, not used.
        params: The parameters, where a leaf is a layer.
        rules: A `LayerRule` at each prunable leaf.

    Returns:
        A mask tree of ones.
    """
    del key
    return map_masked(lambda rule, leaf: jnp.ones(leaf.shape, bool), rules, params)


def random_start(sparsity: float | None, distribution: Distribution = "erk") -> First:
    """Starts with random masks; for `Method.first`.

    Args:
        sparsity: Overall sparsity in [0, 1); None where `prunable` fixes that of every
            layer.
        distribution: Its distribution over layers; see `sparsejax.layer_counts`.

    Returns:
        A function (key, params, rules) -> masks.

    Raises:
        ValueError: If an argument is out of range.
    """
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
    check_distribution(distribution)
    return lambda key, params, rules: masks_by_rule(
        key, params, rules, sparsity, distribution
    )


def start_at(
    sparsity: float | None, distribution: Distribution, masks: Any, prunable: Any
) -> First:
    """Starts at constant sparsity, known from exactly one of sparsity and masks.

    Args:
        sparsity: Overall sparsity in [0, 1), or None.
        distribution: Its distribution over layers.
        masks: Masks to start from, or None.
        prunable: What may fix a sparsity for every layer.

    Returns:
        A function (key, params, rules) -> masks.

    Raises:
        ValueError: If both or none are given, or one is out of range.
    """
    unknown = sparsity is None and masks is None and prunable is None
    if unknown or not (sparsity is None or masks is None):
        given = "neither" if unknown else "both"
        raise ValueError(
            "exactly one of sparsity and masks must be given to start, or a sparsity "
            f"for every layer by prunable; got {given}."
        )
    first = random_start(sparsity, distribution)
    return first if masks is None else dense_start  # which checks nothing


def gradual_start(
    initial_sparsity: Any,
    final_sparsity: Any,
    distribution: Distribution,
    default: float | None = None,
) -> First:
    """Starts gradual pruning, once its end is known to be reachable.

    Args:
        initial_sparsity: s_i: 0 starts dense, above it with random masks, layers of a
            sparsity of their own at the same share of theirs.
        final_sparsity: s_f; None where `prunable` fixes the sparsity of every layer.
        distribution: Of s_i over layers.
        default: s_f where None is given and not every layer has its own.

    Returns:
        A function (key, params, rules) -> masks.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_distribution(distribution)
    check_sparsity("initial_sparsity", initial_sparsity)

    def first(key: jax.Array, params: PyTree, rules: PyTree) -> PyTree:
        has_own = all(rule.sparsity is not None for rule in jax.tree.leaves(rules))
        end = default if final_sparsity is None and not has_own else final_sparsity
        # What a schedule ends at may be out of range: it is clipped as it runs.
        if end is None or (not is_traced(end) and 0 <= end < 1):
            counts_by_rule(params, rules, end, "uniform")  # raises if out of reach
        if not is_traced(initial_sparsity) and initial_sparsity == 0:
            return dense_start(key, params, rules)

        def scaled(rule: Any) -> Any:
            if rule.sparsity is None:
                return rule
            own = rule.sparsity * initial_sparsity / (NOMINAL if end is None else end)
            return dataclasses.replace(rule, sparsity=own)

        overall = None if has_own else initial_sparsity
        start = map_masked(scaled, rules)
        return masks_by_rule(key, params, start, overall, distribution)

    return first


def stop_at(stop_step: int | None, default: int) -> int:
    """Returns the last step at which masks change.

    Args:
        stop_step: The step, or None.
        default: What None means, at least 1.

    Returns:
        The step.

    Raises:
        ValueError: If it is no integer of at least 1.
    """
    if stop_step is None:
        return max(default, 1)
    check_step("stop_step", stop_step, 1)
    return stop_step


def until(
    update_interval: int, begin_step: int, total_steps: int, stop_step: int | None
) -> Schedule:
    """Returns whether a step is one of begin_step + i * update_interval, to the end.

    Args:
        update_interval: Steps between updates, at least 1.
        begin_step: Updates come after it.
        total_steps: The length of the run.
        stop_step: The last step at which masks change; None for the whole run.

    Returns:
        A function step -> bool.

    Raises:
        ValueError: If an argument is out of range, or a run has no update.
    """
    check_within("begin_step", begin_step, total_steps)
    check_within("update_interval", update_interval, total_steps, 1)
    end = stop_at(stop_step, total_steps)
    on_grid = every(update_interval, begin_step)
    return lambda step: on_grid(step) & (step <= end)
