"""Which configurations can be run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
)


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is compiled.

    Args:
        config: As in `experiments/configs/generalization.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    yield "classes", config.classes >= 2, "at least 2"
    yield "width", config.width >= 1, "at least 1"
    yield "steps", config.steps >= 1, "at least 1"
    yield "power", config.power >= 1, "at least 1, or the activation is no function"
    for field in ("signal_strength", "init_scale", "learning_rate"):
        yield field, config[field] > 0, "above 0"
    most = config.dimension // config.classes
    yield (
        "signal_support",
        1 <= config.signal_support <= most,
        f"from 1 to {most}: signals are orthogonal and share no coordinate",
    )
    for field in ("train_examples", "test_examples"):
        yield (
            field,
            config[field] > 0 and config[field] % config.classes == 0,
            f"a multiple of the {config.classes} classes, which are balanced",
        )
    yield (
        "densities",
        distinct(config.densities)
        and all(0 < density <= 1 for density in config.densities)
        and 1.0 in config.densities,
        "different numbers in (0, 1] with 1 among them, which is compared with",
    )
    yield (
        "noise_stds",
        distinct(config.noise_stds) and all(std > 0 for std in config.noise_stds),
        "different numbers above 0",
    )
    yield seeds_condition(config, "interval")
