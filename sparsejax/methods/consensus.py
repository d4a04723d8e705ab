"""Consensus sub-networks: gates of each input that a penalty drives to agree.

Zhi et al., "Learning a Consensus Sub-Network with Polarization Regularization and One
Pass Training", arXiv 2302.10798. Only its abstract and summaries of it were found.
Certain from these: a light module with binary gates is trained straight through, over
layers or channels of ResNets; a polarizing loss makes the gates of all inputs agree, on
a sub-network of a sparsity that the user sets; weights and gates are trained together
in one pass; in the end the gates go, and the sub-network is static. All formulas are
our reading, and so is the sum of penalties. With z(x) what a gate is given for the
input x, and g_u the mean of unit u's gate over the batch,

    gate(x) = 1 if z(x) > 0 else 0,     d gate / dz = sigmoid'(z),
    loss + lambda_p mean_u g_u (1 - g_u) + lambda_a |mean_u g_u - target|.

g (1 - g) is 0 where all inputs agree, and 1/4 where half of them do. Where all have a
unit on, lambda_p holds it on with the slope that lambda_a has to shut it: so lambda_p
should rise from 0, or be smaller than lambda_a.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import check_fraction
from sparsejax.trees import leaves_with_paths, path_string

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


def polarization_penalty(gates: PyTree) -> jax.Array:
    """Computes how much the gates of different inputs disagree.

    Args:
        gates: Gates by layer, a tree of arrays [batch, units].

    Returns:
        float32 scalar, the mean of g (1 - g) over all units: 0 where every unit is on
        for all inputs or for none, 1/4 at most.

    Raises:
        ValueError: If there are no gates, or one has another number of dimensions.

    Example:
        >>> polarization_penalty(jnp.array([[1.0, 1.0], [1.0, 0.0]])).item()
        0.125
    """
    shares = _open_shares(gates)
    return jnp.mean(shares * (1 - shares))


def activation_penalty(gates: PyTree, target: float) -> jax.Array:
    """Computes how far the part of open gates is from the one wanted.

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


def remove_units(
    params: PyTree,
    units: Mapping[str, jax.Array],
    axes: Mapping[str, Mapping[str, int]],
) -> PyTree:
    """Cuts the units that are off out of a network's weights: they get smaller.

    The smaller network gives what the large one gives with the units' outputs times 0,
    if no other layer reads them, normalization included.

    Args:
        params: Weights.
        units: Which units of each layer are on, bool[units] by the layer's name, as
            `consensus` gives them.
        axes: Where they lie: for each layer the paths of leaves, and the axis of the
            units in each, negative to count from the end. An axis that is k times as
            long as there are units has unit u at u, u + units, ...: so it is where the
            positions of an image were flattened with channels last.

    Returns:
        The tree with smaller arrays at those paths.

    Raises:
        ValueError: If a layer would be left without units, the layers are not those of
            `axes`, a path is not in the tree, or an axis is no multiple of the units.

    Example:
        >>> params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 5))}
        >>> units = {"hidden": jnp.array([True, False, True])}
        >>> small = remove_units(params, units, {"hidden": {"in": -1, "out": 0}})
        >>> small["in"].shape, small["out"].shape
        ((2, 2), (2, 5))
    """
    kept = {layer: np.asarray(on, bool) for layer, on in units.items()}
    if kept.keys() != axes.keys():
        raise ValueError(
            f"units must be of the layers of axes, {sorted(axes)}; got {sorted(kept)}."
        )
    empty = [layer for layer, on in kept.items() if not on.any()]
    if empty:
        raise ValueError(
            "units must leave one on in every layer, or nothing passes through it; got "
            f"none in {', '.join(map(repr, empty))}."
        )
    leaves = dict(leaves_with_paths(params))
    for layer, on in kept.items():
        for path, axis in axes[layer].items():
            if path not in leaves:
                raise ValueError(
                    f"axes of {layer!r} must name leaves of params; got {path!r}."
                )
            times, rest = divmod(leaves[path].shape[axis], on.size)
            if rest:
                raise ValueError(
                    f"axis {axis} of {path!r} must be a multiple of the {on.size} "
                    f"units of {layer!r} long; got {leaves[path].shape[axis]}."
                )
            places = np.flatnonzero(np.tile(on, times))
            leaves[path] = jnp.take(leaves[path], places, axis=axis)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves[path_string(path)], params
    )
