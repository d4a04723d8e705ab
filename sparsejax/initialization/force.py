"""FORCE and Iterative SNIP: prune by SNIP's score in many small rounds.

De Jorge et al., "Progressive Skeletonization", arXiv 2006.09081. In each of T rounds
the gradient g is taken of the pruned network, at w * mask, weights that are out
included, and the weights of largest |w g| of all layers are kept, w the initial ones.

A round that empties a layer which nothing goes around leaves no gradient: all scores
are 0 from then on, and position decides which weights stay. The warning of empty layers
is the only sign of it.
"""

from collections.abc import Iterable
from typing import Any

import jax

from sparsejax import scores
from sparsejax.checks import check_choice, check_step
from sparsejax.initialization.averaging import Batch, LossFn, mean_gradients
from sparsejax.initialization.budget import DECAYS, keep_best, keep_budget
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import apply_masks, dense_masks
from sparsejax.parameters import Prunable, layer_rules

PyTree = Any


def force(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    key: jax.Array | None,
    sparsity: Any,
    *,
    rounds: int = 60,
    decay: str = "exponential",
    may_return: bool = True,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes in rounds; each is one pass over the batches. One round is SNIP.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights.
        batches: Batches, all held; every round averages gradients over all of them.
        key: Unused by FORCE; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        rounds: T, at least 1.
        decay: How density falls: "exponential", d^(t/T), or "linear".
        may_return: Whether pruned weights may return: True is FORCE, False Iterative
            SNIP.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If an argument is out of range, there are no batches, or one gives
            a loss or a gradient that is not finite.
    """
    del key
    check_step("rounds", rounds, 1)
    check_choice("decay", decay, DECAYS)
    rules = layer_rules(params, prunable)
    budget = keep_budget(params, rules, sparsity, rounds, decay)
    held = list(batches)
    masks = dense = dense_masks(params, prunable)
    for index in range(rounds):
        grads = mean_gradients(loss_fn, apply_masks(params, masks), held, dense)
        score = scores.saliency_scores(params, grads, dense)
        among = dense if may_return else masks
        masks = keep_best(score, among, rules, budget, index)
    warn_of_empty_layers(masks, rules)
    return masks
