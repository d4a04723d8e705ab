"""The masks of an image run that is pruned before training."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.input.augment import normalise
from experiments.input.datasets import Dataset
from experiments.training.before_training import masks_before_training
from experiments.training.feed import host_batches
from experiments.training.state import first_variables

PyTree = Any
Batch = Mapping[str, jax.Array]


def first_masks(
    config: ConfigDict,
    model: nn.Module,
    dataset: Dataset,
    image_shape: tuple[int, int, int],
) -> PyTree:
    """Finds masks on the batches that a run sees first, spread over all devices.

    Batch norm sees the whole batch, whatever it sees in training, and labels are not
    smoothed.

    Args:
        config: `method`, `sparsity`, `initialization_batches`, `initialization_rounds`,
            and what the input needs.
        model: Maps (images, train) to logits; it must not average over a mapped axis.
        dataset: Its training examples are used, no others.
        image_shape: (height, width, channels) of what the model sees.

    Returns:
        NumPy masks, the same in every process.
    """
    mesh = Mesh(np.array(jax.devices()), ("batch",))

    def put(leaf: Any, spec: P) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    variables = jax.tree.map(
        lambda leaf: put(leaf, P()), first_variables(model, image_shape, config.seed)
    )
    stats = variables.get("batch_stats", {})

    def batches() -> Iterator[Batch]:
        with contextlib.closing(host_batches(config, dataset)) as read:
            for batch in itertools.islice(read, config.initialization_batches):
                yield jax.tree.map(lambda leaf: put(leaf, P("batch")), batch)

    def apply_fn(params: PyTree, images: Any) -> Any:
        return model.apply({"params": params, "batch_stats": stats}, images)

    def loss_fn(params: PyTree, batch: Batch) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            normalise(batch["image"], dataset.mean, dataset.std),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean()

    masks = masks_before_training(
        config.method,
        variables["params"],
        config.sparsity,
        loss_fn=loss_fn,
        batches=batches(),
        apply_fn=apply_fn,
        image_shape=image_shape,
        rounds=config.initialization_rounds,
    )
    return jax.tree.map(np.asarray, masks)
