"""The dense optimizer of a run: learning rate over time, weight decay, momentum."""

from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.training.sparse import decayed_leaves
from sparsejax.schedules import Schedule

SCHEDULES = ("step", "cosine", "constant")


def learning_rate(config: ConfigDict, total_steps: int, epoch_steps: int) -> Schedule:
    """Makes the learning rate over time.

    Args:
        config: `schedule` ("step", "cosine", "constant"), `learning_rate`,
            `warmup_epochs`, and for "step" `drop_at` (shares of the run) and
            `drop_factor`.
        total_steps: The length of the run.
        epoch_steps: Steps an epoch.

    Returns:
        step -> learning rate. Warm-up raises it epoch by epoch, by (epoch + 1) /
        (epochs of warm-up + 1), as in the official GraNet code.

    Raises:
        ValueError: If the schedule is unknown.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {SCHEDULES}; got {config.schedule!r}."
        )
    peak, warmup = config.learning_rate, config.warmup_epochs

    def schedule(step: Any) -> Any:
        if config.schedule == "cosine":
            rate = peak * 0.5 * (1 + jnp.cos(jnp.pi * step / total_steps))
        else:
            drops = config.drop_at if config.schedule == "step" else ()
            rate = jnp.asarray(peak, jnp.float32)
            for share in drops:
                passed = step >= round(share * total_steps)
                rate = rate * jnp.where(passed, config.drop_factor, 1.0)
        epoch = step // epoch_steps
        return rate * jnp.minimum(1.0, (epoch + 1) / (warmup + 1))

    return schedule


def make_optimizer(
    config: ConfigDict, schedule: Schedule, method: str
) -> optax.GradientTransformation:
    """Makes SGD with L2 added to the gradient before momentum, as PyTorch's does.

    Args:
        config: `weight_decay`, `decay_batch_norm` (also biases and batch norm),
            `momentum`, `nesterov`.
        schedule: The learning rate.
        method: What the optimizer is for, as Top-KAST has a penalty of its own.

    Returns:
        The optimizer.
    """
    return optax.chain(
        optax.add_decayed_weights(
            config.weight_decay, mask=decayed_leaves(method, config.decay_batch_norm)
        ),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    )
