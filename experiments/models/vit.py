"""Vision transformers.

Dosovitskiy et al., `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_,
2020, in the plain form of Beyer et al., `Better plain ViT baselines for ImageNet-1k
<https://arxiv.org/abs/2205.01580>`_, 2022: fixed positions and average pooling. So the
network has no position or class embeddings, and what has two or more dimensions, and is
pruned by default, is a kernel.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sparsejax.checks import check_choice

# PyTorch libraries truncate this normal at 100 standard deviations, that is, not.
_KERNEL_INIT = nn.initializers.normal(0.02)


def sine_positions(height: int, width: int, features: int) -> np.ndarray:
    """Encodes each place (i, j) of a grid by sines and cosines, row by row.

    With frequencies f_k = 10000^(-k / (K - 1)) for k = 0..K-1 and K = features / 4, a
    place is [sin(j f), cos(j f), sin(i f), cos(i f)].
    """
    if features % 4 or features < 8:
        raise ValueError(
            f"width must be a multiple of 4 and at least 8; got {features}."
        )
    frequencies = 10000.0 ** -np.linspace(0, 1, features // 4)
    rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * frequencies
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


class Attention(nn.Module):
    """Self-attention whose projections are plain matrices."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what each token gathers from all, [batch, tokens, width]."""
        dense = partial(
            nn.Dense, x.shape[-1], dtype=self.dtype, kernel_init=_KERNEL_INIT
        )

        # [width, width] rather than Flax's [width, heads, features of a head]: ERK
        # reads the sides of a layer off its shape.
        def project(name: str) -> jax.Array:
            return dense(name=name)(x).reshape(*x.shape[:2], self.heads, -1)

        y = jax.nn.dot_product_attention(*map(project, ("query", "key", "value")))
        return dense(name="out")(y.reshape(x.shape))


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each on normed input and added to it."""

    heads: int
    mlp_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [batch, tokens, width]."""
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_KERNEL_INIT)
        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attention")(y)
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(dense(self.mlp_width, name="mlp1")(y), approximate=False)
        return x + dense(x.shape[-1], name="mlp2")(y)


class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-S/16.

    Attributes:
        num_classes: Number of logits.
        depth: Number of blocks.
        width: Features of a token, a multiple of `heads` and of 4.
        heads: Attention heads.
        mlp_ratio: Hidden units of a block's perceptron over `width`.
        patch: Height and width of a patch.
        dtype: What is computed in. Parameters and logits are float32.
        axis_name: Unused: there are no batch statistics. Every model takes it.
        conv_form: Unused; every model takes it.
    """

    num_classes: int
    depth: int = 12
    width: int = 384
    heads: int = 6
    mlp_ratio: int = 4
    patch: int = 16
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    conv_form: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 logits; training and evaluation are the same."""
        del train
        if any(side % self.patch for side in images.shape[1:3]):
            raise ValueError(
                f"images must have sides that are multiples of patch={self.patch}; got "
                f"{images.shape[1]} x {images.shape[2]}."
            )
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads={self.heads}; got {self.width}."
            )
        stem = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=self.patch,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=_KERNEL_INIT,
            name="stem",
        )
        x = stem(images)
        batch, rows, columns, _ = x.shape
        positions = jnp.asarray(sine_positions(rows, columns, self.width), self.dtype)
        x = x.reshape(batch, rows * columns, self.width) + positions
        for number in range(self.depth):
            x = EncoderBlock(
                self.heads,
                self.width * self.mlp_ratio,
                self.dtype,
                name=f"block_{number + 1}",
            )(x)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        head = nn.Dense(self.num_classes, kernel_init=_KERNEL_INIT, name="head")
        return head(x)


_SIZES: dict[str, dict[str, int]] = {
    "ti": {"width": 192, "heads": 3},
    "s": {"width": 384, "heads": 6},
    "b": {"width": 768, "heads": 12},
}


def vit(num_classes: int, size: str = "s", **options: Any) -> ViT:
    """Makes a ViT-Ti, -S or -B of 12 blocks and 16 x 16 patches; see `ViT`."""
    check_choice("size", size, _SIZES)
    sized: dict[str, Any] = {**_SIZES[size], **options}
    return ViT(num_classes, **sized)
