"""Top-KAST in the form of the other methods: its weights are the sparse network's.

`sparsejax.top_kast_transform` keeps the dense parameters theta where the weights are,
and the network runs on another tree, alpha. Here theta lives in the optimizer's state
and the weights are alpha, with exact zeros outside A: training, evaluation and reports
need not know which method it is.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj

PyTree = Any


def top_kast_optimizer(
    inner: optax.GradientTransformation, *, update_interval: int, **options: Any
) -> sj.SparseTransformation:
    """Wraps an optimizer with Top-KAST, over weights that are alpha.

    The gradients are those of the loss at alpha; what is outside B is not used. The
    masks of the state are A; `sj.top_kast_masks` finds A and B in it. `update_topology`
    leaves out the metrics of an update here, not the update.

    Example:
        >>> tx = top_kast_optimizer(optax.sgd(0.5), sparsity=0.75,
        ...     backward_sparsity=0.5, update_interval=2, exploration=0.0)
        >>> params, state = sj.init_sparse(tx, jnp.array([[4.0, 3.0], [2.0, 1.0]]))
        >>> params.tolist()
        [[4.0, 0.0], [0.0, 0.0]]
        >>> grads = jnp.array([[4.0, 0.0], [0.0, 0.0]])
        >>> for _ in range(2):  # theta ends at [[0, 3], [2, 1]]
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params.tolist()
        [[0.0, 3.0], [0.0, 0.0]]
    """
    tx = sj.top_kast_transform(inner, update_interval=update_interval, **options)

    def is_update_step(step: Any) -> Any:
        return (step + 1) % update_interval == 0

    def init_fn(params: PyTree) -> sj.SparsifyState:
        state = tx.init(params)
        return sj.SparsifyState(
            step=jnp.zeros([], jnp.int32),
            key=jax.random.key_data(jax.random.key(0)),
            masks=state.forward,
            inner_state=(params, state),
            metrics=_first_metrics(state.forward),
            memory=(),
        )

    def update_fn(
        updates: PyTree,
        state: sj.SparsifyState,
        params: PyTree | None = None,
        *,
        update_topology: bool | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, sj.SparsifyState]:
        theta, inner_state = state.inner_state
        # The outer counter, which `experiments.fit` keeps off the vmapped axis.
        inner_state = inner_state._replace(step=state.step)
        moves, inner_state = tx.update(updates, inner_state, theta, **extra_args)
        theta = optax.apply_updates(theta, moves)
        alpha = sj.apply_masks(theta, inner_state.forward)
        metrics = state.metrics
        if update_topology is not False:
            metrics = jax.lax.cond(
                is_update_step(state.step),
                lambda: _metrics(state, inner_state.forward, params),
                lambda: state.metrics,
            )
        return jax.tree.map(jnp.subtract, alpha, params), state._replace(
            step=optax.safe_increment(state.step),
            masks=inner_state.forward,
            inner_state=(theta, inner_state),
            metrics=metrics,
        )

    sparse = sj.SparseTransformation(init_fn, update_fn)
    sparse.is_update_step = is_update_step
    return sparse


def _first_metrics(masks: PyTree) -> sj.Metrics:
    zero = jnp.zeros([], jnp.int32)
    return sj.Metrics(
        active=sj.count_active(masks),
        sparsity=sj.sparsity(masks),
        grown=zero,
        dropped=zero,
        churn=jnp.zeros([], jnp.float32),
        stray=zero,
        empty=sj.empty_layers(masks),
        updates=zero,
        skipped=zero,
    )


def _metrics(before: sj.SparsifyState, masks: PyTree, params: PyTree) -> sj.Metrics:
    dropped = sj.count_active(sj.difference(before.masks, masks))
    return before.metrics._replace(
        active=sj.count_active(masks),
        sparsity=sj.sparsity(masks),
        grown=sj.count_active(sj.difference(masks, before.masks)),
        dropped=dropped,
        churn=dropped / jnp.maximum(before.metrics.active, 1),
        stray=sj.count_stray(params, before.masks),
        empty=sj.empty_layers(masks),
        updates=before.metrics.updates + 1,
    )
