"""Topology updates: which weights to drop and which to grow, as pure functions.

    masks, params, grads  --prune / regrow / exchange-->  masks

Pruning only removes, growth only adds, and every count is exact at any dtype, with ties
broken by position. A score that is not finite never wins a place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import scores
from sparsejax.checks import SCOPES, check_choice, check_sparsity, is_traced
from sparsejax.counts import drop_count, keep_count
from sparsejax.layouts import layout_of
from sparsejax.masks import count_active, count_prunable
from sparsejax.selection import comparable, count_selected, select, top_k_mask
from sparsejax.trees import check_counts, check_fit, map_masked

PyTree = Any
Key = Callable[[jax.Array], jax.Array] | None


def _fitted(score: PyTree, masks: PyTree) -> PyTree:
    """Gives the scores of the masked leaves, once they are known to fit."""
    check_fit(masks, score, "scores")
    return map_masked(lambda mask, leaf: leaf, masks, score)


def _drop_counts(fraction: Any, active: jax.Array) -> jax.Array:
    """Counts what a fraction of each count drops."""
    if not is_traced(fraction) and not 0 <= np.asarray(fraction) <= 1:
        raise ValueError(f"fraction must be in [0, 1]; got {fraction}.")
    return drop_count(fraction, active)


def prune_by_score(
    score: PyTree,
    masks: PyTree,
    *,
    sparsity: Any = None,
    fraction: Any = None,
    keep: Any = None,
    scope: str = "global",
    key: Key = None,
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
        key: What of the scores to rank by; see `sparsejax.top_k_mask`.

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
    if sparsity is not None:
        check_sparsity("sparsity", sparsity)
        if scope == "global":
            keep = jnp.asarray(keep_count(sparsity, count_prunable(masks)))
        else:
            keep = map_masked(
                lambda m: jnp.asarray(keep_count(sparsity, m.size)), masks
            )
    elif fraction is not None:
        active = count_active(masks, scope)
        counts = jnp.stack(jax.tree.leaves(active))
        left = list(counts - _drop_counts(fraction, counts))
        keep = jax.tree.unflatten(jax.tree.structure(active), left)
    else:
        check_counts("keep", keep, masks, scope)
    return top_k_mask(_fitted(score, masks), keep, among=masks, scope=scope, key=key)


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
    check_fit(masks, params)
    return prune_by_score(
        params,
        masks,
        sparsity=sparsity,
        fraction=fraction,
        keep=keep,
        scope=scope,
        key=scores.rank_of_magnitude,
    )


def _grow(score: PyTree, masks: PyTree, counts: Any, scope: str, key: Key) -> PyTree:
    """Marks the inactive weights of highest score, the new ones alone."""
    check_choice("scope", scope, SCOPES)
    check_counts("counts", counts, masks, scope)
    inactive = map_masked(jnp.logical_not, masks)
    fitted = _fitted(score, masks)
    return top_k_mask(fitted, counts, among=inactive, scope=scope, key=key)


def regrow_by_score(
    score: PyTree, masks: PyTree, counts: Any, scope: str = "layer", key: Key = None
) -> PyTree:
    """Activates the inactive weights of highest score.

    Args:
        score: Scores, a tree like `masks`.
        masks: The masks in force.
        counts: How many to grow: with scope "layer" a tree like `masks` of ints, with
            scope "global" one int. Where fewer are inactive, all of them grow.
        scope: "layer" ranks each layer by itself, "global" all together.
        key: What of the scores to rank by; see `sparsejax.top_k_mask`.

    Returns:
        The new masks, a superset of the old with `counts` more active.

    Raises:
        ValueError: If the scope is unknown, or the trees do not fit.
    """
    return map_masked(jnp.logical_or, masks, _grow(score, masks, counts, scope, key))


def regrow_gradient(
    grads: PyTree, masks: PyTree, counts: Any, scope: str = "layer"
) -> PyTree:
    """Activates the inactive weights with the largest gradients (RigL, 1911.11134).

    Args:
        grads: Dense gradients of the loss, those of inactive weights included.
        masks: The masks in force.
        counts: How many to grow: with scope "layer" a tree like `masks` of ints, with
            scope "global" one int. Where fewer are inactive, all of them grow.
        scope: "layer" ranks each layer by itself, "global" all together.

    Returns:
        The new masks, a superset of the old with `counts` more active.

    Raises:
        ValueError: If the scope is unknown, or the trees do not fit.

    Example:
        >>> grads, masks = jnp.array([9.0, 0.1, -5.0]), jnp.array([True, False, False])
        >>> regrow_gradient(grads, masks, 1).tolist()
        [True, False, True]
    """
    check_fit(masks, grads, "grads")
    return regrow_by_score(grads, masks, counts, scope, key=scores.rank_of_magnitude)


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
    return regrow_by_score(scores.random(key, masks), masks, counts, scope)


class TopologyUpdate(NamedTuple):
    """What a topology update decides; `of` and `no_growth` make one.

    Attributes:
        kept: A mask tree of the weights that go on as they are.
        masks: The masks from now on. What they have beside `kept` is grown and starts
            from zero: newly active, or dropped and chosen again in the same update.
        scalars: The scalars that the method remembers from now on, `Memory.scalars`;
            None leaves them as they are.
    """

    kept: PyTree
    masks: PyTree
    scalars: Any = None

    @classmethod
    def of(cls, kept: PyTree, grown: PyTree) -> "TopologyUpdate":
        """Puts together the masks of what is kept and grown; both means grown."""
        return cls(
            map_masked(lambda kept, grown: kept & ~grown, kept, grown),
            map_masked(jnp.logical_or, kept, grown),
        )

    @property
    def grown(self) -> PyTree:
        """A mask tree of the weights that start from zero."""
        return map_masked(lambda kept, mask: mask & ~kept, self.kept, self.masks)


def no_growth(masks: PyTree) -> TopologyUpdate:
    """Wraps masks in which nothing has grown.

    Args:
        masks: The new masks.

    Returns:
        The update.
    """
    return TopologyUpdate(masks, masks)


def counts_after_pruning(
    score: PyTree, masks: PyTree, keep: Any, key: Key = None
) -> PyTree:
    """Counts what is left of each layer if all are pruned together.

    Args:
        score: The lowest are dropped; a tree like `masks`.
        masks: The masks in force.
        keep: How many weights stay, an int; may be traced.
        key: What of the scores to rank by; see `sparsejax.top_k_mask`.

    Returns:
        A tree like `masks` of int32 scalars.

    Raises:
        ValueError: If the trees do not fit.

    Example:
        >>> masks = {"a": jnp.array([True, True]), "b": jnp.array([True, True])}
        >>> score = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
        >>> jax.tree.map(int, counts_after_pruning(score, masks, 3))
        {'a': 1, 'b': 2}
    """
    check_counts("keep", keep, masks, "global")
    old = jax.tree.leaves(masks)
    scores = comparable(jax.tree.leaves(_fitted(score, masks)))
    layout = layout_of(old)
    among = layout.pack(old)
    amount = jnp.asarray(keep, jnp.int32)
    counts = count_selected(layout, layout.pack(scores), among, amount, key)
    return jax.tree.unflatten(jax.tree.structure(masks), list(counts))


def exchange(
    drop_score: PyTree,
    grow_score: PyTree,
    masks: PyTree,
    fraction: Any,
    key: Key = None,
    counts: PyTree | None = None,
) -> TopologyUpdate:
    """Drops a fraction of each layer's active weights and grows as many.

    A dropped weight may be chosen again, as in the official GraNet and RigL code; it
    then starts from zero like every grown weight. A kept weight is never chosen.

    Args:
        drop_score: The lowest of these are dropped; a tree like `masks`.
        grow_score: The highest of these among what is not kept are grown.
        masks: The masks in force.
        fraction: The prune rate in [0, 1]: ceil(fraction * active) of each layer.
        key: What of both scores to rank by; see `sparsejax.top_k_mask`.
        counts: Prune each layer to so many active weights first, by the same score; a
            tree like `masks` of ints, none above what is active. None prunes nothing.

    Returns:
        The new masks, of the same count in each layer, and what has grown.

    Raises:
        ValueError: If the fraction is out of range or the trees do not fit.

    Example:
        >>> masks = jnp.array([True, True, False, False])
        >>> weights, grads = jnp.array([3., 1., 0., 0.]), jnp.array([0., 0., 2., 7.])
        >>> exchange(weights, grads, masks, 0.5).masks.tolist()
        [True, False, False, True]
    """
    structure: Any = jax.tree.structure(masks)
    old = jax.tree.leaves(masks)
    losing = comparable(jax.tree.leaves(_fitted(drop_score, masks)))
    gaining = comparable(jax.tree.leaves(_fitted(grow_score, masks)))
    layout = layout_of(old)
    among = layout.pack(old)
    if counts is None:
        active = layout.count_each(among)
    else:
        check_counts("counts", counts, masks, "layer")
        active = jnp.stack([jnp.asarray(n) for n in jax.tree.leaves(counts)])
    dropped = _drop_counts(fraction, active)
    # What pruning drops and what the exchange drops are the lowest, one after the
    # other: only the number that stays matters.
    kept = select(layout, layout.pack(losing), among, active - dropped, key)
    free = layout.complement(kept)
    active = select(layout, layout.pack(gaining), free, dropped, key, beside=kept)
    return TopologyUpdate(
        structure.unflatten(layout.unpack(kept)),
        structure.unflatten(layout.unpack(active)),
    )


def refill(
    grow_score: PyTree, kept: PyTree, counts: PyTree, key: Key = None
) -> TopologyUpdate:
    """Grows weights where an update has dropped some: the second half of an exchange.

    Args:
        grow_score: The highest of these among what is not kept are grown.
        kept: The masks of the weights that stay.
        counts: How many weights to grow in each layer, a tree like `kept` of ints.
            Where fewer are inactive, all of them grow.
        key: What of the scores to rank by; see `sparsejax.top_k_mask`.

    Returns:
        The new masks and what has grown.

    Raises:
        ValueError: If the trees do not fit.

    Example:
        >>> kept, scores = jnp.array([True, False, False]), jnp.array([9.0, 2.0, 5.0])
        >>> refill(scores, kept, 1).masks.tolist()
        [True, False, True]
    """
    return TopologyUpdate.of(kept, _grow(grow_score, kept, counts, "layer", key))
