"""A plain perceptron for small data sets."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Hidden layers of ReLUs, each drawn with variance 2 / fan-in.

    Attributes:
        widths: Units of each hidden layer.
        classes: Number of logits.
    """

    widths: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Gives the logits.

        Args:
            inputs: float32[batch, ...]; an example is read as one row.

        Returns:
            float32[batch, classes].
        """
        init = nn.initializers.he_normal()
        x = inputs.reshape(inputs.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=init)(x))
        return nn.Dense(self.classes, kernel_init=init)(x)
