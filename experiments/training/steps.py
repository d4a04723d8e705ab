"""One training step and one evaluation step, the same under pmap, jit and a scan."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from experiments.training.measures import Measures, measure
from experiments.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[TrainState, Batch], Metrics]


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _measure_if(due: jax.Array, *trees: Any) -> Measures:
    """Measures where it is due; else zeros, which cost nothing."""
    shapes = jax.eval_shape(measure, *trees)

    def nothing() -> Measures:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(due, lambda: measure(*trees), nothing)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    *,
    label_smoothing: float,
    accumulation: int,
    axis_name: str | None,
    may_update: bool = True,
    is_measured: Callable[[Any], Any] | None = None,
) -> TrainStep:
    """Makes the training step.

    Args:
        model: Maps (images, train) to logits.
        tx: The optimizer.
        label_smoothing: The share of each target spread over all classes, in [0, 1).
        accumulation: Gradients are averaged over this many parts of the batch, taken
            one after the other, before the optimizer's one step.
        axis_name: The mapped axis over which gradients are averaged; None where the
            step sees the whole batch.
        may_update: Whether the step may be one at which the topology changes.
        is_measured: A function of the step number: whether its `Measures` are taken.
            None leaves them out of the compiled step, and `explored` as it was.

    Returns:
        (state, batch) -> (state, metrics), with "image" float[batch, h, w, c] and
        "label" int[batch] in the batch, and "loss" and "accuracy" in the metrics; with
        `is_measured` also "measures", zeros where they are not taken.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        smooth = optax.smooth_labels(targets, label_smoothing)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, smooth))
        hits = jnp.mean(jnp.argmax(logits, -1) == batch["label"], dtype=jnp.float32)
        return loss, (updated.get("batch_stats", {}), {"loss": loss, "accuracy": hits})

    gradient = jax.grad(loss_fn, has_aux=True)

    def accumulate(state: TrainState, batch: Batch) -> tuple[Any, tuple[Any, Metrics]]:
        if accumulation == 1:
            return gradient(state.params, state.batch_stats, batch)
        parts = jax.tree.map(
            lambda x: x.reshape(accumulation, -1, *x.shape[1:]), dict(batch)
        )

        def add(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], Metrics]:
            total, batch_stats = carry
            grads, (batch_stats, metrics) = gradient(state.params, batch_stats, part)
            return (jax.tree.map(jnp.add, total, grads), batch_stats), metrics

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (total, batch_stats), each = jax.lax.scan(
            add, (zeros, state.batch_stats), parts
        )
        grads = jax.tree.map(lambda g: g / accumulation, total)
        return grads, (batch_stats, jax.tree.map(jnp.mean, each))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, (batch_stats, metrics) = accumulate(state, batch)
        # Every device must come to the same state: running statistics are averaged too.
        grads, batch_stats, metrics = _mean_over_devices(
            (grads, batch_stats, metrics), axis_name
        )
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            update_topology=None if may_update else False,
        )
        explored = state.explored
        if is_measured is not None:
            before, masks = sj.get_masks(state.opt_state), sj.get_masks(opt_state)
            explored = sj.union(explored, masks)
            due = jnp.asarray(is_measured(state.step))
            metrics["measures"] = _measure_if(due, grads, before, masks, explored)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            explored=explored,
        )
        return state, metrics

    return train_step


def make_eval_step(model: nn.Module, *, axis_name: str | None) -> EvalStep:
    """Makes the evaluation step.

    Args:
        model: Maps (images, train) to logits.
        axis_name: The mapped axis over which results are summed, or None.

    Returns:
        (state, batch) -> sums of "loss", "accuracy" and "count" over the examples of
        the batch that have "weight" 1 (0 marks what pads the last batch).
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        logits = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            batch["image"],
            train=False,
        )
        assert isinstance(logits, jax.Array)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        weight = batch["weight"]
        sums = {
            "loss": jnp.sum(losses * weight),
            "accuracy": jnp.sum(hits * weight),
            "count": jnp.sum(weight),
        }
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
