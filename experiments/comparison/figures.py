"""Figures of a comparison of methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.comparison import after_training
from experiments.comparison.results import (
    MethodResult,
    epochs_text,
    mean_and_deviation,
)
from experiments.record.accuracy_figure import (
    LEAST_ERROR,
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
)
from experiments.training import before_training

LOOKS: Mapping[str, Look] = {
    "dense": Look("#000000", "_"),
    "static": Look("#7f7f7f", "v"),
    "set": Look("#E69F00", "s"),
    "dsr": Look("#E69F00", "<"),
    "snfs": Look("#F0E442", "p"),
    "mest": Look("#E69F00", ">"),
    "rigl": Look("#56B4E9", "^"),
    "rigl_itop": Look("#CC79A7", "P"),
    "srigl": Look("#56B4E9", "d"),
    "top_kast": Look("#CC79A7", "*"),
    "acdc": Look("#F0E442", "h"),
    "gmp_layer": Look("#009E73", "H"),
    "gmp": Look("#009E73", "D"),
    "granet_uniform": Look("#D55E00", "8"),
    "granet": Look("#D55E00", "o"),
    "granet_st": Look("#0072B2", "X"),
    "snip": Look("#0072B2", "s"),
    "grasp": Look("#CC79A7", "d"),
    "synflow": Look("#E69F00", "h"),
    "iter_snip": Look("#56B4E9", "<"),
    "force": Look("#009E73", "P"),
    "drive": Look("#D55E00", "p"),
    "one_shot": Look("#7f7f7f", "v"),
    "fine_tuning": Look("#56B4E9", "^"),
    "rate_rewinding": Look("#0072B2", "s"),
    "lottery": Look("#D55E00", "o"),
}


def plot_accuracy(results: Sequence[MethodResult], path: Path) -> None:
    """Draws test accuracy against sparsity, with bars of one standard deviation.

    Methods that prune before, during and after training have a panel each.

    Args:
        results: One a method.
        path: The PNG file to write.
    """
    panels = _panels([result for result in results if result.method != "dense"])
    dense = [result for result in results if result.method == "dense"]
    seeds = len({run.seed for run in results[0].runs})
    spread = f"Mean and standard deviation over {seeds} seeds"
    best = max(
        mean_and_deviation(result.runs_at(sparsity))[0]
        for result in results
        for sparsity in {run.sparsity for run in result.runs}
    )
    alone = len(panels) == 1
    size = (7.2, 4.6) if alone else (4.6 * len(panels), 5.2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (when, chosen) in zip(row, panels.items()):
            _draw_panel(axes, dense, chosen, best)
            axes.set_title(spread if alone else when, fontsize=10)
        if alone:
            row[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            figure.suptitle(spread, fontsize=10)
            for axes in row:
                axes.legend(loc="lower left", fontsize=9)
            for axes in row[1:]:
                axes.set_ylabel("")
        figure.savefig(path)


def _panels(sparse: Sequence[MethodResult]) -> dict[str, list[MethodResult]]:
    """Groups methods by when they prune, if any does so before or after training."""
    before, after = before_training.LABELS, after_training.LABELS
    if not {result.method for result in sparse} & (before.keys() | after.keys()):
        return {"": list(sparse)}

    def when(method: str) -> str:
        if method in after:
            return "After training"
        # Static masks are drawn at random, before training.
        is_before = method in before or method == "static"
        return "Before training" if is_before else "During training"

    groups: dict[str, list[MethodResult]] = {}
    for result in sparse:
        groups.setdefault(when(result.method), []).append(result)
    titles = {}
    for name, chosen in groups.items():
        epochs = epochs_text([run for result in chosen for run in result.runs])
        titles[f"{name}: {epochs} epochs"] = chosen
    return titles


def _draw_panel(
    axes: Axes,
    dense: Sequence[MethodResult],
    sparse: Sequence[MethodResult],
    best: float,
) -> None:
    """Draws methods, and the dense network as a line across."""
    for result in dense:
        mean, deviation = mean_and_deviation(result.runs)
        low, high = max(100 - mean - deviation, LEAST_ERROR), 100 - mean + deviation
        color = LOOKS["dense"].color
        axes.axhspan(low, high, color=color, alpha=0.08, linewidth=0)
        axes.axhline(100 - mean, color=color, linestyle="--", label=result.label)
    sparsities = sorted({run.sparsity for result in sparse for run in result.runs})
    lengths = [epochs_text(result.runs) for result in sparse]
    for shift, length, result in zip(
        side_by_side(len(sparse), apart=0.07), lengths, sparse
    ):
        points = [mean_and_deviation(result.runs_at(s)) for s in sparsities]
        draw_accuracy(
            axes,
            np.arange(len(sparsities)) + shift,
            [mean for mean, _ in points],
            [deviation for _, deviation in points],
            LOOKS[result.method],
            result.label + (f", {length} epochs" if len(set(lengths)) > 1 else ""),
        )
    set_accuracy_axes(axes, sparsities, best)


def plot_density(results: Sequence[MethodResult], path: Path) -> None:
    """Draws density over training, overall and by layer, with a panel for each method.

    Args:
        results: One a method; where there are several sparsities, the one in the
            middle is drawn.
        path: The PNG file to write.
    """
    columns = min(4, len(results) + 1)
    rows = -(-(len(results) + 1) // columns)
    paths = list(results[0].density[0].layers)
    shades = matplotlib.colormaps["cividis"](np.linspace(0.95, 0.1, len(paths)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * columns, 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        *panels, legend = grid.flat[: len(results) + 1]
        for axes, result in zip(panels, results):
            history = result.density[len(result.density) // 2]
            color = LOOKS[result.method].color
            axes.plot(history.epochs, history.overall, color=color, linewidth=4)
            for layer, shade in zip(paths, shades):
                densities = history.layers[layer]
                axes.plot(history.epochs, densities, color=shade, linewidth=1.2)
            at = f", {100 * history.sparsity:g} % sparse" if history.sparsity else ""
            axes.set_title(result.label + at, color=color, fontsize=10)
            axes.set_yscale("log")
            axes.grid(color="0.92")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:g}"))
        for axes in grid[:, 0]:
            axes.set_ylabel("Density (%)")
        for axes in panels[-columns:]:
            axes.set_xlabel("Epoch")
        lines = [Line2D([], [], color=shade, linewidth=1.2) for shade in shades]
        names = [path.removeprefix("params/").removesuffix("/kernel") for path in paths]
        legend.legend(
            [Line2D([], [], color="0.6", linewidth=4), *lines],
            ["all layers", *names],
            loc="center",
            title="Active weights of",
            ncols=1 + len(paths) // 12,
            fontsize="medium" if len(paths) < 12 else "xx-small",
        )
        for axes in grid.flat[len(results) :]:
            axes.set_axis_off()
        figure.savefig(path)
