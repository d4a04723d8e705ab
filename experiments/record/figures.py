"""The figures of a report, drawn from the lines of a record."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator, PercentFormatter

from experiments.record.metrics import Kind

Line = Mapping[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers; marks differ as well.
_STYLES: dict[Kind, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linewidth": 1.0},
    "validation": {"color": "#D55E00", "marker": "o", "markersize": 3.5},
    "test": {"color": "#009E73", "marker": "s", "markersize": 3.5, "linestyle": "--"},
    "topology": {"color": "#7A4988", "marker": "^", "markersize": 3.5},
}
_BY_LAYER = ("density/", "gradient_flow/", "dead_units/", "dead_inputs/")
_GREY = "#5F6B76"
_EMPTY = "#D9DDE1"

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#E6E9EC",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    # Names are text, whatever dollar signs they hold, and equal runs give equal pages.
    "text.parse_math": False,
    "svg.hashsalt": "sparsejax",
}


def points(
    lines: Sequence[Line], name: str, kind: Kind | None = None
) -> tuple[list[int], list[float]]:
    """Finds where a metric was recorded.

    Args:
        lines: The record.
        name: The metric.
        kind: Of which kind of lines; None for all.

    Returns:
        (steps, values) in the record's order.
    """
    found = [
        (line["step"], float(line[name]))
        for line in lines
        if name in line and kind in (None, line["kind"])
    ]
    return [step for step, _ in found], [value for _, value in found]


def best_validation(lines: Sequence[Line]) -> tuple[int, float] | None:
    """Finds the first step with the highest validation accuracy.

    Args:
        lines: The record.

    Returns:
        (step, accuracy); None if there was no validation.
    """
    pairs = zip(*points(lines, "accuracy", "validation"))
    sound = [(step, value) for step, value in pairs if math.isfinite(value)]
    return max(sound, key=lambda pair: pair[1]) if sound else None


def in_natural_order(path: str) -> list[tuple[int, int | str]]:
    """Gives a key to sort by that puts Conv_2 before Conv_10.

    Args:
        path: A layer's path.

    Returns:
        The key.
    """
    parts = re.split(r"(\d+)", path)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


# Each function below returns a figure, or None where nothing was recorded to draw.


def _axes(title: str, label: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return figure, axes


def _curves(
    lines: Sequence[Line], name: str, title: str, best: tuple[int, float] | None = None
) -> Figure | None:
    figure, axes = _axes(title)
    for kind, style in _STYLES.items():
        steps, values = points(lines, name, kind)
        if steps:
            axes.plot(steps, values, label=kind, **style)
    if not axes.lines:
        return None
    if best is not None:
        axes.axvline(
            best[0], color=_GREY, linewidth=1, linestyle=":", label="best validation"
        )
    if len(axes.lines) > 1:
        axes.legend()
    return figure


def _loss(lines: Sequence[Line]) -> Figure | None:
    return _curves(lines, "loss", "Loss", best_validation(lines))


def _accuracy(lines: Sequence[Line]) -> Figure | None:
    figure = _curves(lines, "accuracy", "Accuracy", best_validation(lines))
    if figure is not None:
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _throughput(lines: Sequence[Line]) -> Figure | None:
    figure = _curves(lines, "examples_per_second", "Examples per second")
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def _density(lines: Sequence[Line], target: float | None) -> Figure | None:
    steps, sparsities = points(lines, "sparsity")
    if not steps:
        return None
    figure, axes = _axes("Density of the prunable weights")
    # Masks stay as they are until the next update, and until now after the last.
    steps, sparsities = [*steps, lines[-1]["step"]], [*sparsities, sparsities[-1]]
    density = 1 - np.asarray(sparsities)
    axes.plot(steps, density, color="#0072B2", drawstyle="steps-post")
    axes.fill_between(steps, density, step="post", color="#0072B2", alpha=0.12)
    if target is not None:
        axes.axhline(1 - target, color=_GREY, linewidth=1, linestyle=":")
        axes.annotate(
            f"target {1 - target:.4g}",
            (1, 1 - target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=_GREY,
        )
    axes.set_ylim(0, 1.03)
    return figure


def _churn(lines: Sequence[Line]) -> Figure | None:
    steps, churn = points(lines, "churn", "topology")
    if not steps:
        return None
    figure, axes = _axes("Mask churn at each topology update", "of the active weights")
    axes.vlines(steps, 0, churn, color="#7A4988", linewidth=0.8, alpha=0.5)
    axes.plot(steps, churn, "o", color="#7A4988", markersize=3.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    return figure


def _exchange(lines: Sequence[Line]) -> Figure | None:
    figure, axes = _axes("Weights dropped and grown at each topology update")
    marks = {"dropped": ("v", "#D55E00"), "grown": ("^", "#009E73")}
    for name, (mark, color) in marks.items():
        steps, counts = points(lines, name, "topology")
        if steps:
            axes.plot(
                steps, counts, mark, color=color, markersize=4, alpha=0.8, label=name
            )
    if not axes.lines:
        return None
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _dead_units(lines: Sequence[Line]) -> Figure | None:
    figure, axes = _axes("Units that the masks have cut off", "of all units")
    drawn = {
        "dead_units": ("outputs without incoming weights", "v", "#D55E00"),
        "dead_inputs": ("inputs without weights into the layer", "^", "#0072B2"),
    }
    for name, (label, mark, color) in drawn.items():
        steps, shares = points(lines, name, "topology")
        if steps:
            axes.plot(
                steps, shares, marker=mark, markersize=3.5, color=color, label=label
            )
    if not axes.lines:
        return None
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _itop_rate(lines: Sequence[Line]) -> Figure | None:
    title = "Weights active at least once: ITOP's rate R_s"
    figure = _curves(lines, "itop_rate", title)
    if figure is not None:
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.axes[0].set_ylim(0, 1.03)
    return figure


def _gradient_flow(lines: Sequence[Line]) -> Figure | None:
    title = "Gradient flow (squared norm, active weights)"
    figure = _curves(lines, "gradient_flow", title)
    if figure is not None and np.any(np.array(points(lines, "gradient_flow")[1]) > 0):
        axis = figure.axes[0].yaxis
        figure.axes[0].set_yscale("log")
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    return figure


def _by_layer(
    lines: Sequence[Line], name: str
) -> tuple[list[str], list[int], np.ma.MaskedArray] | None:
    """Gathers a figure of layers as rows and records of them as columns."""
    columns: dict[int, dict[str, float]] = {}
    for line in lines:
        found = {
            each.removeprefix(f"{name}/"): float(line[each])
            for each in line
            if each.startswith(f"{name}/")
        }
        if found:
            columns[line["step"]] = found
    if not columns:
        return None
    paths = sorted(set().union(*columns.values()), key=in_natural_order)
    steps = sorted(columns)
    values = [[columns[step].get(path, math.nan) for step in steps] for path in paths]
    return paths, steps, np.ma.masked_invalid(np.array(values))


def _layers(
    lines: Sequence[Line], name: str, title: str, highest: float | None = None
) -> Figure | None:
    """Draws layers as rows, on a logarithmic scale; curves would be too many."""
    gathered = _by_layer(lines, name)
    if gathered is None:
        return None
    paths, steps, values = gathered
    # Zero has no logarithm, and is worth a colour of its own.
    values = np.ma.masked_less_equal(values, 0.0)
    lowest = values.min() if values.count() else 0.5
    highest = highest or (values.max() if values.count() else 1.0)
    figure = Figure(figsize=(11, 1.3 + 0.19 * len(paths)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(False)
    axes.set_facecolor(_EMPTY)
    image = axes.pcolormesh(
        [*steps, max(lines[-1]["step"], steps[-1] + 1)],
        np.arange(len(paths) + 1),
        values,
        norm=LogNorm(min(float(lowest), highest / 2), highest),
        cmap="viridis",
        rasterized=True,
    )
    axes.set_yticks(np.arange(len(paths)) + 0.5, paths, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, format="%.3g")
    bar.ax.minorticks_off()
    return figure


def _cut_off_by_layer(lines: Sequence[Line], name: str, title: str) -> Figure | None:
    """Draws nothing for a run in which no unit was ever cut off."""
    gathered = _by_layer(lines, name)
    if gathered is None or not np.any(gathered[2].filled(0) > 0):
        return None
    return _layers(lines, name, f"{title} (logarithmic; grey for none)", highest=1.0)


# What has a figure or a place of its own.
_DRAWN = {"step", "kind", "loss", "accuracy", "sparsity", "churn", "dropped", "grown"}
_DRAWN |= {"learning_rate", "examples_per_second", "active", "updates", "skipped"}
_DRAWN |= {"itop_rate", "gradient_flow", "dead_units", "dead_inputs", "empty_layers"}
_DRAWN |= {"stray", "empty"}


def draw_figures(lines: Sequence[Line], target: float | None) -> list[tuple[str, str]]:
    """Draws all that the record holds something for.

    Args:
        lines: The record.
        target: The sparsity aimed at, if it is known.

    Returns:
        (place, image) of each: "wide" or "", and an HTML element that holds the figure.
    """
    names = {name for line in lines for name in line} - _DRAWN
    others = sorted(name for name in names if not name.startswith(_BY_LAYER))
    density = "Density by layer (logarithmic; grey where no weight is active)"
    flow = "Gradient flow by layer (logarithmic; grey where there is none)"
    outputs = "Share of output units without incoming weights"
    inputs = "Share of input units without weights into the layer"
    with matplotlib.rc_context(_SETTINGS):
        figures = [
            ("", _loss(lines)),
            ("", _accuracy(lines)),
            ("", _density(lines, target)),
            ("", _churn(lines)),
            ("", _exchange(lines)),
            ("", _itop_rate(lines)),
            ("", _gradient_flow(lines)),
            ("", _dead_units(lines)),
            ("wide", _layers(lines, "density", density, highest=1.0)),
            ("wide", _layers(lines, "gradient_flow", flow)),
            ("wide", _cut_off_by_layer(lines, "dead_units", outputs)),
            ("wide", _cut_off_by_layer(lines, "dead_inputs", inputs)),
            ("", _curves(lines, "learning_rate", "Learning rate")),
            ("", _throughput(lines)),
            *(("", _curves(lines, name, name)) for name in others),
        ]
        return [(place, _image(figure)) for place, figure in figures if figure]


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    # As text in the page, SVGs would share their ids with each other; as an image, each
    # keeps to itself.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    title = escape(figure.axes[0].get_title(loc="left"))
    return f'<img alt="{title}" src="data:image/svg+xml;base64,{data}">'
