"""Counting True entries: the one reduction that selection and figures are made of."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


# Compiled, so that an eager call compiles once for its shapes, not at every call.
@functools.partial(jax.jit, static_argnames="axis")
def count_true(arrays: Sequence[jax.Array], axis: int | None = None) -> list[jax.Array]:
    """Counts the True entries of bool arrays of one shape, all in one pass.

    Args:
        arrays: Bool arrays, at least one.
        axis: The axis to count along; None counts all entries.

    Returns:
        An int32 array for each, of its shape without the axis; a scalar for None.

    Example:
        >>> masks = jnp.array([True, False]), jnp.array([True, True])
        >>> [count.item() for count in count_true(masks)]
        [1, 2]
    """
    # As one reduction of several operands XLA's CPU backend makes it vector code, which
    # it does not for one operand: 6 ms instead of 40 ms for 25.5 M weights. So what is
    # False is counted beside, and must be used, or the compiler would leave it out.
    operands = [*arrays, ~arrays[0]] if len(arrays) == 1 else list(arrays)
    axes = tuple(range(operands[0].ndim)) if axis is None else (axis,)
    counts = jax.lax.reduce(
        [array.astype(jnp.int32) for array in operands],
        [jnp.int32(0)] * len(operands),
        lambda a, b: [x + y for x, y in zip(a, b)],
        axes,
    )
    if len(arrays) > 1:
        return counts
    true, false = counts
    of_all = math.prod(arrays[0].shape[i] for i in axes)
    return [(true + (of_all - false)) >> 1]
