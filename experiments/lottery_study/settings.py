"""The forms of a ticket, the order of the work, and which configurations can be run."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

import sparsejax as sj
from experiments.conditions import Condition, distinct, refuse_unless
from experiments.plasticity_study.settings import training_conditions

# Forms; rewinding has one for each epoch that is rewound to.
DENSE = "dense"
ORIGINAL = "rewind_0"
LEARNING_RATE = "learning_rate"
FINE_TUNING = "fine_tuning"
ONE_SHOT = "one_shot"
RANDOM_WEIGHTS = "random_weights"
SHUFFLED_MASKS = "shuffled_masks"
# These do not go on from round to round: they are measured at reported sparsities.
CONTROLS = (RANDOM_WEIGHTS, SHUFFLED_MASKS)
SINGLE = (*CONTROLS, ONE_SHOT)

# New weights have the seed plus this, which no seed of a study reaches.
NEW_WEIGHTS = 2**30

_REWIND = "rewind_"


class Unit(NamedTuple):
    """A round of a form, for all seeds at once: what is done whole or not at all.

    Attributes:
        form: One of the names above.
        round: Its round of pruning, from 1; 0 for the dense runs.
        active: The active weights of each network.
        sparsity: The sparsity asked for, if this round ends at one; 0 when dense.
    """

    form: str
    round: int
    active: int
    sparsity: float | None


def rewind_epoch(form: str) -> int | None:
    """Reads which epoch a form rewinds the weights to.

    Args:
        form: The name of a form.

    Returns:
        The epoch; None for a form that does not rewind.

    Example:
        >>> rewind_epoch("rewind_6"), rewind_epoch("fine_tuning")
        (6, None)
    """
    if not form.startswith(_REWIND):
        return None
    return int(form.removeprefix(_REWIND))


def iterative_forms(config: ConfigDict) -> list[str]:
    """Lists the forms that prune in rounds.

    Args:
        config: As in `experiments/configs/lottery_digits.py`.

    Returns:
        Their names.
    """
    rewinds = [f"{_REWIND}{epoch}" for epoch in config.rewind_epochs]
    return [*rewinds, LEARNING_RATE, FINE_TUNING]


def label_of(form: str) -> str:
    """Names a form in tables and figures.

    Args:
        form: The name of a form.

    Returns:
        Words.
    """
    epoch = rewind_epoch(form)
    if epoch is not None:
        return f"Rewound to epoch {epoch}"
    return {
        DENSE: "Dense",
        LEARNING_RATE: "Learning rate rewound",
        FINE_TUNING: "Fine-tuned in rounds",
        ONE_SHOT: "Pruned once, fine-tuned",
        RANDOM_WEIGHTS: "Control: new weights",
        SHUFFLED_MASKS: "Control: shuffled masks",
    }[form]


def plan_units(config: ConfigDict, size: int) -> list[Unit]:
    """Lists all work in an order in which each unit finds what it goes on from.

    Args:
        config: As in `experiments/configs/lottery_digits.py`, checked.
        size: Prunable weights of the network.

    Returns:
        The units: the dense runs, then round by round.

    Raises:
        ValueError: If the sparsities leave nothing of such a network.
    """
    counts = sj.lottery_counts(size, config.sparsities, config.fraction)
    reported = {int(sj.keep_count(s, size)): s for s in config.sparsities}
    units = [Unit(DENSE, 0, size, 0.0)]
    for number, count in enumerate(counts, start=1):
        forms = [*iterative_forms(config), *(SINGLE if count in reported else ())]
        units += [Unit(form, number, count, reported.get(count)) for form in forms]
    return units


def epochs_of(form: str, config: ConfigDict) -> range:
    """Gives the epochs that a network goes through in a round.

    Args:
        form: The name of a form.
        config: As in `experiments/configs/lottery_digits.py`.

    Returns:
        Epochs of the schedule and of the order of examples. Those after the end of the
        run are of fine-tuning, at the last learning rate.
    """
    if form in (FINE_TUNING, ONE_SHOT):
        return range(config.epochs, config.epochs + config.fine_tuning_epochs)
    return range(rewind_epoch(form) or 0, config.epochs)


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run, before anything is loaded.

    Args:
        config: As in `experiments/configs/lottery_digits.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, training_conditions(config))
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    yield (
        "seeds",
        max(config.seeds) < NEW_WEIGHTS,
        "below 2^30, as those above are of the control with new weights",
    )
    yield "fine_tuning_epochs", config.fine_tuning_epochs >= 1, "at least 1"
    yield (
        "rewind_epochs",
        distinct(config.rewind_epochs)
        and all(0 <= epoch < config.epochs for epoch in config.rewind_epochs)
        and 0 in config.rewind_epochs,
        f"different epochs in [0, {config.epochs}), 0 among them, which the others are "
        "compared with",
    )
    yield (
        "sparsities",
        distinct(config.sparsities)
        and all(0 < sparsity < 1 for sparsity in config.sparsities)
        and _rises(config.sparsities),
        "rising numbers in (0, 1)",
    )
    yield "fraction", 0 < config.fraction < 1, "in (0, 1)"


def _rises(values: Sequence[float]) -> bool:
    return list(values) == sorted(values)
