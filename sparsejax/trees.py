"""Walking parameter and mask trees side by side.

A mask tree has a bool array at each prunable leaf and `optax.MaskedNode()`, a node
without children, at each leaf left dense. A leaf is known by its path: the keys that
lead to it, joined with "/", such as "params/Conv_0/kernel" in Flax or
"layers/1/weight" in an Equinox module. A tree that is one bare array has the path "".
"""

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import numpy as np
import optax

from sparsejax.checks import check_count

PyTree = Any


def is_left_dense(node: Any) -> bool:
    """Tells whether a node marks a leaf without a mask.

    Args:
        node: A node of a mask tree.

    Returns:
        True for `optax.MaskedNode`.
    """
    return isinstance(node, optax.MaskedNode)


def is_placeholder(params: PyTree) -> bool:
    """Tells whether params is the node that optax.tree.map_params makes a state with.

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


def path_string(path: Sequence[Any]) -> str:
    """Joins the keys that lead to a leaf with "/".

    Args:
        path: A key path, as `jax.tree_util` gives it.

    Returns:
        The path as text.

    Example:
        >>> leaves = jax.tree_util.tree_leaves_with_path({"dense": [1.0, 2.0]})
        >>> [path_string(path) for path, _ in leaves]
        ['dense/0', 'dense/1']
    """
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
    """Gives the masked leaves by path, without those left dense.

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


def check_fit(masks: PyTree, tree: PyTree, name: str = "params") -> None:
    """Refuses a mask tree that does not fit another tree.

    Args:
        masks: A mask tree: bool arrays and `optax.MaskedNode`.
        tree: What the masks are for: parameters, gradients, scores.
        name: What to call that tree in the message.

    Raises:
        ValueError: If a path is missing on either side, or a mask is not a bool array
            of its leaf's shape; the message says at which path.
    """
    mask_at, leaf_at = dict(leaves_with_paths(masks)), dict(leaves_with_paths(tree))
    for path in [*leaf_at, *mask_at]:
        if path not in mask_at or path not in leaf_at:
            lacks = "masks" if path not in mask_at else name
            raise ValueError(
                f"masks do not fit {name}: {lacks} have nothing at {path!r}; a mask "
                "tree has a bool array or optax.MaskedNode() at every leaf."
            )
        mask, leaf = mask_at[path], leaf_at[path]
        if is_left_dense(mask):
            continue
        shape = None if is_left_dense(leaf) else leaf.shape
        is_bool = getattr(mask, "dtype", None) == np.dtype(bool)
        if not is_bool or mask.shape != shape:
            got = f"{getattr(mask, 'dtype', type(mask).__name__)}"
            raise ValueError(
                f"masks do not fit {name} at {path!r}: a bool array of shape {shape} "
                f"is needed; got {got} of shape {getattr(mask, 'shape', None)}."
            )


def check_counts(name: str, counts: PyTree, masks: PyTree, scope: str) -> None:
    """Refuses numbers of weights that do not fit the masks and the scope.

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
    """Puts mask trees together that mask different leaves.

    Args:
        *trees: Mask trees of one shape.

    Returns:
        A mask tree with every mask of the trees.

    Raises:
        ValueError: If two trees have a mask for the same leaf.
    """

    def only_one(*candidates: Any) -> Any:
        found = [c for c in candidates if not is_left_dense(c)]
        if len(found) > 1:
            raise ValueError(
                "masks must be one a leaf; got several trees that mask the same leaf."
            )
        return found[0] if found else optax.MaskedNode()

    return jax.tree.map(only_one, *trees, is_leaf=is_left_dense)
