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
from sparsejax.masks import count_active, dense_masks, own_sparsity
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
    ("linear"), where d is the last one: of each layer with its own sparsity, and of
    the others together. The overall density follows.

    Args:
        params: Parameters; only their shapes matter.
        rules: What `sparsejax.layer_rules` gave.
        sparsity: The sparsity after the last round, in [0, 1); None where the rules fix
            the sparsity of every layer.
        rounds: T, at least 1.
        decay: "exponential" or "linear".

    Returns:
        The numbers of active weights; those of the last round are exact.

    Raises:
        ValueError: If the sparsity is out of range, or the layers of fixed sparsity put
            it out of reach.
    """
    shapes = jax.eval_shape(lambda p: split_layers(p, rules), params)
    by_layer = split_rules(rules, params)
    sizes = mask_leaves(map_masked(lambda rule, leaf: leaf.size, by_layer, shapes))
    fixed = {
        path: rule.sparsity
        for path, rule in mask_leaves(by_layer).items()
        if rule.sparsity is not None
    }
    own = {
        path: keep_count(_sparsities(value, rounds, decay), sizes[path])
        for path, value in fixed.items()
    }
    if sparsity is None:
        every = {path: (size,) for path, size in sizes.items()}
        sparsity = own_sparsity(every, fixed)
    check_sparsity("sparsity", sparsity)
    total = sum(sizes.values())
    capacity = sum(size for path, size in sizes.items() if path not in own)
    last = keep_count(sparsity, total) - sum(counts[-1] for counts in own.values())
    if not capacity and not is_traced(last) and abs(last) <= len(own):
        last = np.int64(0)  # each layer is rounded by itself
    if not is_traced(last) and not 0 <= last <= capacity:
        raise ValueError(
            f"sparsity={sparsity} cannot be reached: the layers of fixed sparsity "
            f"leave {last} active weights to the others, which have {capacity}."
        )
    numpy: Any = jnp if is_traced(last) else np
    zeros = sparsity * total - sum(fixed[path] * sizes[path] for path in fixed)
    rest = zeros / max(capacity, 1) if fixed else sparsity
    # To half a weight at most: the exponential path to none would be there at once.
    rest = numpy.clip(rest, 0, 1 - 0.5 / max(capacity, 1))
    counts = keep_count(_sparsities(rest, rounds, decay), capacity)
    return Budget(numpy.append(counts[:-1], last), own)


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


def is_ranked(
    score: PyTree, masks: PyTree, rules: PyTree, budget: Budget, round_index: int
) -> jax.Array:
    """Whether as many scores are above 0 as weights are to be kept.

    Args:
        score: A tree like `masks` of float scores.
        masks: The weights to choose among.
        rules: What `sparsejax.layer_rules` gave.
        budget: The numbers to keep.
        round_index: Which round's.

    Returns:
        A bool scalar: False if equal scores of 0 would have to be told apart, in the
        layers that are ranked together or in one that is ranked by itself.
    """
    positive = map_masked(lambda mask, s: mask & (s > 0), masks, score)
    together = mask_leaves(split_layers(positive, rules))
    enough = [
        count_active(together.pop(path)) >= counts[round_index]
        for path, counts in budget.own.items()
    ]
    if together:
        enough.append(count_active(together) >= budget.shared[round_index])
    return jnp.all(jnp.stack(enough))


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
