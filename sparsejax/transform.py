"""The one wrapper: an optax optimizer with a sparse-training method is still one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.chain import Element, ElementLike, chain, updated
from sparsejax.checks import check_seed
from sparsejax.counts import count_each, total_of, value_at, wide
from sparsejax.masks import (
    apply_masks,
    arrays,
    count_prunable,
    unpack_masks,
)
from sparsejax.parameters import (
    Prunable,
    axis_rules,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.scores import Context
from sparsejax.slots import check_slots, reset_slots
from sparsejax.topology import count_by_layer
from sparsejax.trees import (
    bool_leaves,
    fit,
    is_float,
    is_left_dense,
    is_placeholder,
    map_masked,
    mask_leaves,
    merge,
    own_buffers,
)

PyTree = Any


class Method(NamedTuple):
    """A sparse-training method: the first masks, how they change, and when.

    Attributes:
        first: A function (key, params, rules) -> masks, where a leaf is a layer, such
            as `dense_start` or `random_start(0.9, "erk")`.
        update: An element or a `chain` of elements; None for masks that never change.
        when: A function step -> bool, the steps at which masks change; None for never.
    """

    first: Callable[[jax.Array, PyTree, PyTree], PyTree]
    update: ElementLike | None = None
    when: Callable[[Any], Any] | None = None


class Metrics(NamedTuple):
    """What the topology is like now and what its last update did.

    Attributes:
        active: Active weights, an int32 scalar; uint32 for 2^31 prunable weights or
            more, float32 from 2^32 on.
        sparsity: float32 scalar, the realized sparsity.
        grown: New weights of the last update, those that restarted among them, as
            `active`.
        dropped: Weights that were active before it and did not go on, as `active`.
        churn: float32 scalar, the same as a fraction of those active before it.
        stray: Weights outside the masks that were not 0 when it was last looked, as
            `active`: at updates, and, but with `update_topology=False`, at steps 0, 1,
            2, 4, 8, ... and each hundredth. More than 0 after step 0 means that
            something trains them after the optimizer.
        empty: int32 scalar, layers without any active weight: nothing passes through.
        updates: int32 scalar, updates made so far.
        skipped: int32 scalar, updates left out so far because a gradient, a weight or
            a setting was not finite.
    """

    active: jax.Array
    sparsity: jax.Array
    grown: jax.Array
    dropped: jax.Array
    churn: jax.Array
    stray: jax.Array
    empty: jax.Array
    updates: jax.Array
    skipped: jax.Array


class SparsifyState(NamedTuple):
    """The state of `sparsify`.

    Attributes:
        step: int32 scalar, updates made so far.
        key: uint32 key data from which random choices are drawn.
        masks: The masks in force; `get_masks` finds them wherever they are nested.
        inner_state: The wrapped optimizer's state.
        metrics: Counts to watch; read one with `optax.tree.get(state, "sparsity")`.
        memory: What each element of the method's chain remembers.
    """

    step: jax.Array
    key: jax.Array
    masks: PyTree
    inner_state: PyTree
    metrics: Metrics
    memory: tuple[PyTree, ...]


class SparseTransformation(optax.GradientTransformationExtraArgs):
    """What `sparsify` returns: an optax transformation that knows its update steps.

    Attributes:
        is_update_step: A function step -> bool.
    """

    is_update_step: Callable[[Any], Any]


class _Change(NamedTuple):
    """What a step does to the masks: which weights go on, and which are active."""

    kept: PyTree
    masks: PyTree
    memory: dict[int, PyTree]
    metrics: Metrics


def _all_finite(*trees: PyTree) -> jax.Array:
    """Returns whether trees hold neither NaN nor infinity."""
    leaves = filter(is_float, jax.tree.leaves(trees))
    return jnp.all(count_each([[~jnp.isfinite(leaf)] for leaf in leaves]) == 0)


def _first_metrics(masks: PyTree) -> Metrics:
    zero, share = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32)
    if is_placeholder(masks):
        return Metrics(zero, share, zero, zero, share, zero, zero, zero, zero)
    counts, size = count_by_layer(masks), count_prunable(masks)
    none, active = total_of(0 * counts, size), total_of(counts, size)
    return Metrics(
        active,
        1 - active / np.float32(size),
        none,
        none,
        share,
        none,
        jnp.sum(counts == 0),
        zero,
        zero,
    )


def _new_metrics(kept: PyTree, new: PyTree, before: Metrics, sound: Any) -> Metrics:
    # Counts of masks alone: a program has the kernels for that already.
    counts, went_on = count_by_layer(new), count_by_layer(kept)
    size = count_prunable(new)
    active, grown = total_of(counts, size), total_of(counts - went_on, size)
    dropped = before.active - total_of(went_on, size)
    return before._replace(
        active=active,
        sparsity=1 - active / np.float32(size),
        grown=grown,
        dropped=dropped,
        churn=dropped / jnp.maximum(before.active, 1),
        empty=jnp.sum(counts == 0, dtype=jnp.int32),
        updates=before.updates + jnp.where(sound, 1, 0),
        skipped=before.skipped + jnp.where(sound, 0, 1),
    )


def _with_stray(metrics: Metrics, ctx: Context) -> Metrics:
    """Counts weights outside the masks that are not 0, which takes a pass."""
    stray = map_masked(lambda mask, w: ~mask & (w != 0), ctx.masks, ctx.params)
    return metrics._replace(
        stray=total_of(count_by_layer(stray), count_prunable(ctx.masks))
    )


def _run(
    elements: tuple[Element, ...], ctx: Context
) -> tuple[PyTree, PyTree, dict[int, PyTree]]:
    """Runs a chain: what goes on is active before it and after each element."""
    masks = kept = ctx.masks
    changed = {}
    for i, (element, memory) in enumerate(zip(elements, ctx.memory)):
        masks = element.apply(ctx._replace(masks=masks, memory=memory))
        if element.changes_memory:
            masks, changed[i] = masks
        bool_leaves(masks)
        kept = map_masked(jnp.logical_and, kept, masks)
    return kept, masks, changed


def _run_by_layer(
    elements: tuple[Element, ...], ctx: Context
) -> tuple[PyTree, PyTree, dict[int, PyTree]]:
    """Runs a chain with stacked layers taken apart: one leaf for each layer."""
    rules = ctx.rules
    like: Any = jax.tree.structure(ctx.masks)

    def is_tree(node: Any) -> bool:
        return jax.tree.structure(node) == like

    def split_memory(node: Any) -> Any:
        return split_layers(node, rules) if is_tree(node) else node

    split = ctx._replace(
        masks=split_layers(ctx.masks, rules),
        before=split_layers(ctx.before, rules),
        params=split_layers(ctx.params, rules),
        grads=split_layers(ctx.grads, rules),
        rules=split_rules(rules, ctx.params),
        memory=jax.tree.map(split_memory, ctx.memory, is_leaf=is_tree),
    )
    kept, masks, changed = _run(elements, split)
    return join_layers(kept, rules), join_layers(masks, rules), changed


def _emit(kept: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Lets weights that go on take their update and sends all others to exactly 0."""

    def at_leaf(mask: Any, update: Any, param: Any) -> Any:
        if is_left_dense(mask):
            return update
        # -param must not be rounded to a narrower dtype, or the sum is not exactly 0.
        dtype = jnp.promote_types(update.dtype, param.dtype)
        return jnp.where(mask, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(at_leaf, kept, updates, params, is_leaf=is_left_dense)


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

    0. lets the method's elements renew what they remember of the gradients;
    1. runs the method's chain if t is one of its update steps, on the parameters and
       the dense gradients at t;
    2. masks gradients and parameters, and resets the optimizer's state of weights that
       do not go on (`sparsejax.slots`);
    3. runs the inner optimizer;
    4. returns updates that leave inactive and new weights at exactly 0.0 once
       `optax.apply_updates` has added them. A new weight takes its first step at t + 1,
       as in the official GraNet and RigL codes.

    It must be outermost where the weights' values are concerned: a transformation
    chained after it can train pruned weights. The state's metric "stray" counts them,
    and `sparsejax.check` raises. `optax.MultiSteps` and `optax.apply_if_finite` around
    it are fine, and then count as its steps only those that reach it.

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
        seed: Seed of the random masks and of random growth; may be traced.

    Returns:
        An optax transformation. Its `update` needs `params`, raises ValueError without,
        and hands extra arguments on to `inner`.

    Raises:
        ValueError: If `inner` is no optimizer or the seed no integer.

    Example:
        >>> import sparsejax as sj
        >>> method = sj.Method(sj.dense_start, sj.prune(sj.scores.magnitude, to=0.5),
        ...                    when=sj.every(10))
        >>> tx = sj.sparsify(optax.sgd(0.1), method)
        >>> params, state = sj.init_sparse(tx, {"w": jnp.ones((2, 3))})
        >>> updates, state = tx.update({"w": jnp.ones((2, 3))}, state, params)
    """
    check_transformation("inner", inner)
    check_seed(seed)
    inner = optax.with_extra_args_support(inner)
    elements = () if method.update is None else chain(method.update)

    def never(step: Any) -> Any:
        return np.zeros(np.shape(step), bool)

    when = (method.when if elements else None) or never

    rules_at: dict[Any, PyTree] = {}

    def rules_of(params: PyTree) -> PyTree:
        # They depend on paths and shapes alone: found once, not at every update.
        shapes = tuple(getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params))
        like = jax.tree.structure(params), shapes
        if like not in rules_at:
            told = masks is None or prunable is not None
            rules_at[like] = (
                layer_rules(params, prunable)
                if told
                else axis_rules(fit(masks, params))
            )
        return rules_at[like]

    def first_masks(params: PyTree) -> PyTree:
        rules = rules_of(params)

        def first(params: PyTree) -> PyTree:
            split, layers = split_layers(params, rules), split_rules(rules, params)
            return join_layers(method.first(jax.random.key(seed), split, layers), rules)

        if masks is None:
            return first(params)
        jax.eval_shape(first, arrays(params))  # raises what does not fit the method
        given = fit(masks, params)
        if mask_leaves(given).keys() != mask_leaves(rules).keys():
            raise ValueError(
                "masks and prunable must mean the same leaves; got masks for "
                f"{list(mask_leaves(given))} and prunable for "
                f"{list(mask_leaves(rules))}."
            )
        return given

    def init_fn(params: PyTree) -> SparsifyState:
        if is_placeholder(params):
            first = masked = rules = params
        else:
            first, rules = first_masks(params), rules_of(params)
            masked = apply_masks(params, first)
        inner_state = inner.init(masked)
        if elements and not is_placeholder(params):
            check_slots(inner, inner_state, first)
        state = SparsifyState(
            step=jnp.zeros([], jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            masks=first,
            inner_state=inner_state,
            metrics=_first_metrics(first),
            memory=tuple(element.init(params, rules) for element in elements),
        )
        return own_buffers(state, others=(params, masks))

    def context(grads: PyTree, state: SparsifyState, params: PyTree) -> Context:
        key = jax.random.wrap_key_data(state.key)
        return Context(
            step=state.step,
            key=jax.random.fold_in(key, state.step),
            masks=state.masks,
            params=params,
            grads=grads,
            rules=rules_of(params),
            when=when,
            before=state.masks,
            memory=state.memory,
        )

    def observe(ctx: Context) -> tuple[PyTree, ...]:
        """Renews what elements remember, unless a gradient is not finite."""
        if not any(element.update for element in elements):
            return ctx.memory
        sound = _all_finite(ctx.grads)
        return jax.tree.map(
            lambda new, old: jnp.where(sound & jnp.isfinite(new), new, old),
            tuple(
                updated(element, ctx._replace(memory=memory))
                for element, memory in zip(elements, ctx.memory)
            ),
            ctx.memory,
        )

    def unchanged(ctx: Context, metrics: Metrics) -> _Change:
        memory = {
            i: ctx.memory[i] for i, part in enumerate(elements) if part.changes_memory
        }
        return _Change(ctx.masks, ctx.masks, memory, metrics)

    def change(ctx: Context, metrics: Metrics) -> _Change:
        """Runs the chain; what is not finite leaves everything as it is."""
        stacked = any(rule.stacked for rule in jax.tree.leaves(ctx.rules))
        kept, new, memory = (_run_by_layer if stacked else _run)(elements, ctx)
        with wide():
            settings = [value_at(s, ctx.step) for e in elements for s in e.settings]
            known = jnp.all(jnp.isfinite(jnp.stack([*settings, 0.0])))
        sound = _all_finite(ctx.params, ctx.grads) & known
        found = _Change(kept, new, memory, metrics)
        # A conditional, as its result is written to memory: XLA's CPU backend would
        # compute an expression again at each use, and compile it as often.
        found = jax.lax.cond(sound, lambda: found, lambda: unchanged(ctx, metrics))
        return found._replace(
            metrics=_new_metrics(found.kept, found.masks, metrics, sound)
        )

    def update_fn(
        updates: PyTree,
        state: SparsifyState,
        params: PyTree | None = None,
        *,
        update_topology: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SparsifyState]:
        _check_update(state, params, elements)
        grads = updates
        state = state._replace(masks=fit(state.masks, params))
        fit(state.masks, grads, "grads")
        ctx = context(grads, state, params)
        ctx = ctx._replace(memory=observe(ctx))
        # Where it is known it must not depend on the step: XLA's CPU backend would
        # compute it again for each weight.
        due = jnp.asarray(update_topology or when(state.step))
        metrics = state.metrics
        may_change = bool(elements) and update_topology is not False

        def look() -> Metrics:
            return _with_stray(metrics, ctx)

        if update_topology is False:
            skipped = metrics.skipped + jnp.where(due, 1, 0)
            now = unchanged(ctx, metrics._replace(skipped=skipped))
        elif update_topology and may_change:
            now = change(ctx, look())
        else:
            # Weights outside the masks are looked for seldom. One conditional of both:
            # XLA would copy the parameters for a second one, as nothing orders it
            # before the step that overwrites them.
            step = state.step
            looks = (step & (step - 1) == 0) | (step % 100 == 0)
            cases = [lambda: unchanged(ctx, metrics), lambda: unchanged(ctx, look())]
            case = jnp.where(looks, 1, 0)
            if may_change:
                cases.append(lambda: change(ctx, look()))
                case = jnp.where(due, 2, case)
            now = jax.lax.switch(case, cases)
        inner_state = state.inner_state
        if may_change:
            inner_state = reset_slots(
                inner, inner_state, params, now.kept, now.masks, due
            )
        inner_updates, inner_state = inner.update(
            apply_masks(grads, now.kept),
            inner_state,
            apply_masks(params, now.kept),
            **extra_args,
        )
        return _emit(now.kept, inner_updates, params), SparsifyState(
            step=optax.safe_increment(state.step),
            key=state.key,
            masks=now.masks,
            inner_state=inner_state,
            metrics=now.metrics,
            memory=tuple(now.memory.get(i, old) for i, old in enumerate(ctx.memory)),
        )

    tx = SparseTransformation(init_fn, update_fn)
    tx.is_update_step = when
    return tx


def check_transformation(name: str, tx: Any) -> None:
    """Raises unless something is an optax transformation.

    Args:
        name: The argument's name, for the message.
        tx: What was got.

    Raises:
        ValueError: If it has no init and update.
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise ValueError(
            f"{name} must be an optax transformation, such as optax.sgd(0.1); got "
            f"{tx if isinstance(tx, type) or callable(tx) else type(tx).__name__}."
        )


def _check_update(state: Any, params: Any, elements: tuple[Element, ...]) -> None:
    """Raises unless an update is given what it needs."""
    if params is None:
        raise ValueError(
            "params must be given to update, tx.update(grads, state, params): a sparse "
            "step depends on the weights; got None."
        )
    if not isinstance(state, SparsifyState) or len(state.memory) != len(elements):
        raise ValueError(
            "state must be what this transformation's init returned; got "
            f"{type(state).__name__}"
            + (" of another method." if isinstance(state, SparsifyState) else ".")
        )


def init_sparse(
    tx: optax.GradientTransformation, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Initializes the optimizer state and masks the parameters by it.

    Args:
        tx: A transformation with `sparsify` somewhere in it.
        params: Dense parameters.

    Returns:
        (params, opt_state), the parameters with exact zeros where masks are False. They
        share no buffer with each other or with the parameters given: all can be
        donated.

    Raises:
        ValueError: If there is no `sparsify` in `tx`.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
        >>> params, opt_state = sj.init_sparse(tx, {"w": jnp.ones((4, 4))})
        >>> int(params["w"].sum())
        8
    """
    check_transformation("tx", tx)
    opt_state = tx.init(params)
    sparse = apply_masks(params, get_masks(opt_state, params))
    return own_buffers(sparse, others=(params, opt_state)), opt_state


def get_masks(opt_state: PyTree, params: PyTree | None = None) -> PyTree:
    """Returns the masks in an optimizer state, wherever they are nested.

    Args:
        opt_state: The state of a transformation with `sparsify` somewhere in it. With
            several, as in `optax.partition`, their masks are merged.
        params: The parameters: the masks come on their structure, which may be another,
            as `nnx.Optimizer` wraps what it keeps. None leaves it as it is.

    Returns:
        The mask tree.

    Raises:
        ValueError: If there are no masks, or two for the same leaf.
    """
    is_ours = lambda node: isinstance(node, SparsifyState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_ours)
    found = [unpack_masks(node.masks, params) for node in nodes if is_ours(node)]
    if not found:
        raise ValueError(
            "opt_state must hold the state of sparsify or of one of the *_transform "
            f"functions; got {type(opt_state).__name__} without any."
        )
    masks = merge(*found)
    return masks if params is None else fit(masks, params)
