"""Figures of a comparison of methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.comparison.results import MethodResult, mean_and_deviation
from experiments.record.accuracy_figure import (
    LEAST_ERROR,
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
)

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
    "iter_snip": Look("#0072B2", "<"),
    "force": Look("#0072B2", "P"),
    "drive": Look("#F0E442", "p"),
}


def plot_accuracy(results: Sequence[MethodResult], path: Path) -> None:
    """Draws test accuracy against sparsity, with bars of one standard deviation.

    Args:
        results: One a method.
        path: The PNG file to write.
    """
    sparse = [result for result in results if result.method != "dense"]
    sparsities = sorted({run.sparsity for result in sparse for run in result.runs})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        for result in results:
            if result.method == "dense":
                mean, deviation = mean_and_deviation(result.runs)
                color = LOOKS["dense"].color
                axes.axhspan(
                    max(100 - mean - deviation, LEAST_ERROR),
                    100 - mean + deviation,
                    color=color,
                    alpha=0.08,
                    linewidth=0,
                )
                axes.axhline(
                    100 - mean, color=color, linestyle="--", label=result.label
                )
        shifts = side_by_side(len(sparse), apart=0.07)
        for shift, result in zip(shifts, sparse):
            points = [mean_and_deviation(result.runs_at(s)) for s in sparsities]
            draw_accuracy(
                axes,
                np.arange(len(sparsities)) + shift,
                [mean for mean, _ in points],
                [deviation for _, deviation in points],
                LOOKS[result.method],
                result.label,
            )
        runs = [result.runs_at(s) for result in sparse for s in sparsities]
        dense = [result.runs for result in results if result.method == "dense"]
        best = max(mean_and_deviation(group)[0] for group in [*runs, *dense])
        set_accuracy_axes(axes, sparsities, best)
        seeds = len({run.seed for run in results[0].runs})
        axes.set_title(f"Mean and standard deviation over {seeds} seeds", fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)


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
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        *panels, legend = grid.flat[: len(results) + 1]
        for axes, result in zip(panels, results):
            history = result.density[len(result.density) // 2]
            color = LOOKS[result.method].color
            axes.plot(history.overall, color=color, linewidth=4)
            for layer, shade in zip(paths, shades):
                axes.plot(history.layers[layer], color=shade, linewidth=1.2)
            at = f", {100 * history.sparsity:g} % sparse" if history.sparsity else ""
            axes.set_title(result.label + at, color=color, fontsize=10)
            axes.set_yscale("log")
            axes.grid(color="0.92")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:g}"))
            axes.tick_params(labelbottom=True)
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
