"""A whole experiment: the study, its results and its figure."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
)
from experiments.edge_of_chaos_study.figures import plot_by_depth
from experiments.edge_of_chaos_study.network import empty_layers
from experiments.edge_of_chaos_study.results import Record, report, summarise
from experiments.record.study import write_study

TITLE = "Layers that SNIP leaves empty, on and off the edge of chaos"


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is compiled.

    Args:
        config: As in `experiments/configs/edge_of_chaos.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    yield (
        "variances",
        distinct(config.variances)
        and all(weight > 0 and bias >= 0 for weight, bias in config.variances),
        "different pairs of a number above 0 and one of at least 0",
    )
    yield (
        "depths",
        distinct(config.depths) and all(depth >= 1 for depth in config.depths),
        "different integers of at least 1",
    )
    for field in ("width", "examples"):
        yield field, config[field] >= 1, "at least 1"
    yield "sparsity", 0 <= config.sparsity < 1, "in [0, 1)"
    yield seeds_condition(config, "interval")


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Prunes all networks of a study, then writes its results and its figure.

    Args:
        config: As in `experiments/configs/edge_of_chaos.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run.
    """
    check_config(config)
    started = time.perf_counter()
    records = []
    for (weight, bias), depth, seed in itertools.product(
        config.variances, config.depths, config.seeds
    ):
        empty = empty_layers(
            weight,
            bias,
            depth,
            seed,
            width=config.width,
            examples=config.examples,
            sparsity=config.sparsity,
        )
        records.append(Record(weight, bias, depth, seed, empty))
    seconds = time.perf_counter() - started
    rows, text = summarise(records), report(records, TITLE)
    write_study(workdir, config, seconds, records, rows, text)
    plot_by_depth(rows, workdir / "empty_by_depth.png")
    print(text)
