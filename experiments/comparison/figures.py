"""Figures of a comparison of methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.comparison.results import MethodResult, mean_and_deviation


class Look(NamedTuple):
    """How a method is drawn, in every figure.

    Attributes:
        color: From the palette of Okabe and Ito, for all kinds of colour vision;
            relatives share one.
        marker: So that methods are told apart without colour too.
    """

    color: str
    marker: str


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

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": 160,
}
_TICKS = (10, 20, 50, 70, 80, 90, 95, 96, 97, 98, 99, 99.5, 99.9)
_LEAST_ERROR = 0.05  # in percent, where a logarithm of the error must stop


def plot_accuracy(results: Sequence[MethodResult], path: Path) -> None:
    """Draws test accuracy against sparsity, with bars of one standard deviation.

    The axis is logarithmic in the error, so that 98 and 99 % are told apart as well as
    80 and 90 %.

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
                low, high = _errors(mean, deviation)
                color = LOOKS["dense"].color
                axes.axhspan(low, high, color=color, alpha=0.08, linewidth=0)
                axes.axhline(
                    100 - mean, color=color, linestyle="--", label=result.label
                )
        for place, result in enumerate(sparse):
            # Side by side, so that error bars do not hide each other.
            shift = 0.07 * (place - (len(sparse) - 1) / 2)
            points = [mean_and_deviation(result.runs_at(s)) for s in sparsities]
            errors = np.array([max(100 - mean, _LEAST_ERROR) for mean, _ in points])
            reach = np.array([_errors(*point) for point in points]).T
            color, marker = LOOKS[result.method]
            axes.errorbar(
                np.arange(len(sparsities)) + shift,
                errors,
                yerr=np.abs(reach - errors),
                color=color,
                marker=marker,
                markersize=7,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=1.2,
                elinewidth=1.4,
                label=result.label,
            )
        axes.set_yscale("log")
        axes.invert_yaxis()
        low, high = axes.get_ylim()
        shown = [100 - tick for tick in _TICKS if high <= 100 - tick <= low]
        axes.set_yticks(shown)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda e, _: f"{100 - e:g}"))
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(sparsities)), [f"{100 * s:g} %" for s in sparsities])
        axes.set_xlabel("Sparsity")
        axes.set_ylabel("Test accuracy (%)")
        seeds = len({run.seed for run in results[0].runs})
        axes.set_title(f"Mean and standard deviation over {seeds} seeds", fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)


def _errors(mean: float, deviation: float) -> tuple[float, float]:
    """The error of accuracies one deviation above and below a mean, in percent."""
    low, high = 100 - mean - deviation, 100 - mean + deviation
    return max(low, _LEAST_ERROR), max(high, _LEAST_ERROR)


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
        )
        for axes in grid.flat[len(results) :]:
            axes.set_axis_off()
        figure.savefig(path)
