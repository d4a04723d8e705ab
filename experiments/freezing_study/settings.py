"""Which configurations can be run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
    split_conditions,
)
from experiments.freezing_study.methods import METHODS, PAIRS
from experiments.input.digits import load_split


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is compiled.

    Args:
        config: As in `experiments/configs/freezing_digits.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    pairs = [pair for pair in PAIRS.items() if set(pair) <= set(config.methods)]
    yield (
        "methods",
        distinct(config.methods)
        and set(config.methods) <= set(METHODS)
        and bool(pairs),
        f"different names out of {', '.join(METHODS)}, and among them a mask's both "
        "methods, pruned and frozen",
    )
    yield (
        "densities",
        distinct(config.densities) and all(0 < d < 1 for d in config.densities),
        "different numbers in (0, 1)",
    )
    yield seeds_condition(config, "interval")
    yield from split_conditions(config)
    data = load_split(config.validation_share, config.test_share, config.split_seed)
    train = len(data.train.labels)
    yield "batch_size", 1 <= config.batch_size <= train, f"in [1, {train}]"
    yield "epochs", config.epochs >= 1, "at least 1"
    for field in ("learning_rate", "edge_popup_learning_rate"):
        yield field, config[field] > 0, "above 0"
    yield "momentum", 0 <= config.momentum < 1, "in [0, 1)"
    yield "weight_decay", config.weight_decay >= 0, "at least 0"
    yield (
        "distribution",
        config.distribution in ("erk", "er", "uniform"),
        '"erk", "er" or "uniform"',
    )
