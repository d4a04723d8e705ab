"""The figure of the study."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.freezing_study.methods import DENSE, METHODS
from experiments.freezing_study.results import Row
from experiments.record.accuracy_figure import (
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
)

_LOOKS = {
    "random_pruned": Look("#7f7f7f", "v"),
    "random_frozen": Look("#000000", "^"),
    "snip_pruned": Look("#56B4E9", "s"),
    "snip_frozen": Look("#0072B2", "o"),
    "edge_popup": Look("#E69F00", "D"),
}
_LEVELS = {DENSE: "--", "kernels_frozen": ":", "output": "-."}


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Draws test accuracy against the share of the weights in the masks.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    densities = sorted({row.density for row in rows if row.density}, reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for row in rows:
            if row.method in _LEVELS:
                axes.axhline(
                    100 - row.accuracy.mean,
                    color="0.4",
                    linewidth=1,
                    linestyle=_LEVELS[row.method],
                    label=METHODS[row.method],
                )
        methods = list(dict.fromkeys(row.method for row in rows if row.density))
        for shift, method in zip(side_by_side(len(methods), apart=0.08), methods):
            line = {row.density: row for row in rows if row.method == method}
            draw_accuracy(
                axes,
                np.arange(len(densities)) + shift,
                [line[density].accuracy.mean for density in densities],
                [line[density].accuracy.half_width for density in densities],
                _LOOKS[method],
                METHODS[method],
            )
        best = max(row.accuracy.mean for row in rows)
        set_accuracy_axes(axes, densities, best)
        axes.set_xlabel("Weights trained; of edge-popup, kept")
        seeds = rows[0].accuracy.samples
        axes.set_title(
            f"Mean and 95 % confidence interval over {seeds} seeds", fontsize=10
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
