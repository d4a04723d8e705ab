"""How figures look, and the one of accuracy against sparsity that most studies have."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.colors import BLACK as BLACK
from experiments.colors import BLUE as BLUE
from experiments.colors import GRAY as GRAY
from experiments.colors import GREEN as GREEN
from experiments.colors import ORANGE as ORANGE
from experiments.colors import PINK as PINK
from experiments.colors import RED as RED
from experiments.colors import SKY as SKY
from experiments.colors import YELLOW as YELLOW
from sparsejax.analysis.plasticity import Estimate

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": 160,
}
LEAST_ERROR = 0.05  # in percent, where a logarithm of the error must stop
_TICKS = (10, 50, 70, 80, 90, 95, 96, 97, 98, 99, 99.5, 99.9)


class LineStyle(NamedTuple):
    """A line's name, its color of the palette of Okabe and Ito, and its marker."""

    label: str
    color: str
    marker: str


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Makes a figure in the style of all, and saves it as a PNG file."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        drawn.savefig(path)


def draw_line(
    axes: Axes,
    places: Sequence[float] | np.ndarray,
    values: Sequence[Estimate],
    style: LineStyle,
    **options: Any,
) -> None:
    """Draws estimates with bars of their intervals."""
    axes.errorbar(
        places,
        [value.mean for value in values],
        yerr=[value.half_width for value in values],
        **_line_options(style) | options,
    )


def _line_options(style: LineStyle) -> dict[str, Any]:
    return {
        "color": style.color,
        "marker": style.marker,
        "label": style.label,
        "markersize": 7,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linewidth": 1.2,
        "elinewidth": 1.4,
    }


def draw_accuracies(
    axes: Axes,
    values: pd.Series,
    styles: Mapping[Any, LineStyle],
    *,
    dense: Estimate | None = None,
    spread: float = 0.08,
) -> None:
    """Draws test accuracy in percent against sparsity, as logarithms of the error.

    So 98 and 99 % are as far apart as 80 and 90 %.

    Args:
        axes: Where.
        values: Estimates, of two levels: the line, a key of `styles`, and the sparsity.
        styles: The lines to draw, in order.
        dense: The dense network, a line across.
        spread: Lines are shifted by this much, so that bars do not hide each other.
    """
    line, _ = values.index.names
    sparsities = sorted(set(values.index.get_level_values(1)))
    best = max(value.mean for value in [*values, dense] if value is not None)
    if dense is not None:
        low, high = (100 - dense.mean + s * dense.half_width for s in (-1, 1))
        axes.axhspan(max(low, LEAST_ERROR), high, color=BLACK, alpha=0.08, linewidth=0)
        axes.axhline(100 - dense.mean, color=BLACK, linestyle="--", label="Dense")
    drawn = [name for name in styles if name in values.index.get_level_values(line)]
    for place, name in enumerate(drawn):
        points = values[name]
        shift = spread * (place - (len(drawn) - 1) / 2)
        errors = np.array([100 - point.mean for point in points])
        half = np.array([point.half_width for point in points])
        low, high = np.clip([errors - half, errors + half], LEAST_ERROR, 100)
        errors = np.clip(errors, low, high)
        axes.errorbar(
            [sparsities.index(s) + shift for s in points.index],
            errors,
            yerr=(errors - low, high - errors),
            **_line_options(styles[name]),
        )
    axes.set_yscale("log")
    lowest = max((100 - best) / 2, LEAST_ERROR)
    axes.set_ylim(110, lowest)
    axes.set_yticks([100 - tick for tick in _TICKS if lowest <= 100 - tick])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(sparsities)), [f"{100 * s:g} %" for s in sparsities])
    axes.set_xlabel("Sparsity")
    axes.set_ylabel("Test accuracy (%)")


def plot_accuracy(
    path: Path,
    values: pd.Series,
    styles: Mapping[Any, LineStyle],
    *,
    dense: Estimate | None = None,
) -> None:
    """Saves the figure of `draw_accuracies` with a legend beside it."""
    with figure(path, 7.6, 4.6) as drawn:
        axes = drawn.add_subplot()
        draw_accuracies(axes, values, styles, dense=dense)
        axes.set_title("Mean and 95 % confidence interval over seeds", fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
