"""Masks that look at no data, which every method of the family has to beat."""

from typing import Any

import jax

from sparsejax import scores
from sparsejax.distributions import Distribution
from sparsejax.initialization.budget import one_shot
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import random_masks
from sparsejax.parameters import Prunable, layer_rules

PyTree = Any


def random_pruning(
    loss_fn: Any,
    params: PyTree,
    batches: Any,
    key: jax.Array,
    sparsity: float,
    *,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
) -> PyTree:
    """Draws `sparsejax.random_masks`, in the signature of the family.

    Args:
        loss_fn: Unused.
        params: Parameters; only their shapes matter.
        batches: Unused.
        key: A JAX PRNG key.
        sparsity: The overall sparsity in [0, 1), a number known now (not traced).
        distribution: "erk", "er", "uniform", or a function; see
            `sparsejax.layer_counts`.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any, as "uniform" may leave them, are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If the sparsity is out of range, traced, or out of reach.
    """
    del loss_fn, batches
    masks = random_masks(key, params, sparsity, distribution, prunable)
    warn_of_empty_layers(masks, layer_rules(params, prunable))
    return masks


def magnitude_pruning(
    loss_fn: Any,
    params: PyTree,
    batches: Any,
    key: jax.Array | None,
    sparsity: Any,
    *,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes once, by the magnitude of the initial weights of all layers together.

    Args:
        loss_fn: Unused.
        params: The initial weights.
        batches: Unused.
        key: Unused; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any, such as wide ones, are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If the sparsity is out of range or out of reach.
    """
    del loss_fn, batches, key
    return one_shot(
        lambda masks: scores.magnitude_scores(params, masks), params, sparsity, prunable
    )
