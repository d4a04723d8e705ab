"""Mask algebra: make, apply, count, compare and pack masks.

A mask tree is shaped like the parameters: a bool array at each prunable leaf (True =
active) and `optax.MaskedNode()` at each leaf left dense. *Sparsity* is the fraction of
prunable weights that are zero, *density* the fraction that are active.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.checks import SCOPES, check_choice, is_traced
from sparsejax.distributions import Distribution, layer_counts
from sparsejax.layouts import layout_of
from sparsejax.parameters import (
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.selection import top_k_mask
from sparsejax.trees import (
    check_counts,
    check_fit,
    is_left_dense,
    map_masked,
    mask_leaves,
)

PyTree = Any


def dense_masks(params: PyTree, prunable: Prunable = None) -> PyTree:
    """Makes masks with every weight active.

    Args:
        params: Parameters: float arrays of any shapes.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.

    Returns:
        A mask tree of ones.

    Raises:
        ValueError: If nothing is prunable or `prunable` does not fit the parameters.

    Example:
        >>> dense_masks({"w": jnp.zeros((1, 2)), "b": jnp.zeros(2)})
        {'b': MaskedNode(), 'w': Array([[ True,  True]], dtype=bool)}
    """
    rules = layer_rules(params, prunable)
    return map_masked(lambda rule, leaf: jnp.ones(leaf.shape, bool), rules, params)


def active_counts(
    params: PyTree,
    sparsity: float,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
) -> PyTree:
    """Gives each layer its exact number of active weights.

    Args:
        params: Parameters; only their shapes matter.
        sparsity: Overall sparsity in [0, 1), a number known now (not traced).
        distribution: "erk", "er", "uniform", or a function; see `layer_counts`.
        prunable: Which leaves are prunable; see `sparsejax.layer_rules`.

    Returns:
        A tree like the masks with an int at each prunable leaf, or an array of ints,
        one a layer, at a leaf that stacks layers.

    Raises:
        ValueError: If the sparsity is out of range, traced, or out of reach.

    Example:
        >>> active_counts({"a": jnp.zeros((10, 10)), "b": jnp.zeros((5, 4))}, 0.5)
        {'a': Array(41, dtype=int32), 'b': Array(19, dtype=int32)}
    """
    rules = layer_rules(params, prunable)
    layers, split = (
        split_rules(rules, params),
        jax.eval_shape(lambda p: split_layers(p, rules), params),
    )
    counts = counts_by_rule(split, layers, sparsity, distribution)
    return join_layers(map_masked(jnp.int32, counts), rules)


def counts_by_rule(
    params: PyTree, rules: PyTree, sparsity: Any, distribution: Distribution
) -> PyTree:
    """Counts the active weights of each layer where the rules are already known.

    Args:
        params: Parameters, where one leaf is one layer; only their shapes matter.
        rules: A `LayerRule` at each prunable leaf.
        sparsity: Overall sparsity in [0, 1), a number known now.
        distribution: How it is shared out over layers.

    Returns:
        A tree like the rules of Python ints.

    Raises:
        ValueError: If the sparsity is out of range, traced, or out of reach.
    """
    if is_traced(sparsity):
        raise ValueError(
            "sparsity must be known when masks are laid out over layers; got a traced "
            "value; compute active_counts outside and pass counts, or pass masks."
        )
    shaped = map_masked(lambda rule, leaf: leaf, rules, params)
    shapes = {path: leaf.shape for path, leaf in mask_leaves(shaped).items()}
    fixed = {
        path: rule.sparsity
        for path, rule in mask_leaves(rules).items()
        if rule.sparsity is not None
    }
    counts = layer_counts(shapes, float(sparsity), distribution, fixed)
    return jax.tree.unflatten(jax.tree.structure(rules), list(counts.values()))


def random_masks(
    key: jax.Array,
    params: PyTree,
    sparsity: float | None = None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
    counts: PyTree | None = None,
) -> PyTree:
    """Draws random masks with an exact number of active weights in each layer.

    Args:
        key: A JAX PRNG key. The same key gives the same masks however the parameters
            are sharded.
        params: Parameters; only their shapes matter.
        sparsity: Overall sparsity in [0, 1), a number known now (not traced).
        distribution: How it is shared out over layers: "erk", "er", "uniform", or a
            function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        counts: Instead of `sparsity`: the active weights of each layer, as
            `active_counts` gives them; may be traced.

    Returns:
        A mask tree with exactly round((1 - sparsity) * n) of n prunable weights active.

    Raises:
        ValueError: If the sparsity is out of range or out of reach, or both or neither
            of `sparsity` and `counts` are given.

    Example:
        >>> params = {"w": jnp.zeros((20, 10)), "b": jnp.zeros(10)}
        >>> masks = random_masks(jax.random.key(0), params, sparsity=0.9)
        >>> count_active(masks).item()
        20
    """
    if (sparsity is None) == (counts is None):
        raise ValueError(
            "random_masks needs exactly one of sparsity and counts; got "
            f"{sparsity=} and {counts=}."
        )
    rules = layer_rules(params, prunable)
    layers, split = split_rules(rules, params), split_layers(params, rules)
    if counts is None:
        masks = masks_by_rule(key, split, layers, sparsity, distribution)
    else:
        masks = _draw(key, split, layers, split_layers(counts, rules))
    return join_layers(masks, rules)


def _draw(key: jax.Array, params: PyTree, rules: PyTree, counts: PyTree) -> PyTree:
    everywhere = map_masked(
        lambda rule, leaf: jnp.ones(leaf.shape, bool), rules, params
    )
    check_counts("counts", counts, everywhere, "layer")
    return top_k_mask(scores.random(key, everywhere), counts, scope="layer")


def masks_by_rule(
    key: jax.Array,
    params: PyTree,
    rules: PyTree,
    sparsity: Any,
    distribution: Distribution,
) -> PyTree:
    """Draws random masks where the rules of the layers are already known.

    Args:
        key: A JAX PRNG key.
        params: Parameters, where one leaf is one layer.
        rules: A `LayerRule` at each prunable leaf.
        sparsity: Overall sparsity in [0, 1), a number known now.
        distribution: How it is shared out over layers.

    Returns:
        A mask tree; all ones at sparsity 0.

    Raises:
        ValueError: If the sparsity is out of range, traced, or out of reach.
    """
    counts = counts_by_rule(params, rules, sparsity, distribution)
    if all(
        int(count) == leaf.size
        for count, leaf in zip(
            jax.tree.leaves(counts),
            jax.tree.leaves(map_masked(lambda rule, leaf: leaf, rules, params)),
        )
    ):
        return map_masked(lambda rule, leaf: jnp.ones(leaf.shape, bool), rules, params)
    return _draw(key, params, rules, counts)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Sets every inactive weight to exactly 0.

    Averages of weights kept outside the wrapped optimizer (lookahead, EMA) need this
    once more before evaluation: they remember weights from before they were pruned.

    Args:
        params: Parameters, or gradients.
        masks: A mask tree that fits them.

    Returns:
        The parameters with zeros where a mask is False; leaves left dense unchanged.

    Raises:
        ValueError: If the masks do not fit; the message says at which path.

    Example:
        >>> apply_masks(jnp.array([1.0, 2.0]), jnp.array([True, False])).tolist()
        [1.0, 0.0]
    """
    check_fit(masks, params)

    def zero(mask: Any, leaf: Any) -> Any:
        return leaf if is_left_dense(mask) else choose(mask, leaf, 0)

    return jax.tree.map(zero, masks, params, is_leaf=is_left_dense)


def choose(mask: Any, active: Any, inactive: Any) -> jax.Array:
    """Takes a leaf's values where its mask is True, and others elsewhere.

    It is `jnp.where`, of floats by their bits: XLA's CPU backend makes faster code of
    that than of a choice by a byte a weight. In `jax.lax` alone, as `jax.numpy` takes a
    tenth of a second to trace for some hundred leaves.

    Args:
        mask: A bool array.
        active: An array of its shape.
        inactive: A scalar, or an array of that shape.

    Returns:
        An array of the dtype of `active`.

    Example:
        >>> choose(jnp.array([True, False]), jnp.array([1.0, 2.0]), -1).tolist()
        [1.0, -1.0]
    """
    active, mask = jnp.asarray(active), jnp.asarray(mask)
    if jnp.ndim(inactive):
        other = jnp.asarray(inactive, active.dtype)
    else:
        other = jax.lax.full_like(active, inactive)
    if not jnp.issubdtype(active.dtype, jnp.floating):
        return jax.lax.select(mask, active, other)
    integer = f"int{8 * active.dtype.itemsize}"
    on, off = (jax.lax.bitcast_convert_type(x, integer) for x in (active, other))
    # All bits are 1 where the mask is True, and all are 0 elsewhere.
    every = jax.lax.neg(jax.lax.convert_element_type(mask, integer))
    chosen = jax.lax.bitwise_or(
        jax.lax.bitwise_and(on, every),
        jax.lax.bitwise_and(off, jax.lax.bitwise_not(every)),
    )
    return jax.lax.bitcast_convert_type(chosen, active.dtype)


def count_active(masks: PyTree, scope: str = "global") -> Any:
    """Counts the active weights.

    Args:
        masks: A mask tree.
        scope: "global" for the total, "layer" for each leaf's own count.

    Returns:
        An int32 scalar, or a tree of them like `masks`.

    Example:
        >>> count_active({"w": jnp.array([True, False, True])}).item()
        2
    """
    check_choice("scope", scope, SCOPES)
    leaves = list(mask_leaves(masks).values())
    layout = layout_of(leaves)
    counts = layout.count_each(layout.pack(leaves))
    if scope == "global":
        return jnp.sum(counts, dtype=jnp.int32)
    return jax.tree.unflatten(jax.tree.structure(masks), list(counts))


def count_prunable(masks: PyTree) -> int:
    """Counts the prunable weights, active or not.

    Args:
        masks: A mask tree.

    Returns:
        The number of entries of all masks.
    """
    return sum(math.prod(mask.shape) for mask in mask_leaves(masks).values())


def density(masks: PyTree, scope: str = "global") -> Any:
    """Measures the fraction of prunable weights that are active.

    Args:
        masks: A mask tree.
        scope: "global" for all together, "layer" for each leaf.

    Returns:
        A float32 scalar in [0, 1], or a tree of them like `masks`.

    Example:
        >>> density(jnp.array([True, False, False, False])).item()
        0.25
    """
    active = count_active(masks, scope)
    if scope == "layer":
        return map_masked(lambda mask, n: n / max(mask.size, 1), masks, active)
    return active / count_prunable(masks)


def sparsity(masks: PyTree, scope: str = "global") -> Any:
    """Measures the fraction of prunable weights that are zero.

    Args:
        masks: A mask tree.
        scope: "global" for all together, "layer" for each leaf.

    Returns:
        A float32 scalar in [0, 1], or a tree of them like `masks`.

    Example:
        >>> sparsity(jnp.array([True, False, False, False])).item()
        0.75
    """
    return jax.tree.map(lambda share: 1 - share, density(masks, scope))


def union(a: PyTree, b: PyTree) -> PyTree:
    """Activates the weights that are active in either mask tree.

    Args:
        a: A mask tree.
        b: A mask tree that fits it.

    Returns:
        The union, a mask tree.
    """
    check_fit(a, b, "the other masks")
    return map_masked(jnp.logical_or, a, b)


def difference(a: PyTree, b: PyTree) -> PyTree:
    """Activates the weights that are active in the first mask tree and not the second.

    Args:
        a: A mask tree.
        b: A mask tree that fits it.

    Returns:
        The difference, a mask tree.
    """
    check_fit(a, b, "the other masks")
    return map_masked(lambda x, y: x & ~y, a, b)


def overlap(a: PyTree, b: PyTree) -> jax.Array:
    """Measures how much two mask trees share: the intersection over the union.

    Args:
        a: A mask tree.
        b: A mask tree that fits it.

    Returns:
        A float32 scalar: 1 for equal masks (two empty ones included), 0 for disjoint.

    Raises:
        ValueError: If the masks do not fit each other.

    Example:
        >>> overlap(jnp.array([True, True, False]), jnp.array([True, False, False]))
        Array(0.5, dtype=float32)
    """
    either = count_active(union(a, b))
    both = either - count_active(difference(a, b)) - count_active(difference(b, a))
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def churn(before: PyTree, after: PyTree) -> jax.Array:
    """Measures the fraction of the weights active before that are not active after.

    Args:
        before: A mask tree.
        after: A mask tree that fits it.

    Returns:
        A float32 scalar in [0, 1]; 0 where nothing was active.

    Example:
        >>> churn(jnp.array([True, True, False]), jnp.array([True, False, True]))
        Array(0.5, dtype=float32)
    """
    lost = count_active(difference(before, after))
    return lost / jnp.maximum(count_active(before), 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """One mask at a bit a weight.

    Attributes:
        bits: uint8[ceil(size / 8)], the mask's entries in row-major order, the first in
            the highest bit.
        shape: The mask's shape, static.
    """

    bits: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def pack_masks(masks: PyTree) -> PyTree:
    """Packs masks to one bit a weight.

    Args:
        masks: A mask tree.

    Returns:
        A tree like `masks` with a `PackedMask` at each prunable leaf.

    Example:
        >>> pack_masks(jnp.array([True, False, True])).bits.tolist()
        [160]
    """
    return map_masked(lambda m: PackedMask(jnp.packbits(m), m.shape), masks)


def unpack_masks(packed: PyTree) -> PyTree:
    """Undoes `pack_masks`.

    Args:
        packed: What `pack_masks` gave; masks that are not packed stay as they are.

    Returns:
        The mask tree.

    Example:
        >>> unpack_masks(pack_masks(jnp.array([True, False, True]))).tolist()
        [True, False, True]
    """

    def unpack(leaf: Any) -> Any:
        if not isinstance(leaf, PackedMask):
            return leaf
        flat = jnp.unpackbits(leaf.bits, count=math.prod(leaf.shape))
        return flat.reshape(leaf.shape).astype(bool)

    is_leaf = lambda node: isinstance(node, (PackedMask, optax.MaskedNode))
    return jax.tree.map(unpack, packed, is_leaf=is_leaf)
