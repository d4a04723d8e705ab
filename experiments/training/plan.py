"""The lengths of a run in steps, checked before anything is compiled."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.input.datasets import Dataset
from experiments.input.plan import steps_per_epoch

# Fields that must be at least 1.
_LENGTHS = (
    "accumulation",
    "batch_size",
    "checkpoint_every_steps",
    "epochs",
    "evaluate_every_epochs",
    "keep_checkpoints",
    "log_every_steps",
    "steps_per_call",
    "total_steps",
)


class Plan(NamedTuple):
    """The lengths of a run in steps.

    Attributes:
        epoch_steps: Steps an epoch.
        total_steps: Steps of the whole run.
        eval_every: Steps between evaluations.
    """

    epoch_steps: int
    total_steps: int
    eval_every: int


def plan_run(config: ConfigDict, dataset: Dataset) -> Plan:
    """Turns epochs into steps.

    Args:
        config: The configuration.
        dataset: The data.

    Returns:
        The lengths.

    Raises:
        ValueError: If the batch does not fit devices, data or accumulation, a length is
            below 1, or the class count is not the data's.
    """
    for name in _LENGTHS:
        if config[name] is not None and config[name] < 1:
            raise ValueError(f"{name} must be at least 1; got {config[name]}.")
    devices = jax.device_count()
    if config.batch_size % (devices * config.accumulation):
        raise ValueError(
            f"batch_size must be divisible by the {devices} devices times "
            f"accumulation={config.accumulation}; got {config.batch_size}."
        )
    if config.num_classes not in (None, dataset.num_classes):
        raise ValueError(
            f"num_classes must be {dataset.num_classes} for {dataset.name}; got "
            f"{config.num_classes}."
        )
    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
    return Plan(
        epoch_steps=epoch_steps,
        total_steps=config.total_steps or epoch_steps * config.epochs,
        eval_every=epoch_steps * config.evaluate_every_epochs,
    )


def chunk_sizes(
    start: int, plan: Plan, config: ConfigDict, most: int, is_update_step: Any
) -> Iterator[tuple[int, bool]]:
    """Splits what is left of a run into chunks that end where something is to be done.

    Args:
        start: The step to start from.
        plan: The run's lengths.
        config: `steps_per_call`, `log_every_steps`, `checkpoint_every_steps`.
        most: The most steps of a chunk that the feed can give.
        is_update_step: A function of an array of steps: where the topology changes.

    Yields:
        (size, whether the topology may change in it). Sizes are `steps_per_call` where
        it does not, or 1 up to the next such place, so that two programs are compiled
        and no more; the first has nothing of a topology update in it.
    """
    size, step = min(config.steps_per_call, most), start
    stops = (config.log_every_steps, config.checkpoint_every_steps, plan.eval_every)
    updates = np.flatnonzero(is_update_step(np.arange(plan.total_steps)))
    while step < plan.total_steps:
        coming = np.searchsorted(updates, step)
        next_update = updates[coming] if coming < len(updates) else plan.total_steps
        left = min(
            int(next_update) - step,
            plan.total_steps - step,
            *(stop - step % stop for stop in stops),
        )
        taken = size if left >= size else 1
        yield taken, left < size
        step += taken
