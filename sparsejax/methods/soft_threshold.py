"""STR: soft thresholds that are learned, one a layer.

Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity",
arXiv 2002.03231. Layer l has weights W_l and one more parameter s_l; the network runs
on

    S(W_l, s_l) = sign(W_l) ReLU(|W_l| - g(s_l)),   g = sigmoid,

and both are trained. With P = dL/dS and a weight that is not zeroed, |w| > g(s),

    dL/dw = P,      dL/ds = -g'(s) sum of P sign(w) over those weights,

and a weight that is zeroed has no gradient. Weight decay, in the paper of the same
strength on s as on W, shrinks W and pulls a negative s towards 0, where g is larger:
that makes the network sparse. Sparsity is an outcome, of the decay, of the s that is
started from and of the learning rates: it is measured, never set. In the official
configuration for ResNet-50 on ImageNet at 90.23 % sparsity, s starts at -3200 (where g
and g' are exactly 0 in float32, so that decay alone moves it) and the decay is 2.25e-5.

Unlike the other methods this is no wrapped optimizer but a parametrization: three pure
functions, and any optax optimizer on {"weights": params, "thresholds": thresholds}.

    def loss(trained, batch):
        weights = soft_threshold(trained["weights"], trained["thresholds"])
        return model_loss(weights, batch)

    tx = optax.chain(optax.add_decayed_weights(2.25e-5), optax.sgd(0.256, 0.875))

What differs from the official code: which layers have a threshold is chosen by path,
and layers that a leaf stacks have one each.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.parameters import LayerRule, Prunable, layer_rules
from sparsejax.trees import is_left_dense, leaves_with_paths, map_masked, mask_leaves

PyTree = Any


def init_thresholds(
    params: PyTree, prunable: Prunable = None, initial: float = -3200.0
) -> PyTree:
    """Returns for each prunable layer the threshold parameter s that it starts from.

    Args:
        params: Parameters; only their shapes matter.
        prunable: Which leaves have a threshold; see `sparsejax.layer_rules`. A sparsity
            in it is refused: here sparsity is an outcome.
        initial: s at the start; g(s) = sigmoid(s) is what |w| is compared with, so that
            -5 zeroes the weights below 0.0067. -3200 is the official configuration's
            for ResNet-50 at 90 %.

    Returns:
        A tree like the masks: a float32 scalar at each prunable leaf, or at a leaf that
        stacks n layers float32[n, 1, ...], one for each layer.

    Raises:
        ValueError: If `initial` is not finite, nothing is prunable, or a layer has a
            sparsity of its own.

    Example:
        >>> init_thresholds({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, initial=-5.0)
        {'b': MaskedNode(), 'w': Array(-5., dtype=float32)}
    """
    if not jnp.isfinite(initial):
        raise ValueError(f"initial must be a finite number; got {initial}.")
    rules = layer_rules(params, prunable)

    def start(rule: LayerRule, leaf: Any) -> jax.Array:
        if rule.sparsity is not None:
            raise ValueError(
                "prunable must be True or False for thresholds, which learn the "
                f"sparsity; got the sparsity {rule.sparsity}."
            )
        stack = (leaf.shape[0],) + (1,) * (leaf.ndim - 1) if rule.stacked else ()
        return jnp.full(stack, initial, jnp.float32)

    return map_masked(start, rules, params)


def soft_threshold(params: PyTree, thresholds: PyTree) -> PyTree:
    """Moves every weight towards 0 by its layer's threshold, and stops at 0.

    Args:
        params: W, the weights that are trained.
        thresholds: s, as `init_thresholds` gives them.

    Returns:
        S(W, s), parameters with exact zeros where |w| <= sigmoid(s), of the dtypes of
        `params`; leaves without a threshold as they are. Differentiable in both.

    Raises:
        ValueError: If the thresholds do not fit the parameters.

    Example:
        >>> soft_threshold(jnp.array([-2.0, 0.25, 0.75]), jnp.array(0.0)).tolist()
        [-1.5, 0.0, 0.25]
    """
    _check_thresholds(params, thresholds)

    def shrink(s: Any, w: Any) -> Any:
        if is_left_dense(s):
            return w
        threshold = jax.nn.sigmoid(s)
        # Not `>` with its branches swapped: NaN must stay NaN.
        is_zero = jnp.abs(w) <= threshold
        return jnp.where(is_zero, 0, w - jnp.sign(w) * threshold).astype(w.dtype)

    return jax.tree.map(shrink, thresholds, params, is_leaf=is_left_dense)


def threshold_masks(params: PyTree, thresholds: PyTree) -> PyTree:
    """Reads the masks off: which weights the thresholds leave.

    Args:
        params: W, the weights that are trained.
        thresholds: s, as `init_thresholds` gives them.

    Returns:
        A mask tree, for `sparsejax.sparsity` and all else that takes masks.

    Raises:
        ValueError: If the thresholds do not fit the parameters.

    Example:
        >>> import sparsejax as sj
        >>> masks = threshold_masks(jnp.array([-2.0, 0.25, 0.75, 0.5]), jnp.array(0.0))
        >>> sj.sparsity(masks).item()
        0.5
    """
    weights = soft_threshold(params, thresholds)
    return map_masked(lambda s, w: w != 0, thresholds, weights)


def fold_thresholds(params: PyTree, thresholds: PyTree) -> tuple[PyTree, PyTree]:
    """Ends the training of thresholds: weights with zeros, and their masks.

    Args:
        params: W, the weights that were trained.
        thresholds: s, as they were trained.

    Returns:
        The params that the network ran on, and masks to keep it sparse, as in
        `sparsejax.static_transform(inner, masks=masks)`.

    Raises:
        ValueError: If the thresholds do not fit the parameters.

    Example:
        >>> params, masks = fold_thresholds(jnp.array([-2.0, 0.25]), jnp.array(0.0))
        >>> params.tolist(), masks.tolist()
        ([-1.5, 0.0], [True, False])
    """
    return soft_threshold(params, thresholds), threshold_masks(params, thresholds)


def _check_thresholds(params: PyTree, thresholds: PyTree) -> None:
    leaf_at = dict(leaves_with_paths(params))
    threshold_at = dict(leaves_with_paths(thresholds))
    if leaf_at.keys() != threshold_at.keys():
        [path, *_] = sorted(leaf_at.keys() ^ threshold_at.keys())
        lacks = "params" if path in threshold_at else "thresholds"
        raise ValueError(
            f"thresholds do not fit params: {lacks} have nothing at {path!r}; make "
            "them with init_thresholds."
        )
    for path, threshold in mask_leaves(thresholds).items():
        leaf = leaf_at[path]
        shapes = ((), (*leaf.shape[:1], *(1,) * (leaf.ndim - 1)))
        if threshold.shape not in shapes:
            raise ValueError(
                f"thresholds do not fit params at {path!r}: a shape of () or "
                f"{shapes[1]} is needed; got {threshold.shape}."
            )
