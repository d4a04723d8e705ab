"""The host path: Grain reads, augments and batches ahead of the steps.

One Grain element is one step's batch, a pure function of the seed and the step. So the
start is a slice and needs no saved iterator (whose state depends on the number of
workers), a batch is gathered and augmented at once, and each process computes its own
rows of the global batch whatever the number of processes.
"""

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Literal, TypeVar, get_args

import grain
import jax
import numpy as np
from absl import flags

from experiments.input.augment import (
    PadMode,
    check_pad,
    pad_crop_flip,
    random_resized_crop,
    resize_centre_crop,
)
from experiments.input.datasets import ArraySplit, Split
from experiments.input.plan import host_plan, steps_per_epoch

Batch = dict[str, np.ndarray]
Augment = Literal["cifar", "imagenet", "none"]
Placed = TypeVar("Placed")

# Threads decode images in parallel, since PIL lets go of the interpreter; sets in
# memory are faster with one, which is enough to work ahead of the step.
_MOST_THREADS = 16
_BATCHES_AHEAD = 2


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    augment: Augment = "none",
    pad: int = 4,
    mode: PadMode = "reflect",
    image_size: int = 224,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Gives this process's part of the batch of each step, for ever.

    Args:
        split: The examples.
        seed: Seed of the order and the augmentation.
        batch_size: Examples a step, over all processes.
        start_step: The first step; what follows is what a run from 0 sees from there.
        process_index: This process; the parts in order of process are the global batch.
        process_count: Number of processes, which must divide `batch_size`.
        augment: "cifar" pads, crops and flips; "imagenet" crops at random, resizes and
            flips; "none" takes images as they are, which must then be of one shape.
        pad: Pixels of padding, for "cifar".
        mode: What the padding holds, for "cifar".
        image_size: Side of the result, for "imagenet".
        workers: Processes that read and augment; 0 does it in threads of this one.

    Returns:
        An iterator over {"image": uint8[b, h, w, c], "label": int32[b]}; call its
        `close` when done.

    Raises:
        ValueError: If an argument is none of those above.
    """
    _check(batch_size, process_index, process_count, augment, workers)
    if start_step < 0:
        raise ValueError(f"start_step must not be negative; got {start_step}.")
    steps_per_epoch(len(split), batch_size)  # refuses a batch larger than the set
    if augment == "cifar":
        check_pad(split[0]["image"].shape[:2], pad, mode)
    batch = functools.partial(
        _train_batch,
        split,
        seed=seed,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        augment=augment,
        pad=pad if augment == "cifar" else 0,
        mode=mode,
        image_size=image_size,
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return _iterate(steps.map(batch), split, workers)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    augment: Augment = "none",
    image_size: int = 224,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Gives this process's part of one pass, the same number of batches on each.

    Args:
        split: The examples, taken in order.
        batch_size: Examples a batch, over all processes.
        process_index: This process.
        process_count: Number of processes, which must divide `batch_size`.
        augment: What training does. With "imagenet" images are resized and their middle
            is cut out, else they are taken as they are.
        image_size: Side of the result, for "imagenet".
        workers: Processes that read; 0 does it in threads of this one.

    Returns:
        An iterator over {"image": uint8[b, h, w, c], "label": int32[b],
        "weight": float32[b]}. The weight is 1, or 0 where the last batch is filled up
        with copies of the last example. Call its `close` when done.

    Raises:
        ValueError: If an argument is none of those above.
    """
    _check(batch_size, process_index, process_count, augment, workers)
    batch = functools.partial(
        _eval_batch,
        split,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        augment=augment,
        image_size=image_size,
    )
    batches = grain.MapDataset.range(-(-len(split) // batch_size))
    return _iterate(batches.map(batch), split, min(workers, len(batches)))


def prefetch(
    iterator: Iterator[Batch], put: Callable[[Batch], Placed], depth: int = 2
) -> Generator[Placed, None, None]:
    """Places batches on the devices ahead of the one in use.

    Args:
        iterator: Batches on the host; closed, if it can be, when this one is.
        put: Places a batch, without waiting for it: `jax.device_put`, for example.
        depth: How many are placed ahead.

    Yields:
        Batches in order, as `put` returned them.
    """
    placed: deque[Placed] = deque()
    try:
        for batch in iterator:
            placed.append(put(batch))
            if len(placed) > depth:
                yield placed.popleft()
        while placed:
            yield placed.popleft()
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _check(
    batch_size: int, process_index: int, process_count: int, augment: str, workers: int
) -> None:
    if augment not in get_args(Augment):
        raise ValueError(
            f"augment must be one of {get_args(Augment)}; got {augment!r}."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a multiple of the {process_count} processes; got "
            f"{batch_size}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be from 0 to {process_count - 1}; got {process_index}."
        )
    if workers < 0:
        raise ValueError(f"workers must not be negative; got {workers}.")


def _iterate(
    dataset: grain.MapDataset[Batch], split: Split, workers: int
) -> grain.DatasetIterator[Batch]:
    in_memory = isinstance(split, ArraySplit)
    cores = (os.cpu_count() or 1) // max(1, workers)
    threads = 1 if in_memory else min(_MOST_THREADS, max(1, cores))
    read = grain.ReadOptions(threads, prefetch_buffer_size=max(_BATCHES_AHEAD, threads))
    batches = dataset.to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags when it starts a worker
        options = grain.MultiprocessingOptions(workers, _BATCHES_AHEAD)
        batches = batches.mp_prefetch(options, worker_init_fn=_keep_to_the_cpu)
    return iter(batches)


def _keep_to_the_cpu(worker: int, workers: int) -> None:
    """Leaves the accelerator to the training process; workers compute plans alone."""
    del worker, workers
    jax.config.update("jax_platforms", "cpu")


def _train_batch(
    split: Split,
    step: int,
    *,
    seed: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    augment: Augment,
    pad: int,
    mode: PadMode,
    image_size: int,
) -> Batch:
    epoch, position = divmod(step, steps_per_epoch(len(split), batch_size))
    local = batch_size // process_count
    start = position * batch_size + process_index * local
    plan = host_plan(seed, epoch, len(split), pad)
    order, crop, flip = (field[start : start + local] for field in plan)
    if augment == "imagenet":
        examples = [split[int(row)] for row in order]
        labels = np.array([example["label"] for example in examples], np.int32)
        cuts = [
            random_resized_crop(
                example["image"], image_size, np.random.default_rng((seed, epoch, row))
            )
            for example, row in zip(examples, order)
        ]
        images = np.stack([cut[:, ::-1] if f else cut for cut, f in zip(cuts, flip)])
        return {"image": images, "label": labels}
    images, labels = _gather(split, order)
    if augment == "cifar":
        images = pad_crop_flip(images, crop, flip, pad, mode)
    return {"image": images, "label": labels}


def _eval_batch(
    split: Split,
    index: int,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
    augment: Augment,
    image_size: int,
) -> Batch:
    local = batch_size // process_count
    rows = np.arange(local) + index * batch_size + process_index * local
    weight = (rows < len(split)).astype(np.float32)
    rows = np.minimum(rows, len(split) - 1)
    if augment == "imagenet":
        examples = [split[int(row)] for row in rows]
        images = np.stack(
            [resize_centre_crop(example["image"], image_size) for example in examples]
        )
        labels = np.array([example["label"] for example in examples], np.int32)
    else:
        images, labels = _gather(split, rows)
    return {"image": images, "label": labels, "weight": weight}


def _gather(split: Split, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(split, ArraySplit):
        return split.images[rows], split.labels[rows]
    examples = [split[int(row)] for row in rows]
    labels = np.array([example["label"] for example in examples], np.int32)
    return np.stack([example["image"] for example in examples]), labels
