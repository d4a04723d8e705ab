"""A small convolutional network for 8 x 8 images, with 27,408 prunable weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.layers import matmul_conv

# Those with units that can be left out.
LAYERS = ("conv1", "conv2", "conv3", "hidden")


class DigitsCNN(nn.Module):
    """Three convolutions and two dense layers, of `widths` units: 8 x 8 x 1 -> logits.

    By matrix products: under `jax.vmap` over networks XLA makes grouped convolutions,
    which are several times slower on CPUs.
    """

    classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64, 64)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits; training and evaluation are the same."""
        del train
        conv = partial(nn.Conv, conv_general_dilated=matmul_conv)
        first, second, third, fourth = self.widths
        x = self._units(conv(first, (3, 3), name="conv1"), images, normalized=False)
        x = self._units(conv(second, (2, 2), strides=2, name="conv2"), x)
        x = self._units(conv(third, (2, 2), strides=2, name="conv3"), x)
        x = self._units(nn.Dense(fourth, name="hidden"), x)
        return nn.Dense(self.classes, name="output")(x)

    def gates(self, layer: str, inputs: jax.Array, units: int) -> jax.Array | None:
        """Returns 1 or 0 for each unit, [units] or [batch, units]; None for all on."""
        del layer, inputs, units
        return None

    def _units(
        self, layer: nn.Conv | nn.Dense, inputs: jax.Array, normalized: bool = True
    ) -> jax.Array:
        gates = self.gates(str(layer.name), inputs, layer.features)
        flat = isinstance(layer, nn.Dense)
        x = layer(inputs.reshape(len(inputs), -1) if flat else inputs)
        mask = None
        if gates is not None:
            gates = gates.reshape(-1, *[1] * (x.ndim - 2), layer.features)
            # As if units that are off were not there; if all are, as if none was.
            mask = (gates > 0) | ~jnp.any(gates > 0, -1, keepdims=True)
        if normalized:
            # One mean and variance an image. Without them a network of a few hundred
            # active weights passes on too little signal to start learning.
            x = nn.GroupNorm(num_groups=1)(x, mask=mask)
        x = nn.relu(x)
        return x if gates is None else x * gates
