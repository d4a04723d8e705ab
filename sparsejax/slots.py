"""What an inner optimizer remembers about weights that are inactive or newly grown.

Momentum and other per-weight slots of a pruned weight must not live on: they would move
the weight again when it comes back, or revive it. So at an update step every slot
shaped like its parameter is set back to what `inner.init` gives a weight of 0, for
every optax optimizer, found with `optax.tree.map_params`. In between, an inactive
weight and its gradient are 0, and its momentum and moments stay where they are.

One kind of slot needs more care when a weight grows. Adam divides by the root of a
second moment whose bias correction counts from the start of the run, not from the
growth. Started at 0, it is far too small for many steps: with b1 = 0.9, b2 = 0.999 the
first step of a grown weight is (1 - b1) / sqrt(1 - b2) = 3.2 times, and the steps after
it up to 6.5 times, the learning rate. So a second moment starts from the mean over the
weights of its layer that were kept: a grown weight moves like its neighbours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.trees import is_left_dense

PyTree = Any

# Field names of per-weight second moments in optax's and contrib's states.
SECOND_MOMENTS = frozenset(
    {"nu", "nu_max", "v", "exp_avg_sq", "sum_of_squares", "grad_sum_sq", "e_g", "e_x"}
)


def _fields_by_node(state: PyTree) -> dict[tuple[Any, ...], set[str]]:
    """The field names of every NamedTuple in a state, by the path that leads to it."""
    fields: dict[tuple[Any, ...], set[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_left_dense):
        for depth, key in enumerate(path):
            if isinstance(key, jax.tree_util.GetAttrKey):
                fields.setdefault(path[:depth], set()).add(key.name)
    return fields


def _is_second_moment(field: Any, siblings: set[str]) -> bool:
    # Adan and the simplified AdEMAMix call it n, beside the momentum m; Adan's v is a
    # momentum of differences.
    if {"m", "n"} <= siblings:
        return field == "n"
    return field in SECOND_MOMENTS


def _in_slots(inner: Any, state: PyTree, params_like: PyTree) -> PyTree:
    """Puts the leaves of a params-like tree in the place of the state's slots."""
    return optax.tree.map_params(
        inner,
        lambda slot, leaf: leaf,
        state,
        params_like,
        transform_non_params=lambda _: optax.MaskedNode(),
        is_leaf=is_left_dense,
    )


def reset_slots(
    inner: optax.GradientTransformation,
    state: PyTree,
    params: PyTree,
    kept: PyTree,
    grown: PyTree,
    is_update_step: Any,
) -> PyTree:
    """Forgets what the optimizer knew of weights that are inactive or newly grown.

    Args:
        inner: The optimizer.
        state: Its state after the step.
        params: The parameters, for their shapes and dtypes.
        kept: The weights that are active and were before, a mask tree.
        grown: The weights that have just grown, a mask tree.
        is_update_step: Bool scalar: whether anything can have changed at all.

    Returns:
        At an update step the state with each slot of its weight's shape set back to its
        initial value wherever the weight is not kept; second moments of grown weights
        are set to the mean over the kept weights of the layer. At others the state.
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    initial = inner.init(zeros)
    fields = _fields_by_node(state)
    depths = jax.tree_util.tree_map_with_path(
        lambda path, _: len(path), kept, is_leaf=is_left_dense
    )

    def reset(
        path: tuple[Any, ...], slot: Any, fresh: Any, old: Any, new: Any, depth: Any
    ) -> Any:
        # Factored moments (Adafactor's rows and columns) have shapes of their own and
        # belong to no single weight.
        if is_left_dense(old) or is_left_dense(slot) or slot.shape != old.shape:
            return slot
        slot = jnp.where(old | ~is_update_step, slot, fresh)
        # A slot's path is that of its field and then that of the parameter, whose own
        # names say nothing about the slot.
        field = path[: len(path) - depth]
        name = getattr(field[-1], "name", None) if field else None
        if not _is_second_moment(name, fields.get(field[:-1], set())):
            return slot

        def mean_of_kept() -> jax.Array:
            total = jnp.sum(jnp.where(old, slot, 0), dtype=jnp.float32)
            return (total / jnp.maximum(jnp.sum(old), 1)).astype(slot.dtype)

        mean = jax.lax.cond(
            is_update_step, mean_of_kept, lambda: jnp.zeros([], slot.dtype)
        )
        return jnp.where(new, mean, slot)

    return jax.tree_util.tree_map_with_path(
        reset,
        state,
        initial,
        _in_slots(inner, state, kept),
        _in_slots(inner, state, grown),
        _in_slots(inner, state, depths),
        is_leaf=is_left_dense,
    )
