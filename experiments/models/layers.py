"""What the convolutional networks share: layers with the semantics of PyTorch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling
from jax.typing import DTypeLike

from sparsejax.checks import check_choice

# Normal and not truncated, as in PyTorch. "torch" is what its layers are born with:
# uniform in +-1 / sqrt(fan_in), a variance of 1 / (3 fan_in).
KERNEL_INITS: dict[str, Initializer] = {
    "fan_in": variance_scaling(2.0, "fan_in", "normal"),
    "fan_out": variance_scaling(2.0, "fan_out", "normal"),
    "torch": variance_scaling(1 / 3, "fan_in", "uniform"),
}


def kernel_init(name: str) -> Initializer:
    """Chooses how kernels are drawn.

    Args:
        name: "fan_in" or "fan_out" of He et al., `Delving Deep into Rectifiers
            <https://arxiv.org/abs/1502.01852>`_, 2015, or "torch" for PyTorch's own.

    Returns:
        The initializer.

    Raises:
        ValueError: If the name is none of these.
    """
    check_choice("the initializer of kernels", name, KERNEL_INITS)
    return KERNEL_INITS[name]


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network, whose settings are said once.

    Attributes:
        train: Whether batch norm uses the statistics of the batch.
        conv_init: How kernels are drawn; see `kernel_init`.
        dtype: What is computed in; parameters and statistics are float32.
        axis_name: The mapped axis over which batch statistics are averaged, or None.
    """

    train: bool
    conv_init: str
    dtype: DTypeLike
    axis_name: str | None

    def conv(self, features: int, size: int, name: str, stride: int = 1) -> nn.Conv:
        """Makes a square convolution without bias.

        Args:
            features: Channels out.
            size: Height and width of the kernel, odd.
            name: The layer's name.
            stride: Steps between windows.

        Returns:
            The layer.
        """
        return nn.Conv(
            features,
            (size, size),
            strides=stride,
            padding=size // 2,  # at stride 2, "SAME" would pad on one side only
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init(self.conv_init),
            name=name,
        )

    def batch_norm(self, name: str, zero_scale: bool = False) -> nn.BatchNorm:
        """Makes a batch norm.

        Flax averages variances over the batch size n and PyTorch over n - 1, where they
        are kept for evaluation: a ratio of 1.002 in the last stage of VGG at batch 128.

        Args:
            name: The layer's name.
            zero_scale: Whether scales start at 0 instead of 1.

        Returns:
            The layer.
        """
        return nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,  # PyTorch's 0.1: it weighs the new statistics, Flax the old
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
            scale_init=nn.initializers.zeros if zero_scale else nn.initializers.ones,
            name=name,
        )


def average_pool(x: jax.Array) -> jax.Array:
    """Averages over height and width, and leaves half precision for the classifier.

    Args:
        x: [batch, height, width, features].

    Returns:
        float32[batch, features].
    """
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
