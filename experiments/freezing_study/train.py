"""Trains a method's networks of all densities and seeds side by side."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison import replicas as rep
from experiments.freezing_study.methods import (
    EDGE_POPUP,
    WITH_DENSITY,
    Replica,
    read,
    start,
    wrap,
)
from experiments.freezing_study.results import Record
from experiments.input.digits import CLASSES, Examples, Split
from experiments.models.digits_cnn import DigitsCNN

PyTree = Any


def train_method(method: str, data: Split, config: ConfigDict) -> list[Record]:
    """Trains and tests a method at every density with every seed.

    Args:
        method: A key of `methods.METHODS`.
        data: The digits.
        config: As in `experiments/configs/freezing_digits.py`, checked.

    Returns:
        A record for each network.
    """
    model = DigitsCNN(CLASSES)
    densities = config.densities if method in WITH_DENSITY else (None,)
    pairs = [(density, seed) for density in densities for seed in config.seeds]
    make = _make_replicas(method, model, data.train, config)
    replicas = [make(density, seed) for density, seed in pairs]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)
    seeds, examples = [seed for _, seed in pairs], len(data.train.labels)
    order = [
        rep.batch_order(seeds, epoch, examples, config.batch_size)
        for epoch in range(config.epochs)
    ]
    run = jax.jit(jax.vmap(_make_run(method, model, config), in_axes=(0, 0, None)))
    params, changed, nonzero = run(stacked, np.concatenate(order, axis=1), data.train)
    validation = rep.accuracy(model, params, *data.validation)
    test = rep.accuracy(model, params, *data.test)
    return [
        Record(
            method=method,
            density=density,
            seed=seed,
            validation_accuracy=float(validation[i]),
            accuracy=float(test[i]),
            changed=int(changed[i]),
            nonzero=int(nonzero[i]),
        )
        for i, (density, seed) in enumerate(pairs)
    ]


def _make_replicas(
    method: str, model: nn.Module, train: Examples, config: ConfigDict
) -> Callable[[float | None, int], Replica]:
    """Makes the function (density, seed) -> network; masks are the comparison's."""
    loss = rep.mean_loss(model)

    def loss_fn(params: PyTree, batch: Examples) -> jax.Array:
        return loss(params, *batch)

    def make(density: float | None, seed: int) -> Replica:
        params = rep.first_params(model, seed, train.images)
        sparsity = 0.0 if density is None else round(1 - density, 6)
        masks = sj.dense_masks(params)
        if method.startswith("random"):
            masks = rep.make_replica(
                seed, sparsity, sparsity, params, config.distribution
            ).masks
        elif method.startswith("snip"):
            order = rep.batch_order([seed], 0, len(train.labels), config.batch_size)
            batches = (Examples(*(part[i] for part in train)) for i in order[0])
            masks = sj.snip(loss_fn, params, batches, None, sparsity)
        elif method == EDGE_POPUP:
            params = sj.signed_constant(params, sparsity)
        return Replica(params, masks, jnp.float32(sparsity), jax.random.key(seed))

    return make


def _make_run(
    method: str, model: nn.Module, config: ConfigDict
) -> Callable[[Replica, Any, Examples], tuple[PyTree, jax.Array, jax.Array]]:
    """Makes the whole training of one network.

    It gives the parameters that the network runs on in the end, how many numbers
    training has changed, and how many prunable weights are not 0.
    """
    loss = rep.mean_loss(model)
    rate = config.learning_rate
    if method == EDGE_POPUP:
        rate = config.edge_popup_learning_rate

    def run(
        replica: Replica, order: jax.Array, train: Examples
    ) -> tuple[PyTree, jax.Array, jax.Array]:
        inner = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(
                optax.cosine_decay_schedule(rate, len(order)),
                momentum=config.momentum,
                nesterov=True,
            ),
        )
        tx = wrap(method, inner, replica.masks)

        def loss_of(variables: PyTree, batch: Examples) -> jax.Array:
            return loss(read(method, variables, replica), *batch)

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
            variables, state = carry
            batch = jax.tree.map(lambda part: part[chosen], train)
            grads = jax.grad(loss_of)(variables, batch)
            updates, state = tx.update(grads, state, variables)
            return (optax.apply_updates(variables, updates), state), None

        first = start(method, replica)
        (last, _), _ = jax.lax.scan(step, (first, tx.init(first)), order)
        params = read(method, last, replica)
        moved = jax.tree.map(lambda a, b: jnp.sum(a != b), first, last)
        there = sj.count_active(rep.nonzero_weights(params, replica.masks))
        return params, sum(jax.tree.leaves(moved), jnp.int32(0)), there

    return run
