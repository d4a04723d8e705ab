"""What is trained of a network, and what it runs on, by method.

    pruned        the weights of a mask, and the others are 0,
    frozen        the same weights, and the others are as drawn,
    edge-popup    scores of the weights: the largest of a layer say which are there,
    by layer      whole leaves, and the others are as drawn.

Biases and normalisation have no masks. They are trained with the weights of a mask, and
not by edge-popup; methods by layer say what they train.
"""

from typing import Any, NamedTuple

import jax
import optax

import sparsejax as sj

PyTree = Any

DENSE = "dense"
EDGE_POPUP = "edge_popup"
METHODS = {
    DENSE: "Dense",
    "random_pruned": "Random, pruned",
    "random_frozen": "Random, frozen",
    "snip_pruned": "SNIP, pruned",
    "snip_frozen": "SNIP, frozen (FreezeNet)",
    EDGE_POPUP: "Edge-popup",
    "kernels_frozen": "All kernels frozen",
    "norms": "Normalisation alone",
    "output": "Last layer alone",
}
# The same masks: pruned by them, and frozen.
PAIRS = {"random_pruned": "random_frozen", "snip_pruned": "snip_frozen"}
# Those that are run at several densities.
WITH_DENSITY = (*PAIRS, *PAIRS.values(), EDGE_POPUP)
# What is trained of whole leaves; the first that matches wins.
BY_LAYER = {
    "kernels_frozen": [("kernel", False)],
    "norms": [("GroupNorm", True), ("", False)],
    "output": [("output", True), ("", False)],
}


class Replica(NamedTuple):
    """A network before training.

    Attributes:
        params: Its first weights.
        masks: The weights that are trained; for edge-popup and by layer, all.
        sparsity: The part of the weights that edge-popup leaves out, a scalar.
        key: Of edge-popup's first scores.
    """

    params: PyTree
    masks: PyTree
    sparsity: Any
    key: jax.Array


def start(method: str, replica: Replica) -> PyTree:
    """Gives what is trained, before it is.

    Args:
        method: A key of `METHODS`.
        replica: The network.

    Returns:
        Scores for edge-popup, else parameters.
    """
    if method == EDGE_POPUP:
        return sj.init_scores(replica.key, replica.params)
    if method in PAIRS:
        return sj.apply_masks(replica.params, replica.masks)
    return replica.params


def read(method: str, variables: PyTree, replica: Replica) -> PyTree:
    """Gives the parameters that the network runs on.

    Args:
        method: A key of `METHODS`.
        variables: What is trained.
        replica: The network.

    Returns:
        Parameters.
    """
    if method == EDGE_POPUP:
        return sj.supermask_params(replica.params, variables, replica.sparsity)
    return variables


def wrap(
    method: str, inner: optax.GradientTransformation, masks: PyTree
) -> optax.GradientTransformation:
    """Makes the optimizer of what is trained.

    Args:
        method: A key of `METHODS`.
        inner: The optimizer to wrap.
        masks: The replica's.

    Returns:
        The optimizer.
    """
    if method in PAIRS:
        return sj.static_transform(inner, masks=masks)
    if method in PAIRS.values():
        return sj.freeze_transform(inner, masks=masks)
    if method in BY_LAYER:
        return sj.freeze_transform(inner, trainable=BY_LAYER[method])
    return inner
