"""A run of training, with many replicas side by side."""

from fractions import Fraction
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison import replicas as rep
from experiments.comparison.courses import Course
from experiments.comparison.methods import make_transform
from experiments.input.digits import Split
from experiments.record.flops import changes, run_flops
from experiments.record.progress import Progress
from experiments.training.sparse import decayed_leaves, is_at_sparsity

PyTree = Any


class Program(NamedTuple):
    """What trains replicas with a method; compiled when it is first used.

    Attributes:
        method: A key of `experiments.training.sparse.LABELS`.
        model: Maps images to logits.
        transform: Wraps the optimizer for a replica.
        start: Masks weights and initialises optimizers.
        train_epoch: Trains all replicas for an epoch.
        epochs: The length of a run.
        batch_size: Examples a step.
    """

    method: str
    model: nn.Module
    transform: rep.MakeTransform
    start: rep.Start
    train_epoch: rep.TrainEpoch
    epochs: int
    batch_size: int


class Trained(NamedTuple):
    """Trained networks.

    Attributes:
        params: Their weights, stacked.
        masks: Their masks, stacked.
        courses: How each of them was trained.
    """

    params: PyTree
    masks: PyTree
    courses: list[Course]


def make_program(
    method: str,
    model: nn.Module,
    data: Split,
    config: ConfigDict,
    *,
    learning_rate: float | None = None,
    sparsity: float | None = None,
) -> Program:
    """Makes what trains with a method.

    Args:
        method: A key of `experiments.training.sparse.LABELS`.
        model: Maps images to logits.
        data: The data.
        config: As in `experiments/configs/digits.py`.
        learning_rate: The first; None for the configuration's. It falls to 0.
        sparsity: The sparsity of all replicas, for the methods of
            `experiments.training.sparse.NEED_SPARSITY`; None for each its own.

    Returns:
        The program.
    """
    total_steps = config.epochs * (len(data.train.labels) // config.batch_size)
    first_rate = config.learning_rate if learning_rate is None else learning_rate
    schedule = optax.cosine_decay_schedule(first_rate, total_steps)
    inner = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed_leaves(method)),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )
    transform = make_transform(method, inner, config, total_steps, sparsity)
    return Program(
        method,
        model,
        transform,
        rep.compile_start(transform),
        rep.compile_epoch(model, transform),
        config.epochs,
        config.batch_size,
    )


def train(
    program: Program,
    replicas: rep.Replica,
    params: PyTree,
    data: Split,
    description: str,
) -> Trained:
    """Trains networks from the first epoch to the last, without momentum at first.

    Args:
        program: What trains them.
        replicas: The replicas, stacked.
        params: Their weights to start from, stacked, dense or not.
        data: The data.
        description: What is trained, for the bar that shows how far it is.

    Returns:
        The networks.
    """
    model, epochs = program.model, program.epochs
    first_replica, first_params = jax.tree.map(lambda x: x[0], (replicas, params))
    state = program.start(replicas, params)

    # The active weights of each layer before training and after each step.
    before = rep.active_by_layer(sj.get_masks(state.opt_state))
    history = [{path: counts[:, None] for path, counts in before.items()}]
    seeds, wanted = np.asarray(replicas.seed), np.asarray(replicas.sparsity)
    best = rep.Best(len(seeds))
    sizes = rep.layer_sizes(sj.get_masks(state.opt_state))
    prunable = sum(sizes.values())
    epoch_size = len(data.train.labels)
    with Progress(
        epochs,
        examples_per_step=epoch_size * len(seeds),
        description=f"{description}, {len(seeds)} runs: epoch",
    ) as progress:
        for epoch in range(epochs):
            order = rep.batch_order(
                seeds.tolist(), epoch, epoch_size, program.batch_size
            )
            state, counts = program.train_epoch(replicas, state, order, *data.train)
            history.append(jax.tree.map(np.asarray, rep.by_path(counts)))
            validation = rep.accuracy(model, state.params, *data.validation)
            active_now = sum(counts[:, -1] for counts in history[-1].values())
            is_sparse = is_at_sparsity(
                program.method, wanted, 1 - active_now / prunable
            )
            if best.observe(np.asarray(validation), is_sparse):
                best.note(np.asarray(rep.accuracy(model, state.params, *data.test)))
            progress.update(epoch + 1)
    test = np.asarray(rep.accuracy(model, state.params, *data.test))

    masks = sj.get_masks(state.opt_state)
    nonzero = rep.active_by_layer(rep.nonzero_weights(state.params, masks))
    active = {
        path: np.concatenate([counts[path] for counts in history], axis=1)
        for path in sizes
    }
    one_image = jax.ShapeDtypeStruct((1, *data.test.images.shape[1:]), np.float32)
    forward = sj.forward_flops(model.apply, first_params, one_image)
    total_steps = epochs * (epoch_size // program.batch_size)
    updates = program.transform(first_replica).is_update_step(np.arange(total_steps))
    trained = rep.trained_densities(state.opt_state)

    def course(i: int) -> Course:
        densities = [
            {path: Fraction(int(active[path][i, t]), sizes[path]) for path in sizes}
            for t in range(total_steps + 1)
        ]
        return Course(
            validation=[_short(each[i]) for each in best.history],
            test=_short(test[i]),
            best_epoch=int(best.epoch[i]) + 1,
            best_test=_short(best.test[i]),
            active={path: active[path][i] for path in sizes},
            sizes=sizes,
            nonzero=sum(int(counts[i]) for counts in nonzero.values()),
            flops=run_flops(
                program.method,
                forward,
                changes(range(total_steps + 1), densities),
                total_steps,
                np.flatnonzero(updates),
                trained,
            ),
        )

    return Trained(state.params, masks, [course(i) for i in range(len(seeds))])


def _short(value: Any) -> float:
    """Six digits, as many as float32 has."""
    return round(float(value), 6)
