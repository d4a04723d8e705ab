"""The dense optimizer of a run: learning rate over time, weight decay, clipping."""

from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.methods import decayed_leaves
from sparsejax.schedules import Schedule

SCHEDULES = ("step", "cosine", "constant")
OPTIMIZERS = ("sgd", "adamw")


def learning_rate(config: ConfigDict, total_steps: int, epoch_steps: int) -> Schedule:
    """Makes the learning rate over time, of `schedule` and what belongs to it."""
    peak, warmup = config.learning_rate, config.warmup_epochs
    if config.schedule == "step":
        drops: dict[int, float] = {}
        for share in config.drop_at:  # two may fall on one step of a short run
            at = round(share * total_steps)
            drops[at] = drops.get(at, 1.0) * config.drop_factor
        rate = optax.piecewise_constant_schedule(peak, drops)
    elif config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(peak, total_steps)
    elif config.schedule == "constant":
        rate = optax.constant_schedule(peak)
    else:
        raise ValueError(
            f"schedule must be one of {SCHEDULES}; got {config.schedule!r}."
        )

    def schedule(step: Any) -> Any:
        # By hand: epoch by epoch, and a factor, as in the official GraNet code.
        epoch = step // epoch_steps
        return rate(step) * jnp.minimum(1.0, (epoch + 1) / (warmup + 1))

    return schedule


def make_optimizer(
    config: ConfigDict, schedule: Schedule, method: str
) -> optax.GradientTransformation:
    """Makes SGD, with L2 added to the gradient as PyTorch's does, or AdamW.

    `decay_batch_norm` decays biases and batch norm too; Top-KAST has a penalty of its
    own for what it prunes.
    """
    decayed = decayed_leaves(method, config.decay_batch_norm)
    name = config.get("optimizer", "sgd")
    if name == "sgd":
        tx = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=decayed),
            optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
        )
    elif name == "adamw":
        tx = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decayed)
    else:
        raise ValueError(f"optimizer must be one of {OPTIMIZERS}; got {name!r}.")
    if config.get("clip_norm") is None:
        return tx
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
