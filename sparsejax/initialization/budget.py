"""How many weights pruning at initialization keeps, and keeping the best of them.

All layers are ranked together, but for those whose sparsity `prunable` fixes: each of
these is ranked by itself, and the others make up for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import check_sparsity, is_traced
from sparsejax.counts import keep_count
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import dense_masks
from sparsejax.parameters import (
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.topology import prune_by_score
from sparsejax.trees import map_masked, mask_leaves, merge, partition_by_path

PyTree = Any
DECAYS = ("exponential", "linear")


class Budget(NamedTuple):
    """The active weights after each round.

    Attributes:
        shared: int32[rounds], of the layers that are ranked together.
        own: By path of a layer of fixed sparsity, its int32[rounds].
    """

    shared: Any
    own: dict[str, Any]


def _sparsities(sparsity: Any, rounds: int, decay: str) -> Any:
    """The sparsity after each round; the last is exactly the one asked for."""
    numpy: Any = jnp if is_traced(sparsity) else np
    progress = np.arange(1, rounds + 1) / rounds
    density = 1 - numpy.asarray(sparsity)
    if decay == "exponential":
        path = 1 - density**progress
    else:
        path = 1 - (1 - (1 - density) * progress)
    return numpy.append(path[:-1], sparsity)


def keep_budget(
    params: PyTree,
    rules: PyTree,
    sparsity: Any,
    rounds: int = 1,
    decay: str = "exponential",
) -> Budget:
    """Counts the weights that are active after each round of pruning.

    The density after round t of T is d^(t/T) ("exponential") or 1 - (1 - d) t/T
    ("linear"), where d is the last one, of all layers or of one with its own sparsity.

    Args:
        params: Parameters; only their shapes matter.
        rules: What `sparsejax.layer_rules` gave.
        sparsity: The sparsity after the last round, in [0, 1).
        rounds: T, at least 1.
        decay: "exponential" or "linear".

    Returns:
        The numbers of active weights; those of the last round are exact.

    Raises:
        ValueError: If the sparsity is out of range, or the layers of fixed sparsity put
            it out of reach.
    """
    check_sparsity("sparsity", sparsity)
    shapes = jax.eval_shape(lambda p: split_layers(p, rules), params)
    by_layer = split_rules(rules, params)
    sizes = mask_leaves(map_masked(lambda rule, leaf: leaf.size, by_layer, shapes))
    own = {
        path: keep_count(_sparsities(rule.sparsity, rounds, decay), sizes[path])
        for path, rule in mask_leaves(by_layer).items()
        if rule.sparsity is not None
    }
    overall = keep_count(_sparsities(sparsity, rounds, decay), sum(sizes.values()))
    shared = overall - sum(own.values())
    capacity = sum(size for path, size in sizes.items() if path not in own)
    if not is_traced(shared) and not np.all((shared >= 0) & (shared <= capacity)):
        raise ValueError(
            f"sparsity={sparsity} cannot be reached: the layers of fixed sparsity "
            f"leave {shared[-1]} active weights to the others, which have {capacity}."
        )
    return Budget(shared, own)


def keep_best(
    score: PyTree, masks: PyTree, rules: PyTree, budget: Budget, round_index: Any = -1
) -> PyTree:
    """Keeps the active weights of highest score, as many as the budget has.

    Args:
        score: A tree like `masks` of float scores; those not finite never win.
        masks: The weights to choose among.
        rules: What `sparsejax.layer_rules` gave.
        budget: The numbers to keep.
        round_index: Which round's; may be traced where the budget is of JAX arrays.

    Returns:
        The new masks, a subset of the old.
    """
    score, masks = split_layers(score, rules), split_layers(masks, rules)
    together, alone = partition_by_path(masks, budget.own)
    if jax.tree.leaves(together):
        kept = jnp.asarray(budget.shared[round_index])
        together = prune_by_score(score, together, keep=kept)
    if budget.own:
        counts = [jnp.asarray(budget.own[p][round_index]) for p in mask_leaves(alone)]
        keep = jax.tree.unflatten(jax.tree.structure(alone), counts)
        alone = prune_by_score(score, alone, keep=keep, scope="layer")
    return join_layers(merge(together, alone), rules)


def one_shot(
    score_of: Callable[[PyTree], PyTree],
    params: PyTree,
    sparsity: Any,
    prunable: Prunable,
) -> PyTree:
    """Scores the dense network once and keeps the best weights.

    Args:
        score_of: A function of dense masks -> scores, a tree like them; called once all
            else is known to be in order.
        params: Parameters; only their shapes matter.
        sparsity: The overall sparsity, in [0, 1).
        prunable: Which leaves are prunable; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers that
        are left empty are warned of, on behalf of the caller's caller.

    Raises:
        ValueError: If the sparsity is out of range or out of reach.
    """
    rules = layer_rules(params, prunable)
    budget = keep_budget(params, rules, sparsity)
    dense = dense_masks(params, prunable)
    masks = keep_best(score_of(dense), dense, rules, budget)
    warn_of_empty_layers(masks, rules, stacklevel=4)
    return masks
