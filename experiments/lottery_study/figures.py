"""The figure of a study of lottery tickets."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from experiments.comparison.figures import STYLE, Look
from experiments.lottery_study.results import Row, dense_accuracy
from experiments.lottery_study.settings import (
    DENSE,
    FINE_TUNING,
    LEARNING_RATE,
    ONE_SHOT,
    RANDOM_WEIGHTS,
    SHUFFLED_MASKS,
    label_of,
)

# Forms that rewind take these in turn, in the order of their epochs.
_REWINDS = (Look("#D55E00", "o"), Look("#E69F00", "s"), Look("#F0E442", "D"))
_LOOKS = {
    LEARNING_RATE: Look("#0072B2", "^"),
    FINE_TUNING: Look("#56B4E9", "v"),
    ONE_SHOT: Look("#009E73", "P"),
    RANDOM_WEIGHTS: Look("#7f7f7f", "X"),
    SHUFFLED_MASKS: Look("#000000", "*"),
}
_TICKS = (10, 50, 70, 80, 90, 95, 97, 98, 99, 99.5)
_LEAST_ERROR = 0.2  # in percent, where a logarithm of the error must stop


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Draws test accuracy against sparsity, with bars of the confidence interval.

    The axis is logarithmic in the error, so that 97 and 98 % are told apart as well as
    50 and 70 %.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    sparse = [row for row in rows if row.form != DENSE]
    forms = list(dict.fromkeys(row.form for row in sparse))
    sparsities = sorted({row.sparsity for row in sparse})
    rewinds = iter(_REWINDS * len(forms))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        dense = 100 - dense_accuracy(rows).mean
        axes.axhline(dense, color="black", linestyle="--", label=label_of(DENSE))
        for place, form in enumerate(forms):
            # Side by side, so that error bars do not hide each other.
            shift = 0.09 * (place - (len(forms) - 1) / 2)
            line = sorted((r for r in sparse if r.form == form), key=lambda r: r[1])
            mean = np.array([100 - row.accuracy.mean for row in line])
            reach = np.array([row.accuracy.reach for row in line])
            ends = [np.clip(mean + sign * reach, _LEAST_ERROR, 100) for sign in (-1, 1)]
            error = np.clip(mean, *ends)
            color, marker = _LOOKS.get(form) or next(rewinds)
            axes.errorbar(
                np.arange(len(line)) + shift,
                error,
                yerr=np.abs(ends - error),
                color=color,
                marker=marker,
                markersize=7,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=1.2,
                elinewidth=1.4,
                label=label_of(form),
            )
        axes.set_yscale("log")
        # A wide interval may reach beyond 100 %: it is cut off.
        best = min(100 - row.accuracy.mean for row in rows)
        lowest = max(0.5 * best, _LEAST_ERROR)
        axes.set_ylim(110, lowest)
        shown = [100 - tick for tick in _TICKS if lowest <= 100 - tick]
        axes.set_yticks(shown)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda e, _: f"{100 - e:g}"))
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(sparsities)), [f"{100 * s:g} %" for s in sparsities])
        axes.set_xlabel("Sparsity")
        axes.set_ylabel("Test accuracy (%)")
        axes.set_title("Mean and 95 % confidence interval over seeds", fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
