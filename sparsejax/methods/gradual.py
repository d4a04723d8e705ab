"""Pruning towards a sparsity schedule with exact counts: what GMP and GraNet share.

A layer of fixed sparsity follows the same curve, scaled to end at its own sparsity; the
other layers make up for it, so that the overall sparsity is the scheduled one.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import is_traced
from sparsejax.counts import keep_count
from sparsejax.distributions import Distribution
from sparsejax.masks import count_active, masks_by_rule
from sparsejax.parameters import LayerRule
from sparsejax.schedules import Schedule
from sparsejax.scores import rank_of_magnitude
from sparsejax.topology import counts_after_pruning, prune_magnitude
from sparsejax.transform import Snapshot
from sparsejax.trees import map_masked, mask_leaves, merge, partition_by_path

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PrunePlan:
    """When masks are pruned, how far and how.

    Attributes:
        sparsity: The overall sparsity, a schedule.
        begin_step: Pruning starts after this step.
        end_step: The last prune; the schedule's value here is the final sparsity.
        update_interval: Steps between prunes.
        scope: "global" ranks all layers together, "layer" each by itself.
    """

    sparsity: Schedule
    begin_step: int
    end_step: int
    update_interval: int
    scope: str = "global"


def first_masks(
    key: jax.Array,
    params: PyTree,
    rules: PyTree,
    plan: PrunePlan,
    start: Any,
    distribution: Distribution,
) -> PyTree:
    """Makes the masks that gradual pruning starts from.

    Args:
        key: A JAX PRNG key.
        params: Parameters, where one leaf is one layer.
        rules: A `LayerRule` at each prunable leaf.
        plan: Where pruning leads to.
        start: The overall sparsity to start from.
        distribution: How it is shared out over layers.

    Returns:
        A mask tree: dense for `start=0`, else random.
    """
    if not is_traced(start) and start == 0:
        return map_masked(lambda _, leaf: jnp.ones(leaf.shape, bool), rules, params)
    share = start / plan.sparsity(plan.end_step)

    def scaled(rule: LayerRule) -> LayerRule:
        if rule.sparsity is None:
            return rule
        return dataclasses.replace(rule, sparsity=rule.sparsity * share)

    scaled_rules = map_masked(scaled, rules)
    return masks_by_rule(key, params, scaled_rules, start, distribution)


class _Due(NamedTuple):
    """What the plan has for a step.

    Attributes:
        shared: The masks of the layers that are ranked together.
        own: The masks of the layers that have counts of their own.
        keep_shared: How many weights stay in the layers of `shared`.
        keep_own: How many stay in each layer of `own`, a tree like it.
    """

    shared: PyTree
    own: PyTree
    keep_shared: Any
    keep_own: PyTree


def _due(now: Snapshot, plan: PrunePlan) -> _Due:
    start = plan.begin_step + plan.update_interval
    steps = np.arange(start, plan.end_step, plan.update_interval)
    steps = np.append(steps, plan.end_step)
    # Counted for all prunes ahead, on the host where the schedule is known there: in
    # float32 the counts of tens of millions of weights would be off by some.
    together, alone = _targets(plan, steps, now.masks, now.rules)
    passed = (now.step - plan.begin_step) // plan.update_interval
    prune = jnp.where(now.step >= plan.end_step, len(steps), passed) - 1
    keep_shared = jnp.asarray(together)[prune]
    keep_own = {path: jnp.asarray(counts)[prune] for path, counts in alone.items()}
    active = mask_leaves(count_active(now.masks, "layer"))
    # Where the masks are sparse enough already, all weights are kept.
    is_due = sum(active.values()) > sum(keep_own.values(), keep_shared)
    all_shared = sum(n for path, n in active.items() if path not in alone)
    shared, own = partition_by_path(now.masks, alone)
    return _Due(
        shared,
        own,
        jnp.where(is_due, keep_shared, all_shared),
        jax.tree.unflatten(
            jax.tree.structure(own),
            [
                jnp.where(is_due, keep_own[path], n)
                for path, n in active.items()
                if path in alone
            ],
        ),
    )


def prune_to_plan(now: Snapshot, plan: PrunePlan) -> PyTree:
    """Prunes by magnitude to the number of weights that the plan has for this step.

    Args:
        now: What the method sees at an update step.
        plan: Where pruning leads to.

    Returns:
        The new masks; the old ones where they are sparse enough already.

    Raises:
        ValueError: If the layers of fixed sparsity put the final one out of reach.
    """
    shared, own, keep_shared, keep_own = _due(now, plan)
    if jax.tree.leaves(shared):
        shared = prune_magnitude(now.params, shared, keep=keep_shared)
    if jax.tree.leaves(own):
        own = prune_magnitude(now.params, own, keep=keep_own, scope="layer")
    return merge(shared, own)


def counts_of_plan(now: Snapshot, plan: PrunePlan) -> PyTree:
    """Counts what `prune_to_plan` would leave of each layer.

    Args:
        now: What the method sees at an update step.
        plan: Where pruning leads to.

    Returns:
        A tree like the masks of int32 scalars.

    Raises:
        ValueError: If the layers of fixed sparsity put the final one out of reach.
    """
    shared, _, keep_shared, keep_own = _due(now, plan)
    if not jax.tree.leaves(shared):
        return keep_own
    counts = counts_after_pruning(now.params, shared, keep_shared, rank_of_magnitude)
    return merge(counts, keep_own)


def _targets(
    plan: PrunePlan, steps: np.ndarray, masks: PyTree, rules: PyTree
) -> tuple[Any, dict[str, Any]]:
    """Counts the weights to keep at each step: of those ranked together, by layer."""
    overall, final = plan.sparsity(steps), plan.sparsity(plan.end_step)
    sizes = {path: mask.size for path, mask in mask_leaves(masks).items()}
    total = sum(sizes.values())
    fixed = {
        path: rule.sparsity
        for path, rule in mask_leaves(rules).items()
        if rule.sparsity is not None
    }
    progress = overall / final if is_traced(final) or final > 0 else np.ones(len(steps))
    own = {path: keep_count(s * progress, sizes[path]) for path, s in fixed.items()}
    shared = keep_count(overall, total) - sum(own.values())
    capacity = total - sum(sizes[path] for path in fixed)
    if not is_traced(shared) and not np.all((shared >= 0) & (shared <= capacity)):
        raise ValueError(
            f"final_sparsity={float(final)} cannot be reached: the layers of fixed "
            f"sparsity leave {shared[-1]} active weights to the other layers, which "
            f"have {capacity}."
        )
    if plan.scope == "layer" and capacity:
        rest = 1 - shared / capacity if fixed else overall
        free = [path for path in sizes if path not in fixed]
        own |= {path: keep_count(rest, sizes[path]) for path in free}
        shared = shared * 0
    return shared, own
