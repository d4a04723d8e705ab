"""The figure of a study of lottery tickets."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
from experiments.record.accuracy_figure import (
    STYLE,
    Look,
    draw_accuracy,
    set_accuracy_axes,
    side_by_side,
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


def plot_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Draws test accuracy against sparsity, with bars of the confidence interval.

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
        shifts = side_by_side(len(forms), apart=0.09)
        for shift, form in zip(shifts, forms):
            line = sorted((r for r in sparse if r.form == form), key=lambda r: r[1])
            draw_accuracy(
                axes,
                np.arange(len(line)) + shift,
                [row.accuracy.mean for row in line],
                [row.accuracy.half_width for row in line],
                _LOOKS.get(form) or next(rewinds),
                label_of(form),
            )
        best = max(row.accuracy.mean for row in rows)
        set_accuracy_axes(axes, sparsities, best)
        axes.set_title("Mean and 95 % confidence interval over seeds", fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
