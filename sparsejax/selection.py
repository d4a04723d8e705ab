"""The exact k largest of many scores, without sorting them.

Floats are ordered like the integers that their bits spell, once negative ones are
turned around. So the k-th largest is found by bisecting over integers: each pass counts
the scores above a threshold, and at most 32 passes for 32-bit scores (16 for 16-bit)
settle it. Distinct scores end the search sooner, as soon as a count hits k. Only counts
are reduced, so that over sharded arrays only scalars cross the network, and k may be
traced.

Equal scores at the threshold are taken in order of position (the first leaf first, row
major inside a leaf), again by bisecting: over the position up to which they are taken.

-0.0 equals 0.0. Denormals are told apart, also where arithmetic flushes them to zero.
NaN ranks below everything else, -inf included.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import SCOPES, check_choice, check_count

PyTree = Any

_INTEGER_OF_SIZE = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}
_MAX_LEAF = 2**31 - 1


def _ordered(scores: jax.Array) -> jax.Array:
    """Maps scores to signed integers of the same order."""
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        return scores
    integer = _INTEGER_OF_SIZE[scores.dtype.itemsize]
    top, bottom = jnp.iinfo(integer).max, jnp.iinfo(integer).min
    bits = jax.lax.bitcast_convert_type(scores, integer)
    # Sign and magnitude to two's complement: the larger a negative float's magnitude
    # bits, the smaller it is. -0.0 has magnitude 0 and lands on 0.
    magnitude = bits & top
    ordered = jnp.where(bits < 0, -magnitude, magnitude)
    is_nan = magnitude > jax.lax.bitcast_convert_type(
        jnp.array(jnp.inf, scores.dtype), integer
    )
    return jnp.where(is_nan, integer(bottom), ordered)


def _unordered(ordered: jax.Array, dtype: Any) -> jax.Array:
    """Turns one ordered integer back into the score it stands for."""
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return ordered
    info = jnp.iinfo(ordered.dtype)
    bits = jnp.where(ordered < 0, -ordered | info.min, ordered)
    value = jax.lax.bitcast_convert_type(bits, dtype)
    return jnp.where(ordered == info.min, jnp.array(jnp.nan, dtype), value)


def _bisect(
    first: jax.Array,
    last: jax.Array,
    enough: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Finds, for each entry, the smallest integer in [first, last] that is `enough`.

    `enough(x)` gives -1 where x is too small, 0 where x will do and no smaller one need
    be looked for, +1 where x will do but a smaller one might. `last` always does.
    """

    def unsettled(bracket: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(bracket[0] < bracket[1])

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)  # floor of the mean, no overflow
        verdict = enough(middle)
        settled = low >= high
        new_low = jnp.where(
            verdict < 0, middle + 1, jnp.where(verdict == 0, middle, low)
        )
        new_high = jnp.where(verdict < 0, high, middle)
        return jnp.where(settled, low, new_low), jnp.where(settled, high, new_high)

    return jax.lax.while_loop(unsettled, halve, (first, last))[1]


def _positions(leaf: jax.Array) -> jax.Array:
    """Numbers the entries in row-major order; no reshape, which would gather shards."""
    position = jnp.zeros(leaf.shape, jnp.int32)
    stride = 1
    for axis in reversed(range(leaf.ndim)):
        index = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis)
        position += index * jnp.int32(stride)
        stride *= leaf.shape[axis]
    return position


def _count(chosen: Sequence[jax.Array]) -> jax.Array:
    """Counts the True entries of each leaf, int32[leaves]."""
    return jnp.stack([jnp.sum(leaf, dtype=jnp.int32) for leaf in chosen])


def _threshold(
    scores: Sequence[jax.Array], among: Sequence[jax.Array], k: jax.Array
) -> jax.Array:
    """Finds a threshold above which at most k scores lie, and all but ties of the k.

    `k` has shape [leaves] for a threshold a leaf, or [] for one common threshold.
    Returns thresholds of that shape in the ordered integers.
    """
    keys_dtype = _ordered(scores[0]).dtype

    def count_above(threshold: jax.Array) -> jax.Array:
        each = jnp.broadcast_to(threshold, (len(scores),))
        counts = _count(
            [a & (_ordered(s) > each[i]) for i, (s, a) in enumerate(zip(scores, among))]
        )
        return counts if k.ndim else jnp.sum(counts, dtype=jnp.int32)

    info = jnp.iinfo(keys_dtype)
    return _bisect(
        jnp.full(k.shape, info.min, keys_dtype),
        jnp.full(k.shape, info.max, keys_dtype),
        lambda threshold: jnp.sign(k - count_above(threshold)),
    )


@jax.jit  # so that an eager call compiles once for its shapes, not at every call
def _top_k(
    scores: Sequence[jax.Array], among: Sequence[jax.Array], k: jax.Array
) -> list[jax.Array]:
    """Marks the k largest scores, by leaf (k of shape [leaves]) or of all (k of [])."""
    threshold = jnp.broadcast_to(_threshold(scores, among, k), (len(scores),))

    def above(i: int) -> jax.Array:
        return among[i] & (_ordered(scores[i]) > threshold[i])

    def tied(i: int) -> jax.Array:
        return among[i] & (_ordered(scores[i]) == threshold[i])

    leaves = range(len(scores))
    counts = _count([above(i) for i in leaves])
    if k.ndim:
        wanted = k - counts
    else:  # the ties of earlier leaves come first
        ties = _count([tied(i) for i in leaves])
        before = jnp.cumsum(ties, dtype=jnp.int32) - ties
        wanted = jnp.clip(k - jnp.sum(counts, dtype=jnp.int32) - before, 0, ties)

    def taken(last: jax.Array) -> jax.Array:
        return _count([tied(i) & (_positions(scores[i]) <= last[i]) for i in leaves])

    none = jnp.full((len(scores),), -1, jnp.int32)
    ends = jnp.array([leaf.size - 1 for leaf in scores], jnp.int32)
    last = _bisect(
        none,
        jnp.where(wanted > 0, ends, none),
        lambda position: jnp.sign(taken(position) - wanted),
    )
    return [above(i) | (tied(i) & (_positions(scores[i]) <= last[i])) for i in leaves]


def _check_scores(leaves: Sequence[jax.Array]) -> None:
    if not leaves:
        raise ValueError("scores must hold at least one array; got an empty tree.")
    for leaf in leaves:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize >= 2
        if not (is_float or jnp.issubdtype(leaf.dtype, jnp.signedinteger)):
            raise ValueError(
                f"scores must be floats of 16 bits or more, or signed integers; got "
                f"{leaf.dtype}."
            )
        if leaf.size > _MAX_LEAF:
            raise ValueError(
                f"scores must have at most {_MAX_LEAF} entries an array, as far as "
                f"positions are counted; got {leaf.size}."
            )


def _check_structure(name: str, tree: PyTree, structure: Any) -> None:
    if jax.tree.structure(tree) != structure:
        raise ValueError(
            f"{name} must be a tree like scores, of the structure {structure}; got "
            f"{jax.tree.structure(tree)}."
        )


def _common_dtype(leaves: Sequence[Any]) -> list[jax.Array]:
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    _check_scores(arrays)
    dtype = jnp.result_type(*{array.dtype for array in arrays})
    return [array.astype(dtype) for array in arrays]


def kth_largest(scores: PyTree, k: Any) -> jax.Array:
    """Finds the k-th largest entry of an array, or over all arrays of a tree.

    Args:
        scores: An array or a pytree of arrays of any shapes, of float16, bfloat16,
            float32, float64 or signed integers; mixed dtypes are compared in the
            common wider one.
        k: An int from 1 (the largest) to the number of entries; may be traced.

    Returns:
        The value, a scalar of the scores' dtype. NaN counts as the smallest; a zero is
        returned as +0.0.

    Raises:
        ValueError: If `k` is out of range or the scores have no order.

    Example:
        >>> kth_largest(jnp.array([3.0, -1.0, 7.0, 5.0]), 2).item()
        5.0
    """
    leaves = _common_dtype(jax.tree.leaves(scores))
    check_count("k", k, 1, sum(leaf.size for leaf in leaves))
    return _kth_largest(leaves, jnp.asarray(k, jnp.int32))


@jax.jit
def _kth_largest(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
    everywhere = [jnp.ones(leaf.shape, bool) for leaf in leaves]
    chosen = _top_k(leaves, everywhere, k)
    highest = jnp.iinfo(_ordered(leaves[0]).dtype).max
    least = [
        jnp.min(jnp.where(c, _ordered(s), highest), initial=highest)
        for c, s in zip(chosen, leaves)
    ]
    return _unordered(jnp.min(jnp.stack(least)), leaves[0].dtype)


def top_k_mask(
    scores: PyTree, k: Any, among: PyTree | None = None, scope: str = "global"
) -> PyTree:
    """Marks the k largest entries; ties go to the earlier position.

    Args:
        scores: An array or a pytree of arrays, as in `kth_largest`.
        k: How many to mark, at least 0; where fewer entries are allowed, all of those
            are. With `scope="global"` one int; with `scope="layer"` an int for each
            array (a pytree like `scores`) or one int for each of them. May be traced.
        among: Bool arrays like `scores`: only these entries can be marked. None allows
            all.
        scope: "global" ranks all arrays together, "layer" each array by itself.

    Returns:
        Bool arrays like `scores` with exactly k True.

    Raises:
        ValueError: If `k` is out of range, the scope is unknown, or `among` or `k` do
            not fit the scores.

    Example:
        >>> top_k_mask(jnp.array([1.0, 4.0, 4.0, 9.0]), 2).tolist()
        [False, True, False, True]
    """
    check_choice("scope", scope, SCOPES)
    structure: Any = jax.tree.structure(scores)
    leaves = _common_dtype(jax.tree.leaves(scores))
    if among is None:
        allowed = [jnp.ones(leaf.shape, bool) for leaf in leaves]
    else:
        _check_structure("among", among, structure)
        allowed = jax.tree.leaves(among)
    for leaf, allow in zip(leaves, allowed):
        if allow.shape != leaf.shape or allow.dtype != bool:
            raise ValueError(
                f"among must hold bool arrays shaped like scores; got {allow.dtype}"
                f"{list(allow.shape)} for scores of shape {list(leaf.shape)}."
            )
    if scope == "global":
        check_count("k", k, 0, sum(leaf.size for leaf in leaves))
        amounts = jnp.asarray(k, jnp.int32)
    else:
        each = [k] * len(leaves)
        if not jax.tree_util.all_leaves([k]):
            _check_structure("k", k, structure)
            each = jax.tree.leaves(k)
        for leaf, amount in zip(leaves, each):
            check_count("k", amount, 0, leaf.size)
        amounts = jnp.stack([jnp.asarray(amount, jnp.int32) for amount in each])
    return structure.unflatten(_top_k(leaves, allowed, amounts))
