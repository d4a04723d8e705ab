"""Means of gradients over batches: one compiled step, called for each batch.

Only prunable leaves are differentiated; all others are constants. Sums are in float32
at least, whatever the weights are. Every batch counts the same, of whatever size. Over
sharded global arrays the loss is the mean over all replicas, and so are its gradients.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import is_traced
from sparsejax.trees import is_left_dense, map_masked

PyTree = Any
Batch = Any
LossFn = Callable[[PyTree, Batch], jax.Array]


def with_weights(params: PyTree, weights: PyTree, masks: PyTree) -> PyTree:
    """Puts other weights in the prunable leaves of the parameters.

    Args:
        params: Parameters.
        weights: A tree like `masks` of arrays.
        masks: The mask tree that says which leaves are prunable.

    Returns:
        The parameters with `weights` at the prunable leaves.
    """

    def choose(mask: Any, leaf: Any, weight: Any) -> Any:
        return leaf if is_left_dense(mask) else weight

    return jax.tree.map(choose, masks, params, weights, is_leaf=is_left_dense)


def loss_of_weights(
    loss_fn: LossFn, params: PyTree, masks: PyTree, batch: Batch
) -> Callable[[PyTree], jax.Array]:
    """Returns the loss of one batch as a function of the prunable leaves alone.

    Args:
        loss_fn: A function (params, batch) -> scalar.
        params: Parameters, for all other leaves.
        masks: The mask tree that says which leaves are prunable.
        batch: The batch.

    Returns:
        A function of a tree like `masks`. It raises ValueError where `loss_fn` gives
        anything but one number.
    """

    def loss(weights: PyTree) -> jax.Array:
        value = loss_fn(with_weights(params, weights, masks), batch)
        if not isinstance(value, jax.Array) or value.shape != ():
            got = getattr(value, "shape", type(value).__name__)
            raise ValueError(
                "loss_fn must return one number, the mean loss of the batch, as a "
                f"scalar; got {got}."
            )
        return value

    return loss


def weights_of(params: PyTree, masks: PyTree) -> PyTree:
    """Takes the prunable leaves out of the parameters.

    Args:
        params: Parameters.
        masks: The mask tree that says which leaves are prunable.

    Returns:
        A tree like `masks` of weights.
    """
    return map_masked(lambda mask, leaf: leaf, masks, params)


def as_static(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function one that can be a static argument of compiled functions.

    Calls with an equal static argument share what is compiled, so the functions of this
    package that are compiled take functions so, instead of closing over them.

    Args:
        function: Any callable object.

    Returns:
        The function, or where it cannot be hashed a new one that can, which is equal to
        no other: then each call compiles.
    """
    try:
        hash(function)
    except TypeError:
        return functools.partial(function)
    return function


def in_rounds(
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
) -> Callable[[int], Iterable[Batch]]:
    """Returns the batches of each round as a function of the round.

    Args:
        batches: Such a function, or batches that are held for all rounds.

    Returns:
        The function.
    """
    if callable(batches) and not isinstance(batches, Iterable):
        return batches
    held = list(batches)
    return lambda number: held


@functools.partial(jax.jit, static_argnames=("f", "loss_fn"))
def _of_batch(
    f: Callable[..., tuple[jax.Array, PyTree]], loss_fn: LossFn, args: Any, batch: Batch
) -> tuple[jax.Array, PyTree]:
    """Returns whether all is finite, and the tree in float32 at least."""
    loss, tree = f(loss_fn, *args, batch)
    leaves = [loss, *jax.tree.leaves(tree)]
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return sound, jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree
    )


@jax.jit
def _add(sums: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, sums, tree)


@jax.jit
def _divide(sums: PyTree, number: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf / number, sums)


def mean_over_batches(
    f: Callable[..., tuple[jax.Array, PyTree]],
    loss_fn: LossFn,
    batches: Iterable[Batch],
    *args: Any,
) -> PyTree:
    """Averages what a function gives for each batch.

    Args:
        f: A function (loss_fn, *args, batch) -> (loss, tree of float arrays), defined
            once, as calls with the same function share what is compiled.
        loss_fn: A pure function (params, batch) -> scalar.
        batches: Batches: pytrees of arrays, gone through once.
        *args: Trees of arrays.

    Returns:
        The mean of the trees, in float32 or wider.

    Raises:
        ValueError: If there are no batches, or one gives a loss or an entry that is
            not finite; the message has its index. Traced values are not looked at.
    """
    loss_fn = as_static(loss_fn)
    sums, number = None, 0
    for index, batch in enumerate(batches):
        sound, tree = _of_batch(f, loss_fn, args, batch)
        if not is_traced(sound) and not sound:
            raise ValueError(
                f"batches: batch {index} gives a loss or gradients that are not finite "
                "(NaN or infinity); every batch must give finite ones."
            )
        sums = tree if sums is None else _add(sums, tree)
        number = index + 1
    if sums is None:
        raise ValueError("batches must hold at least one batch; got none.")
    return _divide(sums, number)


def _gradients(
    loss_fn: LossFn, params: PyTree, masks: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    loss = loss_of_weights(loss_fn, params, masks, batch)
    return jax.value_and_grad(loss)(weights_of(params, masks))


def mean_gradients(
    loss_fn: LossFn, params: PyTree, batches: Iterable[Batch], masks: PyTree
) -> PyTree:
    """Averages the gradients of the loss over batches.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: Where to take the gradients. Inactive weights get theirs too.
        batches: Batches: pytrees of arrays, gone through once.
        masks: The mask tree that says which leaves are prunable.

    Returns:
        A tree like `masks` of gradients in float32 or wider.

    Raises:
        ValueError: If there are no batches, or one gives a loss or a gradient that is
            not finite; the message has its index.
    """
    return mean_over_batches(_gradients, loss_fn, batches, params, masks)
