"""A printable table of what is pruned, layer by layer."""

import math
from typing import Any

import numpy as np

from sparsejax.trees import check_fit, is_left_dense, leaves_with_paths

PyTree = Any


def summary(params: PyTree, masks: PyTree) -> str:
    """Draws up a table of the layers: shape, weights, active weights and sparsity.

    Args:
        params: The parameters.
        masks: Masks that fit them, concrete arrays.

    Returns:
        Text of one line a leaf ("-" for leaves left dense) and a line of totals, with
        the sparsity over the prunable weights alone.

    Raises:
        ValueError: If the masks do not fit.

    Example:
        >>> params = {"w": np.ones((2, 4)), "b": np.ones(4)}
        >>> import sparsejax as sj
        >>> masks = sj.prune_magnitude(params, sj.dense_masks(params), sparsity=0.75)
        >>> print(summary(params, masks))
        path      shape  weights  active  sparsity
        b         4            4       4         -
        w         2x4          8       2    0.7500
        prunable               8       2    0.7500
        all                   12       6
    """
    check_fit(masks, params)
    rows = [["path", "shape", "weights", "active", "sparsity"]]
    prunable = active = weights = 0
    mask_at = dict(leaves_with_paths(masks))
    for path, leaf in leaves_with_paths(params):
        if is_left_dense(leaf):
            continue
        size = math.prod(leaf.shape)
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        weights += size
        kept, share = size, "-"
        if not is_left_dense(mask_at[path]):
            kept = int(np.count_nonzero(np.asarray(mask_at[path])))
            share = f"{1 - kept / max(size, 1):.4f}"
            prunable, active = prunable + size, active + kept
        rows.append([path, shape, f"{size:,}", f"{kept:,}", share])
    share = f"{1 - active / max(prunable, 1):.4f}"
    rows.append(["prunable", "", f"{prunable:,}", f"{active:,}", share])
    rows.append(["all", "", f"{weights:,}", f"{weights - prunable + active:,}", ""])
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(row: list[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]
        return "  ".join([*left, *right]).rstrip()

    return "\n".join(map(line, rows))
