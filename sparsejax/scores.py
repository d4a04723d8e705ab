"""What a weight is worth: the scores that topology updates rank.

Each maps over the leaves of a mask tree and returns a tree like it. A score that is not
finite becomes NaN, which ranks below everything, so that it never wins a place.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


def finite(score: jax.Array) -> jax.Array:
    """Turns infinite scores into NaN, the lowest rank.

    Args:
        score: A float array of any shape.

    Returns:
        The array with NaN at each infinite entry.

    Example:
        >>> finite(jnp.array([1.0, -jnp.inf])).tolist()
        [1.0, nan]
    """
    return jnp.where(jnp.isfinite(score), score, jnp.nan)


def absolute(score: jax.Array) -> jax.Array:
    """Takes absolute values, with NaN at each infinite entry; a key to rank by.

    Args:
        score: A float or integer array of any shape.

    Returns:
        The array of the same dtype.

    Example:
        >>> absolute(jnp.array([-1.0, -jnp.inf])).tolist()
        [1.0, nan]
    """
    is_float = jnp.issubdtype(score.dtype, jnp.floating)
    return finite(jnp.abs(score)) if is_float else jnp.abs(score)


def rank_of_magnitude(score: jax.Array) -> jax.Array:
    """Gives integers in the order of absolute values; a key to rank by.

    It ranks like `absolute` and takes half the instructions: the bits of a float
    without its sign are its rank.

    Args:
        score: A float or integer array of any shape.

    Returns:
        Signed integers of the same size in bytes, -1 where a float is not finite.

    Example:
        >>> ranks = rank_of_magnitude(jnp.array([-2.0, 1.0, jnp.inf]))
        >>> bool(ranks[0] > ranks[1] > ranks[2])
        True
    """
    if not jnp.issubdtype(score.dtype, jnp.floating):
        return jnp.abs(score)
    integer = jnp.dtype(f"int{8 * score.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(score, integer) & jnp.iinfo(integer).max
    infinity = np.array(np.inf, score.dtype).view(integer)
    return jnp.where(bits < infinity, bits, -1)


def magnitude(tree: PyTree, masks: PyTree) -> PyTree:
    """Scores by absolute value: |w| to prune by, |dL/dw| to grow by.

    Args:
        tree: Parameters or gradients, like the masks.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of scores in the dtype of `tree`.

    Example:
        >>> magnitude(jnp.array([-2.0, 1.0]), jnp.array([True, True])).tolist()
        [2.0, 1.0]
    """
    return map_masked(lambda mask, leaf: absolute(leaf), masks, tree)


def saliency(params: PyTree, grads: PyTree, masks: PyTree) -> PyTree:
    """Scores by |w dL/dw|, the first-order change of the loss when w is removed.

    Args:
        params: Parameters, like the masks.
        grads: Gradients, like the masks.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of float32 scores.

    Example:
        >>> ones = jnp.array([True, True])
        >>> saliency(jnp.array([-2.0, 1.0]), jnp.array([1.0, 0.5]), ones).tolist()
        [2.0, 0.5]
    """

    def score(mask: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
        return finite(jnp.abs(weight.astype(jnp.float32) * grad.astype(jnp.float32)))

    return map_masked(score, masks, params, grads)


def random(key: jax.Array, masks: PyTree) -> PyTree:
    """Scores at random, the same on every device and in every sharding.

    The key is folded with each leaf's path, never with a device index.

    Args:
        key: A JAX PRNG key.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of int32 scores with 31 random bits.
    """
    scores = []
    for path, mask in mask_leaves(masks).items():
        leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        bits = jax.random.bits(leaf_key, mask.shape, jnp.uint32)
        scores.append((bits >> 1).astype(jnp.int32))
    return jax.tree.unflatten(jax.tree.structure(masks), scores)
