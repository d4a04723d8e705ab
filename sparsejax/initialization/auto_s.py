"""AutoS: prune by a criterion that was learned from iterative pruning.

"Learning effective pruning at initialization from iterative pruning" (AutoSparse),
arXiv 2408.14757. A small network learns to tell from a weight's initial value and
gradient how long iterative pruning would keep it. It then prunes other networks once.

Certain, from the authors' code:

- a network is trained, pruned globally (by magnitude, or SNIP) and rewound to its
  initial weights, 20 rounds; a weight's label is the number of rounds it survived,
  min-max normalized (`auto_s_labels`);
- a weight's features are its initial value and the gradient there, summed over a prune
  set of ten images a class (`auto_s_features`);
- the scoring network is fitted by mean squared error, once, on one network;
- a new network's weights are scored in chunks of 8192, and the lowest of all layers are
  pruned at once.

Our reading: the authors' features have the scale of the network they come from, which
grows with the prune set and changes with the loss. Here weights are divided by the root
mean square of all prunable weights of the network, gradients by that of all gradients.
The scale of a whole network falls out, so that a score can be used on another one; the
scales of its layers relative to each other stay, as global pruning depends on them. The
mean of gradients in place of the sum makes no difference then.

Three things are not as in the authors' code. It keeps `density / rounds` of the weights
in each round, by operator precedence, where `density ** (1 / rounds)` is meant: use
`sparsejax.lottery_counts`. It drops scores equal to 0; here the count is exact. It
tests the scoring network on weights that it was fitted to; hold some out.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import check_step, is_traced
from sparsejax.initialization.averaging import (
    Batch,
    LossFn,
    as_static,
    mean_gradients,
    weights_of,
)
from sparsejax.initialization.budget import one_shot
from sparsejax.parameters import Prunable
from sparsejax.scores import finite
from sparsejax.trees import map_masked

PyTree = Any
ScoreFn = Callable[[jax.Array], jax.Array]


def auto_s_labels(rounds: Sequence[PyTree]) -> PyTree:
    """Returns for each weight how long iterative pruning kept it.

    Args:
        rounds: The masks after each round; see `sparsejax.lottery_ticket`.

    Returns:
        A tree like the masks of float32 labels: the number of rounds survived, of all
        weights together shifted and scaled to [0, 1].

    Raises:
        ValueError: If all weights survived equally long: there is nothing to learn.

    Example:
        >>> rounds = [jnp.array([1, 1, 0], bool), jnp.array([1, 0, 0], bool)]
        >>> auto_s_labels(rounds).tolist()
        [1.0, 0.5, 0.0]
    """
    if not rounds:
        raise ValueError("rounds must hold the masks of one round at least; got none.")
    survived = jax.tree.map(lambda *masks: sum(m.astype("f4") for m in masks), *rounds)
    leaves = [leaf for leaf in jax.tree.leaves(survived) if leaf.size]
    low = jnp.min(jnp.stack([jnp.min(leaf) for leaf in leaves]))
    high = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
    if not is_traced(low) and low == high:
        raise ValueError(
            "rounds must keep some weights longer than others; got masks by which all "
            f"survive {int(low)} of {len(rounds)} rounds."
        )
    return jax.tree.map(lambda leaf: (leaf - low) / (high - low), survived)


def _of_unit_scale(tree: PyTree) -> PyTree:
    """Divides by the root mean square of all leaves together, in float32."""
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    # By the largest first: squares of small gradients would be 0.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    largest = jnp.where(largest > 0, largest, 1)
    squares = jnp.stack([jnp.sum((leaf / largest) ** 2) for leaf in leaves])
    rms = jnp.sqrt(jnp.sum(squares) / sum(leaf.size for leaf in leaves))
    rms = jnp.where(rms > 0, rms, 1)
    return jax.tree.map(lambda leaf: leaf / largest / rms, tree)


def auto_s_features(params: PyTree, grads: PyTree, masks: PyTree) -> PyTree:
    """Describes each weight by its value and gradient, in units of its network.

    Args:
        params: The initial weights.
        grads: Gradients of the loss there, a tree like `masks` or like `params`.
        masks: The mask tree that says which leaves are prunable.

    Returns:
        A tree like `masks` of float32[..., 2]: the weight over the root mean square of
        all prunable weights, and the same of the gradient. Signs stay.

    Example:
        >>> w, g = jnp.array([3.0, -3.0]), jnp.array([0.0, 0.5])
        >>> auto_s_features(w, g, jnp.array([True, True])).round(2).tolist()
        [[1.0, 0.0], [-1.0, 1.409999966621399]]
    """
    scaled = [_of_unit_scale(weights_of(tree, masks)) for tree in (params, grads)]
    return map_masked(lambda mask, *pair: jnp.stack(pair, axis=-1), masks, *scaled)


@functools.partial(jax.jit, static_argnames=("score_fn", "chunk_size"))
def _scores_of_all(
    score_fn: ScoreFn, chunk_size: int, params: PyTree, grads: PyTree, masks: PyTree
) -> PyTree:
    def of_leaf(mask: jax.Array, features: jax.Array) -> jax.Array:
        size = math.prod(mask.shape)
        if not size:
            return jnp.zeros(mask.shape, jnp.float32)
        rows = features.reshape(size, 2)
        score = jax.lax.map(score_fn, rows, batch_size=min(chunk_size, size))
        return finite(score.astype(jnp.float32)).reshape(mask.shape)

    return map_masked(of_leaf, masks, auto_s_features(params, grads, masks))


def auto_s_scores(
    score_fn: ScoreFn,
    params: PyTree,
    grads: PyTree,
    masks: PyTree,
    chunk_size: int = 8192,
) -> PyTree:
    """Scores each weight by a learned function of its features.

    Args:
        score_fn: A pure function of the features of one weight, float32[2], to a
            scalar, the larger the longer the weight is worth keeping. It runs under
            `jax.vmap`, so weights cannot influence each other's scores.
        params: The initial weights.
        grads: Gradients there, a tree like `masks` or like `params`.
        masks: The mask tree that says which leaves are scored.
        chunk_size: How many weights of a layer are scored at once, which bounds what
            memory the scoring network's activations take.

    Returns:
        A tree like `masks` of float32 scores, NaN where one is not finite.

    Raises:
        ValueError: If `score_fn` gives anything but one number, or `chunk_size` is
            below 1.
    """
    check_step("chunk_size", chunk_size, 1)
    given = jax.eval_shape(score_fn, jax.ShapeDtypeStruct((2,), jnp.float32))
    if getattr(given, "shape", None) != ():
        raise ValueError(
            "score_fn must give one number, a scalar, for the float32[2] features of a "
            f"weight; got {given}."
        )

    return _scores_of_all(as_static(score_fn), chunk_size, params, grads, masks)


def auto_s(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    key: jax.Array | None,
    sparsity: Any,
    *,
    score_fn: ScoreFn,
    chunk_size: int = 8192,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes once, by a learned score of initial weights and gradients.

    One pass over the batches, and one of all weights through the scoring network.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights.
        batches: Batches of the prune set, gone through once; every batch counts the
            same. The paper takes ten images a class.
        key: Unused by AutoS; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        score_fn: The learned score; see `auto_s_scores`. A Flax network becomes one by
            `functools.partial(network.apply, variables)`.
        chunk_size: How many weights of a layer are scored at once.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If an argument is out of range, there are no batches, or one gives
            a loss or a gradient that is not finite.

    Example:
        >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> w = jnp.array([[1.0, 3.0], [2.0, 4.0]])
        >>> by_magnitude = lambda features: jnp.abs(features[0])
        >>> x = jnp.ones((5, 2))
        >>> auto_s(loss, w, [x], None, 0.5, score_fn=by_magnitude).tolist()
        [[False, True], [False, True]]
    """
    del key

    def score(masks: PyTree) -> PyTree:
        grads = mean_gradients(loss_fn, params, batches, masks)
        return auto_s_scores(score_fn, params, grads, masks, chunk_size)

    return one_shot(score, params, sparsity, prunable)
