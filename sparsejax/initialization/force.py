"""FORCE and Iterative SNIP: prune by SNIP's score in many small rounds.

De Jorge et al., "Progressive Skeletonization", arXiv 2006.09081. In each of T rounds
the gradient g is taken of the pruned network, at w * mask, weights that are out
included, and the weights of largest |w g| of all layers are kept, w the initial ones.

A network that has lost a layer which nothing goes around has no gradient: all scores
are 0 and rank nothing. So a round with fewer scores above 0 than weights to keep prunes
nothing. As in the authors' code (read in its source, where `score >= threshold` keeps
everything then), FORCE goes on from the dense network, Iterative SNIP from the network
as it was before the round.

What differs from it: if the last round is such a one, the scores of the dense network
choose, which are SNIP's (there, nothing is pruned in the end); counts are exact; of
batches that are held, all rounds see the same.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.checks import check_choice, check_step, is_traced
from sparsejax.initialization.averaging import Batch, LossFn, in_rounds, mean_gradients
from sparsejax.initialization.budget import (
    DECAYS,
    is_ranked,
    keep_best,
    keep_budget,
)
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import apply_masks, dense_masks
from sparsejax.parameters import Prunable, layer_rules

PyTree = Any


def force(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch] | Callable[[int], Iterable[Batch]],
    key: jax.Array | None,
    sparsity: Any,
    *,
    rounds: int = 60,
    decay: str = "exponential",
    may_return: bool = True,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes in rounds; each is one pass over its batches. One round is SNIP.

    Args:
        loss_fn: A pure function (params, batch) -> scalar, the mean loss of the batch.
        params: The initial weights.
        batches: A function of the round, from 0 up, to that round's batches: the
            authors' code draws new ones for each. Or batches that are held and serve
            all rounds. Gradients are averaged over a round's batches.
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
        ValueError: If an argument is out of range, there are no batches, one gives a
            loss or a gradient that is not finite, or more weights are to be kept than
            have a score above 0 in the dense network.

    Example:
        >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> w = jnp.array([[1.0, 3.0], [2.0, 4.0]])
        >>> examples = jax.random.uniform(jax.random.key(0), (5, 8, 2))
        >>> fresh = lambda round: [examples[round]]
        >>> force(loss, w, fresh, None, 0.5, rounds=5).tolist()
        [[False, True], [False, True]]
    """
    del key
    check_step("rounds", rounds, 1)
    check_choice("decay", decay, DECAYS)
    rules = layer_rules(params, prunable)
    budget = keep_budget(params, rules, sparsity, rounds, decay)
    batches_of = in_rounds(batches)
    dense = dense_masks(params, prunable)

    def prune(masks: PyTree, among: PyTree, index: int) -> tuple[PyTree, jax.Array]:
        """Returns the masks after a round, and whether its scores ranked enough."""
        sparse = apply_masks(params, masks)
        grads = mean_gradients(loss_fn, sparse, batches_of(index), dense)
        score = scores.saliency_scores(params, grads, dense)
        ranked = is_ranked(score, among, rules, budget, index)
        best = keep_best(score, among, rules, budget, index)
        return _choose(ranked, best, among), ranked

    masks = dense
    for index in range(rounds):
        masks, ranked = prune(masks, dense if may_return else masks, index)
    if is_traced(ranked) or not ranked:
        snip, enough = prune(dense, dense, rounds - 1)
        masks = _choose(ranked, masks, snip)
        if not is_traced(enough) and not enough:
            raise ValueError(
                f"sparsity={sparsity} keeps more weights than have a score |w dL/dw| "
                "above 0 in the dense network; use a higher sparsity, more batches, "
                "or leave out layers without gradients by prunable."
            )
    warn_of_empty_layers(masks, rules)
    return masks


def _choose(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    if is_traced(condition):
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
    return yes if condition else no
