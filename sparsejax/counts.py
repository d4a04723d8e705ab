"""How many weights a sparsity, a fraction or a share stands for, exact to the unit.

float32 has 24 bits: `0.9 * n` is already wrong by a unit at n of tens of millions. So a
few scalars are computed in 64 bits, whatever precision the program runs at. A layer
has fewer than 2^31 weights, so that its counts are int32; all layers together may have
more.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import is_traced

PyTree = Any

MOST = 2**31 - 1  # what int32 counts


def wide() -> Any:
    """Opens a scope in which scalars have 64 bits; no such value may leave it.

    Returns:
        A context manager.

    Example:
        >>> with wide():
        ...     print(jnp.asarray(2**40).dtype)
        int64
    """
    return jax.enable_x64(True)


# Compiled, so that an eager call compiles once for its shapes, not at every call.
@jax.jit
def count_each(marks: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Counts the True entries of bool arrays, leaf by leaf.

    Args:
        marks: For each of L leaves, P bool arrays of its shape.

    Returns:
        int32 [L, P].

    Example:
        >>> count_each([[jnp.array([True, False]), jnp.array([True, True])]]).tolist()
        [[1, 2]]
    """
    is_single = len(marks[0]) == 1
    counts = []
    for arrays in marks:
        # XLA's CPU backend vectorizes a reduction of several operands, but not one of
        # a single one: 6 ms instead of 40 ms for 25.5 M weights. So what is False is
        # counted too, and must be used, or the compiler would leave it out.
        parts = [arrays[0], ~arrays[0]] if is_single else list(arrays)
        zeros, axes = [jnp.int32(0)] * len(parts), tuple(range(parts[0].ndim))
        counts.append(jax.lax.reduce(jax.tree.map(jnp.int32, parts), zeros, _add, axes))
    by_part = list(map(jnp.stack, zip(*counts)))
    if is_single:
        true, false = (count.astype(jnp.uint32) for count in by_part)
        sizes = np.array([array.size for (array,) in marks], np.uint32)
        # Their sum may be 2^31 or more.
        by_part = [((true + (sizes - false)) >> 1).astype(jnp.int32)]
    return jnp.stack(by_part, axis=1)


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return jax.tree.map(jax.lax.add, a, b)


def count_all(masks: Sequence[Any]) -> Any:
    """Counts the True entries of bool arrays together, exactly at any size.

    Args:
        masks: Bool arrays.

    Returns:
        An int32 scalar where that is wide enough for all entries. Otherwise NumPy's
        int64, or, where the masks are traced, uint32 up to 2^32 entries and float32,
        rounded to 24 bits, beyond.
    """
    size = sum(math.prod(mask.shape) for mask in masks)
    parts = [part for mask in masks for part in _countable(mask)]
    counts = count_each([[part] for part in parts])[:, 0]
    if size <= MOST:
        return jnp.sum(counts, dtype=jnp.int32)
    if not is_traced(counts):
        return np.sum(np.asarray(counts), dtype=np.int64)
    return total_of(counts, size)


def _countable(mask: jax.Array) -> list[jax.Array]:
    """Parts of a mask that int32 counts."""
    if math.prod(mask.shape) <= MOST:
        return [mask]
    return [part for row in mask for part in _countable(row)]


def total_of(counts: jax.Array, size: int) -> jax.Array:
    """Adds up int32 counts, in the narrowest dtype that holds the number of weights.

    Args:
        counts: int32 [L].
        size: What the sum cannot exceed.

    Returns:
        A scalar: int32, uint32 above 2^31 - 1, float32 from 2^32 on.
    """
    if size <= MOST:
        return jnp.sum(counts, dtype=jnp.int32)
    with wide():
        total = jnp.sum(counts, dtype=jnp.int64)
        return total.astype(jnp.uint32 if size < 2**32 else jnp.float32)


def value_at(setting: Any, step: Any) -> jax.Array:
    """Evaluates a setting at a step; call it in a `wide` scope.

    Args:
        setting: A number, or a function of the step, as optax's learning rate.
        step: The step, an int scalar.

    Returns:
        A scalar: float64, or the float32 that the setting is.
    """
    if callable(setting):
        setting = setting(jnp.asarray(step, jnp.int64))
    value = jnp.asarray(jax.lax.stop_gradient(setting))
    return value if value.dtype == jnp.float32 else value.astype(jnp.float64)


def kept_of(sparsity: Any, size: Any) -> jax.Array:
    """Counts the weights that a sparsity keeps; call it in a `wide` scope.

    Args:
        sparsity: A scalar; what is below 0 counts as 0, and from 1 on one weight stays.
        size: The number of weights, an int or an int64 array.

    Returns:
        int64: round((1 - sparsity) * size), half to even.
    """
    kept = jnp.rint((1 - jnp.maximum(jnp.asarray(sparsity, jnp.float64), 0.0)) * size)
    return jnp.where(sparsity < 1, kept, 1).astype(jnp.int64)


def dropped_of(fraction: Any, active: jax.Array) -> jax.Array:
    """Counts the weights that a fraction drops; call it in a `wide` scope.

    Args:
        fraction: A number or array; what is outside [0, 1] is clipped. A product of a
            float32 within 2^-23 of an integer, in relation to it, counts as that
            integer, so that 0.3 of 50 is 15.
        active: Integers, the numbers of active weights.

    Returns:
        int64: ceil(fraction * active).
    """
    is_single = getattr(fraction, "dtype", np.float64) == np.float32
    product = jnp.clip(jnp.asarray(fraction, jnp.float64), 0.0, 1.0) * active
    whole = jnp.rint(product)
    is_whole = is_single & (jnp.abs(product - whole) <= product * 2.0**-23)
    return jnp.where(is_whole, whole, jnp.ceil(product)).astype(jnp.int64)


def keep_count(sparsity: Any, size: Any) -> Any:
    """Counts the weights that stay active: round((1 - sparsity) * size), half to even.

    Args:
        sparsity: A number or array in [0, 1).
        size: The number of prunable weights, an int or an array of ints.

    Returns:
        The counts: NumPy int64, or JAX int32 where `sparsity` is traced.

    Raises:
        ValueError: If `sparsity` is traced and int32 does not count the weights.

    Example:
        >>> int(keep_count(0.9, 25_502_912))
        2550291
    """
    if not is_traced(sparsity):
        density = 1 - np.asarray(sparsity, np.float64)
        return np.rint(density * np.asarray(size)).astype(np.int64)
    if not is_traced(size) and np.max(size) > MOST:
        raise ValueError(
            f"sparsity must be known now to count {size} weights, more than int32 "
            "holds; got a traced value."
        )
    with wide():
        return kept_of(sparsity, size).astype(jnp.int32)


def drop_count(fraction: Any, active: Any) -> jax.Array:
    """Counts the weights that a prune by fraction drops: ceil(fraction * active).

    Args:
        fraction: A number in [0, 1]. A Python float gives what
            `math.ceil(fraction * active)` gives; see `dropped_of` for float32 arrays.
        active: int32 array or int, the number of active weights.

    Returns:
        The counts, int32.

    Example:
        >>> drop_count(0.3, 50).item(), drop_count(0.3, 51).item()
        (15, 16)
    """
    with wide():
        return dropped_of(fraction, active).astype(jnp.int32)


def apportion(total: Any, shares: PyTree, room: PyTree) -> PyTree:
    """Distributes weights over layers by largest remainder, within each layer's room.

    Each layer gets its share, rounded down. What is still missing goes one by one to
    the largest remainders, of equal ones to the earlier layer. A layer whose share
    exceeds its room gets its room, and the others divide the rest in the same
    proportions; where none of them has a share, in proportion to their room.

    Args:
        total: The number to distribute, an int or an int32 scalar; may be traced.
        shares: A tree of scalars, one a layer, in any unit; what is negative or not
            finite counts as 0.
        room: A tree like it of ints, the most that each layer can take.

    Returns:
        A tree like `room` of int32 scalars that sum to `total`, or to all of the room
        where that is less.

    Example:
        >>> shares, room = {"a": 5.0, "b": 2.0, "c": 2.0}, {"a": 4, "b": 9, "c": 9}
        >>> jax.tree.map(int, apportion(11, shares, room))
        {'a': 4, 'b': 4, 'c': 3}
    """
    with wide():
        most = jnp.stack([jnp.asarray(r, jnp.int64) for r in jax.tree.leaves(room)])
        wanted = jnp.stack(
            [jnp.asarray(s, jnp.float64) for s in jax.tree.leaves(shares)]
        )
        wanted = jnp.where(jnp.isfinite(wanted) & (wanted > 0), wanted, 0)
        total = jnp.minimum(jnp.asarray(total, jnp.int64), jnp.sum(most))

        def quotas(full: jax.Array) -> jax.Array:
            """The shares of layers that are not full, as fractions of weights."""
            parts = jnp.where(full, 0, wanted)
            parts = jnp.where(jnp.any(parts > 0), parts, jnp.where(full, 0, most))
            rest = total - jnp.sum(jnp.where(full, most, 0))
            tiny = jnp.finfo(jnp.float64).tiny
            return rest * (parts / jnp.maximum(jnp.sum(parts), tiny))

        def fill(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            full, _ = state
            now_full = full | (quotas(full) >= most)
            return now_full, jnp.any(now_full != full)

        start = (jnp.zeros(most.shape, bool), jnp.bool_(True))
        full, _ = jax.lax.while_loop(lambda state: state[1], fill, start)
        quota = quotas(full)
        whole = jnp.floor(quota)
        counts = jnp.where(full, most, whole.astype(jnp.int64))
        # Remainders closer than this are equal: shares often come from float32 sums.
        rest = jnp.where(full, -1, jnp.round((quota - whole) * 2**10))
        rank = jnp.argsort(jnp.argsort(-rest, stable=True))
        counts += (rank < total - jnp.sum(counts)) & ~full
        each = [counts[i].astype(jnp.int32) for i in range(len(most))]
    return jax.tree.unflatten(jax.tree.structure(room), each)
