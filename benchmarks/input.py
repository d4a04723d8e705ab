"""The input side alone: images a second, read, augmented and batched, nothing trained.

    python -m benchmarks.input --dataset=npz:cifar10.npz --workers 0 1 2

Grain's batches, as the experiments read them, with 0 or more worker processes; a plain
NumPy loader, which does the same in a loop with nothing ahead; and, for sets in memory,
the device path inside a compiled scan, and tf.data where TensorFlow is installed. All
pad, crop and flip. Without a data set, noise in CIFAR-10's shape is read.
"""

import argparse
import functools
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine
from experiments import data as inputs
from experiments.augment import pad_crop_flip
from experiments.data import ArraySplit, Split, epoch_plan, load_dataset

PAD = 4
Batches = Iterator[Any]


def grain_batches(split: Split, batch_size: int, workers: int) -> Batches:
    """Reads as the experiments do.

    Args:
        split: The examples.
        batch_size: Images a batch.
        workers: Worker processes; 0 for a thread.

    Returns:
        Batches, for ever.
    """
    return inputs.train_batches(
        split, seed=0, batch_size=batch_size, augment="cifar", pad=PAD, workers=workers
    )


def numpy_batches(split: Split, batch_size: int) -> Batches:
    """Reads in a plain loop.

    Args:
        split: The examples.
        batch_size: Images a batch.

    Yields:
        Batches, for ever.
    """
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(split))
        for start in range(0, len(split) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            if isinstance(split, ArraySplit):
                images, labels = split.images[rows], split.labels[rows]
            else:
                examples = [split[int(row)] for row in rows]
                images = np.stack([example["image"] for example in examples])
                labels = np.array([example["label"] for example in examples])
            crop = rng.integers(0, 2 * PAD + 1, (batch_size, 2))
            flip = rng.random(batch_size) < 0.5
            yield pad_crop_flip(images, crop, flip, PAD, "reflect"), labels


def tf_data_batches(split: ArraySplit, batch_size: int) -> Batches:
    """Reads arrays with tf.data.

    Args:
        split: The examples, in memory.
        batch_size: Images a batch.

    Returns:
        Batches, for ever.
    """
    tf = importlib.import_module("tensorflow")
    tf.config.set_visible_devices([], "GPU")
    shape = split.images.shape[1:]

    def change(image: Any, label: Any) -> tuple[Any, Any]:
        edge = [[PAD, PAD], [PAD, PAD], [0, 0]]
        cut = tf.image.random_crop(tf.pad(image, edge, "REFLECT"), shape)
        return tf.image.random_flip_left_right(cut), label

    examples = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
    examples = examples.shuffle(len(split)).repeat()
    examples = examples.map(change, num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(batch_size, drop_remainder=True)
    return iter(batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def device_batches(split: ArraySplit, batch_size: int, steps: int) -> Batches:
    """Gathers and augments on the device, `steps` batches in a compiled scan.

    Args:
        split: The examples, in memory.
        batch_size: Images a batch.
        steps: Batches in a scan.

    Yields:
        For each scan, a number that all its pixels went into.
    """
    channels = split.images.shape[-1]
    zero, one = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    data = inputs.device_data(split, zero, one)

    @jax.jit
    def scan(data: inputs.DeviceData, epoch: jax.Array) -> jax.Array:
        plan = epoch_plan(0, epoch, len(split), PAD)

        def add(total: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
            rows = [
                jax.lax.dynamic_slice_in_dim(field, position * batch_size, batch_size)
                for field in plan
            ]
            batch = inputs.augmented(data, rows[0], rows[1], rows[2], PAD, "reflect")
            return total + jnp.sum(batch["image"]), None

        return jax.lax.scan(add, jnp.float32(0), jnp.arange(steps))[0]

    epoch = 0
    while True:
        yield jax.block_until_ready(scan(data, jnp.int32(epoch)))
        epoch += 1


def rate(batches: Batches, images: int, seconds: float) -> tuple[float, float]:
    """Times an iterator.

    Args:
        batches: What to read from; closed afterwards, if it can be.
        images: Images that one item stands for.
        seconds: How long to read, after the first item.

    Returns:
        Seconds until the first item, and images a second over the second half of the
        rest: what was read ahead while the first was on its way does not count.
    """
    start = time.perf_counter()
    next(batches)
    moments = [time.perf_counter()]
    first = moments[0] - start
    while moments[-1] - moments[0] < seconds or len(moments) < 4:
        next(batches)
        moments.append(time.perf_counter())
    half = moments[len(moments) // 2 :]
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    return first, images * (len(half) - 1) / (half[-1] - half[0])


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description="Time reading, augmenting and batching, without training."
    )
    parser.add_argument("--dataset", help="a name that load_dataset knows")
    parser.add_argument("--data_dir", help="where TFDS keeps its sets")
    parser.add_argument("--batch_size", type=int, default=128, help="images a batch")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 1, 2], help="Grain's, to compare"
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each row")
    options = parser.parse_args()
    split: Split
    if options.dataset:
        split = load_dataset(options.dataset, options.data_dir, 0, 0).train
    else:
        pixels = np.random.default_rng(0).integers(
            0, 256, (10_000, 32, 32, 3), np.uint8
        )
        split = ArraySplit(pixels, np.zeros(len(pixels), np.int32))
    shape = split[0]["image"].shape
    print(f"{len(split):,} x {shape}, batch {options.batch_size}; {machine()}")
    print(f"{'':24} {'first batch':>12} {'images/s':>10} {'of NumPy':>9}")
    run(split, options.batch_size, options.workers, options.seconds)


def run(split: Split, batch_size: int, workers: list[int], seconds: float) -> None:
    """Measures each way of reading and prints a row for it.

    Args:
        split: The examples.
        batch_size: Images a batch.
        workers: Grain's worker processes, a row for each.
        seconds: How long each is read.
    """
    ways: dict[str, tuple[Callable[[], Batches], int]] = {
        "NumPy loop": (lambda: numpy_batches(split, batch_size), batch_size)
    }
    for count in workers:
        make = functools.partial(grain_batches, split, batch_size, count)
        ways[f"Grain, {count} workers"] = (make, batch_size)
    if isinstance(split, ArraySplit):
        arrays, steps = split, min(20, len(split) // batch_size)
        ways["device path, in a scan"] = (
            lambda: device_batches(arrays, batch_size, steps),
            batch_size * steps,
        )
        if importlib.util.find_spec("tensorflow"):
            ways["tf.data"] = (lambda: tf_data_batches(arrays, batch_size), batch_size)
    unit = 0.0
    for name, (start, images) in ways.items():
        first, speed = rate(start(), images, seconds)
        unit = unit or speed
        print(f"{name:24} {first:10.2f} s {speed:10,.0f} {speed / unit:9.2f}")
    if not importlib.util.find_spec("tensorflow"):
        print(f"{'tf.data':24} not installed")


if __name__ == "__main__":
    main()
