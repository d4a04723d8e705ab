"""What is compared, and which configurations can be run."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
    split_conditions,
)
from experiments.input.digits import Split, load_split

# All forms end as a static sub-network of as many units a layer as the first has.
POLARISED = "polarised"
NO_PENALTY = "no_penalty"
RANDOM = "random"
MAGNITUDE = "magnitude"
# All units, without gates.
DENSE = "dense"

GATED = (POLARISED, NO_PENALTY)
LABELS = {
    POLARISED: "Polarised gates",
    NO_PENALTY: "Gates without that penalty",
    RANDOM: "Control: random units",
    MAGNITUDE: "Control: largest units",
    DENSE: "All units",
}


def load_data(config: ConfigDict) -> Split:
    """Loads the digits, split as the configuration says.

    Args:
        config: As in `experiments/configs/polarisation_digits.py`.

    Returns:
        The split, the same for all networks.
    """
    return load_split(config.validation_share, config.test_share, config.split_seed)


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is compiled.

    Args:
        config: As in `experiments/configs/polarisation_digits.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    yield (
        "targets",
        distinct(config.targets) and all(0 < target < 1 for target in config.targets),
        "different numbers in (0, 1)",
    )
    yield seeds_condition(config, "interval")
    yield "polarisation", config.polarisation > 0, "above 0; it is compared with 0"
    yield "activation", config.activation > 0, "above 0"
    yield from split_conditions(config)
    train = len(load_data(config).train.labels)
    yield "batch_size", 1 <= config.batch_size <= train, f"in [1, {train}]"
    yield "epochs", config.epochs >= 2, "at least 2: one control chooses in the middle"
    yield "learning_rate", config.learning_rate > 0, "above 0"
    yield "momentum", 0 <= config.momentum < 1, "in [0, 1)"
    yield "weight_decay", config.weight_decay >= 0, "at least 0"
