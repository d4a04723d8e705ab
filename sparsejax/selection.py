"""The exact k largest of many scores, without sorting them.

Floats are ordered like the integers that their bits spell, once negative ones are
turned around. So the k-th largest is found by narrowing a bracket of integers: a pass
over the scores counts those above three points of it, which leaves a quarter, and 16
passes settle 32-bit scores (8 settle 16-bit ones). Distinct scores end the search
sooner, as soon as a count hits k. Only counts are reduced, so that over sharded arrays
only scalars cross the network, and k may be traced.

Equal scores at the threshold are taken in an order of their own, searched likewise: by
position (the first leaf first, row major inside a leaf), or with a key in a random
order of positions inside each leaf.

-0.0 equals 0.0. Denormals are ordered correctly, also where arithmetic flushes them to
zero. NaN ranks below everything else, -inf included.

Each leaf is read where it lies, however it is sharded. A program has two kernels a leaf
for all its selections, the count and the mark: what to rank by is the same for pruning
and growing, and which leaf it is and whether it grows are known only as it runs. XLA
compiles equal kernels once, also those of leaves of one shape, which is what keeps
compiling short.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import SCOPES, check_choice, check_count
from sparsejax.counts import MOST, count_each, wide

PyTree = Any
Rank = Callable[[jax.Array], jax.Array] | None
Arrays = Sequence[jax.Array]

_INTEGER_OF_SIZE = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}
# Points of a bracket that one pass counts at. On a CPU reading the scores costs more
# than comparing them with three points, but less than with seven.
_POINTS = 3


def _ordered(scores: jax.Array) -> jax.Array:
    """Maps scores to signed integers of the same order, above the lowest integer."""
    if jnp.issubdtype(scores.dtype, jnp.signedinteger):
        wider = jnp.int32 if scores.dtype.itemsize < 4 else jnp.int64
        return jnp.maximum(scores.astype(wider), jnp.iinfo(wider).min + 1)
    integer = _INTEGER_OF_SIZE[scores.dtype.itemsize]
    top = jnp.iinfo(integer).max
    bits = jax.lax.bitcast_convert_type(scores, integer)
    # Sign and magnitude to two's complement: the larger a negative float's magnitude
    # bits, the smaller it is. -0.0 has magnitude 0 and lands on 0.
    magnitude = bits & top
    ordered = jnp.where(bits < 0, -magnitude, magnitude)
    is_nan = magnitude > jax.lax.bitcast_convert_type(
        jnp.array(np.inf, scores.dtype), integer
    )
    return jnp.where(is_nan, integer(-top), ordered)


def _unordered(ordered: jax.Array, dtype: Any) -> jax.Array:
    """Turns one ordered integer back into the score it stands for."""
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return ordered.astype(dtype)
    info = jnp.iinfo(ordered.dtype)
    bits = jnp.where(ordered < 0, -ordered | info.min, ordered)
    value = jax.lax.bitcast_convert_type(bits, dtype)
    return jnp.where(ordered == -info.max, jnp.array(jnp.nan, dtype), value)


def _order(shape: tuple[int, ...], factor: jax.Array, offset: jax.Array) -> jax.Array:
    """Numbers entries in the order in which ties are taken: factor * position + offset.

    A permutation of 32-bit numbers, as the factor is odd. Positions are row-major, and
    not made by a reshape, which would gather shards.
    """
    order, stride = jnp.broadcast_to(offset, shape), 1
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1:
            index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            order = order + index * (factor * jnp.uint32(stride % 2**32))
        stride *= shape[axis]
    return order


def _item(values: jax.Array, leaf: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(values, leaf, keepdims=False)


def _quarters(low: jax.Array, high: jax.Array) -> jax.Array:
    """Divides brackets [G] in four: points [G, 3] of [low, high), or low itself."""
    # As unsigned integers: high - low can be more than a signed one holds.
    span = (high - low).astype(f"uint{8 * low.dtype.itemsize}")[:, None]
    j = jnp.arange(1, _POINTS + 1, dtype=span.dtype)[None]
    return low[:, None] + ((span >> 2) * j + (((span & 3) * j) >> 2)).astype(low.dtype)


class _Bracket(NamedTuple):
    """Where the k-th largest score of each group lies, narrowed pass by pass.

    Attributes:
        low: [G], more than k scores are above every integer below it.
        high: [G], at most k scores are above it. In the end it is `low`.
        at_least: int32 [L], the scores of each leaf that are not below `low`.
        above: int32 [L], the scores of each leaf above `high`.
        points: [L, 3], where to count next; carried, so that the kernels that count
            do not compute them.
    """

    low: jax.Array
    high: jax.Array
    at_least: jax.Array
    above: jax.Array
    points: jax.Array


class _Cut(NamedTuple):
    """Where the equal scores that are taken end in each leaf, narrowed likewise.

    Attributes:
        round: int32 scalar.
        low: uint32 [L], the least that the cut can be.
        high: uint32 [L], the most.
        cut: uint32 [L]: what comes before it in the order of ties is taken.
        marks: The new masks.
    """

    round: jax.Array
    low: jax.Array
    high: jax.Array
    cut: jax.Array
    marks: list[jax.Array]


class _Ranking(NamedTuple):
    """Scores [L leaves], which of them may be taken, and how many of each group [G].

    Attributes:
        scores: Arrays of one dtype.
        masks: Bool arrays: what may be taken is active, or inactive where it grows.
        k: int64 [G].
        groups: The group of each leaf.
        rank: What to rank by.
        grow: Bool scalar, whether inactive entries are to become active.
        salts: uint32 [L] each, odd factors and offsets that permute positions to the
            order in which ties are taken; 1 and 0 take them by position.
        active: int32 [L], what is marked beforehand: active entries where it grows.
        leaves: The number of each leaf, known only as it runs: a kernel that takes its
            leaf's part of a vector by it is the same for all leaves of a shape.
    """

    scores: Arrays
    masks: Arrays
    k: jax.Array
    groups: tuple[int, ...]
    rank: Rank
    grow: jax.Array
    salts: tuple[jax.Array, jax.Array]
    active: jax.Array
    leaves: Arrays

    def ranks(self, score: jax.Array) -> jax.Array:
        score = score if self.rank is None else self.rank(score)
        # An int32 that a rank function returns is never the lowest one.
        is_rank = self.rank is not None and score.dtype == jnp.int32
        return score if is_rank else _ordered(score)

    def spread(self, values: jax.Array) -> jax.Array:
        """Returns for each leaf what its group has."""
        if self.groups == tuple(range(len(values))):
            return values
        return values[np.array(self.groups)]

    def total(self, counts: jax.Array) -> jax.Array:
        """Adds up the leaves of each group, in int64."""
        counts = counts.astype(jnp.int64)
        if self.groups == tuple(range(len(self.k))):
            return counts
        return (
            jnp.zeros((len(self.k), *counts.shape[1:]), jnp.int64)
            .at[np.array(self.groups)]
            .add(counts)
        )

    def bracket(self) -> _Bracket:
        """Finds a point for each group with k above it, or the smallest with fewer."""
        info = jnp.iinfo(jax.eval_shape(self.ranks, self.scores[0]).dtype)

        def narrow(now: _Bracket) -> _Bracket:
            # Or the ranks, which do not depend on the points, would be stored.
            scores, masks, points = jax.lax.optimization_barrier(
                (self.scores, self.masks, now.points)
            )
            marks = []
            for score, mask, leaf in zip(scores, masks, self.leaves):
                ranks, allowed, here = (
                    self.ranks(score),
                    mask != self.grow,
                    _item(points, leaf),
                )
                marks.append([allowed & (ranks > here[i]) for i in range(_POINTS)])
            counts = count_each(marks)
            totals, points = self.total(counts), _quarters(now.low, now.high)
            # Counts fall as points rise: the first `more` of them are too many.
            more = jnp.sum(totals > self.k[:, None], axis=1, keepdims=True)
            i, is_open = jnp.arange(_POINTS)[None], (now.low < now.high)[:, None]
            last_above, first_within = is_open & (i == more - 1), is_open & (i == more)

            def at(chosen: jax.Array, values: jax.Array, otherwise: Any) -> jax.Array:
                value = jnp.sum(
                    jnp.where(chosen, values, 0), axis=1, dtype=values.dtype
                )
                return jnp.where(jnp.any(chosen, axis=1), value, otherwise)

            low = at(last_above, points + 1, now.low)
            high = at(first_within, points, now.high)
            hit = jnp.any(first_within & (totals == self.k[:, None]), axis=1)
            low = jnp.where(hit, high, low)
            return _Bracket(
                low,
                high,
                at(self.spread(last_above), counts, now.at_least),
                at(self.spread(first_within), counts, now.above),
                self.spread(_quarters(low, high)),
            )

        high = jnp.full(self.k.shape, info.max, info.dtype)
        low = jnp.where(self.k > 0, jnp.full_like(high, info.min), high)
        zeros = jnp.zeros(len(self.groups), jnp.int32)
        points = self.spread(_quarters(low, high))
        start = _Bracket(low, high, zeros, zeros, points)
        return jax.lax.while_loop(
            lambda now: jnp.any(now.low < now.high), narrow, start
        )

    def mark(self, points: jax.Array, cuts: jax.Array) -> list[jax.Array]:
        """Takes the scores above the points, and those at them before the cuts."""
        # In a loop, what does not depend on the cuts would be stored before it.
        scores, masks, salts, points, cuts = jax.lax.optimization_barrier(
            (self.scores, self.masks, self.salts, points, cuts)
        )
        marks = []
        for score, mask, leaf in zip(scores, masks, self.leaves):
            ranks, point = self.ranks(score), _item(points, leaf)
            factor, offset = (_item(salt, leaf) for salt in salts)
            is_early = _order(mask.shape, factor, offset) < _item(cuts, leaf)
            taken = (ranks > point) | ((ranks == point) & is_early)
            # What may not be taken stays: active where it grows, inactive otherwise.
            marks.append(jnp.where(mask != self.grow, taken, mask))
        return marks

    def take(self, found: _Bracket) -> list[jax.Array]:
        """Marks the scores above the points and as many at them as are missing."""
        equal = jnp.maximum(found.at_least - found.above, 0)
        missing = self.k - self.total(found.above)
        # The first leaves of a group take theirs first.
        of = np.array(self.groups)
        earlier = np.tril(of[:, None] == of, -1)
        before = jnp.sum(jnp.where(earlier, equal.astype(jnp.int64), 0), axis=1)
        need = jnp.clip(self.spread(missing) - before, 0, equal).astype(jnp.int32)
        # All the equal ones of a leaf are those above the integer below.
        takes_all = (need == equal) & (need > 0)
        points = self.spread(found.high)
        points = jnp.where(takes_all, points - 1, points)
        need = jnp.where(takes_all, 0, need)
        # What is marked without those that the cuts take.
        strict = jnp.where(takes_all, found.at_least, found.above) + self.active

        def narrow(now: _Cut) -> _Cut:
            # All that is marked, not the tied alone: it takes no kernel of its own.
            tied = count_each([[mark] for mark in now.marks])[:, 0] - strict
            is_open = (now.low < now.high) & (now.round > 0)
            high = jnp.where(is_open & (tied >= need), now.cut, now.high)
            low = jnp.where(is_open & (tied < need), now.cut + 1, now.low)
            low = jnp.where(is_open & (tied == need), high, low)
            cut = low + ((high - low) >> 1)
            return _Cut(now.round + 1, low, high, cut, self.mark(points, cut))

        sizes = jnp.array(list(map(jnp.size, self.masks)), jnp.uint32)
        high = jnp.where(self.salts[0] == 1, sizes, jnp.uint32(2**32 - 1))
        high = jnp.where(need > 0, high, 0)
        zeros = jnp.zeros_like(high)
        start = _Cut(jnp.int32(0), zeros, high, zeros, list(self.masks))
        is_open = lambda now: (now.round == 0) | jnp.any(now.low < now.high)
        return jax.lax.while_loop(is_open, narrow, start).marks


def select(
    scores: Arrays,
    masks: Arrays,
    k: jax.Array,
    groups: Sequence[int],
    rank: Rank = None,
    grow: bool = False,
    key: jax.Array | None = None,
) -> list[jax.Array]:
    """Keeps the k largest active entries, or grows the k largest inactive ones.

    Call it in a `sparsejax.counts.wide` scope.

    Args:
        scores: Arrays of one dtype, as `comparable` returns them.
        masks: Bool arrays of their shapes.
        k: int64 [G], how many of each group; where fewer are there, all are taken.
        groups: The group of each array: those of one group are ranked together.
        rank: What to rank by, as in `top_k_mask`.
        grow: Whether inactive entries are to become active.
        key: A PRNG key that spreads ties at random inside an array when growing; None
            takes them by position.

    Returns:
        The new masks.
    """
    n = len(scores)
    factors, offsets = jnp.ones(n, jnp.uint32), jnp.zeros(n, jnp.uint32)
    if key is not None:
        factors, offsets = jax.random.bits(key, (2, n), jnp.uint32)
    salts = factors | 1, offsets
    return _select(list(scores), list(masks), k, salts, tuple(groups), rank, grow)


def _run(
    scores: Arrays,
    masks: Arrays,
    k: jax.Array,
    salts: tuple[jax.Array, jax.Array],
    groups: tuple[int, ...],
    rank: Rank,
    grow: bool,
) -> list[jax.Array]:
    leaves = list(map(jnp.uint32, range(len(scores))))  # unsigned: none from the end
    known = jnp.bool_(grow), leaves
    # Both branches are the same, but XLA does not see it: see `_Ranking.leaves`. Nor
    # that no count is -1, as it would that none is below 0.
    growing, leaves = jax.lax.cond(
        k[0] == -1, lambda: jax.lax.optimization_barrier(known), lambda: known
    )
    active = jnp.zeros(len(masks), jnp.int32)
    if grow:
        active = count_each([[mask] for mask in masks])[:, 0]
    ranking = _Ranking(scores, masks, k, groups, rank, growing, salts, active, leaves)
    return ranking.take(ranking.bracket())


# Compiled, so that an eager call compiles once for its shapes, not at every call.
_select = jax.jit(_run, static_argnames=("groups", "rank", "grow"))


def comparable(leaves: Sequence[Any]) -> list[jax.Array]:
    """Converts arrays to one dtype, in which all of them can be ranked.

    Args:
        leaves: Arrays of scores.

    Returns:
        The arrays in the widest of their dtypes, without a derivative: which are the
        largest does not change with small changes of scores.

    Raises:
        ValueError: If there are none, they have no order or are too large.
    """
    arrays = list(map(jax.lax.stop_gradient, map(jnp.asarray, leaves)))
    if not arrays:
        raise ValueError("scores must hold at least one array; got an empty tree.")
    for array in arrays:
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        if is_float and array.dtype.itemsize < 2:
            is_float = False
        if not (is_float or jnp.issubdtype(array.dtype, jnp.signedinteger)):
            raise ValueError(
                f"scores must be floats of 16 bits or more, or signed integers; got "
                f"{array.dtype}."
            )
        if array.size > MOST:
            raise ValueError(
                f"scores must have at most {MOST} entries an array, as far as int32 "
                f"counts; got {array.size}: a leaf of stacked layers can be ranked "
                "layer by layer, with LayerRule(stacked=True)."
            )
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def kth_largest(scores: PyTree, k: Any) -> jax.Array:
    """Returns the k-th largest entry of an array, or over all arrays of a tree.

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
    check_count("k", k, 1, sum(leaf.size for leaf in leaves))
    everywhere = [jnp.ones(leaf.shape, bool) for leaf in leaves]
    chosen = top_k_mask(leaves, k, among=everywhere)
    with wide():
        ranks = [_ordered(leaf) for leaf in leaves]
        highest = jnp.iinfo(ranks[0].dtype).max
        least = [
            jnp.min(jnp.where(mark, rank, highest), initial=highest)
            for mark, rank in zip(chosen, ranks)
        ]
        return _unordered(jnp.min(jnp.stack(least)), leaves[0].dtype)


def top_k_mask(
    scores: PyTree,
    k: Any,
    among: PyTree | None = None,
    scope: str = "global",
    rank: Rank = None,
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
        rank: A function of each array to rank by, such as `jnp.abs`. It is applied in
            each pass over the scores, so that what it returns is never stored. None
            ranks by the scores themselves. Where it returns int32, the lowest integer
            must not be among them.

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
        check_count("k", k, 0, sum(leaf.size for leaf in leaves))
        each, groups = [k], [0] * len(leaves)
    else:
        each, groups = [k] * len(leaves), list(range(len(leaves)))
        if not jax.tree_util.all_leaves([k]):
            _check_structure("k", k, structure)
            each = jax.tree.leaves(k)
        for leaf, amount in zip(leaves, each):
            check_count("k", amount, 0, leaf.size)
    with wide():
        amounts = jnp.stack([jnp.asarray(amount, jnp.int64) for amount in each])
        return structure.unflatten(select(leaves, allowed, amounts, groups, rank))


def _check_structure(name: str, tree: PyTree, structure: Any) -> None:
    if jax.tree.structure(tree) != structure:
        raise ValueError(
            f"{name} must be a tree like scores, of the structure {structure}; got "
            f"{jax.tree.structure(tree)}."
        )
