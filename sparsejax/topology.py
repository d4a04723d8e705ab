"""Topology updates: which weights to drop and which to grow, as pure functions.

    masks, params, grads  --prune / regrow-->  masks

Pruning only removes, growth only adds, and every count is exact at any dtype. Ties are
broken by position, or at random when growing with a key. A score that is not finite
never wins a place. The elements of `sparsejax.chain` call these functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import scores
from sparsejax.checks import SCOPES, check_choice, check_range, check_sparsity
from sparsejax.counts import count_each, dropped_of, kept_of, value_at, wide
from sparsejax.selection import Rank, comparable, select
from sparsejax.trees import check_counts, fit, map_masked

PyTree = Any


def take(
    score: PyTree,
    masks: PyTree,
    k: Any,
    groups: Any,
    rank: Rank,
    grow: bool = False,
    key: jax.Array | None = None,
) -> PyTree:
    """Keeps the k largest active weights, or grows the k largest inactive ones.

    Args:
        score: Scores, a tree like `masks`.
        masks: The masks in force.
        k: Integers [G], how many of each group; may be int64 in a `wide` scope.
        groups: The group of each layer.
        rank: What of the scores to rank by; see `sparsejax.top_k_mask`.
        grow: Whether inactive weights are to become active.
        key: A PRNG key that spreads ties at random when growing.

    Returns:
        The new masks.

    Raises:
        ValueError: If the scores do not fit the masks or have no order.
    """
    masks = fit(masks, score, "scores")
    leaves = jax.tree.leaves(masks)
    structure: Any = jax.tree.structure(masks)
    ranked = comparable(jax.tree.leaves(map_masked(lambda _, s: s, masks, score)))
    with wide():
        k = jnp.asarray(k).astype(jnp.int64)
        return structure.unflatten(select(ranked, leaves, k, groups, rank, grow, key))


def count_by_layer(masks: PyTree) -> jax.Array:
    """Counts the active weights of each layer.

    Args:
        masks: A mask tree.

    Returns:
        int32 [L].
    """
    return count_each([[mask] for mask in jax.tree.leaves(masks)])[:, 0]


def _groups(masks: PyTree, scope: str) -> tuple[list[int], list[int]]:
    """The group of each layer, and the size of each group."""
    sizes = [mask.size for mask in jax.tree.leaves(masks)]
    if scope == "global":
        return [0] * len(sizes), [sum(sizes)]
    return list(range(len(sizes))), sizes


def _amounts(name: str, amounts: Any, masks: PyTree, scope: str) -> jax.Array:
    """Numbers of weights as an array, once they fit; call it in a `wide` scope."""
    check_counts(name, amounts, masks, scope)
    return jnp.stack([jnp.asarray(n, jnp.int64) for n in jax.tree.leaves(amounts)])


def prune_by_score(
    score: PyTree,
    masks: PyTree,
    *,
    sparsity: Any = None,
    fraction: Any = None,
    keep: Any = None,
    scope: str = "global",
    rank: Rank = None,
) -> PyTree:
    """Drops the active weights of lowest score; give one of the three amounts.

    Args:
        score: Scores of any float dtype, a tree like `masks`.
        masks: The masks in force.
        sparsity: Prune to this sparsity, in [0, 1): keep round((1 - sparsity) * n).
            Where masks are sparser already, they stay as they are.
        fraction: Drop ceil(fraction * active) active weights; in [0, 1].
        keep: Keep this many: an int with scope "global", a tree like `masks` of ints
            with scope "layer".
        scope: "global" ranks and counts all layers together, "layer" each by itself.
        rank: What of the scores to rank by; see `sparsejax.top_k_mask`.

    Returns:
        The new masks, a subset of the old.

    Raises:
        ValueError: If not exactly one amount is given, one is out of range, the scope
            is unknown, or the masks do not fit.
    """
    check_choice("scope", scope, SCOPES)
    if (sparsity is not None) + (fraction is not None) + (keep is not None) != 1:
        raise ValueError(
            "prune needs exactly one of sparsity, fraction and keep; got "
            f"{sparsity=}, {fraction=}, {keep=}."
        )
    groups, sizes = _groups(masks, scope)
    with wide():
        if sparsity is not None:
            check_sparsity("sparsity", sparsity)
            k = kept_of(value_at(sparsity, 0), np.array(sizes))
        elif fraction is not None:
            check_range("fraction", fraction, lambda f: 0 <= f <= 1, "in [0, 1]")
            active = count_by_layer(masks).astype(jnp.int64)
            active = jnp.sum(active)[None] if scope == "global" else active
            k = active - dropped_of(fraction, active)
        else:
            k = _amounts("keep", keep, masks, scope)
        return take(score, masks, k, groups, rank)


def prune_magnitude(
    params: PyTree,
    masks: PyTree,
    *,
    sparsity: Any = None,
    fraction: Any = None,
    keep: Any = None,
    scope: str = "global",
) -> PyTree:
    """Drops the active weights of smallest magnitude; give one of the three amounts.

    Args:
        params: Parameters that the masks fit.
        masks: The masks in force.
        sparsity: Prune to this sparsity, in [0, 1): keep round((1 - sparsity) * n).
        fraction: Drop ceil(fraction * active) active weights; in [0, 1].
        keep: Keep this many: an int, or with scope "layer" a tree of ints.
        scope: "global" ranks and counts all layers together, "layer" each by itself.

    Returns:
        The new masks, a subset of the old.

    Raises:
        ValueError: See `prune_by_score`.

    Example:
        >>> params = {"a": jnp.array([[4.0, -1.0]]), "b": jnp.array([[-3.0, 2.0]])}
        >>> masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        >>> masks = prune_magnitude(params, masks, sparsity=0.5)
        >>> masks["a"].tolist(), masks["b"].tolist()
        ([[True, False]], [[True, False]])
    """
    return prune_by_score(
        params,
        fit(masks, params),
        sparsity=sparsity,
        fraction=fraction,
        keep=keep,
        scope=scope,
        rank=scores.rank_of_magnitude,
    )


def regrow_by_score(
    score: PyTree,
    masks: PyTree,
    counts: Any,
    scope: str = "layer",
    rank: Rank = None,
    key: jax.Array | None = None,
) -> PyTree:
    """Activates the inactive weights of highest score.

    Args:
        score: Scores, a tree like `masks`.
        masks: The masks in force.
        counts: How many to grow: with scope "layer" a tree like `masks` of ints, with
            scope "global" one int. Where fewer are inactive, all of them grow.
        scope: "layer" ranks each layer by itself, "global" all together.
        rank: What of the scores to rank by; see `sparsejax.top_k_mask`.
        key: A PRNG key that spreads equal scores at random inside a layer; None takes
            them by position.

    Returns:
        The new masks, a superset of the old with `counts` more active.

    Raises:
        ValueError: If the scope is unknown, or the trees do not fit.
    """
    check_choice("scope", scope, SCOPES)
    with wide():
        k = _amounts("counts", counts, masks, scope)
        groups, _ = _groups(masks, scope)
        return take(score, masks, k, groups, rank, grow=True, key=key)


def regrow_gradient(
    grads: PyTree,
    masks: PyTree,
    counts: Any,
    scope: str = "layer",
    key: jax.Array | None = None,
) -> PyTree:
    """Activates the inactive weights with the largest gradients (RigL, 1911.11134).

    Args:
        grads: Dense gradients of the loss, those of inactive weights included.
        masks: The masks in force.
        counts: How many to grow: with scope "layer" a tree like `masks` of ints, with
            scope "global" one int. Where fewer are inactive, all of them grow.
        scope: "layer" ranks each layer by itself, "global" all together.
        key: A PRNG key that spreads equal gradients at random inside a layer, such as
            those of an embedding's unused rows; None takes them by position.

    Returns:
        The new masks, a superset of the old with `counts` more active.

    Raises:
        ValueError: If the scope is unknown, or the trees do not fit.

    Example:
        >>> grads, masks = jnp.array([9.0, 0.1, -5.0]), jnp.array([True, False, False])
        >>> regrow_gradient(grads, masks, 1).tolist()
        [True, False, True]
    """
    masks = fit(masks, grads, "grads")
    return regrow_by_score(grads, masks, counts, scope, scores.rank_of_magnitude, key)


def regrow_random(
    key: jax.Array, masks: PyTree, counts: Any, scope: str = "layer"
) -> PyTree:
    """Activates inactive weights at random (SET, Mocanu et al. 2018).

    Args:
        key: A JAX PRNG key; the same key gives the same masks on every device.
        masks: The masks in force.
        counts: How many to grow: with scope "layer" a tree like `masks` of ints, with
            scope "global" one int. Where fewer are inactive, all of them grow.
        scope: "layer" grows in each layer, "global" anywhere.

    Returns:
        The new masks, a superset of the old with `counts` more active.

    Raises:
        ValueError: If the scope is unknown, or the trees do not fit.

    Example:
        >>> masks = jnp.array([True, False, False, False])
        >>> regrow_random(jax.random.key(0), masks, 2).sum().item()
        3
    """
    drawn = scores.random_scores(key, masks)
    return regrow_by_score(drawn, masks, counts, scope, scores.as_it_is)
