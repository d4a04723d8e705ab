"""Trains networks with gates, and networks of given units, each kind side by side.

    gated     gates by the input, with the penalties; in the end they vote
    static    gates are given and stay, or are replaced in the middle

A network of given units is trained with the outputs of the others times 0. This is the
small network of those units, to rounding, with first weights drawn at its fan-in; but
of one shape for all, so that one compiled program trains them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison.replicas import batch_order
from experiments.input.digits import CLASSES, Examples
from experiments.models.digits_cnn import LAYERS, DigitsCNN
from experiments.models.gated_digits_cnn import GatedDigitsCNN

PyTree = Any
Units = Mapping[str, Any]  # by layer, [units]

# Sets the keys of random units apart from others that a run derives from its seed.
_STREAM = 0x6A7E


class Gated(NamedTuple):
    """Networks trained with gates, on the first axis of each leaf.

    Attributes:
        params: Their weights.
        units: What the inputs vote for in the end.
        undecided: float32[n, epochs], the share of the units that are on for some
            training images and off for others, after each epoch.
    """

    params: PyTree
    units: Units
    undecided: jax.Array


class State(NamedTuple):
    """What training changes.

    Attributes:
        params: The weights.
        opt_state: The optimizer's state.
    """

    params: PyTree
    opt_state: PyTree


class Measured(NamedTuple):
    """What networks do on examples.

    Attributes:
        accuracy: float32[n], the share of the images that each gets right.
        changed: float32[n], the share of its gates that are not what the vote says; 0
            where units are given.
    """

    accuracy: jax.Array
    changed: jax.Array


def _optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=config.momentum, nesterov=True),
    )


def _cross_entropy(logits: Any, labels: Any) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _order(seeds: np.ndarray, epochs: range, train: Examples, config: Any) -> Any:
    """int32[n, epochs, steps, batch], the examples of each step."""
    size = config.batch_size
    each = [batch_order(list(seeds), e, len(train.labels), size) for e in epochs]
    return np.stack(each, axis=1)


def _steps(train: Examples, config: ConfigDict) -> int:
    return int(config.epochs * (len(train.labels) // config.batch_size))


def _with_gates(params: PyTree, images: Any) -> tuple[jax.Array, Units]:
    """(logits, gates [batch, units] by layer)."""
    logits, state = GatedDigitsCNN(CLASSES).apply(
        {"params": params}, images, mutable=["gates"]
    )
    return logits, state["gates"]


def _with_units(params: PyTree, units: Units, images: Any) -> Any:
    return GatedDigitsCNN(CLASSES).apply({"params": params, "units": units}, images)


def train_gated(
    seeds: np.ndarray,
    targets: np.ndarray,
    polarisations: np.ndarray,
    train: Examples,
    config: ConfigDict,
) -> Gated:
    """Trains networks whose gates depend on the input.

    Args:
        seeds: int32[n].
        targets: float32[n], the share of the units that is to be on.
        polarisations: float32[n], the weight of the penalty at the end of the run.
        train: The examples.
        config: As in `experiments/configs/polarisation_digits.py`, checked.

    Returns:
        The trained networks.
    """
    tx = _optimizer(config, _steps(train, config))
    images, labels = map(jnp.asarray, train)
    # From 0 to 1 over the first half of the epochs.
    ramp = np.minimum(np.arange(config.epochs) / (config.epochs // 2), 1.0)
    ramp = ramp.astype(np.float32)

    def one(seed: Any, target: Any, polarisation: Any, order: Any) -> Gated:
        def loss(params: PyTree, batch: Any, strength: Any) -> jax.Array:
            logits, gates = _with_gates(params, images[batch])
            return (
                _cross_entropy(logits, labels[batch])
                + strength * sj.polarization_penalty(gates)
                + config.activation * sj.activation_penalty(gates, target)
            )

        def epoch(state: State, item: Any) -> tuple[State, Any]:
            batches, share = item

            def step(state: State, batch: Any) -> tuple[State, None]:
                grads = jax.grad(loss)(state.params, batch, share * polarisation)
                updates, opt_state = tx.update(grads, state.opt_state, state.params)
                return State(
                    optax.apply_updates(state.params, updates), opt_state
                ), None

            state, _ = jax.lax.scan(step, state, batches)
            _, gates = _with_gates(state.params, images)
            return state, (sj.consensus(gates), _undecided(gates))

        init = GatedDigitsCNN(CLASSES).init(jax.random.key(seed), images[:1])
        params = init["params"]
        start = State(params, tx.init(params))
        state, (votes, undecided) = jax.lax.scan(epoch, start, (order, ramp))
        units = jax.tree.map(lambda votes_of: votes_of[-1], votes)
        return Gated(state.params, units, undecided)

    order = _order(seeds, range(config.epochs), train, config)
    trained: Gated = jax.jit(jax.vmap(one))(seeds, targets, polarisations, order)
    return trained


def _undecided(gates: Units) -> jax.Array:
    """The share of the units that are on for some of the inputs and off for others."""
    every = jnp.concatenate(jax.tree.leaves(gates), axis=1) > 0
    return jnp.mean(jnp.any(every, axis=0) & ~jnp.all(every, axis=0))


def init_static(
    seeds: np.ndarray, units: Units, train: Examples, config: ConfigDict
) -> State:
    """Draws the first weights of networks of given units.

    Args:
        seeds: int32[n].
        units: bool[n, units] by layer.
        train: The examples.
        config: As in `experiments/configs/polarisation_digits.py`, checked.

    Returns:
        The networks to train, on the first axis of each leaf.
    """
    tx = _optimizer(config, _steps(train, config))

    def one(seed: Any, units: Units) -> State:
        init = DigitsCNN(CLASSES).init(jax.random.key(seed), train.images[:1])
        params = init["params"]
        for layer, reader in zip(LAYERS, (*LAYERS[1:], "output")):
            # What reads a layer has a smaller fan-in where some of it is off.
            scale = jnp.sqrt(units[layer].size / jnp.maximum(jnp.sum(units[layer]), 1))
            kernel = params[reader]["kernel"] * scale
            params = {**params, reader: {**params[reader], "kernel": kernel}}
        return State(params, tx.init(params))

    networks: State = jax.jit(jax.vmap(one))(seeds, units)
    return networks


def train_static(
    state: State,
    units: Units,
    seeds: np.ndarray,
    epochs: range,
    train: Examples,
    config: ConfigDict,
) -> State:
    """Trains networks of given units for some of the epochs of a run.

    Args:
        state: The networks.
        units: bool[n, units] by layer.
        seeds: int32[n]; they decide the order of the examples.
        epochs: Which epochs.
        train: The examples.
        config: As in `experiments/configs/polarisation_digits.py`, checked.

    Returns:
        The networks after them.
    """
    tx = _optimizer(config, _steps(train, config))
    images, labels = map(jnp.asarray, train)

    def one(state: State, units: Units, order: Any) -> State:
        def loss(params: PyTree, batch: Any) -> jax.Array:
            logits = _with_units(params, units, images[batch])
            return _cross_entropy(logits, labels[batch])

        def step(state: State, batch: Any) -> tuple[State, None]:
            grads = jax.grad(loss)(state.params, batch)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return State(optax.apply_updates(state.params, updates), opt_state), None

        return jax.lax.scan(step, state, order.reshape(-1, order.shape[-1]))[0]

    order = _order(seeds, epochs, train, config)
    trained: State = jax.jit(jax.vmap(one))(state, units, order)
    return trained


def random_units(seeds: np.ndarray, units: Units) -> Units:
    """Draws units at random, as many a layer as others have.

    Args:
        seeds: int32[n].
        units: bool[n, units] by layer.

    Returns:
        Units of the same number.
    """

    def draw(place: int, on: np.ndarray) -> np.ndarray:
        generators = [np.random.default_rng((_STREAM, place, seed)) for seed in seeds]
        return np.stack([g.permutation(row) for g, row in zip(generators, on)])

    return {layer: draw(i, np.asarray(units[layer])) for i, layer in enumerate(LAYERS)}


def largest_units(params: PyTree, units: Units) -> Units:
    """Chooses the units with the largest norm of incoming weights.

    Args:
        params: Weights of networks on the first axis.
        units: bool[n, units] by layer, whose number a layer is kept.

    Returns:
        Units of the same number.
    """

    def choose(kernel: np.ndarray, on: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(kernel.reshape(len(on), -1, on.shape[-1]), axis=1)
        ranks = np.argsort(np.argsort(-norms, axis=-1, kind="stable"), axis=-1)
        return ranks < on.sum(axis=-1, keepdims=True)

    return {
        layer: choose(np.asarray(params[layer]["kernel"]), np.asarray(on))
        for layer, on in units.items()
    }


@jax.jit
def measure_gated(gated: Gated, examples: Examples) -> Measured:
    """Measures networks with their gates.

    Args:
        gated: The networks.
        examples: What on.

    Returns:
        The measures.
    """

    def one(params: PyTree, units: Units) -> Measured:
        logits, gates = _with_gates(params, examples.images)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == examples.labels)
        other = [jnp.mean((gates[n] > 0) != units[n], axis=0) for n in units]
        return Measured(accuracy, jnp.mean(jnp.concatenate(other)))

    return jax.vmap(one)(gated.params, gated.units)


@jax.jit
def measure_static(params: PyTree, units: Units, examples: Examples) -> jax.Array:
    """Measures networks of given units.

    Args:
        params: Their weights.
        units: bool[n, units] by layer.
        examples: What on.

    Returns:
        float32[n], the share of the images that each gets right.
    """

    def one(params: PyTree, units: Units) -> jax.Array:
        logits = _with_units(params, units, examples.images)
        return jnp.mean(jnp.argmax(logits, -1) == examples.labels)

    return jax.vmap(one)(params, units)
