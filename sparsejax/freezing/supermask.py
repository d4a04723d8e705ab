"""Edge-popup: the weights are frozen, and what is trained is which of them are there.

Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", arXiv
1911.13299, as the official code runs it. Each weight w of a layer has a score s. The
network runs on

    w~ = w h(s),    h(s) = 1 for the k n largest |s| of the layer's n, else 0,

and the gradient goes straight through h as if it were |s|:

    dL/ds = dL/dw~ w sign(s),

for every weight, also those that are not there: a score rises where the weight would
lower the loss. Scores start from the uniform distribution on (-b, b), b = 1 / sqrt(fan
in). The official code trains them by SGD with momentum and weight decay, and its
layers have no biases and normalization without scales.

Like STR this is a parametrization: pure functions, and any optimizer on the scores.

    def loss(scores, batch):
        return model_loss(supermask_params(params, scores, sparsity=0.5), batch)

    masks = supermask(scores, sparsity=0.5)       # and in the end
    params = apply_masks(params, masks)

What differs from the official code: exactly `keep_count(sparsity, n)` weights of each
layer are there, where the code cuts off n - k n; layers left dense stay as they are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.checks import check_sparsity
from sparsejax.counts import keep_count
from sparsejax.parameters import (
    LayerRule,
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.selection import top_k_mask
from sparsejax.trees import is_left_dense, leaves_with_paths, map_masked, mask_leaves

PyTree = Any


def init_scores(key: jax.Array, params: PyTree, prunable: Prunable = None) -> PyTree:
    """Draws the scores that edge-popup starts from.

    Args:
        key: A JAX PRNG key.
        params: Parameters; only their shapes matter. The last axis of a layer is taken
            for its outputs, the product of the others for its fan-in.
        prunable: Which leaves have scores; see `sparsejax.layer_rules`.

    Returns:
        A tree like the masks: float32 scores at each prunable leaf, uniform in
        (-b, b), b = 1 / sqrt(fan in).

    Raises:
        ValueError: If nothing is prunable.

    Example:
        >>> scores = init_scores(jax.random.key(0), {"w": jnp.ones((4, 50))})
        >>> bool(jnp.abs(scores["w"]).max() < 0.5)
        True
    """
    rules = layer_rules(params, prunable)
    keys = jax.random.split(key, len(jax.tree.leaves(rules)))
    keys = jax.tree.unflatten(jax.tree.structure(rules), list(keys))

    def draw(rule: LayerRule, key: jax.Array, leaf: Any) -> jax.Array:
        bound = 1 / math.sqrt(_fan_in(rule, leaf))
        return jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound)

    return map_masked(draw, rules, keys, params)


def supermask(scores: PyTree, sparsity: Any, prunable: Prunable = None) -> PyTree:
    """Chooses the weights of largest |score|, in each layer by itself.

    Args:
        scores: As `init_scores` gives them.
        sparsity: The part of each layer's weights that are not there, in [0, 1); may
            be traced. `prunable` may fix others for some layers.
        prunable: As `init_scores` was given.

    Returns:
        A mask tree with exactly `keep_count(sparsity, n)` active of a layer's n.

    Raises:
        ValueError: If the sparsity is out of range, or `prunable` means other leaves
            than those with scores.

    Example:
        >>> supermask(jnp.array([[-3.0, 1.0], [2.0, 0.0]]), sparsity=0.5).tolist()
        [[True, False], [True, False]]
    """
    check_sparsity("sparsity", sparsity)
    rules = layer_rules(scores, prunable)
    wanted = mask_leaves(rules).keys()
    if mask_leaves(scores).keys() != wanted:
        raise ValueError(
            "scores and prunable must mean the same leaves; got scores for "
            f"{list(mask_leaves(scores))} and prunable for {list(wanted)}."
        )
    split, layers = split_layers(scores, rules), split_rules(rules, scores)

    def keep(rule: LayerRule, leaf: Any) -> Any:
        own = sparsity if rule.sparsity is None else rule.sparsity
        return keep_count(own, leaf.size)

    counts = map_masked(keep, layers, split)
    chosen = top_k_mask(split, counts, scope="layer", rank=jnp.abs)
    return join_layers(chosen, rules)


def supermask_params(
    params: PyTree, scores: PyTree, sparsity: Any, prunable: Prunable = None
) -> PyTree:
    """Returns the parameters that the network runs on; differentiate it in the scores.

    Args:
        params: The frozen weights.
        scores: As `init_scores` gives them, or as trained since.
        sparsity: As in `supermask`.
        prunable: As in `supermask`.

    Returns:
        Parameters with exact zeros outside the supermask and everything else as it is.
        The derivative in a score is that of w |s|, in a weight that of the mask.

    Raises:
        ValueError: As `supermask`, and if the scores do not fit the parameters.

    Example:
        >>> params = jnp.array([[4.0, 5.0], [6.0, 7.0]])
        >>> scores = jnp.array([[-3.0, 1.0], [0.5, 2.0]])
        >>> supermask_params(params, scores, sparsity=0.5).tolist()
        [[4.0, 0.0], [0.0, 7.0]]
        >>> jax.grad(lambda s: supermask_params(params, s, 0.5).sum())(scores).tolist()
        [[-4.0, 5.0], [6.0, 7.0]]
    """
    _check_scores(params, scores)
    masks = supermask(scores, sparsity, prunable)

    def run_on(mask: Any, score: Any, weight: Any) -> Any:
        if is_left_dense(mask):
            return weight
        size = jnp.abs(score)
        straight = size - jax.lax.stop_gradient(size)  # 0, with the slope of |s|
        through = jax.lax.stop_gradient(weight) * straight
        return jnp.where(mask, weight, 0) + through.astype(weight.dtype)

    return jax.tree.map(run_on, masks, scores, params, is_leaf=is_left_dense)


def signed_constant(
    params: PyTree, sparsity: float = 0.0, prunable: Prunable = None
) -> PyTree:
    """Sets all weights of a layer to one size and leaves them their signs.

    The paper's signed Kaiming constant, which it found better than weights of a normal
    distribution: sign(w) sqrt(2 / (fan in (1 - sparsity))), for networks of ReLUs.

    Args:
        params: Parameters as they were drawn. The last axis is taken for the outputs.
        sparsity: Of the supermask, in [0, 1), so that what is left has the variance;
            0 does not scale.
        prunable: Which leaves; see `sparsejax.layer_rules`. The sparsity that it fixes
            for a layer is that layer's.

    Returns:
        The parameters with these weights; other leaves as they are. A 0 counts as
        positive.

    Raises:
        ValueError: If the sparsity is out of range.

    Example:
        >>> signed_constant(jnp.array([[0.3, -2.0], [0.1, 0.2]])).tolist()
        [[1.0, -1.0], [1.0, 1.0]]
    """
    check_sparsity("sparsity", sparsity)
    rules = layer_rules(params, prunable)

    def resize(rule: Any, leaf: Any) -> Any:
        if is_left_dense(rule):
            return leaf
        density = 1 - (sparsity if rule.sparsity is None else rule.sparsity)
        size = jnp.asarray(math.sqrt(2 / (_fan_in(rule, leaf) * density)), leaf.dtype)
        return jnp.where(leaf < 0, -size, size)

    return jax.tree.map(resize, rules, params, is_leaf=is_left_dense)


def _fan_in(rule: LayerRule, leaf: Any) -> int:
    shape = leaf.shape[int(rule.stacked) :]
    _, outputs = rule.axes(len(shape))
    return max(math.prod(n for axis, n in enumerate(shape) if axis not in outputs), 1)


def _check_scores(params: PyTree, scores: PyTree) -> None:
    leaf_at, score_at = dict(leaves_with_paths(params)), dict(leaves_with_paths(scores))
    for path in [*leaf_at, *score_at]:
        if path not in leaf_at or path not in score_at:
            lacks = "scores" if path in leaf_at else "params"
            raise ValueError(
                f"scores do not fit params: {lacks} have nothing at {path!r}; make "
                "them with init_scores."
            )
        leaf, score = leaf_at[path], score_at[path]
        if not is_left_dense(score) and score.shape != leaf.shape:
            raise ValueError(
                f"scores do not fit params at {path!r}: the shape {leaf.shape} is "
                f"needed; got {score.shape}."
            )
