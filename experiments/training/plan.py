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
    "drive_dense_epochs",
    "epochs",
    "evaluate_every_epochs",
    "grasp_images_per_class",
    "initialization_batches",
    "initialization_rounds",
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


def is_measured(step: Any, plan: Plan, is_update_step: Any) -> Any:
    """Tells where the topology is measured: at its updates, and before evaluations.

    Args:
        step: A step number from 0, or an array of them; may be traced.
        plan: The run's lengths.
        is_update_step: A function of the same: where the topology changes.

    Returns:
        A bool, or an array of them.
    """
    done = step + 1
    evaluated = (done % plan.eval_every == 0) | (done == plan.total_steps)
    return is_update_step(step) | evaluated


class Chunk(NamedTuple):
    """Steps that run in one compiled call.

    Attributes:
        size: How many.
        may_update: Whether it is the program that can change and measure the topology.
        measured: Whether the topology is measured; then the size is 1.
    """

    size: int
    may_update: bool
    measured: bool


def chunk_sizes(
    start: int, plan: Plan, config: ConfigDict, most: int, is_update_step: Any
) -> Iterator[Chunk]:
    """Splits what is left of a run into chunks that end where something is to be done.

    Args:
        start: The step to start from.
        plan: The run's lengths.
        config: `steps_per_call`, `log_every_steps`, `checkpoint_every_steps`.
        most: The most steps of a chunk that the feed can give.
        is_update_step: A function of an array of steps: where the topology changes.

    Yields:
        The chunks. Sizes are `steps_per_call` where the topology is let alone, or 1 up
        to the next such place, so that two programs are compiled and no more; the first
        has nothing of a topology update in it.
    """
    size, step = min(config.steps_per_call, most), start
    stops = (config.log_every_steps, config.checkpoint_every_steps, plan.eval_every)
    every_step = np.arange(plan.total_steps)
    measured = np.flatnonzero(is_measured(every_step, plan, is_update_step))
    while step < plan.total_steps:
        coming = int(measured[np.searchsorted(measured, step)])  # the last step is one
        left = min(coming - step, *(stop - step % stop for stop in stops))
        taken = size if left >= size else 1
        yield Chunk(taken, may_update=left < size, measured=left == 0)
        step += taken
