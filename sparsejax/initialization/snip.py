"""SNIP: keep the weights whose removal would change the loss most.

Lee, Ajanthan & Torr, "SNIP: Single-shot Network Pruning based on Connection
Sensitivity", arXiv 1810.02340. With an indicator c_j in {0, 1} on each weight, the
sensitivity of weight j at the initial weights is

    s_j = |dL(c * w) / dc_j| at c = 1  =  |w_j dL/dw_j|,

and the largest of all layers together are kept, once. The paper divides by the sum of
all s_j, which leaves the order as it is and is left out here.

The gradient is the mean over the batches given; the paper takes one minibatch. Which
weights are scored is up to `prunable`: the authors' code scores biases too, and adds a
small L2 term, which here belongs in `loss_fn`. Scores of layers compare only if their
signals have one scale, so initialize with a fixed variance of activations (He, Glorot).
"""

from collections.abc import Iterable
from typing import Any

import jax

from sparsejax import scores
from sparsejax.initialization.averaging import Batch, LossFn, mean_gradients
from sparsejax.initialization.budget import one_shot
from sparsejax.parameters import Prunable

PyTree = Any


def snip_scores(
    loss_fn: LossFn, params: PyTree, batches: Iterable[Batch], masks: PyTree
) -> PyTree:
    """Scores weights by connection sensitivity, `|w dL/dw|`.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: Where to take gradients, usually the initial weights.
        batches: Batches, gone through once; gradients are averaged over all of them.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of float32 scores, the largest the most important.

    Raises:
        ValueError: If there are no batches, or one gives a loss or a gradient that is
            not finite; the message has its index.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, x: jnp.sum(w * x)
        >>> w, x = jnp.array([2.0, -3.0]), jnp.array([1.0, 1.0])
        >>> snip_scores(loss, w, [x], jnp.array([True, True])).tolist()
        [2.0, 3.0]
    """
    grads = mean_gradients(loss_fn, params, batches, masks)
    return scores.saliency_scores(params, grads, masks)


def snip(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    key: jax.Array | None,
    sparsity: Any,
    *,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes once, by connection sensitivity at the initial weights.

    One pass over the batches: a forward and a backward each.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights.
        batches: Batches: pytrees of arrays, sharded or not, gone through once. The
            paper takes one of about ten examples a class.
        key: Unused by SNIP; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any, as happens at high sparsity, are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If the sparsity is out of range, there are no batches, or one gives
            a loss or a gradient that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> w = jnp.array([[1.0, 3.0], [2.0, 4.0]])
        >>> snip(loss, w, [jnp.ones((5, 2))], None, 0.5).tolist()
        [[False, True], [False, True]]
    """
    del key
    return one_shot(
        lambda masks: snip_scores(loss_fn, params, batches, masks),
        params,
        sparsity,
        prunable,
    )
