"""Residual networks: for CIFAR and for ImageNet, thin, wide and pre-activated.

He et al., `Deep Residual Learning for Image Recognition
<https://arxiv.org/abs/1512.03385>`_, 2015; Zagoruyko and Komodakis, `Wide Residual
Networks <https://arxiv.org/abs/1605.07146>`_, 2016.

A network is a first convolution `stem`, blocks `block_<stage>_<number>` counted from 1,
each x + c F(x) with its own F, and a classifier `head`. The factor c = `branch_scale`
is 1, or L^(-1/2) in a Stable ResNet of L blocks (Hayou et al., `Robust Pruning at
Initialization <https://arxiv.org/abs/2002.08797>`_, 2021).
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from experiments.models.layers import Layers, average_pool, kernel_init
from sparsejax.checks import check_choice


class Block(nn.Module):
    """What all blocks have: a shortcut, and a branch F that each kind defines.

    Attributes:
        width: Channels of the block's 3 x 3 convolutions.
        stride: Of the first 3 x 3 convolution and of the shortcut.
        layers: Makes the layers.
        branch_scale: c, the factor of the branch.
        zero_init: Whether the scale of the branch's last batch norm starts at 0, so
            that the block starts as its shortcut.
        dropout_rate: Of the dropout inside a pre-activated branch.
    """

    width: int
    stride: int
    layers: Layers
    branch_scale: float = 1.0
    zero_init: bool = False
    dropout_rate: float = 0.0

    expansion: ClassVar[int] = 1
    pre_activated: ClassVar[bool] = False

    def _activate(self, x: jax.Array, name: str) -> jax.Array:
        """Returns relu(batch_norm(x))."""
        return nn.relu(self.layers.batch_norm(name)(x))

    def _branch(self, x: jax.Array) -> jax.Array:
        """Returns F(x)."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [batch, height / stride, width / stride, width * expansion]."""
        features = self.width * self.expansion
        is_projected = self.stride != 1 or x.shape[-1] != features
        shortcut = x
        if self.pre_activated:
            x = self._activate(x, "bn1")
        if is_projected:
            project = self.layers.conv(features, 1, "shortcut", self.stride)
            shortcut = project(x)
            if not self.pre_activated:
                shortcut = self.layers.batch_norm("shortcut_bn")(shortcut)
        y = shortcut + self.branch_scale * self._branch(x)
        return y if self.pre_activated else nn.relu(y)


class BasicBlock(Block):
    """Two 3 x 3 convolutions, of ResNet-34 and smaller."""

    def _branch(self, x: jax.Array) -> jax.Array:
        """Returns F(x)."""
        x = self.layers.conv(self.width, 3, "conv1", self.stride)(x)
        x = self._activate(x, "bn1")
        x = self.layers.conv(self.width, 3, "conv2")(x)
        return self.layers.batch_norm("bn2", self.zero_init)(x)


class Bottleneck(Block):
    """A 3 x 3 convolution between two of 1 x 1, of ResNet-50 and larger.

    The stride is in the 3 x 3 convolution, as in PyTorch ("v1.5"); the paper has it in
    the first 1 x 1.
    """

    expansion: ClassVar[int] = 4

    def _branch(self, x: jax.Array) -> jax.Array:
        """Returns F(x)."""
        x = self.layers.conv(self.width, 1, "conv1")(x)
        x = self._activate(x, "bn1")
        x = self.layers.conv(self.width, 3, "conv2", self.stride)(x)
        x = self._activate(x, "bn2")
        x = self.layers.conv(self.width * self.expansion, 1, "conv3")(x)
        return self.layers.batch_norm("bn3", self.zero_init)(x)


class PreActivatedBlock(Block):
    """Two 3 x 3 convolutions, each after its batch norm, of wide residual networks."""

    pre_activated: ClassVar[bool] = True

    def _branch(self, x: jax.Array) -> jax.Array:
        """Returns F(x), whose first batch norm the shortcut shares."""
        x = self.layers.conv(self.width, 3, "conv1", self.stride)(x)
        x = self._activate(x, "bn2")
        x = nn.Dropout(self.dropout_rate, deterministic=not self.layers.train)(x)
        return self.layers.conv(self.width, 3, "conv2")(x)


class ResNet(nn.Module):
    """A residual network; `resnet`, `thin_resnet` and `wide_resnet` make known ones.

    Attributes:
        num_classes: Number of logits.
        stage_sizes: Blocks of each stage. Each stage after the first halves height and
            width and doubles the channels.
        block: The kind of block.
        width: `Block.width` in the first stage.
        stem_width: Channels of the first convolution.
        imagenet_stem: Whether the first convolution is 7 x 7 at stride 2, followed by
            max pooling, instead of 3 x 3.
        conv_init: How convolutions are drawn; see `kernel_init`.
        head_init: How the kernel of the classifier is drawn.
        head_bias: Whether the classifier has a bias.
        zero_init: Whether every block starts as its shortcut; see `Block`.
        branch_scale: The factor of every block's branch.
        dropout_rate: Of the dropout inside pre-activated blocks; above 0, training
            needs `rngs={"dropout": key}`.
        dtype: What is computed in. Parameters, statistics and logits are float32.
        axis_name: The mapped axis over which batch statistics are averaged; None for
            statistics of each replica's own.
        conv_form: "plain", "matmul", or "auto" for convolutions by matrix products
            where these are faster, on CPUs alone.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: type[Block]
    width: int = 64
    stem_width: int = 64
    imagenet_stem: bool = False
    conv_init: str = "fan_in"
    head_init: str = "torch"
    head_bias: bool = True
    zero_init: bool = False
    branch_scale: float = 1.0
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    conv_form: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 logits; training uses and updates "batch_stats"."""
        layers = Layers(
            train, self.conv_init, self.dtype, self.axis_name, self.conv_form
        )
        pre_activated = self.block.pre_activated
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = layers.conv(self.stem_width, size, "stem", stride)(images)
        if not pre_activated:
            x = nn.relu(layers.batch_norm("bn")(x))
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stage_sizes):
            for number in range(blocks):
                x = self.block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and number == 0 else 1,
                    layers=layers,
                    branch_scale=self.branch_scale,
                    zero_init=self.zero_init,
                    dropout_rate=self.dropout_rate,
                    name=f"block_{stage + 1}_{number + 1}",
                )(x)
        if pre_activated:
            x = nn.relu(layers.batch_norm("bn")(x))
        x = average_pool(x)
        bound = 1 / math.sqrt(x.shape[-1])

        def bias_init(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        head = nn.Dense(
            self.num_classes,
            use_bias=self.head_bias,
            kernel_init=kernel_init(self.head_init),
            bias_init=bias_init,
            name="head",
        )
        return head(x)


_STAGES: dict[int, tuple[type[Block], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def resnet(
    num_classes: int, depth: int = 50, form: str = "imagenet", **options: Any
) -> ResNet:
    """Makes a ResNet of four stages, as in GraNet's experiments.

    "cifar" has a 3 x 3 first convolution without pooling, PyTorch's initialization and
    a classifier without bias.
    """
    if depth not in _STAGES:
        raise ValueError(f"depth must be one of {list(_STAGES)}; got {depth!r}.")
    check_choice("form", form, ("imagenet", "cifar"))
    own: dict[str, Any] = {"imagenet_stem": True}
    if form == "cifar":
        own = {"conv_init": "torch", "head_bias": False}
    block, stage_sizes = _STAGES[depth]
    return ResNet(num_classes, stage_sizes, block, **{**own, **options})


def thin_resnet(num_classes: int, depth: int = 20, **options: Any) -> ResNet:
    """Makes the ResNet of He et al. for CIFAR, of 6n + 2 layers in three stages.

    Where the shape changes, the shortcut is a 1 x 1 convolution with batch norm; in the
    paper it has no parameters.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2, such as 20 or 32; got {depth!r}.")
    own: dict[str, Any] = {"width": 16, "stem_width": 16, "head_init": "fan_in"}
    return ResNet(num_classes, (blocks,) * 3, BasicBlock, **{**own, **options})


def wide_resnet(
    num_classes: int, depth: int = 22, widen: int = 2, **options: Any
) -> ResNet:
    """Makes a wide residual network of 6n + 4 layers; WRN-22-2 is RigL's for CIFAR-10.

    RigL's code differs from Zagoruyko and Komodakis, who are followed here: it pads on
    one side at stride 2, draws kernels by Glorot and Bengio, and drops out at 0.3.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 4, such as 22 or 28; got {depth!r}.")
    if options.get("zero_init"):
        raise ValueError(
            "zero_init must be False: the branch of a pre-activated block ends in a "
            "convolution, not a batch norm; got True."
        )
    own: dict[str, Any] = {
        "width": 16 * widen,
        "stem_width": 16,
        "conv_init": "fan_out",
    }
    return ResNet(num_classes, (blocks,) * 3, PreActivatedBlock, **{**own, **options})
