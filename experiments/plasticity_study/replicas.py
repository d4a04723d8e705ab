"""Many networks side by side on one `jax.vmap` axis, dense and pruned ones alike.

One compiled program trains them all, dense ones under masks that are True everywhere:
states, seeds and learning rates are its arguments.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.input.augment import PadMode, normalise
from experiments.input.device import DeviceData, augmented
from experiments.input.plan import EpochPlan, epoch_plan
from experiments.plasticity_study.problem import Problem, inner_optimizer
from experiments.plasticity_study.prune import with_topology
from experiments.training.state import TrainState, create_state
from experiments.training.steps import make_eval_step, make_train_step

PyTree = Any


class Programs(NamedTuple):
    """Compiled functions of networks stacked on the first axis.

    Attributes:
        create: int32[n] seeds -> dense states at step 0.
        train_epoch: (states, seeds, epoch, float32[steps] learning rates) -> states.
        accuracy: states -> float64[n], the share of test images that each gets right.
        first_gradients: (states, seeds, epoch) -> dense gradients over the batch that
            the epoch starts with.
        with_topology: (states, weights that go on, masks) -> states; see
            `experiments.plasticity_study.prune`.
    """

    create: Callable[[np.ndarray], TrainState]
    train_epoch: Callable[[TrainState, np.ndarray, int, np.ndarray], TrainState]
    accuracy: Callable[[TrainState], np.ndarray]
    first_gradients: Callable[[TrainState, np.ndarray, int], PyTree]
    with_topology: Callable[[TrainState, PyTree, PyTree], TrainState]


# Moves nothing: after a step, the optimizer's state is the gradient.
_KEEP_GRADIENT = optax.GradientTransformationExtraArgs(
    init=lambda params: optax.EmptyState(),
    update=lambda grads, state, params=None, **extra: (
        jax.tree.map(jnp.zeros_like, grads),
        grads,
    ),
)


def make_programs(problem: Problem, config: ConfigDict) -> Programs:
    """Makes the functions; each is compiled when it is first called.

    Args:
        problem: The problem.
        config: As in `experiments/configs/plasticity_digits.py`, checked.

    Returns:
        The functions.
    """
    model, steps, size = problem.model, problem.epoch_steps, config.batch_size
    is_shifted = config.augment == "cifar"
    mode: PadMode = config.pad_mode if is_shifted else "none"
    pad = config.pad if is_shifted else 0

    def step_of(tx: Any) -> Any:
        return make_train_step(
            model,
            tx,
            label_smoothing=config.label_smoothing,
            accumulation=1,
            axis_name=None,
            may_update=False,
        )

    def create(seed: Any) -> TrainState:
        inner = inner_optimizer(config, 0.0)
        tx = sj.static_transform(inner, sparsity=0.0, distribution="uniform")
        return create_state(model, lambda masks: tx, problem.image_shape, seed)

    def batches(seed: jax.Array, epoch: jax.Array, data: DeviceData) -> EpochPlan:
        plan = epoch_plan(seed, epoch, len(data.labels), pad)
        return EpochPlan(
            *(f[: steps * size].reshape(steps, size, *f.shape[1:]) for f in plan)
        )

    def batch_of(data: DeviceData, rows: EpochPlan) -> Any:
        return augmented(data, rows.order, rows.crop, rows.flip, pad, mode)

    def train_epoch(
        state: TrainState,
        seed: jax.Array,
        epoch: jax.Array,
        rates: jax.Array,
        data: DeviceData,
    ) -> TrainState:
        masks = sj.get_masks(state.opt_state)

        def step(state: TrainState, item: Any) -> tuple[TrainState, None]:
            rows, rate = item
            inner = inner_optimizer(config, rate)
            train_step = step_of(sj.static_transform(inner, masks=masks))
            return train_step(state, batch_of(data, rows))[0], None

        return jax.lax.scan(step, state, (batches(seed, epoch, data), rates))[0]

    def first_gradient(
        state: TrainState, seed: jax.Array, epoch: jax.Array, data: DeviceData
    ) -> PyTree:
        rows = jax.tree.map(lambda field: field[0], batches(seed, epoch, data))
        start = state._replace(opt_state=())
        after, _ = step_of(_KEEP_GRADIENT)(start, batch_of(data, rows))
        return after.opt_state

    def hits(state: TrainState, data: DeviceData) -> jax.Array:
        evaluate = make_eval_step(model, axis_name=None)
        total, chunk = len(data.labels), min(config.eval_batch_size, len(data.labels))
        rows = jnp.arange(-(-total // chunk) * chunk, dtype=jnp.int32)

        def of_chunk(rows: jax.Array) -> jax.Array:
            held = jnp.minimum(rows, total - 1)
            batch = {
                "image": normalise(data.images[held], data.mean, data.std),
                "label": data.labels[held],
                "weight": (rows < total).astype(jnp.float32),
            }
            return evaluate(state, batch)["accuracy"]

        return jnp.sum(jax.lax.map(of_chunk, rows.reshape(-1, chunk)))

    all_create = jax.jit(jax.vmap(create))
    all_train = jax.jit(jax.vmap(train_epoch, in_axes=(0, 0, None, None, None)))
    all_gradients = jax.jit(jax.vmap(first_gradient, in_axes=(0, 0, None, None)))
    all_hits = jax.jit(jax.vmap(hits, in_axes=(0, None)))
    return Programs(
        create=all_create,
        train_epoch=lambda states, seeds, epoch, rates: all_train(
            states, seeds, epoch, rates, problem.train
        ),
        accuracy=lambda states: (
            np.asarray(all_hits(states, problem.test), np.float64)
            / len(problem.test.labels)
        ),
        first_gradients=lambda states, seeds, epoch: all_gradients(
            states, seeds, epoch, problem.train
        ),
        with_topology=jax.jit(jax.vmap(partial(with_topology, config=config))),
    )


@jax.jit
def stack(trees: Sequence[PyTree]) -> PyTree:
    """Puts single networks on one axis.

    Args:
        trees: Trees of the same structure, at least one.

    Returns:
        The tree with a new first axis.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def concatenate(trees: Sequence[PyTree]) -> PyTree:
    """Puts several axes of networks in a row.

    Args:
        trees: Trees of the same structure with networks on the first axis.

    Returns:
        The tree with all of them on it.
    """
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def pick(tree: PyTree, places: int | Sequence[int]) -> PyTree:
    """Takes some of the networks on an axis.

    Args:
        tree: Networks on the first axis.
        places: Which, in the order wanted; an int for one without the axis.

    Returns:
        The tree of those.
    """
    return _pick(tree, np.asarray(places))


@jax.jit
def _pick(tree: PyTree, places: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[places], tree)


def count_weights(states: TrainState) -> tuple[np.ndarray, int, np.ndarray]:
    """Counts what the masks of networks leave.

    Args:
        states: Networks on the first axis.

    Returns:
        Active weights of each, int[n]; prunable weights of one; layers of each that
        have no active weight, int[n].
    """
    masks = sj.get_masks(states.opt_state)
    layers = jax.vmap(lambda masks: sj.count_active(masks, "layer"))(masks)
    each = np.stack([np.asarray(count) for count in jax.tree.leaves(layers)])
    prunable = sum(mask[0].size for mask in jax.tree.leaves(masks))
    return each.sum(axis=0), prunable, (each == 0).sum(axis=0)
