"""What a study shows: means with confidence intervals, tables, JSON."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.lottery_study.settings import (
    CONTROLS,
    DENSE,
    ONE_SHOT,
    ORIGINAL,
    label_of,
)
from experiments.lottery_study.store import Record
from experiments.record.markdown import gain_text, interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval


class Row(NamedTuple):
    """A form at a sparsity: means over seeds, in percent and points.

    Attributes:
        form: The form of the ticket.
        sparsity: The sparsity, of those asked for; 0 when dense.
        round: The round that ends at it.
        accuracy: Test accuracy.
        difference: The accuracy minus that of the original ticket, rewound to epoch 0,
            paired by seed; None for that ticket itself and for the dense network.
        active: Active weights.
        empty_layers: Layers without an active weight.
        total_epochs: Epochs of training until the network was there, those of the dense
            run and of all rounds before included.
    """

    form: str
    sparsity: float
    round: int
    accuracy: Estimate
    difference: Estimate | None
    active: float
    empty_layers: float
    total_epochs: int


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds at the sparsities asked for.

    Args:
        records: All records of a study.

    Returns:
        A row for each form and sparsity, in the order of the records.
    """
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.form, record.round), []).append(record)

    def percent(form: str, number: int) -> np.ndarray:
        return 100 * np.array([record.accuracy for record in groups[form, number]])

    def row(form: str, number: int, group: Sequence[Record]) -> Row:
        first = group[0]
        assert first.sparsity is not None
        difference = None
        if form not in (DENSE, ORIGINAL):
            pairs = percent(form, number) - percent(ORIGINAL, number)
            difference = mean_with_interval(pairs)
        return Row(
            form=form,
            sparsity=first.sparsity,
            round=number,
            accuracy=mean_with_interval(percent(form, number)),
            difference=difference,
            active=float(np.mean([record.active for record in group])),
            empty_layers=float(np.mean([record.empty_layers for record in group])),
            total_epochs=_total_epochs(groups, form, number),
        )

    return [
        row(form, number, group)
        for (form, number), group in groups.items()
        if group[0].sparsity is not None
    ]


def _total_epochs(
    groups: Mapping[tuple[str, int], Sequence[Record]], form: str, number: int
) -> int:
    """Counts the dense run, the rounds that led to the masks, and the last round."""
    last = groups[form, number][0].epochs
    if form == DENSE:
        return last
    found_by = ORIGINAL if form in CONTROLS else form
    rounds_before = 0 if form == ONE_SHOT else number - 1
    before = [groups[found_by, i][0].epochs for i in range(1, rounds_before + 1)]
    return groups[DENSE, 0][0].epochs + sum(before) + last


def accuracy_table(rows: Sequence[Row]) -> str:
    """Sets test accuracies.

    Args:
        rows: What `summarise` gives.

    Returns:
        A Markdown table: a row for each form, a column for each sparsity.
    """
    return _table(rows, lambda row: interval_text(row.accuracy))


def difference_table(rows: Sequence[Row]) -> str:
    """Sets what the forms have beside the original ticket, in points.

    Args:
        rows: What `summarise` gives.

    Returns:
        A Markdown table, as above.
    """

    def text(row: Row) -> str:
        assert row.difference is not None
        return gain_text(row.difference)

    return _table([row for row in rows if row.difference is not None], text)


def epochs_table(rows: Sequence[Row]) -> str:
    """Sets how many epochs of training it takes to get there.

    Args:
        rows: What `summarise` gives.

    Returns:
        A Markdown table, as above.
    """
    return _table(rows, lambda row: str(row.total_epochs))


def dense_accuracy(rows: Sequence[Row]) -> Estimate:
    """Finds the accuracy of the dense network.

    Args:
        rows: What `summarise` gives.

    Returns:
        It, in percent.
    """
    return next(row.accuracy for row in rows if row.form == DENSE)


def _table(rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    sparse = [row for row in rows if row.form != DENSE]
    cells = {(row.form, row.sparsity): text(row) for row in sparse}
    sparsities = sorted({row.sparsity for row in sparse})
    heading = ["Form", *(f"{100 * s:g} %" for s in sparsities)]
    forms = dict.fromkeys(row.form for row in sparse)
    lines = [[label_of(form), *(cells[form, s] for s in sparsities)] for form in forms]
    return markdown_table([heading, *lines])


def report(records: Sequence[Record], title: str) -> str:
    """Writes all tables.

    Args:
        records: All records of a study.
        title: What was studied, a sentence.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    seeds = len({record.seed for record in records})
    parts = [
        f"# {title}",
        f"Mean over {seeds} seeds ± half of the 95 % confidence interval (Student's t)."
        f" The dense network has {interval_text(dense_accuracy(rows))} %.",
        "## Test accuracy in percent",
        accuracy_table(rows),
        "## Minus the ticket rewound to epoch 0, in points",
        "Paired by seed; bold where the interval does not hold 0.",
        difference_table(rows),
        "## Epochs of training until there",
        "Those of the dense run and of the rounds before, too.",
        epochs_table(rows),
    ]
    empty = [row for row in rows if row.empty_layers]
    if empty:
        heading = ["Form", "Sparsity", "Layers without an active weight, a mean"]
        lines = [
            [label_of(r.form), f"{100 * r.sparsity:g} %", f"{r.empty_layers:g}"]
            for r in empty
        ]
        parts += ["## Empty layers", markdown_table([heading, *lines])]
    return "\n\n".join(parts) + "\n"
