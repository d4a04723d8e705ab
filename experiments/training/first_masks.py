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
from experiments.input.plan import steps_per_epoch
from experiments.training.before_training import (
    class_balanced_batch,
    masks_before_training,
)
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

    Each round sees the next ones. GraSP sees as many images of each class, drawn from
    the first epoch.

    Batch norm sees the whole batch, whatever it sees in training, and labels are not
    smoothed.

    Args:
        config: `method`, `sparsity`, `initialization_batches`, `initialization_rounds`,
            `grasp_images_per_class`, `drive_dense_epochs`, and what the input needs.
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

    def put_whole(leaf: np.ndarray) -> jax.Array:
        spec = P() if len(leaf) % len(jax.devices()) else P("batch")
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    variables = jax.tree.map(
        lambda leaf: put(leaf, P()), first_variables(model, image_shape, config.seed)
    )
    stats = variables.get("batch_stats", {})

    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)

    def placed(batches: Iterator[Any]) -> Iterator[Batch]:
        for batch in batches:
            yield jax.tree.map(lambda leaf: put(leaf, P("batch")), batch)

    def balanced() -> Iterator[Batch]:
        """The same whole batches in every process, of at most the run's size."""
        whole, count = [], np.zeros(dataset.num_classes, int)
        with contextlib.closing(host_batches(config, dataset, all_rows=True)) as every:
            for batch in itertools.islice(every, epoch_steps):
                whole.append((batch["image"], batch["label"]))
                count += np.bincount(batch["label"], minlength=len(count))
                if min(count) >= config.grasp_images_per_class:
                    break
        images, labels = map(np.concatenate, zip(*whole))
        drawn = class_balanced_batch(
            images, labels, config.grasp_images_per_class, config.seed
        )
        parts = -(-len(drawn[1]) // config.batch_size)  # of nearly one size
        for image, label in zip(*(np.array_split(each, parts) for each in drawn)):
            yield {"image": put_whole(image), "label": put_whole(label)}

    def apply_fn(params: PyTree, images: Any) -> Any:
        return model.apply({"params": params, "batch_stats": stats}, images)

    def loss_fn(params: PyTree, batch: Batch, temperature: float = 1.0) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            normalise(batch["image"], dataset.mean, dataset.std),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, batch["label"]
        )
        return losses.mean()

    with contextlib.closing(host_batches(config, dataset)) as read:
        stream = placed(read)
        masks = masks_before_training(
            config.method,
            variables["params"],
            config.sparsity,
            loss_fn=loss_fn,
            batches=lambda _: itertools.islice(stream, config.initialization_batches),
            balanced=balanced,
            dense_batches=lambda: itertools.islice(
                stream, config.drive_dense_epochs * epoch_steps
            ),
            apply_fn=apply_fn,
            image_shape=image_shape,
            rounds=config.initialization_rounds,
        )
    return jax.tree.map(np.asarray, masks)
