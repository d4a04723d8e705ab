"""A printable table of what is pruned, layer by layer."""

import math
from typing import Any

import numpy as np

from sparsejax.parameters import LayerRule, Prunable, layer_rules, why_dense
from sparsejax.trees import bool_leaves, fit, is_left_dense, leaves_with_paths

PyTree = Any


def summary(params: PyTree, masks: PyTree, prunable: Prunable = None) -> str:
    """Returns a table of the layers: shape, weights, active weights and sparsity.

    Args:
        params: The parameters.
        masks: Masks that fit them, concrete arrays.
        prunable: What the method was given, which says where layers are stacked.

    Returns:
        Text of one line a leaf and a line of totals, with the sparsity over the
        prunable weights alone. A note says why a leaf is left dense, that a layer is
        empty, how many weights outside the masks are not 0, and the range of sparsities
        where layers are stacked.

    Raises:
        ValueError: If the masks do not fit.

    Example:
        >>> params = {"w": np.ones((2, 4)), "bias": np.ones(4)}
        >>> import sparsejax as sj
        >>> masks = sj.prune_magnitude(params, sj.dense_masks(params), sparsity=0.75)
        >>> print(summary(sj.apply_masks(params, masks), masks))
        path      shape  weights  active  sparsity  note
        bias      4            4       4         -  dense: a bias
        w         2x4          8       2    0.7500
        prunable               8       2    0.7500
        all                   12       6
    """
    masks = fit(masks, params)
    bool_leaves(masks)
    rule_at = (
        {}
        if prunable is None
        else dict(leaves_with_paths(layer_rules(params, prunable)))
    )
    rows = [["path", "shape", "weights", "active", "sparsity", "note"]]
    total = active = weights = 0
    mask_at = dict(leaves_with_paths(masks))
    for path, leaf in leaves_with_paths(params):
        if is_left_dense(leaf) or not hasattr(leaf, "shape"):
            continue
        size = math.prod(leaf.shape)
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        weights += size
        kept, share = size, "-"
        note = f"dense: {why_dense(path, leaf) or 'left out by prunable'}"
        if not is_left_dense(mask_at[path]):
            mask = np.asarray(mask_at[path])
            kept = int(np.count_nonzero(mask))
            share = f"{1 - kept / max(size, 1):.4f}"
            total, active = total + size, active + kept
            note = _note(mask, np.asarray(leaf), rule_at.get(path))
        rows.append([path, shape, f"{size:,}", f"{kept:,}", share, note])
    share = f"{1 - active / max(total, 1):.4f}"
    rows.append(["prunable", "", f"{total:,}", f"{active:,}", share, ""])
    rows.append(["all", "", f"{weights:,}", f"{weights - total + active:,}", "", ""])
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(row: list[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
        right = [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:5])]
        return "  ".join([*left, *right, row[5]]).rstrip()

    return "\n".join(map(line, rows))


def _note(mask: np.ndarray, leaf: np.ndarray, rule: LayerRule | None) -> str:
    """What else there is to say of a masked leaf."""
    notes = []
    stray = int(np.count_nonzero(leaf[~mask]))
    if stray:
        notes.append(f"{stray:,} outside the mask are not 0")
    if rule is not None and not is_left_dense(rule) and rule.stacked:
        shares = 1 - np.mean(mask.reshape(len(mask), -1), axis=1)
        notes.append(f"layers: {shares.min():.4f} to {shares.max():.4f}")
    if mask.size and not mask.any():
        notes.append("empty: nothing passes")
    return "; ".join(notes)
