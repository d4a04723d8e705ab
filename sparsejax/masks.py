"""Mask algebra: make, apply, count, compare and pack masks.

A mask tree is shaped like the parameters: a bool array at each prunable leaf (True =
active) and `optax.MaskedNode()` at each leaf left dense. *Sparsity* is the fraction of
prunable weights that are zero, *density* the fraction that are active.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import scores
from sparsejax.checks import (
    SCOPES,
    EmptyLayerWarning,
    check_choice,
    check_sparsity,
    is_traced,
)
from sparsejax.counts import count_all, count_each
from sparsejax.distributions import Distribution, layer_counts
from sparsejax.parameters import (
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.selection import top_k_mask
from sparsejax.trees import (
    bool_leaves,
    check_counts,
    fit,
    is_left_dense,
    leaves_with_paths,
    map_masked,
    mask_leaves,
    path_string,
)

PyTree = Any


def dense_masks(params: PyTree, prunable: Prunable = None) -> PyTree:
    """Returns masks with every weight active.

    Args:
        params: Parameters: float arrays of any shapes.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.

    Returns:
        A mask tree of ones.

    Raises:
        ValueError: If nothing is prunable or `prunable` does not fit the parameters.

    Example:
        >>> masks = dense_masks({"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)})
        >>> masks["w"].tolist(), masks["b"]
        ([[True, True], [True, True]], MaskedNode())
    """
    rules = layer_rules(params, prunable)
    return map_masked(lambda rule, leaf: jnp.ones(leaf.shape, bool), rules, params)


def active_counts(
    params: PyTree,
    sparsity: float | None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
) -> PyTree:
    """Returns the exact number of active weights of each layer.

    Args:
        params: Parameters; only their shapes matter.
        sparsity: Overall sparsity in [0, 1), a number known now (not traced); None
            where `prunable` fixes the sparsity of every layer.
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
    split = jax.eval_shape(lambda p: split_layers(p, rules), arrays(params))
    counts = counts_by_rule(split, split_rules(rules, params), sparsity, distribution)
    return join_layers(map_masked(jnp.int32, counts), rules)


def arrays(params: PyTree) -> PyTree:
    """Replaces leaves that are no arrays, as in an Equinox module, by None.

    Args:
        params: Any pytree.

    Returns:
        The tree with its arrays alone.
    """
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else None, params)


def counts_by_rule(
    params: PyTree, rules: PyTree, sparsity: Any, distribution: Distribution
) -> PyTree:
    """Counts the active weights of each layer where the rules are already known.

    Args:
        params: Parameters, where one leaf is one layer; only their shapes matter.
        rules: A `LayerRule` at each prunable leaf.
        sparsity: Overall sparsity in [0, 1), a number known now; None where the rules
            fix the sparsity of every layer.
        distribution: Its distribution over layers.

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
    rule_at = mask_leaves(rules)
    shaped = map_masked(lambda rule, leaf: leaf, rules, params)
    shapes = {path: leaf.shape for path, leaf in mask_leaves(shaped).items()}
    axes = {path: rule.axes(len(shapes[path])) for path, rule in rule_at.items()}
    fixed = {
        p: rule.sparsity for p, rule in rule_at.items() if rule.sparsity is not None
    }
    if sparsity is None:
        sparsity = own_sparsity(shapes, fixed)
    check_sparsity("sparsity", sparsity)
    counts = layer_counts(shapes, float(sparsity), distribution, fixed, axes)
    return jax.tree.unflatten(jax.tree.structure(rules), list(counts.values()))


def own_sparsity(shapes: dict[str, Any], fixed: dict[str, float]) -> float:
    """Returns the overall sparsity that layers of fixed sparsity add up to.

    Args:
        shapes: The shape of each prunable layer by path.
        fixed: The sparsity of each, by path.

    Returns:
        The sparsity of all weights together.

    Raises:
        ValueError: If a layer has no fixed sparsity.
    """
    if shapes.keys() != fixed.keys():
        raise ValueError(
            "sparsity can be left out where prunable fixes that of every layer; got "
            f"none for {min(shapes.keys() - fixed.keys())!r}."
        )
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    zeros = sum(fixed[path] * size for path, size in sizes.items())
    return zeros / max(sum(sizes.values()), 1)


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
        distribution: Its distribution over layers: "erk", "er", "uniform", or a
            function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        counts: Instead of `sparsity`: the active weights of each layer, as
            `active_counts` returns them; may be traced.

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
    none_given = sparsity is None and counts is None and prunable is None
    if none_given or not (sparsity is None or counts is None):
        raise ValueError(
            "random_masks needs exactly one of sparsity and counts, or a sparsity for "
            f"every layer by prunable; got {sparsity=} and {counts=}."
        )
    rules = layer_rules(params, prunable)
    layers, split = split_rules(rules, params), split_layers(arrays(params), rules)
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
    drawn = scores.random_scores(key, everywhere)
    return top_k_mask(drawn, counts, scope="layer", rank=scores.as_it_is)


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
        distribution: The sparsity's distribution over layers.

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
    masks = fit(masks, params)

    def zero(mask: Any, leaf: Any) -> Any:
        return leaf if is_left_dense(mask) else jnp.where(mask, leaf, 0)

    return jax.tree.map(zero, masks, params, is_leaf=is_left_dense)


def masks_of(params: PyTree, prunable: Prunable = None) -> PyTree:
    """Returns the masks that sparse parameters have: where a weight is not 0.

    So training goes on from a checkpoint without masks, which would go dense otherwise.

    Args:
        params: Sparse parameters.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.

    Returns:
        A mask tree, for the `masks` argument of a method.

    Raises:
        ValueError: If nothing is prunable or `prunable` does not fit the parameters.

    Example:
        >>> masks_of({"w": jnp.array([[1.0, 0.0], [0.0, 2.0]])})["w"].tolist()
        [[True, False], [False, True]]
    """
    return map_masked(
        lambda rule, leaf: leaf != 0, layer_rules(params, prunable), params
    )


def count_stray(params: PyTree, masks: PyTree) -> Any:
    """Counts the weights outside the masks that are not 0.

    Args:
        params: Parameters.
        masks: A mask tree that fits them.

    Returns:
        A scalar, as from `count_active`; 0 for sparse parameters.

    Example:
        >>> count_stray(jnp.array([1.0, 2.0]), jnp.array([True, False])).item()
        1
    """
    stray = map_masked(lambda mask, w: ~mask & (w != 0), fit(masks, params), params)
    return count_all(jax.tree.leaves(stray))


def check(params: PyTree, masks: PyTree) -> None:
    """Raises unless parameters are 0 outside their masks; warns of empty layers.

    What scales or adds to the updates behind the wrapped optimizer, such as a learning
    rate chained after it, trains weights outside the masks.

    Args:
        params: Parameters, known now.
        masks: A mask tree that fits them.

    Raises:
        ValueError: If a weight outside the masks is not 0, or the masks do not fit.

    Example:
        >>> check(jnp.array([1.0, 0.0]), jnp.array([True, False]))
    """
    weight_at = dict(leaves_with_paths(params))
    mask_at = bool_leaves(fit(masks, params))
    empty = [path for path, mask in mask_at.items() if mask.size and not mask.any()]
    if empty:
        warnings.warn(
            f"{len(empty)} of {len(mask_at)} layers have no active weight: "
            f"{', '.join(map(repr, empty))}; nothing passes through them.",
            EmptyLayerWarning,
            stacklevel=2,
        )
    for path, mask in mask_at.items():
        weight = weight_at[path]
        stray = int(count_stray(weight, mask))
        if stray:
            raise ValueError(
                f"params must be 0 outside their masks; got {stray} of {mask.size} "
                f"weights at {path!r} that are not: start from init_sparse, and keep "
                "transformations that scale or add to updates inside the wrapped "
                "optimizer."
            )


def count_active(masks: PyTree, scope: str = "global") -> Any:
    """Counts the active weights.

    Args:
        masks: A mask tree.
        scope: "global" for the total, "layer" for each leaf's own count.

    Returns:
        An int32 scalar, or a tree of them like `masks`. A total that may be above
        2^31 - 1 is a NumPy int64; see `sparsejax.counts.count_all` for traced masks.

    Example:
        >>> count_active({"w": jnp.array([True, False, True])}).item()
        2
    """
    check_choice("scope", scope, SCOPES)
    leaves = list(bool_leaves(masks).values())
    if scope == "global":
        return count_all(leaves)
    counts = count_each([[leaf] for leaf in leaves])[:, 0]
    return jax.tree.unflatten(jax.tree.structure(masks), list(counts))


def count_prunable(masks: PyTree) -> int:
    """Counts the prunable weights, active or not.

    Args:
        masks: A mask tree.

    Returns:
        The number of entries of all masks.
    """
    return sum(mask.size for mask in bool_leaves(masks).values())


def density(masks: PyTree, scope: str = "global") -> Any:
    """Returns the fraction of prunable weights that are active.

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
    return jnp.float32(active / count_prunable(masks))


def sparsity(masks: PyTree, scope: str = "global") -> Any:
    """Returns the fraction of prunable weights that are zero.

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
    bool_leaves(b)
    return map_masked(jnp.logical_or, fit(a, b, "the other masks"), b)


def difference(a: PyTree, b: PyTree) -> PyTree:
    """Activates the weights that are active in the first mask tree and not the second.

    Args:
        a: A mask tree.
        b: A mask tree that fits it.

    Returns:
        The difference, a mask tree.
    """
    bool_leaves(b)
    return map_masked(lambda x, y: x & ~y, fit(a, b, "the other masks"), b)


def jaccard(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the Jaccard index of two mask trees: the intersection over the union.

    Args:
        a: A mask tree.
        b: A mask tree that fits it.

    Returns:
        A float32 scalar: 1 for equal masks (two empty ones included), 0 for disjoint.

    Raises:
        ValueError: If the masks do not fit each other.

    Example:
        >>> jaccard(jnp.array([True, True, False]), jnp.array([True, False, False]))
        Array(0.5, dtype=float32)
    """
    either = count_active(union(a, b))
    both = either - count_active(difference(a, b)) - count_active(difference(b, a))
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def churn(before: PyTree, after: PyTree) -> jax.Array:
    """Returns the fraction of the weights active before that are not active after.

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


class PackedMask(NamedTuple):
    """One mask at a bit a weight.

    Attributes:
        bits: uint8[ceil(size / 8)], the mask's entries in row-major order, the first in
            the highest bit.
        shape: int32[ndim], the mask's shape.
    """

    bits: jax.Array
    shape: jax.Array


def is_packed(node: Any) -> bool:
    """Returns whether a node is a `PackedMask`, also as a dict of its fields.

    Files and `nnx.jit` make a dict or `nnx.State` of it.

    Args:
        node: A node of a mask tree.

    Returns:
        True for what `pack_masks` puts at a leaf.
    """
    is_dict = isinstance(node, Mapping) and set(node) == set(PackedMask._fields)
    return is_dict or isinstance(node, PackedMask)


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
    bool_leaves(masks)
    return map_masked(
        lambda m: PackedMask(jnp.packbits(m), jnp.array(m.shape, jnp.int32)), masks
    )


def unpack_masks(packed: PyTree, params: PyTree | None = None) -> PyTree:
    """Undoes `pack_masks`.

    Args:
        packed: What `pack_masks` returned; masks that are not packed stay as they are.
        params: Parameters that the masks are for, needed inside `jax.jit`, where a
            shape cannot be read from an array. None reads it from there.

    Returns:
        The mask tree.

    Raises:
        ValueError: If the bits are not those of the shape, or that is traced.

    Example:
        >>> unpack_masks(pack_masks(jnp.array([True, False, True]))).tolist()
        [True, False, True]
    """
    shapes = {} if params is None else dict(leaves_with_paths(params))
    paths = iter(path for path, _ in _packed_leaves(packed))

    def unpack(leaf: Any) -> Any:
        path = next(paths)
        if not is_packed(leaf):
            return leaf
        bits, known = jax.tree.leaves(leaf)  # out of what NNX wraps them in
        if path in shapes:
            shape = tuple(shapes[path].shape)
        elif is_traced(known):
            raise ValueError(
                "params must be given to unpack masks inside jax.jit, for their "
                f"shapes; got none for {path!r}."
            )
        else:
            shape = tuple(np.asarray(known).tolist())
        size = math.prod(shape)
        if bits.shape != (-(-size // 8),):
            raise ValueError(
                f"packed masks must have {-(-size // 8)} bytes for shape {shape} at "
                f"{path!r}; got {bits.shape}."
            )
        flat = jnp.unpackbits(bits, count=size)
        return flat.reshape(shape).astype(bool)

    return jax.tree.map(unpack, packed, is_leaf=_ends_packed)


def _ends_packed(node: Any) -> bool:
    return is_packed(node) or is_left_dense(node)


def _packed_leaves(packed: PyTree) -> list[tuple[str, Any]]:
    pairs = jax.tree_util.tree_leaves_with_path(packed, is_leaf=_ends_packed)
    return [(path_string(path), leaf) for path, leaf in pairs]
