"""What is done to a checkpoint, and which configurations can be run."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
)
from experiments.models import MODELS
from experiments.training.optimizer import SCHEDULES
from sparsejax.analysis.plasticity import UNITS
from sparsejax.checks import SCOPES

# What follows the prune: nothing; as many units by layer as were pruned (the official
# code); or GraNet's exchange of survivors, at the density that the prune has left.
REGENERATIONS = ("none", "as_many", "exchange")
# The learning rate of continuing that is no fixed one: what the run itself has there.
SCHEDULE = "schedule"


class Setting(NamedTuple):
    """How a checkpoint is pruned.

    Attributes:
        rate: The fraction of the units that is dropped.
        scope: "layer" or "global".
        unit: "weight" or "filter".
        regeneration: One of `REGENERATIONS`.
    """

    rate: float
    scope: str
    unit: str
    regeneration: str


# The control: trained on as it is.
UNPRUNED = Setting(0.0, "none", "none", "none")


def all_settings(config: ConfigDict) -> list[Setting]:
    """Lists what is done to each checkpoint.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`.

    Returns:
        The control and every combination of what the configuration names.
    """
    combinations = itertools.product(
        config.rates, config.scopes, config.units, config.regenerations
    )
    return [UNPRUNED, *itertools.starmap(Setting, combinations)]


def rate_labels(config: ConfigDict) -> list[str]:
    """Names the learning rates that checkpoints are continued with.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`.

    Returns:
        "schedule", and the fixed ones as text.
    """
    return [SCHEDULE, *(f"{rate:g}" for rate in config.fixed_learning_rates)]


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is loaded.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, itertools.chain(training_conditions(config), _own(config)))


def training_conditions(config: ConfigDict) -> Iterator[Condition]:
    """Lists what must hold of the fields that say how networks are trained.

    Args:
        config: As `experiments.configs.plasticity_digits.training_config` makes it.

    Yields:
        The conditions.
    """
    models = ("digits_cnn", *MODELS)
    yield "model", config.model in models, f"one of {', '.join(models)}"
    yield "augment", config.augment in ("cifar", "none"), '"cifar" or "none"'
    yield "schedule", config.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"
    for field in ("epochs", "batch_size", "eval_batch_size"):
        yield field, config[field] >= 1, "at least 1"
    yield seeds_condition(config, "interval")


def _own(config: ConfigDict) -> Iterator[Condition]:
    for field in ("continue_epochs", "replicas_at_once"):
        yield field, config[field] >= 1, "at least 1"
    yield (
        "prune_at_epochs",
        distinct(config.prune_at_epochs)
        and all(0 <= epoch <= config.epochs for epoch in config.prune_at_epochs),
        f"different epochs of the run, in [0, {config.epochs}]",
    )
    yield (
        "rates",
        distinct(config.rates) and all(0 < rate < 1 for rate in config.rates),
        "different numbers in (0, 1)",
    )
    for field, names in (
        ("scopes", SCOPES),
        ("units", UNITS),
        ("regenerations", REGENERATIONS),
    ):
        values = config[field]
        is_fine = distinct(values) and set(values) <= set(names)
        yield field, is_fine, f"different names out of {', '.join(names)}"
    yield (
        "regenerations",
        "none" in config.regenerations,
        'with "none" among them, which the others are compared with',
    )
    yield (
        "fixed_learning_rates",
        len({f"{rate:g}" for rate in config.fixed_learning_rates})
        == len(config.fixed_learning_rates)
        and all(rate > 0 for rate in config.fixed_learning_rates),
        "numbers above 0 that differ in six digits",
    )
    yield (
        "exchange_rate",
        0 < config.exchange_rate < 1,
        "in (0, 1)",
    )
