"""Refusals shared by all modules: one sentence, the argument, the value, what may be.

Values that are traced (inside `jax.jit`, `jax.vmap`, ...) cannot be read: of those only
shape and dtype are checked.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SCOPES = ("global", "layer")


class EmptyLayerWarning(UserWarning):
    """Warns that masks leave layers without any active weight.

    Such a network does not learn, unless signals pass around the layer. To refuse it:
    `warnings.simplefilter("error", sparsejax.EmptyLayerWarning)`.
    """


Check = Callable[[str, Any], None]


def is_traced(value: Any) -> bool:
    """Returns whether a value is only known when the compiled program runs.

    Args:
        value: Any object.

    Returns:
        True for a JAX tracer, False for everything that can be read now.
    """
    return isinstance(value, jax.core.Tracer)


def check_number(name: str, value: Any, allowed: str = "a real number") -> None:
    """Raises unless a value is one real number.

    Args:
        name: The argument's name, for the message.
        value: The value got.
        allowed: What is allowed, for the message.

    Raises:
        ValueError: If it is a string, a bool, None, a list or an array of several.
    """
    is_array = isinstance(value, (jax.Array, np.ndarray, np.generic))
    if is_array:
        is_real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(
            value.dtype, jnp.integer
        )
        if np.ndim(value) == 0 and is_real:
            return
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return
    raise ValueError(f"{name} must be {allowed}; got {value!r}.")


def check_range(
    name: str, value: Any, is_allowed: Callable[[Any], Any], allowed: str
) -> None:
    """Raises unless a value is one real number in a range.

    Args:
        name: The argument's name, for the message.
        value: The value got; a traced one is not compared.
        is_allowed: Returns whether a number is in the range; False for NaN.
        allowed: The range in words, for the message.

    Raises:
        ValueError: If the value is no number or outside the range.
    """
    check_number(name, value, allowed)
    # As NumPy: inside jit, a comparison of JAX arrays is traced even of known ones.
    if not is_traced(value) and not is_allowed(np.asarray(value)):
        raise ValueError(f"{name} must be {allowed}; got {value}.")


def check_sparsity(name: str, value: Any) -> None:
    """Raises unless a sparsity is in [0, 1).

    Args:
        name: The argument's name, for the message.
        value: The sparsity got.

    Raises:
        ValueError: If the value is no number in [0, 1).
    """
    check_range(
        name,
        value,
        lambda s: 0 <= s < 1,
        "in [0, 1), the fraction of prunable weights that are zero",
    )


def check_fraction(name: str, value: Any) -> None:
    """Raises unless a prune rate or fraction is in (0, 1).

    Args:
        name: The argument's name, for the message.
        value: The fraction got.

    Raises:
        ValueError: If the value is no number in (0, 1).
    """
    check_range(name, value, lambda f: 0 < f < 1, "in (0, 1), both excluded")


def check_setting(name: str, value: Any, check: Check = check_number) -> None:
    """Raises unless a setting is a number, or a function of the step that returns one.

    Args:
        name: The argument's name, for the message.
        value: The setting got.
        check: What a number must pass; what a function returns is clipped as it runs.

    Raises:
        ValueError: If the number does not pass, or the function cannot be compiled or
            returns no scalar.
    """
    if not callable(value):
        return check(name, value)
    try:
        found = jax.eval_shape(value, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name} must be a number, or a function of the step that jax.jit compiles "
            f"and that returns one, such as an optax schedule; it raises: {reason}"
        ) from error
    is_scalar = getattr(found, "shape", None) == () and jnp.issubdtype(
        found.dtype, jnp.number
    )
    if not is_scalar:
        raise ValueError(
            f"{name} must be a number, or a function of the step that returns one; it "
            f"returns {found}."
        )
    return None


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises unless a name is one of those allowed.

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
    """Raises unless a number of steps is an integer of at least `minimum`.

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
    """Raises unless a number of weights is one integer within its bounds.

    Args:
        name: The argument's name, for the message.
        value: The number got; of a traced one only shape and dtype are checked.
        minimum: The least value allowed.
        maximum: The number of weights there are.

    Raises:
        ValueError: If the value is not one integer in [minimum, maximum].
    """
    known = None if is_traced(value) else np.asarray(value)
    dtype = value.dtype if known is None else known.dtype
    is_integer = np.ndim(value) == 0 and jnp.issubdtype(dtype, jnp.integer)
    if not is_integer or not (known is None or minimum <= known <= maximum):
        raise ValueError(
            f"{name} must be one integer between {minimum} and the number of weights, "
            f"{maximum}; got {value!r}."
        )


def check_within(name: str, step: Any, total_steps: Any, minimum: int = 0) -> None:
    """Raises unless a run of `total_steps` reaches a step.

    Args:
        name: The argument's name, for the message.
        step: The step got.
        total_steps: The length of the run; its last step is `total_steps - 1`.
        minimum: The least step allowed.

    Raises:
        ValueError: If the step is not below `total_steps`, or that is no integer.
    """
    check_step("total_steps", total_steps, 1)
    check_step(name, step, minimum)
    if step >= total_steps:
        raise ValueError(
            f"{name} must be below total_steps={total_steps}, or the run ends before "
            f"it; got {step}."
        )


def check_seed(seed: Any) -> None:
    """Raises unless a seed is an integer, known now or traced.

    Args:
        seed: The seed got.

    Raises:
        ValueError: If it is none.
    """
    is_array = isinstance(seed, (jax.Array, np.generic)) and np.ndim(seed) == 0
    if is_array and jnp.issubdtype(seed.dtype, jnp.integer):
        return
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer; got {seed!r}.")
