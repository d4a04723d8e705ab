"""The figure of the study."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.auto_s_study.results import (
    DENSE,
    METHODS,
    SCORES,
    Row,
    label_of,
    networks_of,
)
from experiments.record.accuracy_figure import (
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
)

_LOOKS = {
    "auto_s": Look("#D55E00", "o"),
    "snip": Look("#0072B2", "s"),
    "magnitude": Look("#009E73", "D"),
    "random": Look("#7f7f7f", "v"),
}


def plot_transfer(rows: Sequence[Row], path: Path) -> None:
    """Draws how scores rank weights, and how networks pruned by them learn.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    targets = networks_of(rows, "accuracy")
    columns = -(-(1 + len(targets)) // 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns, 7.2), layout="constrained")
        grid = figure.subplots(2, columns, squeeze=False).flat
        first, *panels = grid
        _draw_correlations(first, rows)
        for axes, target in zip(panels, targets):
            chosen = [row for row in rows if row.network == target]
            _draw_accuracies(axes, [r for r in chosen if r.measure == "accuracy"])
            axes.set_title(label_of(target), fontsize=10)
        for axes in panels[len(targets) :]:
            axes.set_axis_off()
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=1 + len(METHODS),
        )
        figure.savefig(path)


def _draw_correlations(axes: Axes, rows: Sequence[Row]) -> None:
    networks = networks_of(rows, "correlation")
    for shift, method in zip(side_by_side(len(SCORES), apart=0.12), SCORES):
        line = [r for r in rows if (r.measure, r.method) == ("correlation", method)]
        axes.errorbar(
            np.arange(len(line)) + shift,
            [row.value.mean / 100 for row in line],
            yerr=[row.value.half_width / 100 for row in line],
            color=_LOOKS[method].color,
            marker=_LOOKS[method].marker,
            markersize=6,
            markeredgecolor="white",
            linestyle="none",
        )
    names = [label_of(network).replace(", ", ",\n") for network in networks]
    axes.set_xticks(range(len(networks)), names, fontsize=7)
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.set_ylabel("Rank correlation")
    axes.set_title("Scores and rounds survived", fontsize=10)
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)


def _draw_accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    dense = next(row.value.mean for row in rows if row.method == DENSE)
    axes.axhline(100 - dense, color="black", linestyle="--", label="Dense")
    sparsities = sorted({row.sparsity for row in rows if row.sparsity})
    for shift, method in zip(side_by_side(len(METHODS), apart=0.1), METHODS):
        line = [row for row in rows if row.method == method]
        draw_accuracy(
            axes,
            np.arange(len(line)) + shift,
            [row.value.mean for row in line],
            [row.value.half_width for row in line],
            _LOOKS[method],
            METHODS[method],
        )
    set_accuracy_axes(axes, sparsities, max(row.value.mean for row in rows))
