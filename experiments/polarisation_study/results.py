"""What a study shows: means with confidence intervals, and tables."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.polarisation_study.settings import DENSE, GATED, LABELS, RANDOM
from experiments.record.markdown import gain_text, interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval


class Record(NamedTuple):
    """What came of one network.

    Attributes:
        form: A key of `settings.LABELS`.
        target: The share of the units that was to be on; 1 with all of them.
        seed: The seed.
        widths: Units of each layer of the static network.
        parameters: Its parameters; None where a layer is empty, and it has no sense.
        flops: Its FLOPs for one image; None likewise.
        accuracy: Test accuracy of the static network, in [0, 1].
        gated_accuracy: That with gates by the input; None without such gates.
        changed: The share of the gates of test images that are not as the vote says;
            None likewise.
        undecided: The share of the units that were on for some training images and off
            for others, after each epoch; None likewise.
    """

    form: str
    target: float
    seed: int
    widths: list[int]
    parameters: int | None
    flops: int | None
    accuracy: float
    gated_accuracy: float | None = None
    changed: float | None = None
    undecided: list[float] | None = None


class Row(NamedTuple):
    """Networks of one form and target: means over seeds, in percent and points.

    Attributes:
        form: A key of `settings.LABELS`.
        target: The share of the units that was to be on, in [0, 1].
        widths: Units of each layer.
        units: The share of the units that is on.
        parameters: The share of the parameters that is left.
        flops: The share of the FLOPs that is left.
        empty: How many of the networks have an empty layer. They have no part in the
            shares of parameters and FLOPs, but in all else.
        accuracy: Test accuracy of the static network.
        gain: That minus that of random units, paired by seed; None for those and for
            all units.
        gated_accuracy: Test accuracy with gates by the input; None without such gates.
        loss: What it costs to remove the gates, paired by seed; None likewise.
        changed: The gates of test images that are not as the vote says.
        undecided: Undecided units after each epoch.
    """

    form: str
    target: float
    widths: list[float]
    units: float
    parameters: float | None
    flops: float | None
    empty: int
    accuracy: Estimate
    gain: Estimate | None
    gated_accuracy: Estimate | None
    loss: Estimate | None
    changed: float | None
    undecided: list[float] | None


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each target and form, in the order of targets; all units come last.
    """
    groups: dict[tuple[float, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.target, record.form), []).append(record)
    full = groups[1.0, DENSE][0]
    assert full.parameters is not None and full.flops is not None

    def row(target: float, form: str, group: Sequence[Record]) -> Row:
        def percent(field: str, of: Sequence[Record] = group) -> np.ndarray:
            return 100 * np.array([getattr(record, field) for record in of])

        sound = [record for record in group if record.parameters is not None]
        static, is_gated = percent("accuracy"), form in GATED
        gain = None
        if form not in (RANDOM, DENSE):
            gain = mean_with_interval(
                static - percent("accuracy", groups[target, RANDOM])
            )
        widths = np.mean([record.widths for record in group], axis=0)
        return Row(
            form=form,
            target=target,
            widths=widths.tolist(),
            units=float(100 * widths.sum() / sum(full.widths)),
            parameters=_mean(percent("parameters", sound) / full.parameters),
            flops=_mean(percent("flops", sound) / full.flops),
            empty=len(group) - len(sound),
            accuracy=mean_with_interval(static),
            gain=gain,
            gated_accuracy=(
                mean_with_interval(percent("gated_accuracy")) if is_gated else None
            ),
            loss=(
                mean_with_interval(percent("gated_accuracy") - static)
                if is_gated
                else None
            ),
            changed=_mean(percent("changed")) if is_gated else None,
            undecided=percent("undecided").mean(0).tolist() if is_gated else None,
        )

    targets = sorted({target for target, _ in groups}, key=lambda t: (t == 1, -t))
    return [
        row(target, form, groups[target, form])
        for target in targets
        for form in LABELS
        if (target, form) in groups
    ]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def report(records: Sequence[Record], title: str) -> str:
    """Writes all tables.

    Args:
        records: All records of a study.
        title: What was studied.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    *others, dense = rows
    seeds = len({record.seed for record in records})
    layers = " + ".join(f"{width:g}" for width in dense.widths)
    parts = [
        f"# {title}",
        f"Means over {seeds} seeds ± half of the 95 % confidence interval (Student's "
        "t); differences are paired by seed, bold where the interval does not hold 0. "
        f"The network with all units has {interval_text(dense.accuracy)} %.",
        "## Static networks: test accuracy",
        "Controls have as many units a layer as the polarised network of the same seed "
        "and target. Random ones are trained from scratch; the largest are those of a "
        "network that has had all units for half of the epochs.",
        _accuracy_table(others),
        "## What is left",
        f"Of {layers} units; parameters and FLOPs in percent of those of all units.",
        _size_table(others),
        "## Gates by the input, and what removing them costs",
        "Undecided units are on for some training images and off for others; changed "
        "gates are those of test images that the vote overrules.",
        _gate_table([row for row in others if row.form in GATED]),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy_table(rows: Sequence[Row]) -> str:
    heading = ["Target", "Form", "Accuracy (%)", "Minus random units", "Empty layers"]
    lines = [
        [
            f"{100 * row.target:g} %",
            LABELS[row.form],
            interval_text(row.accuracy),
            gain_text(row.gain) if row.gain else "",
            f"in {row.empty} networks" if row.empty else "",
        ]
        for row in rows
    ]
    return markdown_table([heading, *lines])


def _size_table(rows: Sequence[Row]) -> str:
    heading = ["Target", "Form", "Units (%)", "By layer", "Parameters", "FLOPs"]
    lines = [
        [
            f"{100 * row.target:g} %",
            LABELS[row.form],
            f"{row.units:.1f}",
            " + ".join(f"{width:.1f}" for width in row.widths),
            "" if row.parameters is None else f"{row.parameters:.1f}",
            "" if row.flops is None else f"{row.flops:.1f}",
        ]
        for row in rows
        if row.form in GATED  # the controls have the sizes of the first form
    ]
    return markdown_table([heading, *lines])


def _gate_table(rows: Sequence[Row]) -> str:
    heading = [
        "Target",
        "Form",
        "With gates (%)",
        "Without (%)",
        "Cost",
        "Undecided units (%)",
        "Changed gates (%)",
    ]
    lines = []
    for row in rows:
        assert row.gated_accuracy and row.loss and row.undecided
        lines.append(
            [
                f"{100 * row.target:g} %",
                LABELS[row.form],
                interval_text(row.gated_accuracy),
                interval_text(row.accuracy),
                gain_text(row.loss),
                f"{row.undecided[-1]:.1f}",
                f"{row.changed:.2f}",
            ]
        )
    return markdown_table([heading, *lines])
