"""SBP on the edge of chaos: pruning at initialization that leaves no layer empty.

Hayou, Ton, Doucet & Teh, "Robust Pruning at Initialization", arXiv 2002.08797.
Sensitivity-based pruning (SBP) ranks weights by |W dL/dW|, as SNIP does: use
`sparsejax.snip`. What makes it robust is where it starts, and what follows it.

**The edge of chaos.** With weights N(0, s_w^2 / fan_in) and biases N(0, s_b^2), off
the edge gradients grow or vanish exponentially from layer to layer, and so do the
scores: in a deep network whole layers fall below a common threshold. For ReLU the edge
is s_w^2 = 2, s_b = 0, where the mean square of signals and gradients is kept.
[Certain.] It takes biases: without any, scaling all layers of a ReLU network scales all
scores alike, and the ranking is that of the edge.

**The rescaling trick.** Pruning takes weights away and with them variance: the network
leaves the edge. Each layer is multiplied by a number rho_l that puts it back,

    fan_in_l E[(rho_l W_l)^2 M_l] = s_w^2,
    rho_l = sqrt(s_w^2 / (fan_in_l mean(W_l^2 M_l))),

with the mean over all entries of the layer, pruned ones as 0. [That the trick does this
is certain; the sample mean in place of the expectation is our reading.] fan_in is the
number of entries of the kernel for each output: inputs, times the window of a
convolution.

A third form, the Stable ResNet, multiplies each of L residual branches by L^(-1/2); it
belongs to the network (`branch_scale` of the residual networks in the experiments).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import check_range
from sparsejax.masks import apply_masks
from sparsejax.parameters import axis_rules
from sparsejax.patterns import by_neuron
from sparsejax.trees import fit, is_left_dense

PyTree = Any


def rescale_to_edge_of_chaos(
    params: PyTree, masks: PyTree, weight_variance: float = 2.0
) -> PyTree:
    """Multiplies each pruned layer so that it keeps the scale of its signals.

    The rescaling trick, for fully connected and convolutional layers without
    normalization after them. Kernels have their outputs on the last axis, as in Flax.

    Args:
        params: The initial weights.
        masks: The masks found at them. Each mask is one layer.
        weight_variance: s_w^2, which is 2 for ReLU.

    Returns:
        The parameters, pruned, with fan_in times the mean square of each masked leaf
        equal to `weight_variance`; leaves left dense unchanged. A layer without any
        weight that is not 0 stays 0.

    Raises:
        ValueError: If the masks do not fit, or `weight_variance` is not above 0.

    Example:
        >>> kernel = jnp.array([[3.0, 0.1], [0.2, 4.0]])
        >>> mask = jnp.array([[True, False], [False, True]])
        >>> rescale_to_edge_of_chaos(kernel, mask).round(3)
        Array([[1.2, 0. ],
               [0. , 1.6]], dtype=float32)
    """
    check_range(
        "weight_variance",
        weight_variance,
        lambda v: 0 < v < math.inf,
        "above 0 and finite",
    )

    def rescale(rule: Any, mask: Any, leaf: Any) -> Any:
        if is_left_dense(mask):
            return leaf
        fan_in = len(by_neuron(mask, rule))
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        variance = fan_in * jnp.mean(jnp.square(wide))
        factor = jnp.sqrt(weight_variance / jnp.where(variance > 0, variance, 1))
        return (factor * wide).astype(leaf.dtype)

    masks = fit(masks, params)
    sparse = apply_masks(params, masks)
    rules = axis_rules(masks)
    return jax.tree.map(rescale, rules, masks, sparse, is_leaf=is_left_dense)
