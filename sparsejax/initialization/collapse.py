"""Layers that a method has left without any weight: nothing passes through them."""

import warnings
from typing import Any

import jax

from sparsejax.checks import EmptyLayerWarning as EmptyLayerWarning
from sparsejax.checks import is_traced
from sparsejax.masks import count_active
from sparsejax.parameters import split_layers
from sparsejax.trees import mask_leaves

PyTree = Any


def warn_of_empty_layers(
    masks: PyTree, rules: PyTree | None = None, stacklevel: int = 3
) -> None:
    """Issues an `EmptyLayerWarning` that names the layers without any active weight.

    Traced masks, inside `jax.jit`, cannot be read and are not looked at.

    Args:
        masks: A mask tree.
        rules: What `sparsejax.layer_rules` gave, to look into stacked layers one by
            one; None takes each leaf for one layer.
        stacklevel: Whose line the warning shows; 3 is that of the caller's caller.
    """
    if rules is not None:
        masks = split_layers(masks, rules)
    layers = mask_leaves(masks)
    if any(is_traced(mask) for mask in layers.values()):
        return
    counts = jax.device_get(jax.tree.leaves(count_active(masks, "layer")))
    empty = [
        path
        for (path, mask), count in zip(layers.items(), counts)
        if mask.size and not count
    ]
    if empty:
        warnings.warn(
            f"{len(empty)} of {len(layers)} layers have no active weight left: "
            f"{', '.join(map(repr, empty))}; use a lower sparsity, a fixed one for "
            "them in prunable, or another method.",
            EmptyLayerWarning,
            stacklevel=stacklevel,
        )
