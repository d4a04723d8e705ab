"""What the study shows: means with confidence intervals, and tables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.freezing_study.methods import METHODS, PAIRS
from experiments.record.markdown import gain_text, interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval


class Record(NamedTuple):
    """One trained network.

    Attributes:
        method: A key of `methods.METHODS`.
        density: The share of the prunable weights that is trained, or by edge-popup
            kept; None for methods that have none.
        seed: The seed.
        validation_accuracy: In [0, 1], at the end of training.
        accuracy: On the test part.
        changed: Numbers that training has changed.
        nonzero: Prunable weights of the trained network that are not 0.
    """

    method: str
    density: float | None
    seed: int
    validation_accuracy: float
    accuracy: float
    changed: int
    nonzero: int


class Row(NamedTuple):
    """A method at a density: means over seeds.

    Attributes:
        method: As in `Record`.
        density: As in `Record`.
        accuracy: Test accuracy in percent.
        gain: Frozen minus pruned under the same masks, in points, paired by seed; None
            where there is no such pair.
        validation: Validation accuracy in percent, a mean.
        changed: As in `Record`, a mean.
        nonzero: As in `Record`, a mean.
    """

    method: str
    density: float | None
    accuracy: Estimate
    gain: Estimate | None
    validation: float
    changed: float
    nonzero: float


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each method and density, in the order of the records.
    """
    groups: dict[tuple[str, float | None], list[Record]] = {}
    for record in records:
        groups.setdefault((record.method, record.density), []).append(record)
    pruned_of = {frozen: pruned for pruned, frozen in PAIRS.items()}

    def percent(method: str, density: float | None) -> np.ndarray:
        return 100 * np.array([r.accuracy for r in groups[method, density]])

    def row(method: str, density: float | None) -> Row:
        group, gain = groups[method, density], None
        if (pruned_of.get(method), density) in groups:
            pairs = percent(method, density) - percent(pruned_of[method], density)
            gain = mean_with_interval(pairs)
        return Row(
            method=method,
            density=density,
            accuracy=mean_with_interval(percent(method, density)),
            gain=gain,
            validation=100 * float(np.mean([r.validation_accuracy for r in group])),
            changed=float(np.mean([r.changed for r in group])),
            nonzero=float(np.mean([r.nonzero for r in group])),
        )

    return [row(*key) for key in groups]


def report(records: Sequence[Record], title: str) -> str:
    """Writes all tables.

    Args:
        records: All records of a study.
        title: What was studied.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    seeds = rows[0].accuracy.samples
    parts = [
        f"# {title}",
        f"Mean over {seeds} seeds ± half of the 95 % confidence interval (Student's "
        "t).",
        "## Test accuracy in percent, by the share of the weights in the masks",
        _by_density(rows, lambda row: interval_text(row.accuracy)),
        "## Frozen minus pruned, under the same masks, in points",
        "Paired by seed; bold where the interval does not hold 0.",
        _by_density([r for r in rows if r.gain], lambda r: gain_text(r.gain)),
        "## Whole leaves",
        _of_whole_leaves([row for row in rows if row.density is None]),
        "## Numbers that training changed, a mean",
        _by_density(rows, lambda row: f"{row.changed:,.0f}"),
    ]
    return "\n\n".join(parts) + "\n"


def _of_whole_leaves(rows: Sequence[Row]) -> str:
    heading = ["Method", "Test accuracy", "Numbers that training changed"]
    lines = [
        [METHODS[r.method], interval_text(r.accuracy), f"{r.changed:,.0f}"]
        for r in rows
    ]
    return markdown_table([heading, *lines])


def _by_density(rows: Sequence[Row], text: Callable[[Any], str]) -> str:
    cells = {(r.method, r.density): text(r) for r in rows if r.density is not None}
    densities = list(dict.fromkeys(density for _, density in cells))
    heading = ["Method", *(f"{100 * (d or 0):g} %" for d in densities)]
    methods = dict.fromkeys(method for method, _ in cells)
    lines = [[METHODS[m], *(cells[m, d] for d in densities)] for m in methods]
    return markdown_table([heading, *lines])
