"""Perceptrons: a plain one, and one for the digits as deep as it is told."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Hidden layers of ReLUs, each drawn with variance 2 / fan-in."""

    widths: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the logits of [batch, ...], an example being read as one row."""
        init = nn.initializers.he_normal()
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=init)(x))
        return nn.Dense(self.classes, kernel_init=init)(x)


class DigitsMLP(nn.Module):
    """Dense layers of ReLU with layer norm, and no way around any: images -> logits."""

    classes: int = 10
    widths: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits; training and evaluation are the same."""
        del train
        x = images.reshape(images.shape[0], -1)
        for number, width in enumerate(self.widths, 1):
            # As in `DigitsCNN`: few active weights pass on too little signal without.
            norm = nn.LayerNorm(name=f"norm_{number}")
            x = nn.relu(norm(nn.Dense(width, name=f"hidden_{number}")(x)))
        return nn.Dense(self.classes, name="output")(x)
