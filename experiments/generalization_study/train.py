"""Trains networks of all densities, noises and seeds side by side."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.generalization_study.problem import (
    Measures,
    draw_examples,
    init_weights,
    loss_of,
    measure,
    signals,
)

PyTree = Any


class Outcome(NamedTuple):
    """What came of one network, or of all of them as arrays.

    Attributes:
        active: Active weights, int32.
        reached: The share of the classes that have a neuron with an active weight on a
            coordinate of their own signal, float32. No other class can learn its own.
        measures: What the trained network does.
    """

    active: jax.Array
    reached: jax.Array
    measures: Measures


def bernoulli_masks(key: jax.Array, params: PyTree, density: Any) -> PyTree:
    """Keeps every weight with the same probability, independently.

    Args:
        key: A JAX PRNG key. With the same key the masks of a lower density lie within
            those of a higher one.
        params: Weights, each of which is prunable.
        density: The probability p, a scalar that may be traced.

    Returns:
        A mask tree. Its count is random, as in the paper; the rest of sparsejax counts
        exactly.
    """
    return jax.tree.map(lambda w: jax.random.uniform(key, w.shape) < density, params)


def train_one(
    density: Any, noise_std: Any, seed: Any, config: ConfigDict
) -> tuple[PyTree, Outcome]:
    """Prunes a network at random before training, and trains it.

    By gradient descent on all examples, with steps of one length: the gradient is
    divided by its norm. The path is that of gradient descent; without the division it
    would take thousands of times more steps at the lowest density than at the highest.

    Args:
        density: The probability that a weight is kept.
        noise_std: The deviation of the noise.
        seed: Decides the examples, the first weights, and which are kept.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        (trained weights, outcome).
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    train = draw_examples(keys[0], config.train_examples, noise_std, config)
    test = draw_examples(keys[1], config.test_examples, noise_std, config)
    params = init_weights(keys[2], config)
    masks = bernoulli_masks(keys[3], params, density)
    tx = sj.static_transform(
        optax.chain(optax.normalize_by_update_norm(), optax.sgd(config.learning_rate)),
        masks=masks,
        prunable=lambda path, leaf: True,
    )

    def step(
        carry: tuple[PyTree, PyTree], _: None
    ) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        grads = jax.grad(loss_of)(params, train, config)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
        step, sj.init_sparse(tx, params), None, length=config.steps
    )
    own = signals(config)[:, None, :] != 0
    reached = jnp.any(masks["neurons"] & own, axis=(1, 2))
    outcome = Outcome(
        active=sj.count_active(masks),
        reached=jnp.mean(reached),
        measures=measure(params, train, test, config),
    )
    return params, outcome


def train_all(config: ConfigDict) -> tuple[Outcome, float]:
    """Trains every network of a study in one compiled program.

    Args:
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        (the outcomes with leaves of shape [densities, noises, seeds], wall time in
        seconds without that of compiling).
    """

    def run(density: Any, noise_std: Any, seed: Any) -> Outcome:
        return train_one(density, noise_std, seed, config)[1]

    over_seeds = jax.vmap(run, in_axes=(None, None, 0))
    over_noises = jax.vmap(over_seeds, in_axes=(None, 0, None))
    over_all = jax.jit(jax.vmap(over_noises, in_axes=(0, None, None)))
    arguments = (
        np.asarray(config.densities, np.float32),
        np.asarray(config.noise_stds, np.float32),
        np.asarray(config.seeds, np.int32),
    )
    compiled = over_all.lower(*arguments).compile()
    started = time.perf_counter()
    outcomes = jax.device_get(compiled(*arguments))
    return outcomes, time.perf_counter() - started
