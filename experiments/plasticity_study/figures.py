"""Figures of a study of plasticity."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from experiments.plasticity_study.results import (
    REGENERATION_LABELS,
    SCOPE_LABELS,
    UNIT_LABELS,
    Row,
)
from experiments.plasticity_study.settings import SCHEDULE, UNPRUNED, Setting
from experiments.record.accuracy_figure import STYLE, Look
from sparsejax.analysis.plasticity import Estimate

LOOKS: Mapping[str, Look] = {
    "none": Look("#000000", "o"),
    "as_many": Look("#E69F00", "s"),
    "exchange": Look("#0072B2", "^"),
}

_DPI = 100  # they are large: small files nonetheless


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _kinds(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Lists (unit, scope) of what was pruned."""
    settings = [row.setting for row in rows if row.setting != UNPRUNED]
    return _unique((setting.unit, setting.scope) for setting in settings)


def plot_heat_map(rows: Sequence[Row], unit: str, scope: str, path: Path) -> None:
    """Draws plasticity over the epoch of pruning and the rate.

    A panel for each learning rate (down) and regeneration (across).

    Args:
        rows: What `summarise` gives.
        unit: The unit of pruning.
        scope: The scope of pruning.
        path: The PNG file to write.
    """
    chosen = [r for r in rows if (r.setting.unit, r.setting.scope) == (unit, scope)]
    value = {
        (r.learning_rate, r.setting.regeneration, r.setting.rate, r.epoch): r
        for r in chosen
    }
    labels = _unique(row.learning_rate for row in chosen)
    regenerations = _unique(row.setting.regeneration for row in chosen)
    rates = sorted(_unique(row.setting.rate for row in chosen))
    epochs = sorted(_unique(row.epoch for row in chosen))
    # Points below 1 and of tens are both told apart.
    scale = SymLogNorm(linthresh=1, vmin=-100, vmax=100)
    with matplotlib.rc_context(STYLE):
        size = (2.6 * len(regenerations) + 0.8, 1.7 * len(labels) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            len(labels), len(regenerations), sharex=True, sharey=True, squeeze=False
        )
        for (i, label), (j, name) in itertools.product(
            enumerate(labels), enumerate(regenerations)
        ):
            cells = np.array(
                [
                    [
                        value[label, name, rate, epoch].plasticity.mean
                        for epoch in epochs
                    ]
                    for rate in rates
                ]
            )
            axes = grid[i, j]
            image = axes.imshow(
                cells, norm=scale, cmap="RdBu", aspect="auto", origin="lower"
            )
            for y, x in np.ndindex(cells.shape):
                shade = "white" if abs(cells[y, x]) > 15 else "black"
                text = f"{cells[y, x]:+.1f}"
                axes.text(x, y, text, ha="center", va="center", color=shade, fontsize=8)
            axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
            axes.set_yticks(range(len(rates)), [f"{100 * rate:g} %" for rate in rates])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(REGENERATION_LABELS[name], fontsize=10)
            if i == len(labels) - 1:
                axes.set_xlabel("Pruned at epoch")
            if j == 0:
                axes.set_ylabel(_rate_name(label))
        figure.colorbar(
            image,
            ax=grid,
            label="Plasticity (points)",
            ticks=[-100, -10, -1, 0, 1, 10, 100],
            format="{x:g}",
        )
        figure.suptitle(
            f"{UNIT_LABELS[unit].capitalize()} pruned {SCOPE_LABELS[scope]}",
            fontsize=10,
        )
        figure.savefig(path, dpi=_DPI)


def _rate_name(label: str) -> str:
    return "As scheduled" if label == SCHEDULE else f"Learning rate {label}"


def plot_by_epoch(rows: Sequence[Row], label: str, path: Path) -> None:
    """Draws plasticity against the epoch of pruning, at one learning rate.

    Args:
        rows: What `summarise` gives.
        label: The label of the learning rates.
        path: The PNG file to write.
    """
    chosen = [row for row in rows if row.learning_rate == label]
    epochs = sorted(_unique(row.epoch for row in chosen))
    value = {(row.setting, row.epoch): row.plasticity for row in chosen}

    def draw(axes: Axes, unit: str, scope: str, rate: float) -> None:
        control = [value[UNPRUNED, epoch].mean for epoch in epochs]
        axes.plot(epochs, control, color="0.55", linestyle="--", label="Not pruned")
        for name in _unique(row.setting.regeneration for row in chosen):
            setting = Setting(rate, scope, unit, name)
            _draw_line(axes, epochs, [value[setting, e] for e in epochs], name)

    _grid_of_panels(chosen, draw, "Pruned at epoch", _rate_name(label), path)


def plot_by_learning_rate(rows: Sequence[Row], path: Path) -> None:
    """Draws plasticity against the fixed learning rate, at the last epoch of pruning.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    last = max(row.epoch for row in rows)
    chosen = [row for row in rows if row.epoch == last]
    labels = _unique(r.learning_rate for r in chosen if r.learning_rate != SCHEDULE)
    labels.sort(key=float)
    value = {(row.setting, row.learning_rate): row.plasticity for row in chosen}
    fixed = [float(label) for label in labels]

    def draw(axes: Axes, unit: str, scope: str, rate: float) -> None:
        control = [value[UNPRUNED, label].mean for label in labels]
        axes.plot(fixed, control, color="0.55", linestyle="--", label="Not pruned")
        for name in _unique(row.setting.regeneration for row in chosen):
            setting = Setting(rate, scope, unit, name)
            _draw_line(axes, fixed, [value[setting, each] for each in labels], name)
        axes.set_xscale("log")

    title = f"Pruned at epoch {last}"
    _grid_of_panels(chosen, draw, "Learning rate", title, path)


def _draw_line(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], name: str
) -> None:
    look = LOOKS[name]
    axes.errorbar(
        x,
        [estimate.mean for estimate in estimates],
        yerr=[estimate.half_width for estimate in estimates],
        color=look.color,
        marker=look.marker,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.2,
        elinewidth=1.2,
        label=REGENERATION_LABELS[name],
    )


def _grid_of_panels(
    rows: Sequence[Row], draw: Any, x_label: str, title: str, path: Path
) -> None:
    """A panel for each unit and scope (down) and rate (across)."""
    kinds = _kinds(rows)
    rates = sorted(_unique(r.setting.rate for r in rows if r.setting != UNPRUNED))
    with matplotlib.rc_context(STYLE):
        size = (2.3 * len(rates) + 0.6, 1.9 * len(kinds) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(
            len(kinds), len(rates), sharex=True, sharey="row", squeeze=False
        )
        for (i, (unit, scope)), (j, rate) in itertools.product(
            enumerate(kinds), enumerate(rates)
        ):
            axes = grid[i, j]
            draw(axes, unit, scope, rate)
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            axes.grid(axis="y", color="0.93")
            axes.set_axisbelow(True)
            if i == 0:
                axes.set_title(f"{100 * rate:g} %", fontsize=10)
            if i == len(kinds) - 1:
                axes.set_xlabel(x_label)
            if j == 0:
                axes.set_ylabel(f"{UNIT_LABELS[unit]}\n{SCOPE_LABELS[scope]}")
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(rates))
        figure.suptitle(f"Plasticity in points. {title}", fontsize=10)
        figure.savefig(path, dpi=_DPI)


def draw_figures(rows: Sequence[Row], folder: Path) -> None:
    """Draws all figures of a study.

    Args:
        rows: What `summarise` gives.
        folder: Where the PNG files go.
    """
    for unit, scope in _kinds(rows):
        plot_heat_map(rows, unit, scope, folder / f"heat_map_{unit}_{scope}.png")
    plot_by_epoch(rows, SCHEDULE, folder / "by_epoch.png")
    if len({row.learning_rate for row in rows} - {SCHEDULE}) > 1:
        plot_by_learning_rate(rows, folder / "by_learning_rate.png")
