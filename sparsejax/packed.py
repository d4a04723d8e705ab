"""Masks in the optimizer state at one bit a weight instead of one byte."""

from typing import Any

import jax

from sparsejax.masks import is_packed, pack_masks, unpack_masks
from sparsejax.transform import SparseTransformation, SparsifyState
from sparsejax.trees import is_placeholder

PyTree = Any


def with_packed_masks(tx: SparseTransformation) -> SparseTransformation:
    """Keeps the masks of a wrapped optimizer packed between its steps.

    Each step unpacks them where it reads them, and packs them again only where the
    topology has changed. Everything else stays as it is: `get_masks` unpacks, the
    weights and the masks are the same to the bit. It saves 7/8 of a byte a weight of
    the state and its checkpoints; `benchmarks/update.py` shows what a step costs.

    The bits of a mask are one row in memory. Over parameters that are sharded they are
    not: keep bytes there.

    Args:
        tx: What `sparsify` or one of the `*_transform` functions returns.

    Returns:
        The same with packed masks in its state.

    Raises:
        ValueError: If `tx` is something else, such as an `optax.chain` with one in it;
            pack before chaining.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> import sparsejax as sj
        >>> tx = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
        >>> params, state = sj.init_sparse(with_packed_masks(tx), jnp.ones((4, 4)))
        >>> state.masks.bits.shape, int(params.sum())
        ((2,), 8)
    """
    if not isinstance(tx, SparseTransformation):
        raise ValueError(
            "tx must be what sparsify or a *_transform function returns, before it is "
            f"chained; got {type(tx).__name__}."
        )

    def init_fn(params: PyTree) -> SparsifyState:
        state = tx.init(params)
        if is_placeholder(params):
            return state
        return state._replace(masks=pack_masks(state.masks))

    def update_fn(
        updates: PyTree,
        state: SparsifyState,
        params: PyTree | None = None,
        *,
        update_topology: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SparsifyState]:
        if not any(map(is_packed, jax.tree.leaves(state.masks, is_leaf=is_packed))):
            raise ValueError(
                "state must have packed masks, as with_packed_masks(tx).init makes it; "
                "got plain ones."
            )
        plain = state._replace(masks=unpack_masks(state.masks, params))
        updates, after = tx.update(
            updates, plain, params, update_topology=update_topology, **extra_args
        )
        packed = jax.tree.leaves(state.masks)
        if update_topology is not False:
            packed = jax.lax.cond(
                update_topology or tx.is_update_step(state.step),
                lambda: jax.tree.leaves(pack_masks(after.masks)),
                lambda: packed,
            )
        like: Any = jax.tree.structure(state.masks)
        return updates, after._replace(masks=like.unflatten(packed))

    packed_tx = SparseTransformation(init_fn, update_fn)
    packed_tx.is_update_step = tx.is_update_step
    return packed_tx
