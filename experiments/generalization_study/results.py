"""What a study shows: means with confidence intervals, tables, JSON."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.generalization_study.train import Outcome
from experiments.record.markdown import interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval


class Record(NamedTuple):
    """What came of one network; the measures are those of `problem.Measures`.

    Attributes:
        density: The probability that a weight was kept.
        noise_std: The deviation of the noise.
        seed: The seed.
        active: Active weights.
        reached: The share of the classes whose signal an active weight sees.
        train_loss: Mean cross-entropy over the training examples, in nats.
        train_accuracy: In [0, 1].
        test_loss: Mean cross-entropy over the test examples, in nats.
        test_accuracy: In [0, 1].
        signal: Alignment with the signals.
        noise: Alignment with the noise of the training examples.
        test_noise: Alignment with the noise of the test examples.
    """

    density: float
    noise_std: float
    seed: int
    active: int
    reached: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    signal: float
    noise: float
    test_noise: float


class Row(NamedTuple):
    """Networks of one density and noise: means over seeds.

    Attributes:
        density: The probability that a weight was kept.
        noise_std: The deviation of the noise.
        reached: The share of the classes whose signal an active weight sees, in
            percent.
        train_loss: The largest of the seeds', in nats.
        test_loss: In nats.
        test_accuracy: In percent.
        gain: Test accuracy minus that of the dense network, in points, paired by seed.
        signal: Alignment with the signals.
        noise: Alignment with the noise of the training examples.
    """

    density: float
    noise_std: float
    reached: Estimate
    train_loss: float
    test_loss: Estimate
    test_accuracy: Estimate
    gain: Estimate
    signal: Estimate
    noise: Estimate


def records_of(outcomes: Outcome, config: ConfigDict) -> list[Record]:
    """Lists what came of each network.

    Args:
        outcomes: As `train_all` gives them.
        config: The configuration.

    Returns:
        The records, by density, noise and seed in the order of the configuration.
    """
    cells = itertools.product(config.densities, config.noise_stds, config.seeds)
    columns = [np.ravel(outcomes.active), np.ravel(outcomes.reached)]
    columns += [np.ravel(values) for values in outcomes.measures]
    numbers = zip(*(column.tolist() for column in columns))
    return [Record(*cell, *values) for cell, values in zip(cells, numbers)]


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each noise and density, in the order of the records.
    """
    groups: dict[tuple[float, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.noise_std, record.density), []).append(record)

    def row(noise_std: float, density: float) -> Row:
        group = groups[noise_std, density]
        dense = groups[noise_std, 1.0]

        def over(field: str, of: Sequence[Record] = group) -> np.ndarray:
            return np.array([getattr(record, field) for record in of])

        gains = over("test_accuracy") - over("test_accuracy", dense)
        return Row(
            density=density,
            noise_std=noise_std,
            reached=mean_with_interval(100 * over("reached")),
            train_loss=float(over("train_loss").max()),
            test_loss=mean_with_interval(over("test_loss")),
            test_accuracy=mean_with_interval(100 * over("test_accuracy")),
            gain=mean_with_interval(100 * gains),
            signal=mean_with_interval(over("signal")),
            noise=mean_with_interval(over("noise")),
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
    parts = [
        f"# {title}",
        "Means over seeds ± half of the 95 % confidence interval (Student's t); the "
        "training loss is the largest of the seeds'. A class is reached if an active "
        "weight of its neurons sees its signal.",
    ]
    rows = summarise(records)
    for noise_std in dict.fromkeys(row.noise_std for row in rows):
        chosen = [row for row in rows if row.noise_std == noise_std]
        parts += [f"## Noise of deviation {noise_std:g}", _table(chosen)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    heading = [
        "Kept",
        "Classes reached (%)",
        "Training loss",
        "Test accuracy (%)",
        "Minus dense",
        "<w, signal>",
        "<w, noise>",
    ]
    return markdown_table(
        [
            heading,
            *(
                [
                    f"{100 * row.density:g} %",
                    f"{row.reached.mean:.0f}",
                    f"{row.train_loss:.1e}",
                    interval_text(row.test_accuracy),
                    "" if row.density == 1 else interval_text(row.gain, "+"),
                    interval_text(row.signal),
                    interval_text(row.noise),
                ]
                for row in rows
            ),
        ]
    )
