"""The figure of a study of the edge of chaos."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments.edge_of_chaos_study.results import Row, name_of
from experiments.record.accuracy_figure import STYLE, Look

_LOOKS = (
    Look("#0072B2", "o"),
    Look("#D55E00", "s"),
    Look("#009E73", "^"),
    Look("#CC79A7", "D"),
)


def plot_by_depth(rows: Sequence[Row], path: Path) -> None:
    """Draws the layers left empty against depth, with bars of 95 % confidence.

    Args:
        rows: What `summarise` gives.
        path: The PNG file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for place, start in enumerate(dict.fromkeys(row.variances for row in rows)):
            chosen = [row for row in rows if row.variances == start]
            look = _LOOKS[place % len(_LOOKS)]
            axes.errorbar(
                [row.depth for row in chosen],
                [row.empty.mean for row in chosen],
                yerr=[row.empty.half_width for row in chosen],
                color=look.color,
                marker=look.marker,
                markersize=6,
                linewidth=1.2,
                label=name_of(start),
            )
        axes.set_xticks(sorted({row.depth for row in rows}))
        axes.set_xlabel("Layers")
        axes.set_ylabel("Layers left empty by SNIP")
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.legend(loc="upper left")
        figure.savefig(path)
