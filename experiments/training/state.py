"""What training changes, and how it is first made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj

PyTree = Any


class TrainState(NamedTuple):
    """Everything that a step reads and changes.

    Attributes:
        step: int32 scalar, steps taken; also the position in the input, which is a pure
            function of the seed and the step.
        params: The weights.
        batch_stats: Running statistics of batch norm; empty where there are none.
        opt_state: The optimizer's state, with masks and the key of random growth.
        explored: The union of all masks so far, like the masks: a byte a weight.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    explored: PyTree


def mapped_fields(state: Any) -> Any:
    """Gives the axes by which states that are at the same step are stacked.

    The step is kept off the mapped axis, so that a conditional on it stays a branch: by
    a batched one, both sides would be computed at every step.

    Args:
        state: A type of named tuples with a field `step`.

    Returns:
        One of them, for `jax.vmap`: None for the step, 0 for all else.

    Example:
        >>> mapped_fields(TrainState).step, mapped_fields(TrainState).params
        (None, 0)
    """
    return state._make(None if name == "step" else 0 for name in state._fields)


def first_variables(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> Any:
    """Draws the first weights.

    Args:
        model: Maps images to logits.
        image_shape: (height, width, channels).
        seed: Seed of the weights.

    Returns:
        Flax's collections: "params", and "batch_stats" where there are some.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return model.init(jax.random.key(seed), images, train=False)


def create_state(
    model: nn.Module,
    optimizer: Callable[[PyTree], optax.GradientTransformation],
    image_shape: tuple[int, ...],
    seed: int,
    masks: PyTree = None,
) -> TrainState:
    """Draws the first weights and masks them.

    Args:
        model: Maps images to logits.
        optimizer: Makes the optimizer, with `sparsejax.sparsify` in it, of masks to
            start from; None for its own.
        image_shape: (height, width, channels).
        seed: Seed of the weights.
        masks: What the optimizer is made of.

    Returns:
        The state at step 0, with exact zeros where masks are False.
    """

    def init(masks: PyTree) -> TrainState:
        variables = first_variables(model, image_shape, seed)
        params, opt_state = sj.init_sparse(optimizer(masks), variables["params"])
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=opt_state,
            explored=sj.get_masks(opt_state),
        )

    # An argument: masks that are constants take XLA long to fold.
    return jax.jit(init)(masks)


def checksum(tree: PyTree) -> jax.Array:
    """Sums up the bits of each leaf in a number that no sharding changes.

    Args:
        tree: Arrays of any dtypes.

    Returns:
        uint32[leaves]; a changed entry changes its leaf's number.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
        bits = jax.lax.bitcast_convert_type(leaf, unsigned[leaf.dtype.itemsize])
        position = jnp.zeros(leaf.shape, jnp.uint32)
        for axis in range(leaf.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            position = position * jnp.uint32(leaf.shape[axis]) + index
        # An odd factor for each position: what sums to the same must be the same.
        weighted = bits.astype(jnp.uint32) * (2 * position + 1)
        return jnp.sum(weighted, dtype=jnp.uint32)

    return jnp.stack([of_leaf(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])
