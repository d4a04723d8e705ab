"""DRIVE: a short dense phase, then rapid iterative pruning by three criteria at once.

"DRIVE: Dual Gradient-Based Rapid Iterative Pruning", arXiv 2404.03687. The network is
trained densely for a short while, pruned in several rounds, set back to its initial
weights and trained under the masks. The score combines three quantities [certain]: the
magnitude |w|, connection sensitivity |w dL/dw|, and convergence sensitivity, a second
one of the gradient.

The exact formula was not found. **Our reading**: convergence sensitivity is |dL/dw|,
large where a weight has not converged; each quantity is divided by its mean over the
active weights of all layers, which makes their scales comparable, and the three are
added. The density after round t of T is d^(t/T); pruned weights do not come back. The
dense phase, epochs long in the paper, is one step of plain gradient descent for each of
its batches.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.checks import check_range, check_step, is_traced
from sparsejax.initialization.averaging import (
    Batch,
    LossFn,
    as_static,
    in_rounds,
    mean_gradients,
)
from sparsejax.initialization.budget import keep_best, keep_budget
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import apply_masks, count_active, dense_masks
from sparsejax.parameters import Prunable, layer_rules
from sparsejax.trees import map_masked

PyTree = Any


def drive_scores(params: PyTree, grads: PyTree, masks: PyTree) -> PyTree:
    """Scores weights by magnitude, connection and convergence sensitivity together.

    Args:
        params: Weights after the dense phase.
        grads: Gradients of the loss, a tree like `masks` or like `params`.
        masks: The masks in force; means are over the active weights.

    Returns:
        A tree like `masks` of float32 scores, the largest the most important.

    Example:
        >>> w, g = jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])
        >>> drive_scores(w, g, jnp.array([True, True])).tolist()
        [2.0, 4.0]
    """
    terms = [
        scores.magnitude_scores(params, masks),
        scores.saliency_scores(params, grads, masks),
        scores.magnitude_scores(grads, masks),
    ]
    number = count_active(masks)

    def share(term: PyTree) -> PyTree:
        kept = map_masked(lambda m, s: jnp.sum(jnp.where(m, s, 0)), masks, term)
        mean = sum(jax.tree.leaves(kept)) / number
        return jax.tree.map(lambda s: s / jnp.where(mean > 0, mean, 1), term)

    return jax.tree.map(lambda *parts: sum(parts), *map(share, terms))


@functools.partial(jax.jit, static_argnames="loss_fn")
def _descend(
    loss_fn: LossFn, params: PyTree, batch: Batch, learning_rate: Any
) -> tuple[PyTree, jax.Array]:
    """Takes a step of gradient descent; says whether the gradients are finite."""
    grads = jax.grad(loss_fn)(params, batch)
    new = jax.tree.map(
        lambda w, g: (w - learning_rate * g).astype(w.dtype), params, grads
    )
    sound = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads)]
    return new, jnp.all(jnp.stack(sound))


def drive(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    key: jax.Array | None,
    sparsity: Any,
    *,
    dense_batches: Iterable[Batch] | None = None,
    learning_rate: float = 0.1,
    rounds: int = 10,
    prunable: Prunable = None,
) -> PyTree:
    """Trains densely for a pass over the dense batches, then prunes in rounds.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights, to which the masks are then applied.
        batches: Batches that are held and serve all rounds, or a function of the
            round, from 0 up, to that round's batches.
        key: Unused by DRIVE; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        dense_batches: The batches of the dense phase, gone through once: give some
            epochs of them, one after the other. None for those of round 0, which is
            short.
        learning_rate: Of the dense phase; 0 scores the initial weights.
        rounds: T, rounds of pruning, at least 1.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights.

    Raises:
        ValueError: If an argument is out of range, there are no batches, or one gives
            a loss or a gradient that is not finite.
    """
    del key
    check_step("rounds", rounds, 1)
    check_range(
        "learning_rate",
        learning_rate,
        lambda x: 0 <= x < float("inf"),
        "0 or more and finite",
    )
    rules = layer_rules(params, prunable)
    budget = keep_budget(params, rules, sparsity, rounds)
    batches_of = in_rounds(batches)
    loss_fn = as_static(loss_fn)
    trained = params
    phase, name = dense_batches, "dense_batches"
    if phase is None:
        phase, name = batches_of(0), "batches"
    for index, batch in enumerate(phase):
        trained, sound = _descend(loss_fn, trained, batch, learning_rate)
        if not is_traced(sound) and not sound:
            raise ValueError(
                f"{name}: batch {index} gives gradients that are not finite (NaN or "
                "infinity) in the dense phase; check it, or lower learning_rate."
            )
    masks = dense_masks(params, prunable)
    for number in range(rounds):
        pruned = apply_masks(trained, masks)
        grads = mean_gradients(loss_fn, pruned, batches_of(number), masks)
        masks = keep_best(
            drive_scores(pruned, grads, masks), masks, rules, budget, number
        )
    warn_of_empty_layers(masks, rules)
    return masks
