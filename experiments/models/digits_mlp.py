"""A multilayer perceptron for 8 x 8 images, as deep and as wide as it is told."""

import flax.linen as nn
import jax


class DigitsMLP(nn.Module):
    """Dense layers of ReLU with layer norm, and no way around any: images -> logits.

    Attributes:
        classes: Number of logits.
        widths: Units of each hidden layer.
    """

    classes: int = 10
    widths: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Gives the logits.

        Args:
            images: float32[batch, height, width, channels].
            train: As all networks have it; this one does the same in training.

        Returns:
            float32[batch, classes].
        """
        del train
        x = images.reshape(images.shape[0], -1)
        for number, width in enumerate(self.widths, 1):
            # As in `DigitsCNN`: few active weights pass on too little signal without.
            norm = nn.LayerNorm(name=f"norm_{number}")
            x = nn.relu(norm(nn.Dense(width, name=f"hidden_{number}")(x)))
        return nn.Dense(self.classes, name="output")(x)
