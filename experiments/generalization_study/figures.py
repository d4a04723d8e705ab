"""The figure of a study of generalisation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from experiments.generalization_study.results import Row
from experiments.record.accuracy_figure import STYLE, Look
from sparsejax.analysis.plasticity import Estimate

_LOOKS = (
    Look("#0072B2", "o"),
    Look("#E69F00", "s"),
    Look("#CC79A7", "^"),
    Look("#009E73", "D"),
    Look("#D55E00", "v"),
)
_LEAST_LOSS = 1e-8  # where a logarithm must stop


def plot_by_density(rows: Sequence[Row], classes: int, path: Path) -> None:
    """Draws loss, accuracy and alignment against the share of the weights kept.

    Args:
        rows: What `summarise` gives.
        classes: The number of classes, whose inverse is chance.
        path: The PNG file to write.
    """
    noises = list(dict.fromkeys(row.noise_std for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        loss, accuracy, alignment = figure.subplots(1, 3, sharex=True)
        for place, noise_std in enumerate(noises):
            look = _LOOKS[place % len(_LOOKS)]
            chosen = [row for row in rows if row.noise_std == noise_std]
            name = f"noise {noise_std:g}"
            largest = [max(row.train_loss, _LEAST_LOSS) for row in chosen]
            kept = [row.density for row in chosen]
            loss.plot(kept, largest, color=look.color, marker=look.marker, label=name)
            _draw(accuracy, chosen, lambda row: row.test_accuracy, look, "-")
            _draw(alignment, chosen, lambda row: row.signal, look, "-")
            _draw(alignment, chosen, lambda row: row.noise, look, "--")
        # If a class that is reached is learned, and the others are guessed.
        first = [row for row in rows if row.noise_std == noises[0]]
        chance = 100 / classes
        guess = [r.reached.mean + (100 - r.reached.mean) / classes for r in first]
        accuracy.plot(
            [row.density for row in first], guess, color="0.6", linestyle=":", zorder=0
        )
        accuracy.axhline(chance, color="0.85", linewidth=0.8, zorder=0)
        accuracy.text(1, chance, "chance", color="0.5", va="bottom", fontsize=9)
        loss.set_yscale("log")
        loss.set_title("Training loss (largest)", fontsize=10)
        accuracy.set_title("Test accuracy (%)", fontsize=10)
        alignment.set_title("Alignment of weights", fontsize=10)
        alignment.legend(
            [Line2D([], [], color="0.4", linestyle=style) for style in ("-", "--")],
            ["with the signal", "with the noise"],
            loc="upper left",
        )
        for axes in (loss, accuracy, alignment):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g}"))
            axes.set_xlabel("Weights kept at random (%)")
            axes.grid(axis="y", color="0.93")
            axes.set_axisbelow(True)
        loss.invert_xaxis()  # and those that share it
        figure.legend(
            *loss.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(noises),
        )
        figure.savefig(path)


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    value: Callable[[Row], Estimate],
    look: Look,
    linestyle: str,
) -> None:
    estimates = [value(row) for row in rows]
    axes.errorbar(
        [row.density for row in rows],
        [estimate.mean for estimate in estimates],
        yerr=[estimate.half_width for estimate in estimates],
        color=look.color,
        marker=look.marker,
        markersize=5,
        linestyle=linestyle,
        linewidth=1.2,
        elinewidth=1,
    )
