"""The device path: a set that fits in device memory is gathered and augmented there.

    data = device_data(dataset.train, dataset.mean, dataset.std)
    plan = epoch_plan(seed, epoch, len(data.labels), pad)      # once an epoch
    batch = batch_of(data, plan, position, batch_size, pad, mode)   # in a lax.scan

It sees the epochs that the host path sees: the same images before `normalise`, in the
same order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.input.augment import PadMode, normalise, pad_crop_flip_on_device
from experiments.input.datasets import Split
from experiments.input.plan import EpochPlan, epoch_plan, steps_per_epoch


class DeviceData(NamedTuple):
    """A split on the devices.

    Attributes:
        images: uint8[n, h, w, c].
        labels: int32[n].
        mean: float32[c] of pixels in [0, 1].
        std: float32[c].
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


def device_data(
    split: Split, mean: np.ndarray, std: np.ndarray, sharding: Any = None
) -> DeviceData:
    """Puts a split that is in memory on the devices.

    Args:
        split: The split, an `ArraySplit`.
        mean: The data set's mean.
        std: The data set's standard deviation.
        sharding: Where to: a device or a sharding; None for the default device.

    Returns:
        The data.

    Raises:
        ValueError: If the split is not in memory.
    """
    images, labels = getattr(split, "images", None), getattr(split, "labels", None)
    if images is None:
        raise ValueError(
            "split must be one that is in memory, such as CIFAR's; got "
            f"{type(split).__name__}: use the host path."
        )
    return DeviceData(*jax.device_put((images, labels, mean, std), sharding))


def take(data: DeviceData, rows: jax.Array) -> dict[str, jax.Array]:
    """Gathers examples as they are, as evaluation does.

    Args:
        data: The split.
        rows: int32[b], which examples.

    Returns:
        The normalised float32 "image" and the int32 "label" of each.
    """
    images = normalise(data.images[rows], data.mean, data.std)
    return {"image": images, "label": data.labels[rows]}


def augmented(
    data: DeviceData,
    order: jax.Array,
    crop: jax.Array,
    flip: jax.Array,
    pad: int,
    mode: PadMode,
) -> dict[str, jax.Array]:
    """Gathers and augments examples: rows of a plan's fields.

    Args:
        data: The split.
        order: int32[b], which examples.
        crop: int32[b, 2], where to cut each.
        flip: bool[b], whether to mirror each.
        pad: Pixels of padding on each side.
        mode: What the padding holds; "none" takes images as they are.

    Returns:
        The normalised float32 "image" and the int32 "label" of each.
    """
    images = pad_crop_flip_on_device(data.images[order], crop, flip, pad, mode)
    images = normalise(images, data.mean, data.std)
    return {"image": images, "label": data.labels[order]}


def batch_of(
    data: DeviceData,
    plan: EpochPlan,
    position: int | jax.Array,
    batch_size: int,
    pad: int,
    mode: PadMode,
    part: int | jax.Array = 0,
    parts: int = 1,
) -> dict[str, jax.Array]:
    """Gives a batch of an epoch whose plan is at hand.

    Args:
        data: The split.
        plan: The epoch's plan.
        position: Which batch of the epoch, which may be traced.
        batch_size: Examples a step, over all devices.
        pad: Pixels of padding on each side, as the plan was drawn for.
        mode: What the padding holds; "none" takes images as they are.
        part: Which of `parts` equal parts of the batch, as a device's
            `jax.lax.axis_index`.
        parts: The number of parts, which must divide `batch_size`.

    Returns:
        The normalised float32 "image" and the int32 "label" of each example.

    Raises:
        ValueError: If the batch does not divide into the parts.
    """
    if batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of parts, {parts}; got {batch_size}."
        )
    size = batch_size // parts
    start = position * batch_size + part * size
    rows = [jax.lax.dynamic_slice_in_dim(field, start, size) for field in plan]
    return augmented(data, rows[0], rows[1], rows[2], pad, mode)


def batch_at(
    data: DeviceData,
    seed: int | jax.Array,
    step: int | jax.Array,
    batch_size: int,
    pad: int,
    mode: PadMode,
    part: int | jax.Array = 0,
    parts: int = 1,
) -> dict[str, jax.Array]:
    """Gives the batch of any step, at the price of sorting the epoch's order again.

    Args:
        data: The split.
        seed: Seed of the order and the augmentation, which may be traced.
        step: The step, which may be traced.
        batch_size: Examples a step, over all devices.
        pad: Pixels of padding on each side.
        mode: What the padding holds; "none" takes images as they are.
        part: Which of `parts` equal parts of the batch.
        parts: The number of parts, which must divide `batch_size`.

    Returns:
        The normalised float32 "image" and the int32 "label" of each example.

    Raises:
        ValueError: If the batch does not divide into the parts or exceeds the set.
    """
    step = jnp.asarray(step, jnp.int32)
    epoch, position = jnp.divmod(step, steps_per_epoch(len(data.labels), batch_size))
    plan = epoch_plan(seed, epoch, len(data.labels), pad)
    return batch_of(data, plan, position, batch_size, pad, mode, part, parts)
