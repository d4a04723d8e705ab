"""Units that masks have cut off: without incoming or without outgoing weights.

A kernel has its output units (filters, neurons) on the last axis and its input units on
the one before, as in Flax and Haiku, or on those that its path tells:

    dense          [in, out]
    convolution    [height, width, in, out]
    attention      [in, heads, size], [heads, size, out]     query, key, value, and out
    Equinox        [out, in, ...]                            an attribute `weight`

An output unit without any active weight is constant whatever goes in: it is dead. An
input unit without any is not read by this layer. Whether another layer reads it, over
a skip connection, is the wiring's, which masks do not know: a unit that none of its
readers reads is dead as well. In a grouped convolution, where the axis before the last
is as long as one group, an input unit here is one input of every group.

One leaf is taken for one layer: take stacked layers apart first. A leaf of fewer than
two dimensions connects no units and has none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import SCOPES, check_choice
from sparsejax.parameters import kernel_axes
from sparsejax.trees import bool_leaves, is_left_dense

PyTree = Any


def _without_weights(masks: PyTree, side: int, scope: str) -> Any:
    """Counts the inputs (side 0) or outputs (side 1) in which no weight is active."""
    check_choice("scope", scope, SCOPES)
    bool_leaves(masks)

    def of_layer(path: Sequence[Any], mask: Any) -> Any:
        if is_left_dense(mask):
            return mask
        if mask.ndim < 2:
            return jnp.int32(0)
        axes = kernel_axes(path, mask.ndim)[side]
        others = tuple(i for i in range(mask.ndim) if i not in axes)
        return jnp.sum(~jnp.any(mask, axis=others), dtype=jnp.int32)

    counts = jax.tree_util.tree_map_with_path(of_layer, masks, is_leaf=is_left_dense)
    return counts if scope == "layer" else sum(jax.tree.leaves(counts), jnp.int32(0))


def dead_units(masks: PyTree, scope: str = "global") -> Any:
    """Counts the output units with no active incoming weight.

    Args:
        masks: A mask tree of kernels.
        scope: "global" for the sum over layers, "layer" for each leaf.

    Returns:
        An int32 scalar, or a tree of them like `masks`.

    Raises:
        ValueError: If the scope is unknown, or there are no masks.

    Example:
        >>> masks = jnp.array([[True, False, False], [True, False, True]])
        >>> dead_units(masks).item()
        1
    """
    return _without_weights(masks, 1, scope)


def dead_inputs(masks: PyTree, scope: str = "global") -> Any:
    """Counts the input units with no active weight into their layer.

    Args:
        masks: A mask tree of kernels.
        scope: "global" for the sum over layers, "layer" for each leaf.

    Returns:
        An int32 scalar, or a tree of them like `masks`. A unit that several layers
        could read counts in each that does not.

    Raises:
        ValueError: If the scope is unknown, or there are no masks.

    Example:
        >>> masks = jnp.array([[False, False], [True, False], [True, True]])
        >>> dead_inputs(masks).item()
        1
    """
    return _without_weights(masks, 0, scope)


def empty_layers(masks: PyTree) -> jax.Array:
    """Counts the layers without any active weight: nothing passes through them.

    Args:
        masks: A mask tree.

    Returns:
        An int32 scalar. Layers that have no weights at all do not count.

    Raises:
        ValueError: If there are no masks.

    Example:
        >>> masks = {"a": jnp.array([False, False]), "b": jnp.array([True, False])}
        >>> empty_layers(masks).item()
        1
    """
    empty = [~jnp.any(mask) for mask in bool_leaves(masks).values() if mask.size]
    return sum((layer.astype(jnp.int32) for layer in empty), jnp.int32(0))
