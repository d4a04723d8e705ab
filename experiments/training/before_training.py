"""The methods that prune before training, by name; then masks stay as they are."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np

import sparsejax as sj

PyTree = Any

# Names in reports, in the order of reports.
LABELS = {
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "iter_snip": "Iter-SNIP",
    "force": "FORCE",
    "drive": "DRIVE",
}


def trained_as(name: str) -> str:
    """Gives the method that a method's runs are trained with.

    Args:
        name: A key of `LABELS`, or of `experiments.training.sparse.LABELS`.

    Returns:
        "static" for the former, which differ from it in their masks alone; else `name`.
    """
    return "static" if name in LABELS else name


def masks_before_training(
    name: str,
    params: PyTree,
    sparsity: Any,
    *,
    loss_fn: Callable[[PyTree, Any], jax.Array],
    batches: Iterable[Any],
    apply_fn: Callable[[PyTree, Any], Any],
    image_shape: tuple[int, ...],
    rounds: int | None,
) -> PyTree:
    """Finds the masks of a network that is not trained yet.

    Args:
        name: A key of `LABELS`.
        params: Its first weights.
        sparsity: The overall sparsity in [0, 1).
        loss_fn: A function (params, batch) -> the mean loss; for all but SynFlow.
        batches: Training batches; for all but SynFlow.
        apply_fn: A function (params, images) -> logits; for SynFlow.
        image_shape: (height, width, channels); for SynFlow.
        rounds: Of the methods that prune in rounds; None for as many as their papers
            have, or where those do not say, as their docstrings explain.

    Returns:
        Masks of exactly the sparsity. Layers left empty are named in an
        `EmptyLayerWarning`.
    """
    options: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if name == "synflow":
        one_image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        return sj.synflow(apply_fn, params, [one_image], None, sparsity, **options)
    method: Any = {
        "snip": sj.snip,
        "grasp": sj.grasp,
        "iter_snip": partial(sj.force, may_return=False, **options),
        "force": partial(sj.force, **options),
        "drive": partial(sj.drive, **options),
    }[name]
    return method(loss_fn, params, batches, None, sparsity)
