"""The methods that prune before training, by name; then masks stay as they are."""

from collections.abc import Callable, Iterable
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


def class_balanced_batch(
    images: np.ndarray, labels: np.ndarray, per_class: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many examples of each class, or all where a class has fewer."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class]
        for label in np.unique(labels)
    ]
    drawn = rng.permutation(np.concatenate(rows))
    return images[drawn], labels[drawn]


def masks_before_training(
    name: str,
    params: PyTree,
    sparsity: Any,
    *,
    loss_fn: Callable[..., jax.Array],
    batches: Callable[[int], Iterable[Any]],
    balanced: Callable[[], Iterable[Any]],
    dense_batches: Callable[[], Iterable[Any]],
    apply_fn: Callable[[PyTree, Any], Any],
    image_shape: tuple[int, ...],
    rounds: int | None,
) -> PyTree:
    """Finds the masks of a network that is not trained yet.

    `batches` are those of a round, `balanced` GraSP's, `dense_batches` those of DRIVE's
    dense phase; `rounds` may be None for as many as a method's paper has.
    """
    in_rounds: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    match name:
        case "snip":
            return sj.snip(loss_fn, params, batches(0), None, sparsity)
        case "grasp":
            return sj.grasp(loss_fn, params, balanced(), None, sparsity)
        case "synflow":
            image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
            return sj.synflow(apply_fn, params, [image], None, sparsity, **in_rounds)
        case "drive":
            in_rounds["dense_batches"] = dense_batches()
            return sj.drive(loss_fn, params, batches, None, sparsity, **in_rounds)
    in_rounds["may_return"] = name == "force"
    return sj.force(loss_fn, params, batches, None, sparsity, **in_rounds)
