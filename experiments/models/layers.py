"""What the convolutional networks share: layers with the semantics of PyTorch."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

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
# How is convolved and pooled: as XLA does, or by matrix products and reshapes.
FORMS = ("auto", "plain", "matmul")


def kernel_init(name: str) -> Initializer:
    """Returns how kernels are drawn: as He et al. (arXiv 1502.01852), or PyTorch."""
    check_choice("the initializer of kernels", name, KERNEL_INITS)
    return KERNEL_INITS[name]


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
    """Convolves NHWC by HWIO as `jax.lax.conv_general_dilated`, by one matrix product.

    Each window is laid out as one row, by slicing the image once for each entry of the
    kernel: y[b, i, j, :] = concat_uv(x[b, s i + u, s j + v, :]) @ reshape(kernel).
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
    rows = shifted[0] if len(shifted) == 1 else jnp.concatenate(shifted, axis=-1)
    return jnp.matmul(rows, kernel.reshape(-1, features), precision=precision)


def _is_by_matmul(images: jax.Array, kernel: jax.Array) -> bool:
    """Whether a matrix product is the faster form on CPUs.

    It is for 1 x 1 kernels, and many times so where XLA's own code for the gradient is
    not used: for images smaller than the kernel, as in the last stage of VGG.
    """
    window = kernel.shape[:2]
    return window == (1, 1) or min(images.shape[1:3]) < max(window)


def convolve(
    images: jax.Array, kernel: jax.Array, *args: Any, form: str = "auto", **kwargs: Any
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated`, in the form that is fast here."""
    check_choice("form", form, FORMS)
    by_matmul = form == "matmul"
    if form == "auto" and jax.default_backend() == "cpu":
        by_matmul = _is_by_matmul(images, kernel)
    apply = matmul_conv if by_matmul else jax.lax.conv_general_dilated
    return apply(images, kernel, *args, **kwargs)


def max_pool(images: jax.Array, form: str = "auto") -> jax.Array:
    """Halves height and width by the largest of each 2 x 2, as `flax.linen.max_pool`.

    On CPUs the gradient of reshape and max is faster. Where entries are equal it is
    shared among them, which a ReLU before it hides: its gradient at 0 is 0.
    """
    batch, height, width, features = images.shape
    is_cpu = jax.default_backend() == "cpu"
    if form == "plain" or (form == "auto" and not is_cpu) or height % 2 or width % 2:
        return nn.max_pool(images, (2, 2), strides=(2, 2))
    parts = images.reshape(batch, height // 2, 2, width // 2, 2, features)
    return jnp.max(parts, axis=(2, 4))


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes the layers of one network, whose settings are said once.

    Attributes:
        train: Whether batch norm uses the statistics of the batch.
        conv_init: How kernels are drawn; see `kernel_init`.
        dtype: What is computed in; parameters and statistics are float32.
        axis_name: The mapped axis over which batch statistics are averaged, or None.
        conv_form: One of `FORMS`; "auto" is what is fast here.
    """

    train: bool
    conv_init: str
    dtype: DTypeLike
    axis_name: str | None
    conv_form: str = "auto"

    def conv(self, features: int, size: int, name: str, stride: int = 1) -> nn.Conv:
        """Makes a square convolution of odd size without bias."""
        return nn.Conv(
            features,
            (size, size),
            strides=stride,
            padding=size // 2,  # at stride 2, "SAME" would pad on one side only
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init(self.conv_init),
            conv_general_dilated=functools.partial(convolve, form=self.conv_form),
            name=name,
        )

    def batch_norm(self, name: str, zero_scale: bool = False) -> nn.BatchNorm:
        """Makes a batch norm, whose scales start at 1 or 0.

        Flax averages variances over the batch size n and PyTorch over n - 1, where they
        are kept for evaluation: a ratio of 1.002 in the last stage of VGG at batch 128.
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
    """Averages over height and width in float32, for the classifier."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
