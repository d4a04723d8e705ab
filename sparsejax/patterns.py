"""What one unit of sparsity is: here the neuron, with a fan-in of its own.

A neuron is one output of a kernel: one entry of its last axis as in Flax, where kernels
are (..., in, out), or of the axes that a `LayerRule` says. Its fan-in is everything
else: kernel positions and input features.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.parameters import LayerRule


def by_neuron(leaf: jax.Array, rule: LayerRule) -> jax.Array:
    """Reshapes a kernel to a matrix with a column for each neuron.

    Args:
        leaf: An array of a kernel's shape.
        rule: Its rule, which says the axes of outputs.

    Returns:
        The array [fan-in, neurons].

    Example:
        >>> by_neuron(jnp.zeros((8, 2, 4)), LayerRule(outputs=(1, 2))).shape
        (8, 8)
    """
    _, outputs = rule.axes(leaf.ndim)
    last = range(leaf.ndim - len(outputs), leaf.ndim)
    neurons = math.prod(leaf.shape[axis] for axis in outputs)
    return jnp.moveaxis(leaf, outputs, tuple(last)).reshape(-1, neurons)


def from_neurons(
    matrix: jax.Array, rule: LayerRule, shape: tuple[int, ...]
) -> jax.Array:
    """Undoes `by_neuron`.

    Args:
        matrix: An array [fan-in, neurons].
        rule: The kernel's rule.
        shape: The kernel's shape.

    Returns:
        The array of that shape.
    """
    _, outputs = rule.axes(len(shape))
    last = tuple(range(len(shape) - len(outputs), len(shape)))
    rest = [n for axis, n in enumerate(shape) if axis not in outputs]
    moved = matrix.reshape(*rest, *(shape[axis] for axis in outputs))
    return jnp.moveaxis(moved, last, outputs)


def count_per_neuron(mask: jax.Array) -> jax.Array:
    """Counts the active weights of each neuron.

    Args:
        mask: A bool array with the neurons on the last axis.

    Returns:
        int32[neurons].

    Example:
        >>> count_per_neuron(jnp.array([[True, False], [True, False]])).tolist()
        [2, 0]
    """
    return jnp.sum(mask, axis=tuple(range(mask.ndim - 1)), dtype=jnp.int32)


def top_k_per_neuron(score: jax.Array, k: Any, among: jax.Array) -> jax.Array:
    """Marks the k largest scores of each neuron; ties go to the earlier position.

    Unlike `top_k_mask` it sorts: groups are small, at most some thousands of weights,
    and there are many, so that one sort along the fan-in is cheap.

    Args:
        score: Floats of 16 bits or more, or signed integers, with the neurons on the
            last axis. NaN ranks below everything else.
        k: How many to mark in each neuron, at least 0: an int, or int32[neurons]; may
            be traced. Where fewer are allowed, all of those are marked.
        among: A bool array like `score`: only these can be marked.

    Returns:
        A bool array like `score` with min(k, allowed) True in each neuron.

    Example:
        >>> score = jnp.array([[1.0, 9.0], [3.0, 8.0], [2.0, 8.0]])
        >>> top_k_per_neuron(score, 2, jnp.ones((3, 2), bool)).tolist()
        [[False, True], [True, True], [True, False]]
    """
    # Ascending: what is not allowed comes last, NaN, which has no sign, before it, and
    # equal scores stay in order of position, as the sort is stable.
    is_integer = jnp.issubdtype(score.dtype, jnp.integer)
    keys = (~score if is_integer else -score).reshape(-1, score.shape[-1])
    allowed = among.reshape(keys.shape)
    position = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    *_, from_best = jax.lax.sort(
        (~allowed, keys, position), dimension=0, is_stable=True, num_keys=2
    )
    rank = jnp.argsort(from_best, axis=0)
    each = jnp.broadcast_to(jnp.asarray(k, jnp.int32), score.shape[-1:])
    return ((rank < each[None, :]) & allowed).reshape(score.shape)
