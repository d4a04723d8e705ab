"""The exact k largest of many scores, without sorting them.

Floats are ordered like the integers that their bits spell, once negative ones are
turned around. So the k-th largest is found by narrowing a bracket of integers: a pass
over the scores counts those above three points of it, which leaves a quarter, and 16
passes settle 32-bit scores (8 settle 16-bit ones). Distinct scores end the search
sooner, as soon as a count hits k. Only counts are reduced, so that over sharded arrays
only scalars cross the network, and k may be traced.

Equal scores at the threshold are taken in order of position (the first leaf first, row
major inside a leaf): once the score is settled, the search goes on over positions.

-0.0 equals 0.0. Denormals are told apart, also where arithmetic flushes them to zero.
NaN ranks below everything else, -inf included.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax.checks import SCOPES, check_choice, check_count
from sparsejax.layouts import Layout, layout_of

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


# Points of a bracket that one pass counts at. On a CPU reading the scores costs more
# than comparing them with three points, but less than with seven.
_POINTS = 3


def _interior(low: jax.Array, high: jax.Array) -> jax.Array:
    """Divides brackets in four: three rising points of [low, high), or low itself."""
    # As unsigned integers: high - low can be more than a signed one holds.
    span = (high - low).astype(f"uint{8 * low.dtype.itemsize}")[None]
    parts = _POINTS + 1
    j = jnp.arange(1, parts, dtype=span.dtype).reshape(_POINTS, *[1] * low.ndim)
    return low[None] + (span // parts * j + span % parts * j // parts).astype(low.dtype)


Points = Callable[[jax.Array], jax.Array]
_Search = tuple[jax.Array, jax.Array, jax.Array]


def _narrow(
    low: jax.Array, high: jax.Array, k: jax.Array, count: Points
) -> tuple[jax.Array, jax.Array]:
    """Finds points of [low, high] with at most k: any with k, or else the smallest.

    `count` gives the counts at points [_POINTS, *k.shape]; they fall as points rise and
    are 0 at `high`. Returns the points and the counts there, of k's shape.
    """

    def is_open(low: jax.Array, high: jax.Array, found: jax.Array) -> jax.Array:
        return (low < high) & (found != k)

    def step(state: _Search) -> _Search:
        low, high, found = state
        points = _interior(low, high)
        counts = count(points)
        searched = is_open(*state)
        for point, here in zip(points, counts):
            low = jnp.where(searched & (here > k), jnp.maximum(low, point + 1), low)
        for point, here in reversed(list(zip(points, counts))):
            enough = searched & (here <= k)
            high, found = jnp.where(enough, point, high), jnp.where(enough, here, found)
        return low, high, found

    start = (low, high, jnp.zeros(k.shape, jnp.int32))
    _, high, found = jax.lax.while_loop(lambda s: jnp.any(is_open(*s)), step, start)
    return high, found


Key = Callable[[jax.Array], jax.Array] | None
Arrays = Sequence[jax.Array]


class _Ranking(NamedTuple):
    """Packed scores, and among which of them the largest are looked for.

    Points are ordered keys, [P] of all leaves together or [P, leaves] of each of them.
    """

    layout: Layout
    scores: Arrays
    among: Arrays
    key: Key

    def _keys(self, array: jax.Array) -> jax.Array:
        return _ordered(array if self.key is None else self.key(array))

    def _spread(self, points: jax.Array) -> list[jax.Array]:
        by_leaf = points if points.ndim == 2 else points[:, None]
        shape = (len(points), len(self.layout.sizes))
        return self.layout.spread(jnp.broadcast_to(by_leaf, shape))

    def above(self, points: jax.Array) -> list[list[jax.Array]]:
        """Marks the scores above each point."""
        return [
            [allow & (self._keys(array) > point) for point in here]
            for array, allow, here in zip(self.scores, self.among, self._spread(points))
        ]

    def equal(self, point: jax.Array) -> list[jax.Array]:
        """Marks the scores at one point."""
        points = self._spread(point[None])
        return [
            allow & (self._keys(array) == here[0])
            for array, allow, here in zip(self.scores, self.among, points)
        ]

    def end(self, k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Finds where the k largest end.

        Returns the key of the last one, of k's shape, and int32 counts [leaves]: of the
        scores above it, and how many of those equal to it are among the k.
        """

        def count(points: jax.Array) -> jax.Array:
            # What does not depend on the points would be computed before the loop and
            # stored: the keys, as large as the weights. In a pass they cost nothing
            # beside reading the scores.
            now, points = jax.lax.optimization_barrier((self.scores, points))
            counts = self.layout.count(self._replace(scores=now).above(points))
            return counts if k.ndim else jnp.sum(counts, axis=1, dtype=jnp.int32)

        info = jnp.iinfo(jax.eval_shape(self._keys, self.scores[0]).dtype)
        lowest = jnp.full(k.shape, info.min, info.dtype)
        point, found = _narrow(lowest, jnp.full_like(lowest, info.max), k, count)
        if k.ndim:
            return point, found, k - found
        marks = zip(self.above(point[None]), self.equal(point))
        above, equal = self.layout.count([[*higher, level] for higher, level in marks])
        # The first leaves take theirs first.
        before = jnp.cumsum(equal) - equal
        return point, above, jnp.clip(k - found - before, 0, equal)


def _first(layout: Layout, marks: Arrays, amounts: jax.Array) -> list[jax.Array]:
    """Keeps what is marked first in each leaf, so many as `amounts` [leaves] says."""

    def early(points: jax.Array, zero: jax.Array) -> list[list[jax.Array]]:
        """Marks up to the positions -point: fewer as points rise."""
        return [
            [mark & (position <= -point) for point in here]
            for mark, position, here in zip(
                marks, layout.positions(zero), layout.spread(points)
            )
        ]

    def count(points: jax.Array) -> jax.Array:
        # As above: positions are not to be stored.
        return layout.count(early(*jax.lax.optimization_barrier((points, zero))))

    zero = jnp.int32(0)
    last = jnp.asarray(layout.sizes - 1, jnp.int32)
    point, _ = _narrow(-last, jnp.ones_like(last), amounts, count)
    return [mark for (mark,) in early(point[None], zero)]


# Compiled, so that an eager call compiles once for its shapes, not at every call.
_jit = functools.partial(jax.jit, static_argnames=("layout", "key"))


@_jit
def select(
    layout: Layout,
    scores: Arrays,
    among: Arrays,
    k: jax.Array,
    key: Key = None,
    beside: Arrays | None = None,
) -> list[jax.Array]:
    """Marks the k largest scores where the leaves are packed already.

    Args:
        layout: How leaves lie in arrays.
        scores: The packed scores, as `comparable` gives them.
        among: The packed bool arrays of what can be marked.
        k: int32 counts, [leaves] to rank each leaf by itself, [] to rank all together.
        key: What to rank by, as in `top_k_mask`.
        beside: Packed bool arrays of what is marked too; None for nothing.

    Returns:
        Packed bool arrays.
    """
    ranking = _Ranking(layout, scores, among, key)
    point, _, ties = ranking.end(k)
    marked = [jnp.zeros_like(allow) for allow in among] if beside is None else beside

    def chosen() -> list[jax.Array]:
        tied = _first(layout, ranking.equal(point), ties)
        above = ranking.above(point[None])
        return [old | new | tie for old, (new,), tie in zip(marked, above, tied)]

    # A conditional, as its result is written to memory: XLA's CPU backend would work a
    # mere expression out again wherever a leaf of it is used.
    return jax.lax.cond(jnp.any(k > 0), chosen, lambda: list(marked))


@_jit
def count_selected(
    layout: Layout, scores: Arrays, among: Arrays, k: jax.Array, key: Key = None
) -> jax.Array:
    """Counts what `select` marks in each leaf where all are ranked together.

    Args:
        layout: How leaves lie in arrays.
        scores: The packed scores, as `comparable` gives them.
        among: The packed bool arrays of what can be marked.
        k: An int32 scalar.
        key: What to rank by, as in `top_k_mask`.

    Returns:
        int32 [leaves].
    """
    _, above, ties = _Ranking(layout, scores, among, key).end(k)
    return above + ties


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
                f"int32 counts; got {leaf.size}."
            )


def _check_total(leaves: Sequence[jax.Array]) -> None:
    total = sum(leaf.size for leaf in leaves)
    if total > _MAX_LEAF:
        raise ValueError(
            f"scores must have at most {_MAX_LEAF} entries to be ranked together, as "
            f'far as int32 counts; got {total}: use scope="layer".'
        )


def _check_structure(name: str, tree: PyTree, structure: Any) -> None:
    if jax.tree.structure(tree) != structure:
        raise ValueError(
            f"{name} must be a tree like scores, of the structure {structure}; got "
            f"{jax.tree.structure(tree)}."
        )


def comparable(leaves: Sequence[Any]) -> list[jax.Array]:
    """Makes arrays of one dtype, in which all of them can be ranked.

    Args:
        leaves: Arrays of scores.

    Returns:
        The arrays in the widest of their dtypes.

    Raises:
        ValueError: If there are none, they have no order or are too large.
    """
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
    leaves = comparable(jax.tree.leaves(scores))
    _check_total(leaves)
    check_count("k", k, 1, sum(leaf.size for leaf in leaves))
    return _kth_largest(leaves, jnp.asarray(k, jnp.int32))


@jax.jit
def _kth_largest(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
    layout = layout_of(leaves)
    everywhere = layout.pack([jnp.ones(leaf.shape, bool) for leaf in leaves])
    scores = layout.pack(leaves)
    highest = jnp.iinfo(_ordered(leaves[0]).dtype).max
    least = [
        jnp.min(jnp.where(chosen, _ordered(score), highest), initial=highest)
        for chosen, score in zip(select(layout, scores, everywhere, k), scores)
    ]
    return _unordered(jnp.min(jnp.stack(least)), leaves[0].dtype)


def top_k_mask(
    scores: PyTree,
    k: Any,
    among: PyTree | None = None,
    scope: str = "global",
    key: Callable[[jax.Array], jax.Array] | None = None,
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
        key: A function of each array to rank by, such as `jnp.abs`, as in `sorted`. It
            is applied in each pass over the scores, so that what it gives is never
            stored. None ranks by the scores themselves.

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
    leaves = comparable(jax.tree.leaves(scores))
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
        _check_total(leaves)
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
    layout = layout_of(leaves)
    packed = layout.pack(leaves), layout.pack(allowed)
    return structure.unflatten(layout.unpack(select(layout, *packed, amounts, key)))
