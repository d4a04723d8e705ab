"""Freezing: weights outside the masks keep their initial values to the bit.

FreezeNet (Wimmer et al., "FreezeNet: Full Performance by Reduced Storage Costs", arXiv
2011.14087) takes SNIP's masks and, in place of pruning the weights that SNIP would
prune, keeps them at their random initial values and trains the others. From the
abstract: the masks come from one pass before training, and the frozen weights can be
stored as the seed they were drawn with.

With c the masks, theta_0 the initial weights and u the optimizer's update,

    theta_(t+1) = theta_t + c u(c dL/dtheta, c theta_t),

so that neither weight decay nor momentum reaches a frozen weight: to the optimizer it
is a 0 with a gradient of 0, as a pruned one is. The forward pass is dense.

Chosen here, as neither paper's text was at hand: a leaf without a mask is trained
whole, as under the sparse methods, and `trainable` freezes whole leaves by path, which
then have no optimizer slots at all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.masks import apply_masks
from sparsejax.methods.top_kast import TopKastState
from sparsejax.parameters import compiled_patterns
from sparsejax.transform import SparsifyState
from sparsejax.trees import (
    fit,
    is_left_dense,
    is_placeholder,
    leaves_with_paths,
    own_buffers,
    path_string,
)

PyTree = Any
Trainable = Callable[[str, Any], bool] | Sequence[tuple[str, bool]] | None


class FreezeState(NamedTuple):
    """The state of `freeze_transform`.

    Attributes:
        masks: The weights that are trained.
        inner_state: The wrapped optimizer's state.
    """

    masks: PyTree
    inner_state: PyTree


def freeze_transform(
    inner: optax.GradientTransformation,
    *,
    masks: PyTree | None = None,
    trainable: Trainable = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains the weights inside the masks and leaves the others as they are.

    With masks of SNIP's it is FreezeNet, with `random_masks` a random part is trained,
    with `trainable=[("BatchNorm", True), ("", False)]` batch normalization alone.

    To prune as well, put it inside: `gmp_transform(freeze_transform(inner, ...), ...)`.
    Then a weight that is pruned is exactly 0, and one that is frozen and not pruned has
    its initial value. A frozen weight that is pruned and later grown again would stay
    0, active and of no use. So where a method grows, leave frozen layers out of its
    `prunable`, or hide them from it by wrapping it whole:
    `freeze_transform(rigl_transform(inner, ...), trainable=...)`.

    What is chained after it can move frozen weights. An average of weights, such as
    schedule-free's, is rounded: use `restore_frozen` before evaluating it.

    Args:
        inner: The optimizer to wrap. It sees 0 for frozen weights and their gradients.
        masks: Which weights are trained; leaves without a mask are trained whole. None
            trains every weight of the leaves that are trained.
        trainable: Which leaves are trained at all: a function of (path, leaf), or a
            list of (regex, bool) pairs that is searched in order for the first regex
            found anywhere in the path. Leaves that no regex matches are trained. None
            trains all leaves.

    Returns:
        An optax transformation. Its `update` needs `params`, and hands extra arguments
        on to `inner`.

    Raises:
        ValueError: If neither `masks` nor `trainable` is given, a setting is not a
            bool, nothing is left to train, the masks do not fit, or masks would freeze
            around a sparse method.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.freeze_transform(
        ...     optax.adamw(0.5), masks=jnp.array([True, False]))
        >>> params = jnp.array([1.0, 1.0])
        >>> updates, state = tx.update(jnp.ones(2), tx.init(params), params)
        >>> optax.apply_updates(params, updates).round(1).tolist()
        [0.5, 1.0]
    """
    if masks is None and trainable is None:
        raise ValueError(
            "masks or trainable must be given to say what is trained; got neither."
        )
    _check_trainable(trainable)
    hidden = optax.masked(inner, lambda params: _trained_leaves(params, trainable))

    def init_fn(params: PyTree) -> FreezeState:
        if is_placeholder(params):
            return FreezeState(params, hidden.init(params))
        start = masks
        if start is None:
            start = jax.tree.map(lambda leaf: optax.MaskedNode(), params)
        start = fit(start, params)
        state = FreezeState(start, hidden.init(apply_masks(params, start)))
        if masks is not None:
            _refuse_sparse(state.inner_state)
        return own_buffers(state, others=(params, masks))

    def update_fn(
        updates: PyTree,
        state: FreezeState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, FreezeState]:
        grads = updates
        if params is None:
            raise ValueError(
                "params must be given to update, tx.update(grads, state, params): the "
                "optimizer sees the trained weights alone; got None."
            )
        active = fit(state.masks, params)
        moves, inner_state = hidden.update(
            apply_masks(grads, active),
            state.inner_state,
            apply_masks(params, active),
            **extra_args,
        )

        def emit(is_trained: bool, mask: Any, move: Any) -> Any:
            # Adding -0.0 leaves every number as it is; adding +0.0 turns -0.0 into it.
            still = jnp.asarray(-0.0, move.dtype)
            if not is_trained:
                return jnp.full_like(move, still)
            return move if is_left_dense(mask) else jnp.where(mask, move, still)

        trained = _trained_leaves(params, trainable)
        moves = jax.tree.map(emit, trained, active, moves)
        return moves, FreezeState(active, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def restore_frozen(params: PyTree, initial: PyTree, masks: PyTree) -> PyTree:
    """Puts the frozen weights back to their initial values.

    For averages of weights, and for FreezeNet's way of storing a network: the trained
    weights, `apply_masks(params, masks)`, and the seed that gives `initial`.

    Args:
        params: Parameters.
        initial: The parameters that training started from.
        masks: The weights that are trained, a mask tree.

    Returns:
        `params` where a mask is True and at leaves without one, `initial` elsewhere.

    Raises:
        ValueError: If the masks do not fit.

    Example:
        >>> masks = jnp.array([True, False])
        >>> restore_frozen(jnp.array([5.0, 0.0]), jnp.array([1.0, 2.0]), masks).tolist()
        [5.0, 2.0]
    """
    masks = fit(masks, params)
    fit(masks, initial, "initial")

    def choose(mask: Any, leaf: Any, first: Any) -> Any:
        return leaf if is_left_dense(mask) else jnp.where(mask, leaf, first)

    return jax.tree.map(choose, masks, params, initial, is_leaf=is_left_dense)


def _check_trainable(trainable: Any) -> None:
    if trainable is None or callable(trainable):
        return
    if isinstance(trainable, str) or not isinstance(trainable, Sequence):
        raise ValueError(
            "trainable must be None, a function of (path, leaf) or a list of (regex, "
            f"bool) pairs; got {trainable!r}."
        )
    for pair in trainable:
        if len(pair) != 2 or not isinstance(pair[1], bool):
            raise ValueError(
                f"trainable must hold (regex, True or False) pairs; got {pair!r}."
            )


def _trained_leaves(params: PyTree, trainable: Trainable) -> PyTree:
    """Returns for each leaf whether it is trained at all."""
    paths = [path for path, _ in leaves_with_paths(params)]
    if callable(trainable):
        is_trained = trainable
    else:
        pairs = compiled_patterns("trainable", trainable or [], paths)

        def is_trained(path: str, leaf: Any) -> bool:
            return next((flag for found, flag in pairs if found.search(path)), True)

    trained = jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(is_trained(path_string(path), leaf)), params
    )
    if not any(jax.tree.leaves(trained)):
        raise ValueError(
            "trainable must leave at least one leaf to train; got none of "
            f"{', '.join(map(repr, paths))}."
        )
    return trained


def _refuse_sparse(state: PyTree) -> None:

    def is_sparse(node: Any) -> bool:
        return isinstance(node, (SparsifyState, TopKastState))

    if any(map(is_sparse, jax.tree.leaves(state, is_leaf=is_sparse))):
        raise ValueError(
            "inner must not be sparse where masks freeze single weights, or pruned "
            "weights would stay; got a sparse method: put freeze_transform inside it."
        )
