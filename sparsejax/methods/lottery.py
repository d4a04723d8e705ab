"""Lottery tickets: sub-networks found by training, pruning and rewinding, in rounds.

Frankle and Carbin, `The Lottery Ticket Hypothesis <https://arxiv.org/abs/1803.03635>`_,
2018; rewinding to step k > 0 from Frankle et al., `Linear Mode Connectivity and the
Lottery Ticket Hypothesis <https://arxiv.org/abs/1912.05671>`_, 2019. With m = 1 first,
each round

    trains w_k * m from step k to the end T, which gives w_T,
    prunes 20 % of the active weights, those of smallest |w_T| among all layers,
    rewinds the survivors to w_k, and the learning rate to step k.

After n rounds a density of 0.8^n is left. Renda et al., `Comparing Rewinding and
Fine-tuning in Neural Network Pruning <https://arxiv.org/abs/2003.02389>`_, 2020, rewind
the learning rate alone and keep w_T, or keep both (fine-tuning). The controls are new
first weights under the same masks, and masks shuffled within each layer.

These are pure functions; training is the caller's, under masks that stay as they are:

    start = params                                      # or the weights at step k
    masks = sj.dense_masks(params)
    for count in sj.lottery_counts(sj.count_prunable(masks), [0.9, 0.98]):
        trained = train(params, sj.static_transform(inner, masks=masks))
        params, masks = sj.lottery_ticket(trained, start, masks, keep=count)
    final = train(params, sj.static_transform(inner, masks=masks))

The first paper prunes the output layer at half the rate; here all layers are ranked
together, as its authors do in deeper networks.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.checks import check_fraction, check_sparsity
from sparsejax.counts import keep_count
from sparsejax.masks import apply_masks, count_active
from sparsejax.selection import top_k_mask
from sparsejax.topology import prune_magnitude
from sparsejax.trees import map_masked

PyTree = Any


def lottery_ticket(
    trained: PyTree,
    start: PyTree,
    masks: PyTree,
    *,
    fraction: Any = None,
    keep: Any = None,
    scope: str = "global",
) -> tuple[PyTree, PyTree]:
    """Prunes by the trained weights and rewinds what survives.

    Args:
        trained: Parameters at the end of the round.
        start: Parameters to go back to: those at step k; `trained` itself for
            learning-rate rewinding and fine-tuning; new ones for random
            reinitialization.
        masks: The masks of the round.
        fraction: Drop ceil(fraction * active) weights, in [0, 1]; 0.2 in the papers.
        keep: Instead: how many weights stay, an int that may be traced; with scope
            "layer" a tree of ints.
        scope: "global" ranks all layers together, "layer" each by itself.

    Returns:
        The params and the masks of the next round, that is `start` with exact zeros
        where a mask is False, and a subset of the old masks.

    Raises:
        ValueError: If not exactly one of `fraction` and `keep` is given, one is out of
            range, or the trees do not fit.

    Example:
        >>> start, trained = jnp.array([5.0, 6.0, 7.0]), jnp.array([9.0, -8.0, 0.5])
        >>> params, masks = lottery_ticket(
        ...     trained, start, jnp.ones(3, bool), fraction=0.2)
        >>> params.tolist(), masks.tolist()
        ([5.0, 6.0, 0.0], [True, True, False])
    """
    masks = prune_magnitude(trained, masks, fraction=fraction, keep=keep, scope=scope)
    return apply_masks(start, masks), masks


def shuffle_masks(key: jax.Array, masks: PyTree) -> PyTree:
    """Draws masks anew with as many active weights in each layer: a control.

    Args:
        key: A JAX PRNG key; the same key gives the same masks on every device.
        masks: The masks of a ticket.

    Returns:
        Random masks with the counts of `masks`, layer by layer.

    Example:
        >>> shuffled = shuffle_masks(jax.random.key(0), jnp.arange(9) < 4)
        >>> shuffled.sum().item()
        4
    """
    everywhere = map_masked(jnp.ones_like, masks)
    counts = count_active(masks, "layer")
    drawn = scores.random_scores(key, everywhere)
    return top_k_mask(drawn, counts, scope="layer", rank=scores.as_it_is)


def lottery_counts(
    size: int, sparsities: Sequence[float], fraction: float = 0.2
) -> list[int]:
    """Plans rounds of pruning that pass through some sparsities exactly.

    Rounds of 20 % end at 79.0 or 83.2 % and never at 80. So from each of the sparsities
    to the next rounds have one rate, the nearest to `fraction` that fits.

    Args:
        size: Prunable weights.
        sparsities: What to pass through, rising, in (0, 1); the last is where it ends.
        fraction: About which fraction of the active weights a round drops, in (0, 1).

    Returns:
        The active weights after each round, falling.

    Raises:
        ValueError: If an argument is out of range, or so sparse that nothing is left.

    Example:
        >>> lottery_counts(1000, [0.5, 0.9])
        [794, 630, 500, 397, 316, 251, 199, 158, 126, 100]
    """
    check_fraction("fraction", fraction)
    for sparsity in sparsities:
        check_sparsity("sparsities", sparsity)
    ends = [size, *(int(keep_count(sparsity, size)) for sparsity in sparsities)]
    if not all(before > after > 0 for before, after in itertools.pairwise(ends)):
        raise ValueError(
            "sparsities must rise, each by a weight at least, and leave one of the "
            f"{size} weights; got {tuple(sparsities)}."
        )
    counts = []
    for before, after in itertools.pairwise(ends):
        ratio = after / before
        rounds = max(1, round(math.log(ratio) / math.log(1 - fraction)))
        between = (round(before * ratio ** (i / rounds)) for i in range(1, rounds))
        counts += [*between, after]
    return list(dict.fromkeys(counts))
