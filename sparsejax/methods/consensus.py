"""Consensus sub-networks: gates of each input that a penalty drives to agree.

Zhi et al., "Learning a Consensus Sub-Network with Polarization Regularization and One
Pass Training", arXiv 2302.10798. Certain from the abstract: a light module gates units
(channels, layers) by the input, with binary gates trained straight through; a
polarising loss makes the gates of all inputs agree while weights and gates are trained
in one pass; in the end the gates go, and a static sub-network of the wanted sparsity
is left. The formulas were not at hand. Read here: with z(x) what a gate is given for
the input x, and g_u the mean of unit u's gate over the batch,

    gate(x) = 1 if z(x) > 0 else 0,     d gate / dz = sigmoid'(z),
    loss + lambda_p mean_u g_u (1 - g_u) + lambda_a |mean_u g_u - target|.

g (1 - g) is 0 where all inputs agree, and 1/4 where half of them do.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import check_fraction

PyTree = Any


def binary_gate(logits: jax.Array) -> jax.Array:
    """Opens gates where the logits are above 0, with the gradient of a sigmoid.

    Args:
        logits: z, floats of any shape.

    Returns:
        1 or 0, of the logits' shape and dtype; NaN gives 0.

    Example:
        >>> binary_gate(jnp.array([-1.0, 0.0, 2.0])).tolist()
        [0.0, 0.0, 1.0]
        >>> jax.grad(binary_gate)(0.0).item()
        0.25
    """
    soft = jax.nn.sigmoid(logits)
    hard = (logits > 0).astype(soft.dtype)
    return hard + jnp.where(jnp.isnan(soft), 0, soft - jax.lax.stop_gradient(soft))


def _open_shares(gates: PyTree) -> jax.Array:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(gates)]
    if not leaves or any(leaf.ndim != 2 for leaf in leaves):
        raise ValueError(
            "gates must hold arrays of shape [batch, units], at least one; got shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    means = [jnp.mean(leaf, axis=0, dtype=jnp.float32) for leaf in leaves]
    return jnp.concatenate(means)


def polarisation_penalty(gates: PyTree) -> jax.Array:
    """Measures how much the gates of different inputs disagree.

    Args:
        gates: Gates by layer, a tree of arrays [batch, units].

    Returns:
        float32 scalar, the mean of g (1 - g) over all units: 0 where every unit is on
        for all inputs or for none, 1/4 at most.

    Raises:
        ValueError: If there are no gates, or one has another number of dimensions.

    Example:
        >>> polarisation_penalty(jnp.array([[1.0, 1.0], [1.0, 0.0]])).item()
        0.125
    """
    shares = _open_shares(gates)
    return jnp.mean(shares * (1 - shares))


def activation_penalty(gates: PyTree, target: float) -> jax.Array:
    """Measures how far the part of open gates is from the one wanted.

    Args:
        gates: Gates by layer, a tree of arrays [batch, units].
        target: The part of the units to keep, in (0, 1).

    Returns:
        float32 scalar, |mean of all gates' shares - target|.

    Raises:
        ValueError: If the target is out of range or the gates are none.

    Example:
        >>> activation_penalty(jnp.array([[1.0, 1.0], [1.0, 0.0]]), 0.5).item()
        0.25
    """
    check_fraction("target", target)
    return jnp.abs(jnp.mean(_open_shares(gates)) - target)


def consensus(gates: PyTree) -> PyTree:
    """Takes the vote of the inputs: the units of the static sub-network.

    Args:
        gates: Gates by layer, a tree of arrays [inputs, units].

    Returns:
        The tree with bool[units] at each leaf: whether more than half of the inputs
        have the unit on.

    Raises:
        ValueError: If there are no gates, or one has another number of dimensions.

    Example:
        >>> consensus(jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).tolist()
        [True, False, False]
    """
    _open_shares(gates)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0, dtype=jnp.float32) > 0.5, gates)
