"""The figure of a study of polarisation."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.polarisation_study.results import Row
from experiments.polarisation_study.settings import (
    DENSE,
    GATED,
    LABELS,
    MAGNITUDE,
    NO_PENALTY,
    POLARISED,
    RANDOM,
)
from experiments.record.accuracy_figure import (
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
)
from sparsejax.analysis.plasticity import Estimate

# Of static networks. With their gates, relatives of the same marker.
_LOOKS = {
    POLARISED: Look("#D55E00", "o"),
    NO_PENALTY: Look("#0072B2", "s"),
    RANDOM: Look("#7f7f7f", "X"),
    MAGNITUDE: Look("#009E73", "D"),
}
_GATED_COLORS = {POLARISED: "#E69F00", NO_PENALTY: "#56B4E9"}


def plot_study(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy by target, with gates and without, and undecided units by epoch.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        accuracy, undecided = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_accuracies(accuracy, rows)
        _draw_undecided(undecided, rows)
        figure.legend(
            *accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=3
        )
        figure.savefig(path)


def _draw_accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    *others, dense = rows
    assert dense.form == DENSE
    targets = list(dict.fromkeys(row.target for row in others))
    axes.axhline(
        100 - dense.accuracy.mean, color="black", linestyle="--", label=LABELS[DENSE]
    )
    lines: list[tuple[str, Look, list[Estimate]]] = []
    for form, look in _LOOKS.items():
        chosen = [row for row in others if row.form == form]
        static = [row.accuracy for row in chosen]
        if form in GATED:
            gated = [row.gated_accuracy for row in chosen]
            name = f"{LABELS[form]}, kept"
            pale = Look(_GATED_COLORS[form], look.marker)
            lines.append((name, pale, [e for e in gated if e]))
            lines.append((f"{LABELS[form]}, removed", look, static))
        else:
            lines.append((LABELS[form], look, static))
    for shift, (name, look, line) in zip(side_by_side(len(lines), 0.07), lines):
        draw_accuracy(
            axes,
            np.arange(len(line)) + shift,
            [estimate.mean for estimate in line],
            [estimate.half_width for estimate in line],
            look,
            name,
        )
    best = max(estimate.mean for *_, line in lines for estimate in line)
    set_accuracy_axes(axes, targets, max(best, dense.accuracy.mean))
    axes.set_xlabel("Units that are to be on")
    axes.set_title("Mean and 95 % confidence interval over seeds", fontsize=10)


def _draw_undecided(axes: Axes, rows: Sequence[Row]) -> None:
    gated = [(row, row.undecided) for row in rows if row.undecided is not None]
    targets = list(dict.fromkeys(row.target for row, _ in gated))
    for row, shares in gated:
        # The fewer units, the paler.
        alpha = 1 - 0.75 * targets.index(row.target) / len(targets)
        epochs = range(1, len(shares) + 1)
        axes.plot(epochs, shares, color=_LOOKS[row.form].color, alpha=alpha)
    axes.set_ylim(0)
    axes.set_xlabel("Epoch (the paler, the fewer are to be on)")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.set_title("Undecided units (%)", fontsize=10)
