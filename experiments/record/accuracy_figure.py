"""How figures of accuracy against sparsity look, in every study."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator


class Look(NamedTuple):
    """How a line is drawn.

    Attributes:
        color: From the palette of Okabe and Ito, for all kinds of colour vision;
            relatives share one.
        marker: So that lines are told apart without colour too.
    """

    color: str
    marker: str


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


def draw_accuracy(
    axes: Axes,
    places: Sequence[float] | np.ndarray,
    means: Sequence[float],
    half_widths: Sequence[float],
    look: Look,
    label: str,
) -> None:
    """Draws a line of accuracies with their bars, as errors.

    Args:
        axes: Where.
        places: A place on the horizontal axis for each.
        means: Accuracies in percent.
        half_widths: Half the height of each bar; what reaches over 100 % is cut off.
        look: The line's.
        label: Its name.
    """
    mean, half = 100 - np.asarray(means), np.asarray(half_widths)
    low, high = (np.clip(end, LEAST_ERROR, 100) for end in (mean - half, mean + half))
    errors = np.clip(mean, low, high)
    axes.errorbar(
        places,
        errors,
        yerr=(errors - low, high - errors),
        color=look.color,
        marker=look.marker,
        markersize=7,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.2,
        elinewidth=1.4,
        label=label,
    )


def side_by_side(lines: int, apart: float) -> list[float]:
    """Shifts lines a little, so that their bars do not hide each other.

    Args:
        lines: How many there are.
        apart: How far from one to the next.

    Returns:
        A shift for each, 0 on average.

    Example:
        >>> side_by_side(3, apart=0.1)
        [-0.1, 0.0, 0.1]
    """
    return [apart * (place - (lines - 1) / 2) for place in range(lines)]


def set_accuracy_axes(axes: Axes, sparsities: Sequence[float], best: float) -> None:
    """Labels errors as accuracies, and places as sparsities.

    The axis is logarithmic in the error, so that 98 and 99 % are told apart as well as
    80 and 90 %.

    Args:
        axes: With the lines that `draw_accuracy` has drawn.
        sparsities: Those at the places 0, 1, ...
        best: The highest mean, in percent; a bar far above it is cut off.
    """
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
