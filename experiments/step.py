"""The state of training, and one step of training and evaluation.

The same under pmap, jit and a scan. Besides the network a step measures the topology
and the gradient now and then: at topology updates and before evaluations.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax.parameters import kernel_axes
from sparsejax.trees import mask_leaves

PyTree = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that a step reads and changes."""

    # int32 scalar, steps taken; also the position in the input, which is a pure
    # function of the seed and the step.
    step: jax.Array
    params: PyTree  # the weights
    batch_stats: PyTree  # running statistics of batch norm; empty where there are none
    opt_state: PyTree  # the optimizer's state, with masks and the key of random growth
    explored: PyTree  # the union of all masks so far, like the masks: a byte a weight


def first_variables(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> Any:
    """Draws the first weights: "params", and "batch_stats" where there are some."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return model.init(jax.random.key(seed), images, train=False)


def create_state(
    model: nn.Module,
    optimizer: Callable[[PyTree], optax.GradientTransformation],
    image_shape: tuple[int, ...],
    seed: int,
    masks: PyTree = None,
) -> TrainState:
    """Draws the first weights and masks them; `optimizer` is made of the masks."""

    def init(masks: PyTree) -> TrainState:
        variables = first_variables(model, image_shape, seed)
        params, opt_state = sj.init_sparse(optimizer(masks), variables["params"])
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=opt_state,
            explored=sj.get_masks(opt_state),
        )

    # An argument: masks that are constants take XLA long to fold.
    return jax.jit(init)(masks)


def checksum(tree: PyTree) -> jax.Array:
    """Sums up the bits of each leaf in a uint32 that no sharding changes."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
        bits = jax.lax.bitcast_convert_type(leaf, unsigned[leaf.dtype.itemsize])
        position = jnp.zeros(leaf.shape, jnp.uint32)
        for axis in range(leaf.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            position = position * jnp.uint32(leaf.shape[axis]) + index
        # An odd factor for each position: what sums to the same must be the same.
        weighted = bits.astype(jnp.uint32) * (2 * position + 1)
        return jnp.sum(weighted, dtype=jnp.uint32)

    return jnp.stack([of_leaf(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


class Measures(NamedTuple):
    """Measures of one step; arrays have an entry a layer, as `mask_leaves` has them."""

    # float32 scalar, R_s: the share of weights that were ever active.
    itop_rate: jax.Array
    empty_layers: jax.Array  # int32 scalar, layers without an active weight
    active: jax.Array  # int32[layers], active weights
    # float32[layers], the squared norm of the step's gradient over the weights that
    # were active in it, before the topology changed.
    gradient_flow: jax.Array
    dead_units: jax.Array  # int32[layers], output units without an active weight
    dead_inputs: jax.Array  # int32[layers], input units without one


def measure(grads: PyTree, before: PyTree, masks: PyTree, explored: PyTree) -> Measures:
    """Measures the topology after a step, and the gradient that the step was taken by.

    `before` are the masks in force when the gradient was taken.
    """

    def by_layer(counts: PyTree) -> jax.Array:
        return jnp.stack(jax.tree.leaves(counts))

    return Measures(
        itop_rate=sj.itop_rate([explored]),
        empty_layers=sj.empty_layers(masks),
        active=by_layer(sj.count_active(masks, "layer")),
        gradient_flow=by_layer(sj.gradient_flow(grads, before, "layer")),
        dead_units=by_layer(sj.dead_units(masks, "layer")),
        dead_inputs=by_layer(sj.dead_inputs(masks, "layer")),
    )


def named_measures(measures: Measures, masks: PyTree) -> dict[str, float]:
    """Returns measures by the names of the record; of `masks` only shapes matter.

    Those of a layer are "name/path". Active weights become "density", and units a share
    of the layer's, or of all layers'.
    """
    shapes = {path: mask.shape for path, mask in mask_leaves(masks).items()}
    inputs, units = (
        np.array([_units(*layer, side) for layer in shapes.items()]) for side in (0, 1)
    )
    weights = np.array([int(np.prod(shape)) for shape in shapes.values()])

    def share(name: str, counts: Any, of: np.ndarray) -> Mapping[str, float]:
        each = np.asarray(counts) / np.maximum(of, 1)
        return {f"{name}/{path}": float(value) for path, value in zip(shapes, each)}

    def overall(counts: Any, of: np.ndarray) -> float:
        return float(np.sum(counts) / max(np.sum(of), 1))

    flows = np.asarray(measures.gradient_flow, np.float64)
    return {
        "itop_rate": float(measures.itop_rate),
        "gradient_flow": float(flows.sum()),
        "dead_units": overall(measures.dead_units, units),
        "dead_inputs": overall(measures.dead_inputs, inputs),
        "empty_layers": int(measures.empty_layers),
        **share("density", measures.active, weights),
        **{f"gradient_flow/{path}": float(f) for path, f in zip(shapes, flows)},
        **share("dead_units", measures.dead_units, units),
        **share("dead_inputs", measures.dead_inputs, inputs),
    }


def _units(path: str, shape: tuple[int, ...], side: int) -> int:
    """Counts the inputs (side 0) or outputs (side 1) of a layer."""
    if len(shape) < 2:  # it has none; see `sparsejax.dead_units`
        return 0
    return math.prod(shape[axis] for axis in kernel_axes(path, len(shape))[side])


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _measure_if(due: jax.Array, *trees: Any) -> Measures:
    """Measures where it is due; else zeros, which cost nothing."""
    shapes = jax.eval_shape(measure, *trees)

    def nothing() -> Measures:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(due, lambda: measure(*trees), nothing)


def _loss_of(model: nn.Module, label_smoothing: float) -> Callable[..., Any]:
    """Makes (params, batch_stats, batch) -> (loss, (new batch_stats, metrics))."""

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

    return loss_fn


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    *,
    label_smoothing: float,
    accumulation: int,
    axis_name: str | None,
    may_update: bool = True,
    is_measured: Callable[[Any], Any] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes the training step, of "image" float[b, h, w, c] and "label" int[b].

    Gradients are averaged over `accumulation` parts of the batch, taken one after the
    other, and over the devices of `axis_name`. `is_measured` tells of a step number
    whether "measures" are taken; None leaves them out of the program. A program that is
    not `may_update` has nothing of a topology update in it.
    """
    gradient = jax.grad(_loss_of(model, label_smoothing), has_aux=True)

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


def make_eval_step(
    model: nn.Module, *, axis_name: str | None
) -> Callable[[TrainState, Batch], Metrics]:
    """Makes the evaluation step: sums over the examples that have "weight" 1.

    They are "loss", "accuracy", "top5_accuracy" where there are more than five classes,
    and "count".
    """

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        logits = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            batch["image"],
            train=False,
        )
        assert isinstance(logits, jax.Array)
        labels, weight = batch["label"], batch["weight"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        found = {"loss": losses, "accuracy": jnp.argmax(logits, -1) == labels}
        if logits.shape[-1] > 5:
            best = jax.lax.top_k(logits, 5)[1]
            found["top5_accuracy"] = jnp.any(best == labels[:, None], axis=-1)
        sums = {
            name: jnp.sum(each.astype(jnp.float32) * weight)
            for name, each in found.items()
        }
        sums["count"] = jnp.sum(weight)
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return eval_step
