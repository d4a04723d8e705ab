"""The one wrapper: an optax optimizer with a sparse-training method is still one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.inner import masked_update
from sparsejax.layouts import layout_of
from sparsejax.masks import (
    apply_masks,
    choose,
    count_active,
    count_prunable,
    unpack_masks,
)
from sparsejax.masks import sparsity as sparsity_of
from sparsejax.parameters import (
    LayerRule,
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.slots import reset_slots
from sparsejax.topology import TopologyUpdate, no_growth
from sparsejax.trees import (
    check_fit,
    is_left_dense,
    is_placeholder,
    map_masked,
    mask_leaves,
    merge,
)

PyTree = Any


class Memory(NamedTuple):
    """What a method remembers from one step to the next: for most methods, nothing.

    Attributes:
        slots: By name, trees like the masks with what it knows of each weight, such as
            a running mean of gradients; `MemoryRule.observe` renews them at every step.
        scalars: By name, a few scalars; an update of the topology renews them.
    """

    slots: Any = ()
    scalars: Any = ()


class Snapshot(NamedTuple):
    """What a method sees at an update step; one leaf is one layer in all its trees.

    Attributes:
        step: int32 scalar, the number of updates before this one.
        key: PRNG key for this step's random choices.
        masks: The masks in force.
        params: The parameters at this step.
        grads: The dense gradients at this step.
        rules: A `LayerRule` at each prunable leaf, known when the step is compiled.
        memory: What the method remembers, these gradients observed.
    """

    step: jax.Array
    key: jax.Array
    masks: PyTree
    params: PyTree
    grads: PyTree
    rules: PyTree
    memory: Memory = Memory()


class MemoryRule(NamedTuple):
    """How a method's memory starts and what it takes from each step.

    Attributes:
        init: A function (params, rules) -> `Memory`. The slots must be made by mapping
            over the two trees, so that `optax.tree.map_params` finds them.
        observe: A pure function `Snapshot` -> the new `Memory.slots`, called at every
            step, before the topology is updated; a step with a gradient that is not
            finite leaves the slots as they are. It must work weight by weight: stacked
            layers are not taken apart for it. None for slots that stay.
        forgets: Whether the slots start anew after each update step, also after one
            that was left out.
    """

    init: Callable[[PyTree, PyTree], Memory]
    observe: Callable[[Snapshot], Any] | None = None
    forgets: bool = False


class Method(NamedTuple):
    """A sparse-training method: the first masks, when they change, and how.

    Attributes:
        init: A function (key, params, rules) -> masks, where a leaf is a layer.
        update: A pure function `Snapshot` -> `TopologyUpdate`; None for masks that
            never change.
        is_update_step: A function step -> bool; None for never.
        memory: How it remembers; None where a `Snapshot` is all that it needs.
    """

    init: Callable[[jax.Array, PyTree, PyTree], PyTree]
    update: Callable[[Snapshot], TopologyUpdate] | None = None
    is_update_step: Callable[[Any], Any] | None = None
    memory: MemoryRule | None = None


class TopologyFigures(NamedTuple):
    """What the topology is like now and what its last update did.

    Attributes:
        active: int32 scalar, active weights.
        sparsity: float32 scalar, the realised sparsity.
        grown: int32 scalar, weights grown by the last update.
        dropped: int32 scalar, weights that the last update left inactive.
        churn: float32 scalar, the same as a fraction of those active before it.
        updates: int32 scalar, updates made so far.
        skipped: int32 scalar, updates left out so far because a gradient or a weight
            was not finite.
    """

    active: jax.Array
    sparsity: jax.Array
    grown: jax.Array
    dropped: jax.Array
    churn: jax.Array
    updates: jax.Array
    skipped: jax.Array


class SparsifyState(NamedTuple):
    """The state of `sparsify`.

    Attributes:
        step: int32 scalar, updates made so far.
        key: uint32 key data from which random choices are drawn.
        masks: The masks in force; `get_masks` finds them wherever they are nested.
        inner_state: The wrapped optimizer's state.
        figures: Counts to watch; read one with `optax.tree.get(state, "sparsity")`.
        memory: What the method remembers.
    """

    step: jax.Array
    key: jax.Array
    masks: PyTree
    inner_state: PyTree
    figures: TopologyFigures
    memory: Memory


def _all_finite(masks: PyTree, *trees: PyTree) -> jax.Array:
    """Tells whether trees that the masks fit hold neither NaN nor infinity."""
    counts = [jnp.int32(0)]
    for tree in trees:
        # Those with a mask by themselves, as a selection packs them too.
        masked = map_masked(lambda mask, leaf: leaf, masks, tree)
        rest = jax.tree.map(
            lambda mask, leaf: leaf if is_left_dense(mask) else optax.MaskedNode(),
            masks,
            tree,
            is_leaf=is_left_dense,
        )
        for leaves in jax.tree.leaves(masked), jax.tree.leaves(rest):
            for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
                if jnp.issubdtype(dtype, jnp.inexact):
                    counts.append(_count_non_finite(leaves, dtype))
    # Not their sum or maximum: XLA's CPU backend fuses that, with all that it is made
    # of, into whatever depends on it, for each weight. A sort it leaves alone.
    return jnp.sort(jnp.stack(counts))[-1] == 0


def _count_non_finite(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    same = [leaf for leaf in leaves if leaf.dtype == dtype]
    layout = layout_of(same)
    marks = [~jnp.isfinite(array) for array in layout.pack(same)]
    return jnp.max(layout.count_each(marks))


def _first_figures(masks: PyTree) -> TopologyFigures:
    zero = jnp.zeros([], jnp.int32)
    share = jnp.zeros([], jnp.float32)
    if is_placeholder(masks):
        return TopologyFigures(zero, share, zero, zero, share, zero, zero)
    return TopologyFigures(
        count_active(masks), sparsity_of(masks), zero, zero, share, zero, zero
    )


def _figures(
    old: PyTree, update: TopologyUpdate, before: TopologyFigures, sound: Any
) -> TopologyFigures:
    trees = [jax.tree.leaves(tree) for tree in (old, update.kept, update.masks)]
    layout = layout_of(trees[0])
    marks = [
        [active, active & ~kept, mask & ~active]
        for mask, kept, active in zip(*map(layout.pack, trees))
    ]
    active, grown, dropped = jnp.sum(layout.count(marks), axis=1, dtype=jnp.int32)
    return TopologyFigures(
        active=active,
        sparsity=1 - active / count_prunable(old),
        grown=grown,
        dropped=dropped,
        churn=dropped / jnp.maximum(before.active, 1),
        updates=before.updates + jnp.where(sound, 1, 0),
        skipped=before.skipped + jnp.where(sound, 0, 1),
    )


class SparseTransformation(optax.GradientTransformationExtraArgs):
    """What `sparsify` returns: an optax transformation that tells its update steps.

    Attributes:
        is_update_step: A function step -> bool, of a number or an array of them.
    """

    is_update_step: Callable[[Any], Any]


def sparsify(
    inner: optax.GradientTransformation,
    method: Method,
    *,
    prunable: Prunable = None,
    masks: PyTree | None = None,
    seed: int = 0,
) -> SparseTransformation:
    """Wraps an optimizer so that it trains sparsely; the train step stays as it is.

    At step t, `update(grads, state, params)`

    0. lets the method take what it remembers from the gradients, if it does;
    1. lets the method change the masks if t is one of its update steps, from the
       parameters and the dense gradients at t;
    2. masks the gradients and runs the inner optimizer on them;
    3. at an update step resets the optimizer's slots of inactive and newly grown
       weights (`sparsejax.slots`);
    4. returns updates that leave inactive and newly grown weights at exactly 0.0 once
       `optax.apply_updates` has added them. A grown weight takes its first step at
       t + 1, as in the official GraNet and RigL codes.

    It must be outermost where the weights' values are concerned: a transformation
    chained after it can revive pruned weights. `optax.MultiSteps` and
    `optax.apply_if_finite` around it are fine, and then count as its steps only those
    that reach it.

    Whether a step is an update step is decided as it runs. A training loop that knows
    the step number does better with two compiled steps: one of
    `update(grads, state, params, update_topology=False)`, which has nothing of a
    topology update in it, and one of `update_topology=True`, which updates the topology
    whenever it is called, without a conditional around it: that lets a CPU use all its
    cores. `tx.is_update_step(step)` says which one is due. Where the first is called at
    an update step, that update counts as skipped.

    Args:
        inner: Any optax optimizer.
        method: The method; `granet_transform` and its siblings make it for you.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: First masks to start from instead of the method's own.
        seed: Seed of the random masks and of random growth.

    Returns:
        An optax transformation. Its `update` needs `params`, raises ValueError without,
        and hands extra arguments on to `inner`.

    Example:
        >>> import sparsejax as sj
        >>> method = Method(init=lambda key, params, rules: sj.dense_masks(params))
        >>> tx = sparsify(optax.sgd(0.1), method)
        >>> params, state = init_sparse(tx, {"w": jnp.ones((2, 3))})
        >>> updates, state = tx.update({"w": jnp.ones((2, 3))}, state, params)
    """
    inner = optax.with_extra_args_support(inner)
    key_data = jax.random.key_data(jax.random.key(seed))

    def never(step: Any) -> Any:
        return np.zeros(np.shape(step), bool)

    is_update_step_of = method.is_update_step if method.update else None
    is_update_step_of = is_update_step_of or never

    def rules_of(params: PyTree) -> PyTree:
        if masks is None or prunable is not None:
            return layer_rules(params, prunable)
        return map_masked(lambda mask: LayerRule(), masks)

    def first_masks(params: PyTree) -> PyTree:
        if is_placeholder(params):
            return params
        rules = rules_of(params)
        if masks is not None:
            check_fit(masks, params)
            if mask_leaves(masks).keys() != mask_leaves(rules).keys():
                raise ValueError(
                    "masks and prunable must mean the same leaves; got masks for "
                    f"{list(mask_leaves(masks))} and prunable for "
                    f"{list(mask_leaves(rules))}."
                )
            return masks
        key = jax.random.wrap_key_data(key_data)
        split = split_layers(params, rules)
        return join_layers(method.init(key, split, split_rules(rules, params)), rules)

    def first_memory(params: PyTree) -> Memory:
        if method.memory is None:
            return Memory()
        rules = params if is_placeholder(params) else rules_of(params)
        return method.memory.init(params, rules)

    def init_fn(params: PyTree) -> SparsifyState:
        start = first_masks(params)
        masked = params if is_placeholder(params) else apply_masks(params, start)
        return SparsifyState(
            step=jnp.zeros([], jnp.int32),
            key=key_data,
            masks=start,
            inner_state=inner.init(masked),
            figures=_first_figures(start),
            memory=first_memory(params),
        )

    def observe(grads: PyTree, state: SparsifyState, params: PyTree) -> Memory:
        if method.memory is None or method.memory.observe is None:
            return state.memory
        key = jax.random.wrap_key_data(state.key)
        now = Snapshot(
            step=state.step,
            key=jax.random.fold_in(key, state.step),
            masks=state.masks,
            params=params,
            grads=grads,
            rules=rules_of(params),
            memory=state.memory,
        )
        sound = _all_finite(state.masks, grads)
        slots = jax.tree.map(
            lambda new, old: jnp.where(sound & jnp.isfinite(new), new, old),
            method.memory.observe(now),
            state.memory.slots,
        )
        return state.memory._replace(slots=slots)

    def forget(memory: Memory, params: PyTree, is_update_step: jax.Array) -> Memory:
        if method.memory is None or not method.memory.forgets:
            return memory
        slots = jax.tree.map(
            lambda fresh, slot: jnp.where(is_update_step, fresh, slot),
            first_memory(params).slots,
            memory.slots,
        )
        return memory._replace(slots=slots)

    def propose(grads: PyTree, state: SparsifyState, params: PyTree) -> TopologyUpdate:
        rules = rules_of(params)
        key = jax.random.wrap_key_data(state.key)
        slots = {
            name: split_layers(tree, rules)
            for name, tree in dict(state.memory.slots).items()
        }
        snapshot = Snapshot(
            step=state.step,
            key=jax.random.fold_in(key, state.step),
            masks=split_layers(state.masks, rules),
            params=split_layers(params, rules),
            grads=split_layers(grads, rules),
            rules=split_rules(rules, params),
            memory=state.memory._replace(slots=slots),
        )
        assert method.update is not None
        update = method.update(snapshot)
        for name, tree in ("kept", update.kept), ("masks", update.masks):
            for path, mask in mask_leaves(tree).items():
                if mask.dtype != bool:
                    raise ValueError(
                        "a method's update must return TopologyUpdate.of(kept, grown) "
                        f"or no_growth(masks); got {name} of {mask.dtype} at {path!r}."
                    )
        return update._replace(
            kept=join_layers(update.kept, rules), masks=join_layers(update.masks, rules)
        )

    def topology_update(
        grads: PyTree, state: SparsifyState, params: PyTree
    ) -> tuple[TopologyUpdate, TopologyFigures]:
        sound = _all_finite(state.masks, params, grads)
        update = propose(grads, state, params)
        if update.scalars is None:
            update = update._replace(scalars=state.memory.scalars)
        # A conditional, as its result is written to memory: XLA's CPU backend would
        # work an expression out again at each use, and compile it as often.
        update = jax.lax.cond(sound, lambda: update, lambda: unchanged(state))
        return update, _figures(state.masks, update, state.figures, sound)

    def unchanged(state: SparsifyState) -> TopologyUpdate:
        return no_growth(state.masks)._replace(scalars=state.memory.scalars)

    def update_fn(
        updates: PyTree,
        state: SparsifyState,
        params: PyTree | None = None,
        *,
        update_topology: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SparsifyState]:
        grads = updates
        if params is None:
            raise ValueError(
                "params must be given to update, tx.update(grads, state, params): a "
                "sparse step depends on the weights; got None."
            )
        check_fit(state.masks, params)
        check_fit(state.masks, grads, "grads")
        state = state._replace(memory=observe(grads, state, params))
        # Where it is known it must not depend on the step: XLA's CPU backend would work
        # it out again for each weight.
        due = jnp.asarray(update_topology or is_update_step_of(state.step))
        now, figures = unchanged(state), state.figures
        may_change = method.update is not None and update_topology is not False
        if not may_change:
            missed = jnp.where(due, 1, 0)
            figures = figures._replace(skipped=figures.skipped + missed)
        else:

            def change() -> tuple[TopologyUpdate, TopologyFigures]:
                return topology_update(grads, state, params)

            # Only masks and scalars come out of the conditional: parameters, optimizer
            # state or the method's slots would be copied at every ordinary step.
            now, figures = (
                change()
                if update_topology
                else jax.lax.cond(due, change, lambda: (unchanged(state), figures))
            )

        inner_updates, inner_state = masked_update(
            inner, grads, state.inner_state, params, now.kept, **extra_args
        )
        if may_change:
            inner_state = reset_slots(
                inner, inner_state, params, now.kept, now.grown, due
            )
        memory = state.memory._replace(scalars=now.scalars)
        return _to_zero_unless(now.kept, inner_updates, params), SparsifyState(
            step=optax.safe_increment(state.step),
            key=state.key,
            masks=now.masks,
            inner_state=inner_state,
            figures=figures,
            memory=forget(memory, params, due),
        )

    tx = SparseTransformation(init_fn, update_fn)
    tx.is_update_step = is_update_step_of
    return tx


def _to_zero_unless(kept: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Lets kept weights take their update and sends all others to exactly 0."""

    def emit(mask: Any, update: Any, param: Any) -> Any:
        if is_left_dense(mask):
            return update
        # -param must not be rounded to a narrower dtype, or the sum is not exactly 0.
        dtype = jnp.promote_types(update.dtype, param.dtype)
        return choose(mask, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(emit, kept, updates, params, is_leaf=is_left_dense)


def init_sparse(
    tx: optax.GradientTransformation, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Initialises the optimizer state and masks the parameters by it.

    Args:
        tx: A transformation with `sparsify` somewhere in it.
        params: Dense parameters.

    Returns:
        (params, opt_state), the parameters with exact zeros where masks are False.

    Raises:
        ValueError: If there is no `sparsify` in `tx`.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
        >>> params, opt_state = sj.init_sparse(tx, {"w": jnp.ones((4, 4))})
        >>> int(params["w"].sum())
        8
    """
    opt_state = tx.init(params)
    return apply_masks(params, get_masks(opt_state)), opt_state


def get_masks(opt_state: PyTree) -> PyTree:
    """Finds the masks in an optimizer state, wherever they are nested.

    Args:
        opt_state: The state of a transformation with `sparsify` somewhere in it. With
            several, as in `optax.partition`, their masks are put together.

    Returns:
        The mask tree.

    Raises:
        ValueError: If there are no masks, or two for the same leaf.
    """
    is_ours = lambda node: isinstance(node, SparsifyState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_ours)
    found = [unpack_masks(node.masks) for node in nodes if is_ours(node)]
    if not found:
        raise ValueError(
            "opt_state must hold the state of sparsify or of one of the *_transform "
            f"functions; got {type(opt_state).__name__} without any."
        )
    return merge(*found)
