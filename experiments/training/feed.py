"""From a data set to chunks of batches on the devices: the same epochs on two paths.

Where the set fits in device memory it lives there; only the order of the examples and
the numbers of their augmentation are sent, and many steps run in one compiled scan.
Else the host reads and augments images ahead of the steps. Both are pure functions of
the seed and the step, so that a resumed run sees what an uninterrupted one would.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.input import device, host
from experiments.input.augment import normalise
from experiments.input.datasets import Dataset, Split
from experiments.input.plan import host_plan
from experiments.training.parallel import Parallel

PyTree = Any
Items = Mapping[str, Any]


class Feed(NamedTuple):
    """Where a run's batches come from.

    Attributes:
        data: What the devices hold all the time; empty on the host path.
        chunks: (first step, sizes) -> chunks of batches, placed on the devices.
        fetch: (data, item) -> the batch of a step: normalised images, and labels.
        normalise: uint8 images -> what the model sees.
        most: The most steps that go in one chunk.
    """

    data: PyTree
    chunks: Callable[[int, Iterable[int]], Generator[PyTree, None, None]]
    fetch: Callable[[PyTree, Items], dict[str, jax.Array]]
    normalise: Callable[[jax.Array], jax.Array]
    most: int


def host_batches(
    config: ConfigDict, dataset: Dataset, start_step: int = 0, all_rows: bool = False
) -> grain.DatasetIterator[host.Batch]:
    """Reads and augments this process's part of the training batches on the host.

    Args:
        config: The run's configuration.
        dataset: The data.
        start_step: The first step.
        all_rows: Whether to read the parts of all processes.

    Returns:
        An endless iterator over uint8 images and labels; call its `close` when done.
    """
    return host.train_batches(
        dataset.train,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start_step,
        process_index=0 if all_rows else jax.process_index(),
        process_count=1 if all_rows else jax.process_count(),
        augment=config.augment,
        pad=config.pad,
        mode=config.pad_mode,
        image_size=config.image_size or dataset.image_shape[0],
        workers=config.workers,
    )


def make_feed(
    config: ConfigDict, dataset: Dataset, epoch_steps: int, parallel: Parallel
) -> Feed:
    """Chooses the path for a data set.

    Args:
        config: The run's configuration.
        dataset: The data.
        epoch_steps: Steps an epoch.
        parallel: How to place data.

    Returns:
        The feed.

    Raises:
        ValueError: If `device_resident` is asked of a set that is not in memory.
    """

    def scale(images: jax.Array) -> jax.Array:
        return normalise(images, dataset.mean, dataset.std)

    def fetch_images(data: PyTree, item: Items) -> dict[str, jax.Array]:
        return {"image": scale(item["image"]), "label": item["label"]}

    def fetch_rows(data: device.DeviceData, item: Items) -> dict[str, jax.Array]:
        mode: Any = config.pad_mode if config.augment == "cifar" else "none"
        return device.augmented(data, **item, pad=config.pad, mode=mode)

    def chunks_of(items: Callable[[int], Iterator[Items]]) -> Any:
        def chunks(step: int, sizes: Iterable[int]) -> Generator[PyTree, None, None]:
            return host.prefetch(_stack(items(step), sizes), parallel.put_chunk)

        return chunks

    if not config.device_resident:
        from_host = functools.partial(host_batches, config, dataset)
        return Feed((), chunks_of(from_host), fetch_images, scale, most=1)
    if not dataset.in_memory or config.augment == "imagenet":
        raise ValueError(
            "device_resident must be False where the data is not in memory or augment "
            f'is "imagenet"; got True for {dataset.name} with {config.augment!r}.'
        )
    data = parallel.put_data(
        device.device_data(dataset.train, dataset.mean, dataset.std)
    )
    rows = chunks_of(lambda step: _rows(config, len(dataset.train), epoch_steps, step))
    return Feed(data, rows, fetch_rows, scale, most=epoch_steps)


def _rows(
    config: ConfigDict, examples: int, epoch_steps: int, step: int
) -> Iterator[Items]:
    """Yields which examples a step takes and how: this process's part of the plan."""
    local = config.batch_size // jax.process_count()
    while True:
        epoch, within = divmod(step, epoch_steps)
        plan = host_plan(config.seed, epoch, examples, config.pad)
        start = within * config.batch_size + jax.process_index() * local
        yield {
            name: field[start : start + local] for name, field in plan._asdict().items()
        }
        step += 1


def _stack(items: Iterator[Items], sizes: Iterable[int]) -> Iterator[PyTree]:
    try:
        for size in sizes:
            chunk = [next(items) for _ in range(size)]
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *chunk)
    finally:
        getattr(items, "close", lambda: None)()


def evaluation_chunks(
    config: ConfigDict, split: Split, image_size: int, parallel: Parallel
) -> Iterator[PyTree]:
    """Gives one pass over a split, in chunks of one batch.

    Args:
        config: The run's configuration.
        split: The examples.
        image_size: Side of the images that the model sees.
        parallel: How to place them.

    Yields:
        Chunks placed on the devices, uint8 images with labels and weights.
    """
    batches = host.eval_batches(
        split,
        batch_size=config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        augment=config.augment,
        image_size=image_size,
        workers=config.workers,
    )
    total = -(-len(split) // config.batch_size)
    yield from host.prefetch(_stack(iter(batches), [1] * total), parallel.put_chunk)
