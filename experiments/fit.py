"""Many small runs at once, on one `jax.vmap` axis: one program trains them all.

Runs of one method differ in numbers alone: seed, sparsity, masks, first weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj

PyTree = Any
Transform = Callable[[Any], optax.GradientTransformationExtraArgs]
Loss = Callable[[PyTree, Any], jax.Array]  # (params, batch) -> mean loss


class State(NamedTuple):
    """What training changes: weights, and the state of an optimizer."""

    params: PyTree
    opt_state: PyTree


def mapped_fields(state: Any) -> Any:
    """Returns the axes by which states that are at the same step are stacked.

    The step is kept off the mapped axis, so that a conditional on it stays a branch: of
    a batched one, both sides would be computed at every step.

    Example:
        >>> mapped_fields(sj.SparsifyState).step, mapped_fields(sj.SparsifyState).masks
        (None, 0)
    """
    return state._make(None if name == "step" else 0 for name in state._fields)


_AXES = State(params=0, opt_state=mapped_fields(sj.SparsifyState))


@jax.jit
def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees of one structure on a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def concatenate(trees: Sequence[PyTree]) -> PyTree:
    """Concatenates trees of one structure on their first axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


@jax.jit
def _take(tree: PyTree, places: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[places], tree)


def take(tree: PyTree, places: int | Sequence[int]) -> PyTree:
    """Takes some of the runs on the first axis, or one without the axis."""
    return _take(tree, np.asarray(places))


@partial(jax.jit, static_argnums=0)
def first_params(model: nn.Module, seed: int, images: np.ndarray) -> PyTree:
    """Initializes a model from a seed; of the images only the shape matters."""
    return model.init(jax.random.key(seed), images[:1])


@jax.jit
def draw_masks(seed: int, params: PyTree, counts: PyTree) -> PyTree:
    """Draws masks of given counts from a seed."""
    return sj.random_masks(jax.random.key(seed), params, counts=counts)


def random_masks(
    seed: int, sparsity: float, params: PyTree, distribution: str
) -> PyTree:
    """Draws masks of exact counts, compiled once for all sparsities and seeds."""
    counts = sj.active_counts(params, sparsity, distribution)
    return draw_masks(seed, params, counts)


def batch_order(
    seeds: Sequence[int], epoch: int, examples: int, batch_size: int
) -> np.ndarray:
    """Shuffles the examples of an epoch for each seed: int32[runs, steps, batch_size].

    What fills no batch is left out.
    """
    steps = examples // batch_size
    shuffled = [
        np.random.default_rng((seed, epoch)).permutation(examples) for seed in seeds
    ]
    used = np.stack(shuffled)[:, : steps * batch_size].astype(np.int32)
    return used.reshape(len(seeds), steps, batch_size)


def cross_entropy(model: nn.Module) -> Loss:
    """Returns the loss (params, (images, labels)) -> mean cross-entropy.

    It takes the temperature of GraSP too, by which it divides its logits.
    """

    def loss(params: PyTree, batch: Any, temperature: float = 1.0) -> jax.Array:
        images, labels = batch
        logits: Any = model.apply(params, images)
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, labels
        )
        return jnp.mean(each)

    return loss


def sgd(
    config: ConfigDict, steps: int, rate: float | None = None, decayed: Any = None
) -> optax.GradientTransformation:
    """Makes the SGD of a configuration: Nesterov momentum, a rate that falls to 0.

    `decayed` is the mask of `optax.add_decayed_weights`.
    """
    rate = config.learning_rate if rate is None else rate
    schedule = optax.cosine_decay_schedule(rate, steps)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )


def descend(
    loss: Loss,
    tx: optax.GradientTransformation,
    state: State,
    items: Any,
    observe: Callable[[State], PyTree] = lambda state: None,
    *,
    length: int | None = None,
) -> tuple[State, PyTree]:
    """Trains one run, a step for each item: (state, what is observed after each).

    Not compiled: for functions that are. Items are what the loss takes, stacked.
    """

    def step(state: State, item: Any) -> tuple[State, PyTree]:
        grads = jax.grad(loss)(state.params, item)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = State(optax.apply_updates(state.params, updates), opt_state)
        return state, observe(state)

    return jax.lax.scan(step, state, items, length)


def at(loss: Loss, data: Any) -> Loss:
    """Returns a loss of batches that are given by the places of their examples."""
    return lambda params, chosen: loss(params, _take(data, chosen))


def compile_start(transform: Transform) -> Callable[[Any, PyTree], State]:
    """Returns (own of each run, weights) -> states, with sparse weights, stacked.

    `transform` makes the wrapped optimizer of what is a run's own, which is traced.
    """

    def init(own: Any, params: PyTree) -> State:
        return State(*sj.init_sparse(transform(own), params))

    return jax.jit(jax.vmap(init, out_axes=_AXES))


def compile_steps(
    loss: Loss, transform: Transform, observe: Callable[[State], PyTree]
) -> Callable[[Any, State, np.ndarray, Any], tuple[State, PyTree]]:
    """Returns (own, states, order, data) -> (states, what is observed after each step).

    `order` is as `batch_order` returns it, `data` a tree of arrays over examples that
    all runs share; the states' memory is reused.
    """

    def steps(own: Any, state: State, order: jax.Array, data: Any) -> Any:
        return descend(at(loss, data), transform(own), state, order, observe)

    mapped = jax.vmap(steps, in_axes=(0, _AXES, 0, None), out_axes=(_AXES, 0))
    return jax.jit(mapped, donate_argnums=1)


@partial(jax.jit, static_argnums=0)
def accuracy(
    model: nn.Module, params: PyTree, images: np.ndarray, labels: np.ndarray
) -> jax.Array:
    """Computes the share of images that each run gets right: float32[runs]."""

    def of_one(params: PyTree) -> jax.Array:
        logits: Any = model.apply(params, images)
        return jnp.mean(jnp.argmax(logits, -1) == labels)

    return jax.vmap(of_one)(params)


@jax.jit
def layer_counts(masks: PyTree) -> PyTree:
    """Counts the active weights of each layer of each run, in a tree like the masks."""
    return jax.vmap(lambda masks: sj.count_active(masks, "layer"))(masks)
