"""Pruning before training, a method of the comparison: masks once, trained as static.

The masks of a run are found at its first weights, on the training examples in the order
and in the batches of its first epoch.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison.replicas import batch_order, mean_loss
from experiments.input.digits import Examples

PyTree = Any

# Names in reports, in the order of reports.
LABELS = {
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "iter_snip": "Iter-SNIP",
    "force": "FORCE",
    "drive": "DRIVE",
}


def trained_as(name: str) -> str:
    """Gives the method that a method's runs are trained with.

    Args:
        name: A key of `LABELS`, or of `experiments.training.sparse.LABELS`.

    Returns:
        "static" for the former, which differ from it in their masks alone; else `name`.
    """
    return "static" if name in LABELS else name


def masks_before_training(
    name: str,
    model: nn.Module,
    params: Sequence[PyTree],
    pairs: Sequence[tuple[float, int]],
    train: Examples,
    config: ConfigDict,
) -> list[PyTree]:
    """Finds the masks of runs. Layers left empty are not warned of: count them.

    Args:
        name: A key of `LABELS`.
        model: Maps images to logits.
        params: The first weights of each run.
        pairs: The (sparsity, seed) of each run.
        train: The examples to train on.
        config: `batch_size` and `initialization_rounds`, as in
            `experiments/configs/digits.py`.

    Returns:
        The masks of each run, of exactly its sparsity.
    """
    loss = mean_loss(model)
    rounds = config.initialization_rounds

    def loss_fn(params: PyTree, batch: tuple[np.ndarray, np.ndarray]) -> jax.Array:
        return loss(params, *batch)

    def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        examples = len(train.labels)
        for chosen in batch_order([seed], 0, examples, config.batch_size)[0]:
            yield train.images[chosen], train.labels[chosen]

    if name == "synflow":
        one_image = jax.ShapeDtypeStruct((1, *train.images.shape[1:]), np.float32)

        @jax.jit  # once for all runs
        def synflow(params: PyTree, sparsity: jax.Array) -> PyTree:
            inputs = [one_image]
            return sj.synflow(
                model.apply, params, inputs, None, sparsity, rounds=rounds
            )

        return [
            synflow(each, jnp.float32(sparsity))
            for each, (sparsity, _) in zip(params, pairs)
        ]
    method: Any = {
        "snip": sj.snip,
        "grasp": sj.grasp,
        "iter_snip": partial(sj.force, rounds=rounds, may_return=False),
        "force": partial(sj.force, rounds=rounds),
        "drive": partial(sj.drive, rounds=rounds),
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)
        return [
            method(loss_fn, each, batches(seed), None, sparsity)
            for each, (sparsity, seed) in zip(params, pairs)
        ]
