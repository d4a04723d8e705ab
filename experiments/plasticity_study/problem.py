"""The network, the data and the learning rates of a study."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.input.augment import check_pad
from experiments.input.datasets import load_dataset
from experiments.input.device import DeviceData, device_data
from experiments.input.plan import steps_per_epoch
from experiments.models import create_model
from experiments.models.digits_cnn import DigitsCNN
from experiments.plasticity_study.settings import SCHEDULE, rate_labels
from experiments.training.optimizer import learning_rate, make_optimizer


class Problem(NamedTuple):
    """What is trained, and on what.

    Attributes:
        model: Maps (images, train) to logits.
        train: What weights and masks are fitted to.
        test: What accuracies are measured on.
        image_shape: Height, width and channels.
        epoch_steps: Steps an epoch.
        learning_rates: float32[steps of the run].
    """

    model: nn.Module
    train: DeviceData
    test: DeviceData
    image_shape: tuple[int, int, int]
    epoch_steps: int
    learning_rates: np.ndarray


def load_problem(config: ConfigDict) -> Problem:
    """Loads the data, puts it on the device and makes the network.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`, checked.

    Returns:
        The problem.

    Raises:
        ValueError: If the data, the batch and the network do not fit.
        FileNotFoundError: If the data is not there.
    """
    dataset = load_dataset(
        config.dataset, config.data_dir, config.validation_examples, config.split_seed
    )
    if config.augment == "cifar":
        check_pad(dataset.image_shape[:2], config.pad, config.pad_mode)
    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
    total_steps = epoch_steps * config.epochs
    schedule = learning_rate(config, total_steps, epoch_steps)
    if config.model == "digits_cnn":
        model: nn.Module = DigitsCNN(dataset.num_classes, **config.model_options)
    else:
        model = create_model(
            config.model,
            dataset.num_classes,
            dtype=jnp.dtype(config.dtype),
            **config.model_options,
        )
    return Problem(
        model=model,
        train=device_data(dataset.train, dataset.mean, dataset.std),
        test=device_data(dataset.test, dataset.mean, dataset.std),
        image_shape=dataset.image_shape,
        epoch_steps=epoch_steps,
        learning_rates=_six_digits(jax.vmap(schedule)(jnp.arange(total_steps))),
    )


def inner_optimizer(config: ConfigDict, rate: Any) -> optax.GradientTransformation:
    """Makes the optimizer at one learning rate; its state is the same at any.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`.
        rate: The learning rate, which may be traced.

    Returns:
        The optimizer, not wrapped.
    """
    return make_optimizer(config, lambda count: rate, "dense")


def _six_digits(rates: jax.Array) -> np.ndarray:
    """Rounds: 0.1 * 0.1 is then the fixed 0.01, and is continued with once."""
    return np.array([float(f"{rate:.6g}") for rate in rates.tolist()], np.float32)


def continued_rates(
    problem: Problem, config: ConfigDict, epoch: int
) -> dict[str, np.ndarray]:
    """Gives the learning rates of the epochs that follow a checkpoint.

    Args:
        problem: The problem.
        config: As in `experiments/configs/plasticity_digits.py`.
        epoch: The checkpoint's epoch.

    Returns:
        float32[continue_epochs, epoch_steps] by the rates' labels. After the end of the
        run the schedule stays at its last value.
    """
    shape = (config.continue_epochs, problem.epoch_steps)
    steps = epoch * problem.epoch_steps + np.arange(np.prod(shape))
    last = len(problem.learning_rates) - 1
    scheduled = problem.learning_rates[np.minimum(steps, last)].reshape(shape)
    fixed = [np.full(shape, r, np.float32) for r in config.fixed_learning_rates]
    tracks = dict(zip(rate_labels(config), [scheduled, *fixed]))
    assert next(iter(tracks)) == SCHEDULE
    return tracks
