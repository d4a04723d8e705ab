"""Augmentation of uint8 images: on the host with NumPy and PIL, on the device with JAX.

`pad_crop_flip` and `pad_crop_flip_on_device` give the same images bit for bit. Images
stay uint8 until `normalize`, which runs on the device: a quarter of the bytes to send.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

# What the padding holds: mirrored pixels (CIFAR-10 in the papers) or zeros (CIFAR-100).
# "none" leaves images as they are: no padding, crop or flip.
PadMode = Literal["reflect", "zero", "none"]

# The customary random resized crop: share of the area, and width over height.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10

# An evaluation image's shorter side over the side of the square cut from it.
_RESIZE = 256 / 224


def check_pad(shape: Sequence[int], pad: int, mode: str) -> None:
    """Raises ValueError for an unknown mode, or images too small for the padding."""
    if mode not in get_args(PadMode):
        raise ValueError(f"mode must be one of {get_args(PadMode)}; got {mode!r}.")
    most = min(shape) - 1
    if mode != "none" and not 0 <= pad <= most:
        raise ValueError(
            f"pad must be from 0 to {most} for images of {shape[0]} x {shape[1]} "
            f"pixels; got {pad}."
        )


def pad_crop_flip(
    images: np.ndarray, crop: np.ndarray, flip: np.ndarray, pad: int, mode: PadMode
) -> np.ndarray:
    """Shifts images by up to `pad` pixels and mirrors some, on the host.

    `crop` is int[b, 2] in [0, 2 * pad], where to cut the padded image: row, column.
    """
    check_pad(images.shape[1:3], pad, mode)
    if mode == "none":
        return images
    height, width = images.shape[1:3]
    edge = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    numpy_mode: Any = "reflect" if mode == "reflect" else "constant"
    padded = np.pad(images, edge, mode=numpy_mode)
    out = np.empty_like(images)
    # Twice as fast as one gather over the batch.
    for i, ((top, left), mirror) in enumerate(zip(crop, flip)):
        cut = padded[i, top : top + height, left : left + width]
        out[i] = cut[:, ::-1] if mirror else cut
    return out


def pad_crop_flip_on_device(
    images: jax.Array, crop: jax.Array, flip: jax.Array, pad: int, mode: PadMode
) -> jax.Array:
    """Does what `pad_crop_flip` does, inside a compiled function."""
    check_pad(images.shape[1:3], pad, mode)
    if mode == "none":
        return images
    height, width = images.shape[1:3]
    across = jnp.arange(width)
    across = jnp.where(flip[:, None], across[::-1][None], across[None])
    rows = crop[:, :1] + jnp.arange(height)[None] - pad
    columns = crop[:, 1:] + across - pad
    # One gather of pixels by where they come from: where XLA fuses padding with the cut
    # that follows, as it does on CPUs, it costs several times as much.
    i = _mirrored(rows, height)[:, :, None]
    j = _mirrored(columns, width)[:, None, :]
    cut = images[jnp.arange(len(images))[:, None, None], i, j]
    if mode == "reflect":
        return cut
    inside = (rows >= 0) & (rows < height)
    within = (columns >= 0) & (columns < width)
    kept = inside[:, :, None, None] & within[:, None, :, None]
    return jnp.where(kept, cut, jnp.uint8(0))


def _mirrored(index: jax.Array, size: int) -> jax.Array:
    """Brings indices up to `size - 1` outside [0, size) back inside, as in a mirror."""
    last = size - 1
    return last - jnp.abs(last - jnp.abs(index))


def normalize(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Scales uint8 images to zero mean and unit variance a channel, on the device."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    shape = (1,) * (images.ndim - 1) + mean.shape  # ranks alike: none is promoted
    scaled = images.astype(jnp.float32) / 255
    return (scaled - mean.reshape(shape)) / std.reshape(shape)


def random_resized_crop(
    image: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Cuts a random part of an image, of random area and shape, and resizes it."""
    height, width = image.shape[:2]
    # All numbers are drawn at once, so that a try costs no call.
    for area, shape, top, left in rng.random((_TRIES, 4)):
        target = height * width * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        low, high = (math.log(ratio) for ratio in _RATIO)
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            row, column = int(top * (height - h + 1)), int(left * (width - w + 1))
            return _resize(image[row : row + h, column : column + w], size, size)
    # An image too long or too tall for any try: the largest part of allowed shape.
    w = min(width, round(height * _RATIO[1]))
    h = min(height, round(width / _RATIO[0]))
    return _resize(_center(image, h, w), size, size)


def resize_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to 256 / 224 of `size` and cuts the middle."""
    height, width = image.shape[:2]
    scale = round(size * _RESIZE) / min(height, width)
    resized = _resize(image, round(height * scale), round(width * scale))
    return _center(resized, size, size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _center(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
