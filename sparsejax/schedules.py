"""Sparsity and prune rate as functions of the step, and the steps that change masks.

A schedule is any function from a step to a number, as in optax. Those made here compute
in float64 when the step is a Python or NumPy integer, and in JAX when it is traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import (
    Check,
    check_fraction,
    check_range,
    check_setting,
    check_sparsity,
    check_step,
    is_traced,
)

Schedule = Callable[[Any], Any]
Setting = float | Schedule


def as_schedule(
    name: str, setting: Any, check: Check, schedule_of: Callable[[Any], Schedule]
) -> Schedule:
    """Returns a schedule as it is, and a method's own schedule for a number.

    Args:
        name: The argument's name, for the message.
        setting: A number, or a function of the step, as optax's learning rate.
        check: What a number must pass.
        schedule_of: Returns the method's schedule for a number.

    Returns:
        The schedule.

    Raises:
        ValueError: If the setting is neither, or the number does not pass.
    """
    check_setting(name, setting, check)
    return setting if callable(setting) else schedule_of(setting)


def _progress(step: Any, begin_step: int, end_step: int) -> Any:
    """The share of the way from begin to end, clipped to [0, 1]."""
    numpy = jnp if isinstance(step, jax.Array) else np
    return numpy.clip((step - begin_step) / (end_step - begin_step), 0.0, 1.0)


def _check_span(initial: Any, final: Any, begin_step: int, end_step: int) -> None:
    check_sparsity("initial_sparsity", initial)
    check_sparsity("final_sparsity", final)
    if not (is_traced(initial) or is_traced(final)) and initial > final:
        raise ValueError(
            "initial_sparsity must not be above final_sparsity; got "
            f"{initial} and {final}."
        )
    check_step("begin_step", begin_step, 0)
    check_step("end_step", end_step, begin_step + 1, f", after begin_step={begin_step}")


def cubic_sparsity(
    initial_sparsity: float, final_sparsity: float, begin_step: int, end_step: int
) -> Schedule:
    """Sparsity that rises steeply at first and levels off (Zhu & Gupta 2017).

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_end - t_0))^3, constant outside.

    The official GraNet code stops one update short of s_f; this reaches it at
    `end_step`.

    Args:
        initial_sparsity: s_i in [0, 1).
        final_sparsity: s_f in [0, 1), at least s_i.
        begin_step: t_0, at least 0.
        end_step: t_end, after `begin_step`.

    Returns:
        The schedule, step -> sparsity.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = cubic_sparsity(0.0, 0.8, begin_step=0, end_step=100)
        >>> [round(float(schedule(t)), 3) for t in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]
    """
    _check_span(initial_sparsity, final_sparsity, begin_step, end_step)

    def schedule(step: Any) -> Any:
        left = 1 - _progress(step, begin_step, end_step)
        return final_sparsity + (initial_sparsity - final_sparsity) * left**3

    return schedule


def linear_sparsity(
    initial_sparsity: float, final_sparsity: float, begin_step: int, end_step: int
) -> Schedule:
    """Sparsity that rises at a constant rate.

    Args:
        initial_sparsity: In [0, 1).
        final_sparsity: In [0, 1), at least the initial one.
        begin_step: The step up to which it is the initial one.
        end_step: The step from which it is the final one.

    Returns:
        The schedule, step -> sparsity.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> float(linear_sparsity(0.0, 0.8, 0, 100)(25))
        0.2
    """
    _check_span(initial_sparsity, final_sparsity, begin_step, end_step)

    def schedule(step: Any) -> Any:
        done = _progress(step, begin_step, end_step)
        return initial_sparsity + (final_sparsity - initial_sparsity) * done

    return schedule


def constant_prune_rate(prune_rate: float) -> Schedule:
    """The same prune rate at every update, as in SET.

    Args:
        prune_rate: The fraction of active weights to drop and grow, in (0, 1).

    Returns:
        The schedule, step -> prune rate.

    Raises:
        ValueError: If the rate is outside (0, 1).

    Example:
        >>> constant_prune_rate(0.3)(1000)
        0.3
    """
    check_fraction("prune_rate", prune_rate)
    return lambda step: prune_rate


def cosine_prune_rate(
    prune_rate: float, total_steps: int, final_prune_rate: float = 0.0
) -> Schedule:
    """Prune rate that decays along half a cosine.

    r(t) = r_f + (r_0 - r_f) (1 + cos(pi t / T)) / 2, constant from T on.

    RigL decays to 0 at 75 % of the run; GraNet to 0.005 over the whole run.

    Args:
        prune_rate: r_0, in (0, 1).
        total_steps: T, at least 1.
        final_prune_rate: r_f, in [0, 1); where r_0 is below it the rate stays at r_0.

    Returns:
        The schedule, step -> prune rate.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = cosine_prune_rate(0.5, 100)
        >>> [round(float(schedule(t)), 3) for t in (0, 50, 100)]
        [0.5, 0.25, 0.0]
    """
    check_fraction("prune_rate", prune_rate)
    check_step("total_steps", total_steps, 1)
    check_range("final_prune_rate", final_prune_rate, lambda r: 0 <= r < 1, "in [0, 1)")
    known = not (is_traced(prune_rate) or is_traced(final_prune_rate))
    lowest = (min if known else jnp.minimum)(final_prune_rate, prune_rate)

    def schedule(step: Any) -> Any:
        cos = jnp.cos if isinstance(step, jax.Array) else np.cos
        swing = (1 + cos(np.pi * _progress(step, 0, total_steps))) / 2
        return lowest + (prune_rate - lowest) * swing

    return schedule


def linear_prune_rate(prune_rate: float, total_steps: int) -> Schedule:
    """Prune rate that decays to 0 at a constant rate.

    Args:
        prune_rate: The rate at step 0, in (0, 1).
        total_steps: The step from which it is 0.

    Returns:
        The schedule, step -> prune rate.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> float(linear_prune_rate(0.5, 100)(50))
        0.25
    """
    check_fraction("prune_rate", prune_rate)
    check_step("total_steps", total_steps, 1)
    return lambda step: prune_rate * (1 - _progress(step, 0, total_steps))


def every(
    update_interval: int, begin_step: int = 0, end_step: int | None = None
) -> Schedule:
    """The steps that change masks: each `update_interval` after the begin, and the end.

    Args:
        update_interval: Steps between updates, at least 1.
        begin_step: Updates come after it, never at it: there is none at step 0.
        end_step: The last update, also where it is not a multiple of the interval; None
            for no end.

    Returns:
        A function step -> bool.

    Raises:
        ValueError: If the interval is below 1, or the end not after the begin.

    Example:
        >>> is_update_step = every(10, end_step=25)
        >>> [t for t in range(40) if is_update_step(t)]
        [10, 20, 25]
    """
    check_step("update_interval", update_interval, 1)
    check_step("begin_step", begin_step, 0)
    if end_step is not None:
        check_step("end_step", end_step, begin_step + 1, f", after {begin_step=}")

    def is_update_step(step: Any) -> Any:
        due = (step > begin_step) & ((step - begin_step) % update_interval == 0)
        if end_step is None:
            return due
        return (due & (step < end_step)) | (step == end_step)

    return is_update_step
