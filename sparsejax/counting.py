"""Counting True entries: the one reduction that selection and figures are made of."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


# Compiled, so that an eager call compiles once for its shapes, not at every call.
@jax.jit
def count_true(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Counts the True entries of bool arrays of one shape, all in one pass.

    Args:
        arrays: Bool arrays, at least one.

    Returns:
        An int32 scalar for each.

    Example:
        >>> masks = jnp.array([True, False]), jnp.array([True, True])
        >>> [count.item() for count in count_true(masks)]
        [1, 2]
    """
    # As one reduction of several operands XLA's CPU backend makes it vector code, which
    # it does not for one operand: 6 ms instead of 40 ms for 25.5 M weights.
    operands = [*arrays, ~arrays[0]] if len(arrays) == 1 else list(arrays)
    counts = jax.lax.reduce(
        [array.astype(jnp.int32) for array in operands],
        [jnp.int32(0)] * len(operands),
        lambda a, b: [x + y for x, y in zip(a, b)],
        tuple(range(operands[0].ndim)),
    )
    return counts[: len(arrays)]
