"""What the study shows: means with confidence intervals, and tables."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.auto_s_study.problem import RECIPES
from experiments.record.markdown import gain_text, interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval

Key = tuple[str, str, str, float | None]

# Methods and what they rank by, the one in question first.
METHODS = {
    "auto_s": "AutoS",
    "snip": "SNIP",
    "magnitude": "Magnitude",
    "random": "Random (ERK)",
}
SCORES = {  # as cells of Markdown tables
    "auto_s": "learnt",
    "snip": r"\|w g\|",
    "magnitude": r"\|w\|",
    "random": "random",
}
DENSE = "dense"
# Weights of the source's own networks that were held out from fitting.
HELD_OUT = "held_out"


class Record(NamedTuple):
    """What was measured of one network.

    Attributes:
        network: A key of `problem.RECIPES`, or `HELD_OUT`.
        measure: "correlation", Spearman's, of a method's scores with the rounds that
            each weight survives; or "accuracy", on the test part after training.
        method: A key of `METHODS`, or `DENSE`.
        sparsity: The sparsity asked for, 0 when dense; None for a correlation.
        seed: The seed.
        value: In [-1, 1], or in [0, 1].
        active: Active weights; None for a correlation.
        empty_layers: Layers without an active weight; None for a correlation.
    """

    network: str
    measure: str
    method: str
    sparsity: float | None
    seed: int
    value: float
    active: int | None
    empty_layers: int | None


class Row(NamedTuple):
    """A method on a network: means over seeds.

    Attributes:
        network: As in `Record`.
        measure: As in `Record`.
        method: As in `Record`.
        sparsity: As in `Record`.
        value: The measure, times 100.
        gain: AutoS's minus it, paired by seed; None for AutoS and dense networks.
        empty_layers: Layers without an active weight, a mean; 0 for a correlation.
    """

    network: str
    measure: str
    method: str
    sparsity: float | None
    value: Estimate
    gain: Estimate | None
    empty_layers: float


def label_of(network: str) -> str:
    """Names a network in tables and figures.

    Args:
        network: A key of `problem.RECIPES`, or `HELD_OUT`.

    Returns:
        Words.
    """
    return "Held-out weights" if network == HELD_OUT else RECIPES[network].label


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each network, measure, method and sparsity, in the records' order.
    """
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(record[:4], []).append(record)

    def values(key: Key) -> np.ndarray:
        return 100 * np.array([record.value for record in groups[key]])

    def row(key: Key) -> Row:
        network, measure, method, sparsity = key
        gain = None
        if method not in ("auto_s", DENSE):
            ours = values((network, measure, "auto_s", sparsity))
            gain = mean_with_interval(ours - values(key))
        empty = [record.empty_layers or 0 for record in groups[key]]
        return Row(*key, mean_with_interval(values(key)), gain, float(np.mean(empty)))

    return [row(key) for key in groups]


def networks_of(rows: Sequence[Row], measure: str) -> list[str]:
    """Lists the networks of which something was measured.

    Args:
        rows: What `summarise` gives.
        measure: As in `Record`.

    Returns:
        Their names, in the order of the rows.
    """
    return list(dict.fromkeys(row.network for row in rows if row.measure == measure))


def report(records: Sequence[Record], title: str) -> str:
    """Writes all tables.

    Args:
        records: All records of a study.
        title: What was studied.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    seeds = rows[0].value.samples
    parts = [
        f"# {title}",
        f"Means over {seeds} seeds ± half of the 95 % confidence interval (Student's "
        "t). Differences are paired by seed, and in bold where the interval does not "
        "hold 0.",
        "## Rank correlation with the rounds that weights survive, times 100",
        _correlation_table(rows),
    ]
    for network in networks_of(rows, "accuracy"):
        chosen = [r for r in rows if (r.network, r.measure) == (network, "accuracy")]
        dense = next(row for row in chosen if row.method == DENSE)
        parts += [
            f"## {label_of(network)}: test accuracy in percent",
            f"Dense: {interval_text(dense.value)}.",
            _table(chosen, lambda row: interval_text(row.value)),
            "AutoS minus the others, in points:",
            _table([r for r in chosen if r.gain], _gain_of),
        ]
    empty = [row for row in rows if row.empty_layers]
    if empty:
        heading = ["Network", "Method", "Sparsity", "Empty layers, a mean"]
        lines = [
            [
                label_of(row.network),
                METHODS[row.method],
                f"{100 * (row.sparsity or 0):g} %",
                f"{row.empty_layers:g}",
            ]
            for row in empty
        ]
        parts += [
            "## Layers without an active weight",
            markdown_table([heading, *lines]),
        ]
    return "\n\n".join(parts) + "\n"


def _gain_of(row: Row) -> str:
    assert row.gain is not None
    return gain_text(row.gain)


def _correlation_table(rows: Sequence[Row]) -> str:
    heading = ["Weights of", *SCORES.values()]
    heading += [f"learnt - {SCORES[name]}" for name in ("magnitude", "snip")]
    lines = []
    for network in networks_of(rows, "correlation"):
        cells = {
            row.method: row
            for row in rows
            if (row.network, row.measure) == (network, "correlation")
        }
        lines.append(
            [
                label_of(network),
                *(interval_text(cells[name].value) for name in SCORES),
                *(_gain_of(cells[name]) for name in ("magnitude", "snip")),
            ]
        )
    return markdown_table([heading, *lines])


def _table(rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    sparse = [row for row in rows if row.method != DENSE]
    cells = {(row.method, row.sparsity): text(row) for row in sparse}
    sparsities = sorted({row.sparsity for row in sparse if row.sparsity})
    heading = ["Method", *(f"{100 * s:g} %" for s in sparsities)]
    methods = dict.fromkeys(row.method for row in sparse)
    lines = [[METHODS[m], *(cells[m, s] for s in sparsities)] for m in methods]
    return markdown_table([heading, *lines])
