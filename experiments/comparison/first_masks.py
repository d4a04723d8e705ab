"""The masks of runs that are pruned before training.

They are found at a run's first weights, on the training examples in the order and in
the batches of its first epoch; each round of a method sees those of another epoch.
GraSP sees as many examples of each class.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison.replicas import batch_order, mean_loss
from experiments.input.digits import Examples
from experiments.methods import (
    class_balanced_batch,
    masks_before_training,
)

PyTree = Any
Batch = tuple[np.ndarray, np.ndarray]


def masks_of_runs(
    name: str,
    model: nn.Module,
    params: Sequence[PyTree],
    pairs: Sequence[tuple[float, int]],
    train: Examples,
    config: ConfigDict,
) -> list[PyTree]:
    """Finds the masks of runs. Layers left empty are not warned of: count them.

    Args:
        name: A key of `experiments.training.before_training.LABELS`.
        model: Maps images to logits.
        params: The first weights of each run.
        pairs: The (sparsity, seed) of each run.
        train: The examples to train on.
        config: `batch_size`, `initialization_rounds`, `grasp_images_per_class` and
            `drive_dense_epochs`, as in `experiments/configs/digits.py`.

    Returns:
        The masks of each run, of exactly its sparsity.
    """
    loss = mean_loss(model)

    def loss_fn(params: PyTree, batch: Batch, temperature: float = 1.0) -> jax.Array:
        return loss(params, *batch, temperature)

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        examples = len(train.labels)
        for chosen in batch_order([seed], epoch, examples, config.batch_size)[0]:
            yield train.images[chosen], train.labels[chosen]

    def masks(params: PyTree, sparsity: Any, seed: int) -> PyTree:
        epochs = range(config.drive_dense_epochs)
        per_class = config.grasp_images_per_class
        return masks_before_training(
            name,
            params,
            sparsity,
            loss_fn=loss_fn,
            batches=lambda number: batches(seed, number),
            balanced=lambda: [class_balanced_batch(*train, per_class, seed)],
            dense_batches=lambda: itertools.chain.from_iterable(
                batches(seed, epoch) for epoch in epochs
            ),
            apply_fn=model.apply,
            image_shape=train.images.shape[1:],
            rounds=config.initialization_rounds,
        )

    each_run: Sequence[tuple[Any, int]] = pairs
    if name == "synflow":  # sees no data: compiled once for all runs
        masks = jax.jit(masks, static_argnums=2)
        each_run = [(jnp.float32(sparsity), 0) for sparsity, _ in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)
        return [masks(own, *pair) for own, pair in zip(params, each_run)]
