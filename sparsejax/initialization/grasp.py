"""GraSP: keep the weights whose removal would cost the most gradient flow.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient
Flow", arXiv 2002.07376. With the gradient g and the Hessian H of the loss at the
initial weights, removing weight j changes |g|^2 in proportion to

    S_j = -w_j (H g)_j,

and the largest S of all layers together are removed: g and H g are means over all
batches, g first. H g is the derivative of the gradient along g: forward over reverse.

The authors' code divides logits by a temperature of 200. It decides which weights stay:
masks at 1 and at 200 share half of their weights or less. The loss is told it, as
`loss_fn(params, batch, temperature=200.0)`, and one function serves all methods:

    def loss_fn(params, batch, temperature=1.0):
        logits = apply(params, batch["image"]) / temperature
        return cross_entropy(logits, batch["label"]).mean()

What differs from the authors' code: it takes one batch of ten images a class, in two
halves, and sums where there is a mean here, which leaves the order as it is; it scores
a copy whose dense layers are drawn anew (Xavier); counts here are exact.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.checks import check_range
from sparsejax.initialization.averaging import (
    Batch,
    LossFn,
    as_static,
    loss_of_weights,
    mean_gradients,
    mean_over_batches,
    weights_of,
)
from sparsejax.initialization.budget import one_shot
from sparsejax.parameters import Prunable
from sparsejax.trees import map_masked

PyTree = Any
TEMPERATURE = 200.0


@dataclasses.dataclass(frozen=True)
class _AtTemperature:
    """A loss at one temperature; equal ones share what is compiled."""

    loss_fn: Callable[..., jax.Array]
    temperature: float

    def __call__(self, params: PyTree, batch: Batch) -> jax.Array:
        return self.loss_fn(params, batch, temperature=self.temperature)


def _at_temperature(
    loss_fn: Callable[..., jax.Array], params: PyTree, temperature: float
) -> LossFn:
    check_range(
        "temperature", temperature, lambda t: 0 < t < math.inf, "above 0 and finite"
    )
    try:
        inspect.signature(loss_fn).bind(params, None, temperature=temperature)
    except TypeError:
        raise ValueError(
            "loss_fn must take the temperature that it divides its logits by, as "
            f"loss_fn(params, batch, temperature={temperature}); got one of "
            f"{inspect.signature(loss_fn)}."
        ) from None
    return _AtTemperature(as_static(loss_fn), float(temperature))


def _hessian_gradient(
    loss_fn: LossFn, params: PyTree, masks: PyTree, direction: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree]:
    loss = loss_of_weights(loss_fn, params, masks, batch)
    weights = weights_of(params, masks)
    along = jax.tree.map(lambda d, w: d.astype(w.dtype), direction, weights)
    _, product = jax.jvp(jax.grad(loss), (weights,), (along,))
    return loss(weights), product


def grasp_scores(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    batches: Iterable[Batch],
    masks: PyTree,
    temperature: float = TEMPERATURE,
) -> PyTree:
    """Scores weights by w (H g): the largest are kept, as the largest -w (H g) go.

    Args:
        loss_fn: A pure function, called as loss_fn(params, batch, temperature=...), to
            the mean loss of the batch with logits divided by the temperature.
        params: Where to take derivatives, usually the initial weights.
        batches: Batches, all held and gone through twice: for g, then for H g.
        masks: The mask tree that says which leaves are scored.
        temperature: What `loss_fn` is to divide its logits by, above 0.

    Returns:
        A tree like `masks` of float32 scores of either sign.

    Raises:
        ValueError: If `loss_fn` takes no temperature, there are no batches, or one
            gives what is not finite.

    Example:
        >>> loss = lambda w, x, temperature: jnp.sum(x * w**2)  # g = 2xw, H = 2x
        >>> w, x = jnp.array([2.0, -3.0]), jnp.array([1.0, 1.0])
        >>> grasp_scores(loss, w, [x], jnp.array([True, True])).tolist()
        [16.0, 36.0]
    """
    held = list(batches)
    loss_fn = _at_temperature(loss_fn, params, temperature)
    grads = mean_gradients(loss_fn, params, held, masks)
    product = mean_over_batches(_hessian_gradient, loss_fn, held, params, masks, grads)

    def score(mask: Any, leaf: Any, along: jax.Array) -> jax.Array:
        return scores.finite(jnp.asarray(leaf, along.dtype) * along)

    return map_masked(score, masks, params, product)


def grasp(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    batches: Iterable[Batch],
    key: jax.Array | None,
    sparsity: Any,
    *,
    temperature: float = TEMPERATURE,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes once, so that gradient flow is preserved.

    Two passes over the batches; the second costs about two gradients.

    Args:
        loss_fn: A pure function, called as loss_fn(params, batch, temperature=...), to
            the mean loss of the batch with logits divided by the temperature. With
            `temperature=1.0` as its default it serves the other methods too.
        params: The initial weights.
        batches: Batches: pytrees of arrays, sharded or not, all held. The authors' code
            takes one of ten examples of each class.
        key: Unused by GraSP; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        temperature: T, above 0, by which logits are divided; 200 in the authors' code.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If an argument is out of range, `loss_fn` takes no temperature,
            there are no batches, or one gives what is not finite.

    Example:
        >>> import optax
        >>> def loss_fn(w, batch, temperature=1.0):
        ...     logits = batch["x"] @ w / temperature
        ...     loss = optax.softmax_cross_entropy_with_integer_labels
        ...     return jnp.mean(loss(logits, batch["y"]))
        >>> w = jnp.array([[0.5, -0.1, 0.2], [-0.3, 0.4, 0.1]])
        >>> batch = {"x": jnp.array([[1.0, 0.0], [0.5, 2.0]]), "y": jnp.array([0, 1])}
        >>> grasp(loss_fn, w, [batch], None, sparsity=0.5).tolist()
        [[False, True, True], [False, False, True]]
    """
    del key
    return one_shot(
        lambda masks: grasp_scores(loss_fn, params, batches, masks, temperature),
        params,
        sparsity,
        prunable,
    )
