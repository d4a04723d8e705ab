"""What a study shows: means with confidence intervals, tables, JSON."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.plasticity_study.settings import Setting
from experiments.plasticity_study.store import Record
from experiments.record.markdown import gain_text, markdown_table
from sparsejax.analysis.plasticity import (
    Estimate,
    mean_with_interval,
    pruning_plasticity,
)

REGENERATION_LABELS = {
    "none": "Pruned",
    "as_many": "As many regenerated",
    "exchange": "Exchanged at equal density",
}
UNIT_LABELS = {"weight": "weights", "filter": "filters"}
SCOPE_LABELS = {"layer": "by layer", "global": "globally"}


class Row(NamedTuple):
    """A checkpoint's epoch in a setting: means over seeds, in percent and points.

    Attributes:
        epoch: The epoch of pruning.
        learning_rate: The label of the learning rates it was continued with.
        setting: How it was pruned.
        density: The share of the prunable weights that is active, in percent.
        empty_layers: Layers without an active weight, a mean.
        before: Accuracy before pruning.
        pruned: Accuracy straight after it.
        continued: Accuracy after it was trained on.
        plasticity: `continued` minus `before`.
        recovered: `continued` minus `pruned`.
        effect: The plasticity minus that of the same prune without regeneration, paired
            by seed; None where there is no regeneration.
    """

    epoch: int
    learning_rate: str
    setting: Setting
    density: float
    empty_layers: float
    before: float
    pruned: float
    continued: float
    plasticity: Estimate
    recovered: Estimate
    effect: Estimate | None


def _percent(records: Iterable[Record], field: str) -> np.ndarray:
    return 100 * np.array([getattr(record, field) for record in records])


def _change(records: Sequence[Record]) -> np.ndarray:
    """Plasticity in points, one a record."""
    fields = ("before", "pruned", "continued")
    return np.asarray(
        pruning_plasticity(*(_percent(records, f) for f in fields)).change
    )


def _by_seed(
    records: Iterable[Record],
) -> dict[tuple[int, str, Setting], list[Record]]:
    """Gathers the records that differ by seed alone, in the order of seeds."""
    groups: dict[tuple[int, str, Setting], list[Record]] = {}
    for record in records:
        key = record.epoch, record.learning_rate, record.setting
        groups.setdefault(key, []).append(record)
    return {
        key: sorted(group, key=lambda record: record.seed)
        for key, group in groups.items()
    }


def summarise(records: Iterable[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each epoch, learning rate and setting, in the order of the records.
    """
    groups = _by_seed(records)

    def row(key: tuple[int, str, Setting], group: Sequence[Record]) -> Row:
        epoch, label, setting = key
        accuracies = [_percent(group, f) for f in ("before", "pruned", "continued")]
        measured = pruning_plasticity(*accuracies)
        effect = None
        if setting.regeneration != "none":
            plain = groups[epoch, label, setting._replace(regeneration="none")]
            effect = mean_with_interval(_change(group) - _change(plain))
        return Row(
            epoch=epoch,
            learning_rate=label,
            setting=setting,
            density=float(np.mean([100 * r.active / r.prunable for r in group])),
            empty_layers=float(np.mean([r.empty_layers for r in group])),
            before=float(accuracies[0].mean()),
            pruned=float(accuracies[1].mean()),
            continued=float(accuracies[2].mean()),
            plasticity=mean_with_interval(measured.change),
            recovered=mean_with_interval(measured.recovered),
            effect=effect,
        )

    return [row(key, group) for key, group in groups.items()]


def overall_effect(records: Iterable[Record], setting: Setting) -> Estimate:
    """Estimates what a regeneration adds to plasticity, over epochs and learning rates.

    Args:
        records: All records of a study.
        setting: With a regeneration.

    Returns:
        The mean over epochs and learning rates of the plasticity with it minus that
        without it, in points, with the interval over seeds.
    """
    groups = _by_seed(records)
    plain = setting._replace(regeneration="none")
    differences = [
        _change(group) - _change(groups[epoch, label, plain])
        for (epoch, label, of), group in groups.items()
        if of == setting
    ]
    return mean_with_interval(np.mean(differences, axis=0))


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def effect_table(records: Sequence[Record]) -> str:
    """Sets what regeneration adds, over all epochs and learning rates.

    Args:
        records: All records of a study.

    Returns:
        A Markdown table: a row for each regeneration, unit and scope, a column for each
        rate.
    """
    settings = _unique(r.setting for r in records if r.regeneration != "none")
    rates = _unique(setting.rate for setting in settings)
    rows = [["Regeneration", "Pruned", *(f"{100 * rate:g} %" for rate in rates)]]
    kinds = _unique(setting._replace(rate=0.0) for setting in settings)
    for kind in sorted(kinds, key=lambda kind: kind.regeneration):
        cells = [
            gain_text(overall_effect(records, kind._replace(rate=rate)))
            for rate in rates
        ]
        rows.append([REGENERATION_LABELS[kind.regeneration], _what(kind), *cells])
    return markdown_table(rows)


def _what(kind: Setting) -> str:
    return f"{UNIT_LABELS[kind.unit]} {SCOPE_LABELS[kind.scope]}"


def _detail(
    rows: Sequence[Row], kind: Setting, value: Callable[[Row], Estimate | None]
) -> str:
    """A table of one kind of prune: learning rates and epochs down, rates across."""
    chosen = [row for row in rows if row.setting._replace(rate=0.0) == kind]
    rates = _unique(row.setting.rate for row in chosen)
    cells: dict[tuple[str, int], list[str]] = {}
    for row in sorted(chosen, key=lambda row: rates.index(row.setting.rate)):
        estimate = value(row)
        assert estimate is not None
        text = gain_text(estimate)
        cells.setdefault((row.learning_rate, row.epoch), []).append(text)
    heading = ["Learning rate", "Pruned at epoch", *(f"{100 * r:g} %" for r in rates)]
    order = _unique(row.learning_rate for row in chosen)
    places = sorted(cells, key=lambda cell: (order.index(cell[0]), cell[1]))
    return markdown_table([heading, *([p[0], str(p[1]), *cells[p]] for p in places)])


def report(records: Sequence[Record], title: str) -> str:
    """Writes all tables.

    Args:
        records: All records of a study.
        title: What was studied, a sentence.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    parts = [
        f"# {title}",
        "Points of test accuracy, mean over seeds ± half of the 95 % confidence "
        "interval (Student's t), in bold where the interval does not hold 0.",
        "## What regeneration adds to plasticity, over all epochs and learning rates",
        "Paired by seed, minus the same prune without regeneration.",
        effect_table(records),
        "## Plasticity: after continuing minus before pruning",
    ]
    kinds = _unique(row.setting._replace(rate=0.0) for row in rows)
    for kind in kinds:
        name = _what(kind) if kind.unit != "none" else "nothing, the control"
        label = REGENERATION_LABELS[kind.regeneration]
        parts += [f"### {label}: {name}", _detail(rows, kind, lambda r: r.plasticity)]
    parts.append("## Recovered: after continuing minus straight after pruning")
    for kind in kinds:
        if kind.unit != "none":
            label = REGENERATION_LABELS[kind.regeneration]
            table = _detail(rows, kind, lambda r: r.recovered)
            parts += [f"### {label}: {_what(kind)}", table]
    parts.append("## What regeneration adds, by epoch and learning rate")
    for kind in kinds:
        if kind.regeneration != "none":
            label = REGENERATION_LABELS[kind.regeneration]
            table = _detail(rows, kind, lambda r: r.effect)
            parts += [f"### {label}: {_what(kind)}", table]
    return "\n\n".join(parts) + "\n"
