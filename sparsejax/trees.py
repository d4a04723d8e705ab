"""Walking parameter and mask trees side by side.

A mask tree has a bool array at each prunable leaf and `optax.MaskedNode()`, a node
without children, at each leaf left dense, or one for a whole subtree. A leaf is known
by its path: the keys that lead to it, joined with "/", such as "params/Conv_0/kernel"
in Flax or "layers/1/weight" in an Equinox module. A tree that is one bare array has the
path "". Trees fit each other where paths and shapes agree, whatever their nodes are:
dict, FrozenDict, nnx.State, NamedTuple.
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import numpy as np
import optax

from sparsejax.checks import check_count, is_traced

PyTree = Any


def is_left_dense(node: Any) -> bool:
    """Returns whether a node marks a leaf without a mask.

    Args:
        node: A node of a mask tree.

    Returns:
        True for `optax.MaskedNode`.
    """
    return isinstance(node, optax.MaskedNode)


def _ends(node: Any) -> bool:
    """Whether a node ends a mask tree: left dense, also as a restored file has it."""
    # Files know no MaskedNode: Orbax gives None for it, flax.serialization {}.
    is_empty = node is None or (isinstance(node, (dict, list)) and not node)
    return is_empty or is_left_dense(node)


def is_placeholder(params: PyTree) -> bool:
    """Returns whether params is the node that optax.tree.map_params makes a state with.

    A state made from it must hold it wherever a tree like the parameters belongs.

    Args:
        params: What an optimizer's init was called with.

    Returns:
        True for a node without children that is no ordinary container.
    """
    structure: Any = jax.tree.structure(params)
    containers = (dict, list, tuple, type(None))
    childless = structure.num_nodes == 1 and structure.num_leaves == 0
    return childless and not isinstance(params, containers)


def is_float(leaf: Any) -> bool:
    """Returns whether a leaf is an array of floats.

    Args:
        leaf: Any leaf of a pytree.

    Returns:
        True for real floating dtypes.
    """
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(
        leaf.dtype, jax.numpy.floating
    )


def path_string(path: Sequence[Any]) -> str:
    """Joins the keys that lead to a leaf with "/".

    Args:
        path: A key path, as `jax.tree_util` returns it.

    Returns:
        The path as text. The last key of a variable in an `nnx.State`, ".value", is
        left out, so that a pattern for Flax linen also works for NNX.

    Example:
        >>> leaves = jax.tree_util.tree_leaves_with_path({"dense": [1.0, 2.0]})
        >>> [path_string(path) for path, _ in leaves]
        ['dense/0', 'dense/1']
    """
    in_dict = len(path) > 1 and isinstance(path[-2], jax.tree_util.DictKey)
    if in_dict and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaves_with_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their paths, `optax.MaskedNode` included.

    Args:
        tree: Any pytree.

    Returns:
        (path, leaf) pairs in the order of `jax.tree.leaves`.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_left_dense)
    return [(path_string(path), leaf) for path, leaf in pairs]


def mask_leaves(masks: PyTree) -> dict[str, Any]:
    """Returns the masked leaves by path, without those left dense.

    Args:
        masks: A mask tree, or another tree of its shape, such as rules.

    Returns:
        Its leaves by path.

    Raises:
        ValueError: If the tree holds no mask.
    """
    found = {p: leaf for p, leaf in leaves_with_paths(masks) if not is_left_dense(leaf)}
    if not found:
        raise ValueError("masks must hold at least one mask; got none in the tree.")
    return found


def bool_leaves(masks: PyTree) -> dict[str, Any]:
    """Returns the masks of a mask tree by path, once they are known to be bool arrays.

    Args:
        masks: A mask tree.

    Returns:
        Its masks by path.

    Raises:
        ValueError: If the tree holds no mask, or a leaf that is no bool array.
    """
    found = mask_leaves(masks)
    for path, mask in found.items():
        if getattr(mask, "dtype", None) != np.dtype(bool):
            got = getattr(mask, "dtype", type(mask).__name__)
            raise ValueError(
                f"masks must hold bool arrays, or optax.MaskedNode() at leaves left "
                f"dense; got {got} at {path!r}."
            )
    return found


def fit(masks: PyTree, tree: PyTree, name: str = "params") -> PyTree:
    """Rebuilds masks on the structure of a tree that they are for.

    Args:
        masks: A mask tree: bool arrays, and `optax.MaskedNode` (or None or {}, as which
            it comes back from a file) at leaves and subtrees left dense.
        tree: What the masks are for: parameters, gradients, scores.
        name: What to call that tree in the message.

    Returns:
        A mask tree of the structure of `tree`, `optax.MaskedNode()` at each leaf left
        dense.

    Raises:
        ValueError: If a path is missing on either side, or a mask is not a bool array
            of its leaf's shape; the message says at which path.
    """
    pairs = jax.tree_util.tree_leaves_with_path(masks, is_leaf=_ends)
    mask_at = {path_string(path): mask for path, mask in pairs}
    rest = dict(mask_at)

    def at_leaf(path: Sequence[Any], leaf: Any) -> Any:
        text = path_string(path)
        if is_left_dense(leaf):
            return leaf  # if there is a mask for it, it is in the rest
        if text not in mask_at:
            # One MaskedNode may stand for a whole subtree: optax.partition leaves it.
            above = [path_string(path[:i]) for i in range(len(path))]
            if any(_ends(mask_at.get(prefix, leaf)) for prefix in above):
                return optax.MaskedNode()
            raise _misfit(name, "masks", text)
        mask = mask_at[text]
        del rest[text]
        if _ends(mask):
            return optax.MaskedNode()
        shape = getattr(leaf, "shape", None)
        is_bool = getattr(mask, "dtype", None) == np.dtype(bool)
        if not is_bool or mask.shape != shape:
            got = f"{getattr(mask, 'dtype', type(mask).__name__)}"
            raise ValueError(
                f"masks do not fit {name} at {text!r}: a bool array of shape {shape} "
                f"is needed; got {got} of shape {getattr(mask, 'shape', None)}."
            )
        return mask

    fitted = jax.tree_util.tree_map_with_path(at_leaf, tree, is_leaf=is_left_dense)
    for path, mask in rest.items():
        if not _ends(mask):
            raise _misfit(name, name, path)
    return fitted


def _misfit(name: str, lacks: str, path: str) -> ValueError:
    return ValueError(
        f"masks do not fit {name}: {lacks} have nothing at {path!r}; a mask tree has a "
        "bool array or optax.MaskedNode() at every leaf."
    )


def check_counts(name: str, counts: PyTree, masks: PyTree, scope: str) -> None:
    """Raises unless numbers of weights fit the masks and the scope.

    Args:
        name: The argument's name, for the message.
        counts: The numbers got.
        masks: A mask tree.
        scope: "global" asks for one integer, "layer" for a tree like `masks`.

    Raises:
        ValueError: If the form is another, or there are not so many weights.
    """
    sizes = {path: math.prod(mask.shape) for path, mask in mask_leaves(masks).items()}
    if scope == "layer":
        needed: Any = jax.tree.structure(masks)
        misfit = jax.tree.structure(counts) != needed
    else:
        misfit = not jax.tree_util.all_leaves([counts])
    if misfit:
        raise ValueError(
            f'{name} must be a tree like masks with scope="layer", an integer for each '
            f'mask, and one integer with scope="global"; got {counts!r}.'
        )
    if scope == "global":
        check_count(name, counts, 0, sum(sizes.values()))
    else:
        for (path, size), count in zip(sizes.items(), jax.tree.leaves(counts)):
            check_count(f"{name} at {path!r}", count, 0, size)


def map_masked(f: Callable[..., Any], masks: PyTree, *trees: PyTree) -> PyTree:
    """Maps a function over the masked leaves of several trees.

    Args:
        f: A function of (mask, leaf of the first tree, ...).
        masks: The mask tree; its shape is the result's.
        *trees: Trees that the masks fit.

    Returns:
        A tree like `masks` with what `f` gives at each masked leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> masks = {"w": jnp.array([True, False]), "b": optax.MaskedNode()}
        >>> params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([5.0])}
        >>> map_masked(lambda mask, w: (w * mask).tolist(), masks, params)
        {'b': MaskedNode(), 'w': [3.0, 0.0]}
    """

    def at_leaf(mask: Any, *leaves: Any) -> Any:
        return mask if is_left_dense(mask) else f(mask, *leaves)

    return jax.tree.map(at_leaf, masks, *trees, is_leaf=is_left_dense)


def partition_by_path(tree: PyTree, paths: Container[str]) -> tuple[PyTree, PyTree]:
    """Splits a mask tree in two of its shape, with `optax.MaskedNode` for what is out.

    Args:
        tree: A mask tree.
        paths: The paths that go to the second tree.

    Returns:
        (the leaves at other paths, the leaves at `paths`).
    """

    def part(inside: bool) -> PyTree:
        def choose(path: Sequence[Any], leaf: Any) -> Any:
            wanted = (path_string(path) in paths) == inside
            return leaf if wanted else optax.MaskedNode()

        return jax.tree_util.tree_map_with_path(choose, tree, is_leaf=is_left_dense)

    return part(False), part(True)


def merge(*trees: PyTree) -> PyTree:
    """Merges mask trees that mask different leaves.

    Args:
        *trees: Mask trees of one shape, where `optax.MaskedNode` may stand for a
            subtree.

    Returns:
        A mask tree with every mask of the trees.

    Raises:
        ValueError: If two trees have a mask for the same leaf.

    Example:
        >>> a = {"w": 1, "head": optax.MaskedNode()}
        >>> merge(a, {"w": optax.MaskedNode(), "head": {"w": 2}})
        {'head': {'w': 2}, 'w': 1}
    """
    found = [tree for tree in trees if not is_left_dense(tree)]
    if len(found) < 2:
        return found[0] if found else optax.MaskedNode()

    def split(tree: PyTree) -> tuple[list[PyTree], Any]:
        return jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)

    parts, structures = zip(*map(split, found))
    if jax.tree_util.all_leaves(found[:1]) or len(set(structures)) > 1:
        raise ValueError(
            "masks must be one a leaf; got several trees that mask the same leaf."
        )
    return structures[0].unflatten([merge(*nodes) for nodes in zip(*parts)])


def own_buffers(tree: PyTree, others: PyTree = ()) -> PyTree:
    """Copies leaves that share a buffer, so that each can be donated.

    Args:
        tree: A pytree.
        others: Further pytrees, whose leaves it must not share either.

    Returns:
        The tree, in which no two leaves are one buffer and none is one of the others'.

    Example:
        >>> zero = jax.numpy.zeros(2)
        >>> a, b = own_buffers((zero, zero))
        >>> a is b
        False
    """
    seen = {_buffer(leaf) for leaf in jax.tree.leaves(others)}

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if _buffer(leaf) in seen:
            leaf = jax.numpy.copy(leaf)
        seen.add(_buffer(leaf))
        return leaf

    return jax.tree.map(own, tree)


def _buffer(leaf: Any) -> Any:
    """What is equal of two arrays exactly if they are one buffer."""
    is_array = isinstance(leaf, jax.Array) and not is_traced(leaf)
    if (
        not is_array
        or not leaf.size
        or jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ):
        return id(leaf)
    return tuple(
        shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards
    )
