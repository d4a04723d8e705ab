"""GraSP: keep the weights whose removal would cost the most gradient flow.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
Flow", arXiv 2002.07376. With the gradient g and the Hessian H of the loss at the
initial weights, removing weight j changes |g|^2 in proportion to

    S_j = -w_j (H g)_j,

and the largest S of all layers together are removed: g and H g are means over all
batches, g first. H g is the derivative of the gradient along g: forward over reverse.

The paper divides logits by a temperature of 200; do so in `loss_fn`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.initialization.averaging import (
    Batch,
    LossFn,
    loss_of_weights,
    mean_gradients,
    mean_over_batches,
    weights_of,
)
from sparsejax.initialization.budget import one_shot
from sparsejax.parameters import Prunable
from sparsejax.trees import map_masked

PyTree = Any


def _hessian_gradient(
    loss_fn: LossFn, params: PyTree, masks: PyTree, direction: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    loss = loss_of_weights(loss_fn, params, masks, batch)
    weights = weights_of(params, masks)
    along = jax.tree.map(lambda d, w: d.astype(w.dtype), direction, weights)
    _, product = jax.jvp(jax.grad(loss), (weights,), (along,))
    return loss(weights), product


def grasp_scores(
    loss_fn: LossFn, params: PyTree, batches: Iterable[Batch], masks: PyTree
) -> PyTree:
    """Scores weights by w (H g): the largest are kept, as the largest -w (H g) go.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: Where to take derivatives, usually the initial weights.
        batches: Batches, all held and gone through twice: for g, then for H g.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of float32 scores of either sign.

    Raises:
        ValueError: If there are no batches, or one gives what is not finite.

    Example:
        >>> loss = lambda w, x: jnp.sum(x * w**2)  # g = 2xw, H = 2x
        >>> w, x = jnp.array([2.0, -3.0]), jnp.array([1.0, 1.0])
        >>> grasp_scores(loss, w, [x], jnp.array([True, True])).tolist()
        [16.0, 36.0]
    """
    held = list(batches)
    grads = mean_gradients(loss_fn, params, held, masks)
    product = mean_over_batches(_hessian_gradient, loss_fn, held, params, masks, grads)

    def score(mask: Any, leaf: Any, along: jax.Array) -> jax.Array:
        return scores.finite(jnp.asarray(leaf, along.dtype) * along)

    return map_masked(score, masks, params, product)


def grasp(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    key: jax.Array | None,
    sparsity: Any,
    *,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes once, so that gradient flow is preserved.

    Two passes over the batches; the second costs about two gradients.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights.
        batches: Batches: pytrees of arrays, sharded or not, all held.
        key: Unused by GraSP; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If the sparsity is out of range, there are no batches, or one gives
            what is not finite.
    """
    del key
    return one_shot(
        lambda masks: grasp_scores(loss_fn, params, batches, masks),
        params,
        sparsity,
        prunable,
    )
