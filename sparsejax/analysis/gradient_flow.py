"""Gradient flow: how much of the gradient reaches the weights that are active.

With g = dL/dw and the mask m of a layer, its gradient flow is

    |m * g|^2 = sum of g_i^2 over the active weights i,

the first-order decrease of the loss for a step of gradient descent, by its learning
rate. It is what Evci et al., "Gradient Flow in Sparse Neural Networks and How Lottery
Tickets Win", arXiv 2010.03533, watch in sparse training: it is poor at the start from
random masks, and updates of the topology raise it. Tessera et al., "Keep the Gradients
Flowing", arXiv 2102.01670, take the norm |m * g| of each layer, not squared, and its
mean over layers.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import SCOPES, check_choice
from sparsejax.trees import fit, map_masked

PyTree = Any


def gradient_flow(grads: PyTree, masks: PyTree, scope: str = "global") -> Any:
    """Computes the squared norm of the gradient over the active weights.

    Leaves left dense, such as biases, are not counted. What the gradient is of is the
    caller's: a batch's loss, or a whole set's; with weight decay in it or without.

    Args:
        grads: Gradients; those of inactive weights may be there and do not count.
        masks: A mask tree that fits them.
        scope: "global" for the sum over layers, "layer" for each leaf's own.

    Returns:
        A float32 scalar, or a tree of them like `masks`; NaN or infinite where an
        active weight's gradient is.

    Raises:
        ValueError: If the scope is unknown, or the masks do not fit.

    Example:
        >>> grads, masks = jnp.array([3.0, 4.0, 9.0]), jnp.array([True, True, False])
        >>> gradient_flow(grads, masks).item()
        25.0
    """
    check_choice("scope", scope, SCOPES)
    masks = fit(masks, grads, "grads")

    def of_layer(mask: jax.Array, grad: jax.Array) -> jax.Array:
        # Squares of small gradients vanish in float16, and sums stall in bfloat16.
        active = jnp.where(mask, grad.astype(jnp.float32), 0)
        return jnp.sum(jnp.square(active))

    flows = map_masked(of_layer, masks, grads)
    return flows if scope == "layer" else sum(jax.tree.leaves(flows), jnp.float32(0))
