"""Networks of equal ReLU layers, and how many of their layers SNIP leaves empty."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj

PyTree = Any
# Depth is the first axis of both leaves.
_PRUNABLE: list[tuple[str, bool | sj.LayerRule]] = [
    ("kernels", sj.LayerRule(stacked=True)),
    ("biases", False),
]


def _loss(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Gives the mean squared error."""
    inputs, targets = batch

    def layer(x: jax.Array, params: PyTree) -> tuple[jax.Array, None]:
        return jax.nn.relu(x @ params["kernels"] + params["biases"]), None

    outputs, _ = jax.lax.scan(layer, inputs, params)
    return jnp.mean((outputs - targets) ** 2)


def empty_layers(
    weight_variance: float,
    bias_variance: float,
    depth: int,
    seed: int,
    *,
    width: int,
    examples: int,
    sparsity: float,
) -> int:
    """Draws a network and random data, prunes by SNIP and counts empty layers.

    Args:
        weight_variance: s_w^2; weights are N(0, s_w^2 / width).
        bias_variance: s_b^2; biases are N(0, s_b^2). They are not pruned.
        depth: Layers.
        seed: Of all that is drawn; the same standard normal numbers for any variances.
        width: Units of each layer, and of inputs and targets, which are N(0, 1).
        examples: Inputs, in one batch.
        sparsity: Of all kernels together.

    Returns:
        The layers without any active weight.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, variance: float = 1.0) -> np.ndarray:
        return (variance**0.5 * rng.normal(size=shape)).astype(np.float32)

    params = {
        "kernels": normal(depth, width, width, variance=weight_variance / width),
        "biases": normal(depth, width, variance=bias_variance),
    }
    batch = normal(examples, width), normal(examples, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)  # what is counted here
        masks = sj.snip(_loss, params, [batch], None, sparsity, prunable=_PRUNABLE)
    return int(np.sum(~np.asarray(masks["kernels"]).any(axis=(1, 2))))
