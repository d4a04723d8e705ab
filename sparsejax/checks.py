"""Refusals shared by all modules: one sentence, the argument, the value, what may be.

Values that are traced (inside `jax.jit`, `jax.vmap`, ...) cannot be read and pass
unchecked; everything concrete is checked.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SCOPES = ("global", "layer")


def is_traced(value: Any) -> bool:
    """Tells whether a value is only known when the compiled program runs.

    Args:
        value: Any object.

    Returns:
        True for a JAX tracer, False for everything that can be read now.
    """
    return isinstance(value, jax.core.Tracer)


def check_sparsity(name: str, value: Any) -> None:
    """Refuses a sparsity outside [0, 1).

    Args:
        name: The argument's name, for the message.
        value: The sparsity got, or an array of sparsities.

    Raises:
        ValueError: If any value is outside [0, 1) or NaN.
    """
    if is_traced(value):
        return
    values = np.asarray(value, np.float64)
    if not np.all((values >= 0) & (values < 1)):
        raise ValueError(
            f"{name} must be in [0, 1), the fraction of prunable weights that are "
            f"zero; got {value}."
        )


def check_fraction(name: str, value: Any) -> None:
    """Refuses a prune rate or fraction outside (0, 1).

    Args:
        name: The argument's name, for the message.
        value: The fraction got.

    Raises:
        ValueError: If the value is outside (0, 1) or NaN.
    """
    if not is_traced(value) and not 0 < np.asarray(value) < 1:
        raise ValueError(f"{name} must be in (0, 1), both excluded; got {value}.")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuses a name that is not one of those allowed.

    Args:
        name: The argument's name, for the message.
        value: The choice got.
        allowed: The choices that exist.

    Raises:
        ValueError: If the choice does not exist.
    """
    choices = tuple(allowed)
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_step(name: str, value: Any, minimum: int, because: str = "") -> None:
    """Refuses a step or a number of steps that is not an integer of at least `minimum`.

    Args:
        name: The argument's name, for the message.
        value: The number of steps got.
        minimum: The least value allowed.
        because: Where the minimum comes from, appended to the message.

    Raises:
        ValueError: If the value is not an integer, or below the minimum.
    """
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise ValueError(
            f"{name} must be an integer of at least {minimum}{because}; got {value!r}."
        )


def check_count(name: str, value: Any, minimum: int, maximum: int) -> None:
    """Refuses a number of weights that is not one integer within its bounds.

    Args:
        name: The argument's name, for the message.
        value: The number got; of a traced one only shape and dtype are checked.
        minimum: The least value allowed.
        maximum: The number of weights there are.

    Raises:
        ValueError: If the value is not one integer in [minimum, maximum].
    """
    # As NumPy: inside jit, a comparison of JAX arrays is traced even of known ones.
    known = None if is_traced(value) else np.asarray(value)
    dtype = value.dtype if known is None else known.dtype
    is_integer = np.ndim(value) == 0 and jnp.issubdtype(dtype, jnp.integer)
    if not is_integer or not (known is None or minimum <= known <= maximum):
        raise ValueError(
            f"{name} must be one integer between {minimum} and the number of weights, "
            f"{maximum}; got {value!r}."
        )


def check_start(sparsity: Any, masks: Any) -> None:
    """Refuses a start that is not told by exactly one of a sparsity and masks.

    Args:
        sparsity: The sparsity got, or None.
        masks: The masks got, or None.

    Raises:
        ValueError: If both or neither are given, or the sparsity is outside [0, 1).
    """
    if (sparsity is None) == (masks is None):
        given = "neither" if masks is None else "both"
        raise ValueError(
            f"exactly one of sparsity and masks must be given to start; got {given}."
        )
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)


def check_within(name: str, step: Any, total_steps: int) -> None:
    """Refuses a step that a run of `total_steps` never reaches.

    Args:
        name: The argument's name, for the message.
        step: The step got.
        total_steps: The length of the run; its last step is `total_steps - 1`.

    Raises:
        ValueError: If the step is not below `total_steps`, or that is no integer.
    """
    check_step("total_steps", total_steps, 1)
    if step >= total_steps:
        raise ValueError(
            f"{name} must be below total_steps={total_steps}, or the run ends before "
            f"it; got {step}."
        )


def check_stop(stop_step: Any) -> None:
    """Refuses a stop_step that is neither None nor an integer of at least 1.

    Args:
        stop_step: The last step at which masks change.

    Raises:
        ValueError: If it is neither.
    """
    if stop_step is not None:
        check_step("stop_step", stop_step, 1)
