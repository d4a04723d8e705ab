"""A small convolutional network for 8 x 8 images, with 27,408 prunable weights."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Those with units that can be left out.
LAYERS = ("conv1", "conv2", "conv3", "hidden")


def matmul_conv(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolves by one matrix product, for networks that run under `jax.vmap`.

    XLA turns a convolution whose kernel is batched by `jax.vmap` into a grouped one,
    which is several times slower on CPUs than a batched matrix product. So each window
    is laid out as one row, by slicing the image once for each entry of the kernel:

        y[b, i, j, :] = concat_uv(x[b, s i + u, s j + v, :]) @ reshape(kernel)

    Args:
        images: [batch, height, width, in].
        kernel: [height, width, in, out].
        window_strides: Steps between windows, one an axis.
        padding: "SAME", "VALID" or (before, after) pairs, one an axis.
        lhs_dilation: Must be all 1.
        rhs_dilation: Must be all 1.
        dimension_numbers: Ignored; `flax.linen.Conv` always works on NHWC and HWIO.
        feature_group_count: Must be 1.
        precision: As in `jax.lax.conv_general_dilated`.

    Returns:
        What `jax.lax.conv_general_dilated` gives, [batch, height, width, out].

    Raises:
        ValueError: If the convolution is dilated or grouped.
    """
    if math.prod((*lhs_dilation, *rhs_dilation, feature_group_count)) != 1:
        raise ValueError(
            "matmul_conv needs dilations and feature groups of 1; got "
            f"{lhs_dilation=}, {rhs_dilation=} and {feature_group_count=}."
        )
    *window, _, features = kernel.shape
    if isinstance(padding, str):
        size = images.shape[1:3]
        padding = jax.lax.padtype_to_pads(size, window, window_strides, padding)
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    # The last window starts where its end still fits.
    stops = [size - extent + 1 for size, extent in zip(x.shape[1:3], window)]
    down, across = window_strides
    shifted = [
        x[:, u : u + stops[0] : down, v : v + stops[1] : across]
        for u in range(window[0])
        for v in range(window[1])
    ]
    rows = jnp.concatenate(shifted, axis=-1)
    return jnp.matmul(rows, kernel.reshape(-1, features), precision=precision)


class DigitsCNN(nn.Module):
    """Three convolutions and two dense layers: 8 x 8 x 1 -> 10 logits.

    Attributes:
        classes: Number of logits.
        widths: Units of the layers of `LAYERS`.
    """

    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64, 64)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Gives the logits.

        Args:
            images: float32[batch, 8, 8, 1].
            train: As all networks have it; this one does the same in training.

        Returns:
            float32[batch, classes].
        """
        del train
        conv = partial(nn.Conv, conv_general_dilated=matmul_conv)
        first, second, third, fourth = self.widths
        x = self._units(conv(first, (3, 3), name="conv1"), images, normalised=False)
        x = self._units(conv(second, (2, 2), strides=2, name="conv2"), x)
        x = self._units(conv(third, (2, 2), strides=2, name="conv3"), x)
        x = self._units(nn.Dense(fourth, name="hidden"), x)
        return nn.Dense(self.classes, name="output")(x)

    def gates(self, layer: str, inputs: jax.Array, units: int) -> jax.Array | None:
        """Says which units of a layer are on: all, but a subclass may say otherwise.

        Args:
            layer: Its name, one of `LAYERS`.
            inputs: What it reads, [batch, ..., features].
            units: How many it has.

        Returns:
            1 or 0, [units] or [batch, units]; None for all.
        """
        del layer, inputs, units
        return None

    def _units(
        self, layer: nn.Conv | nn.Dense, inputs: jax.Array, normalised: bool = True
    ) -> jax.Array:
        gates = self.gates(str(layer.name), inputs, layer.features)
        flat = isinstance(layer, nn.Dense)
        x = layer(inputs.reshape(len(inputs), -1) if flat else inputs)
        mask = None
        if gates is not None:
            gates = gates.reshape(-1, *[1] * (x.ndim - 2), layer.features)
            # As if units that are off were not there; if all are, as if none was.
            mask = (gates > 0) | ~jnp.any(gates > 0, -1, keepdims=True)
        if normalised:
            # One mean and variance an image. Without them a network of a few hundred
            # active weights passes on too little signal to start learning.
            x = nn.GroupNorm(num_groups=1)(x, mask=mask)
        x = nn.relu(x)
        return x if gates is None else x * gates
