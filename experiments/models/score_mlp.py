"""AutoS's scoring network: from two features of a weight to how long it is worth."""

import flax.linen as nn
import jax


class ScoreMLP(nn.Module):
    """A perceptron of two hidden layers; their number and width are our choice.

    The paper's own network is Linear(2, 64)-BatchNorm-ReLU-Linear(64, 3072)-BatchNorm-
    ReLU, whose output is taken for an image of 32 x 32 x 3 and goes through ResNet-18.
    This one has no batch normalisation: features arrive normalised, and a weight's
    score does not depend on which others are scored with it.

    Attributes:
        width: Units of a hidden layer.
    """

    width: int = 64

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Scores weights.

        Args:
            features: float32[..., 2]; see `sparsejax.auto_s_features`.

        Returns:
            float32[...].
        """
        x = nn.relu(nn.Dense(self.width)(features))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[..., 0]
