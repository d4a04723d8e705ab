"""The device path: a set that fits in device memory is gathered and augmented there.

    data = device_data(dataset.train, dataset.mean, dataset.std)
    plan = epoch_plan(seed, epoch, len(data.labels), pad)      # once an epoch
    batch = augmented(data, *rows_of_the_plan, pad, mode)      # in a lax.scan

It sees the epochs that the host path sees: the same images before `normalise`, in the
same order.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.input.augment import PadMode, normalise, pad_crop_flip_on_device
from experiments.input.datasets import Split


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
