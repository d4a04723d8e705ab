"""Which configurations can be run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.auto_s_study.problem import RECIPES, load_problem
from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
)


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is compiled.

    Args:
        config: As in `experiments/configs/auto_s.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    known = ", ".join(RECIPES)
    yield "source", config.source in RECIPES, f"one of {known}"
    yield (
        "targets",
        distinct(config.targets) and set(config.targets) <= set(RECIPES),
        f"different names out of {known}",
    )
    yield seeds_condition(config, "interval")
    yield "test_share", 0.1 <= config.test_share <= 0.5, "in [0.1, 0.5]"
    names = {config.source, *config.targets}
    fewest = min(load_problem(n, config).train.labels.shape[1] for n in names)
    yield "batch_size", 1 <= config.batch_size <= fewest, f"in [1, {fewest}]"
    for field in ("prune_set_per_class", "steps", "score_width", "score_epochs"):
        yield field, config[field] >= 1, "at least 1"
    yield "learning_rate", config.learning_rate > 0, "above 0"
    for field in ("label_sparsity", "fraction", "held_out"):
        yield field, 0 < config[field] < 1, "in (0, 1)"
    yield (
        "sparsities",
        distinct(config.sparsities) and all(0 < s < 1 for s in config.sparsities),
        "different numbers in (0, 1)",
    )
