"""VGG with batch norm for CIFAR.

Simonyan and Zisserman, `Very Deep Convolutional Networks for Large-Scale Image
Recognition <https://arxiv.org/abs/1409.1556>`_, 2014, with one classifier layer instead
of three, as in the sparse training literature.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from experiments.models.layers import Layers, average_pool, max_pool


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions, with max pooling between them.

    The first convolution is `stem`, the others are `conv_1`, `conv_2`, ...

    Attributes:
        num_classes: Number of logits.
        stage_sizes: Convolutions of each stage.
        widths: Channels of each stage.
        conv_init: How convolutions are drawn; see `kernel_init`.
        dtype: What is computed in. Parameters, statistics and logits are float32.
        axis_name: The mapped axis over which batch statistics are averaged; None for
            statistics of each replica's own.
        conv_form: "plain", "matmul", or "auto" for convolutions by matrix products
            where these are faster, on CPUs alone.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 4, 4, 4)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    conv_init: str = "fan_out"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    conv_form: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 logits; training uses and updates "batch_stats"."""
        layers = Layers(
            train, self.conv_init, self.dtype, self.axis_name, self.conv_form
        )
        x, number = images, 0
        for stage, (width, convs) in enumerate(zip(self.widths, self.stage_sizes)):
            if stage > 0:
                x = max_pool(x, self.conv_form)
            for _ in range(convs):
                x = layers.conv(width, 3, f"conv_{number}" if number else "stem")(x)
                x = nn.relu(layers.batch_norm(f"bn_{number}")(x))
                number += 1
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return head(average_pool(x))


_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(num_classes: int, depth: int = 19, **options: Any) -> VGG:
    """Makes a VGG of 11, 13, 16 or 19 layers (three of classifiers in the paper)."""
    if depth not in _STAGES:
        raise ValueError(f"depth must be one of {list(_STAGES)}; got {depth!r}.")
    return VGG(num_classes, _STAGES[depth], **options)
