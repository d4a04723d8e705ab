"""Units that masks have cut off: without incoming or without outgoing weights.

A kernel has its output units (filters, neurons) on the last axis and its input units on
the one before, as in Flax and Haiku:

    dense          [in, out]
    convolution    [height, width, in, out]

An output unit without any active weight is constant whatever goes in: it is dead. An
input unit without any is not read by this layer. Whether another layer reads it, over
a skip connection, is the wiring's and not told by masks: a unit that none of its
readers reads is dead as well. In a grouped convolution, where the axis before the last
is as long as one group, an input unit here is one input of every group.

Axes split further, as in attention kernels [in, heads, size], do not keep to this
form: reshape them first. So do stacked layers: one leaf is taken for one layer. A leaf
of fewer than two dimensions connects no units and has none.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import SCOPES, check_choice
from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


def _without_weights(masks: PyTree, axis: int, scope: str) -> Any:
    """Counts the slices along an axis in which no weight is active."""
    check_choice("scope", scope, SCOPES)
    mask_leaves(masks)

    def of_layer(mask: jax.Array) -> jax.Array:
        if mask.ndim < 2:
            return jnp.int32(0)
        others = tuple(i for i in range(mask.ndim) if i != mask.ndim + axis)
        return jnp.sum(~jnp.any(mask, axis=others), dtype=jnp.int32)

    counts = map_masked(of_layer, masks)
    return counts if scope == "layer" else sum(jax.tree.leaves(counts), jnp.int32(0))


def dead_units(masks: PyTree, scope: str = "global") -> Any:
    """Counts the output units with no active incoming weight.

    Args:
        masks: A mask tree of kernels whose last axis is the output's.
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
    return _without_weights(masks, -1, scope)


def unread_inputs(masks: PyTree, scope: str = "global") -> Any:
    """Counts the input units with no active weight into their layer.

    Args:
        masks: A mask tree of kernels whose last axis but one is the input's.
        scope: "global" for the sum over layers, "layer" for each leaf.

    Returns:
        An int32 scalar, or a tree of them like `masks`. A unit that several layers
        could read counts in each that does not.

    Raises:
        ValueError: If the scope is unknown, or there are no masks.

    Example:
        >>> masks = jnp.array([[False, False], [True, False], [True, True]])
        >>> unread_inputs(masks).item()
        1
    """
    return _without_weights(masks, -2, scope)


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
    empty = [~jnp.any(mask) for mask in mask_leaves(masks).values() if mask.size]
    return sum((layer.astype(jnp.int32) for layer in empty), jnp.int32(0))
