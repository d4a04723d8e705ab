"""What is measured of the topology and the gradient now and then in a run.

At topology updates and before evaluations, never at the steps between.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from sparsejax.parameters import kernel_axes
from sparsejax.trees import mask_leaves

PyTree = Any


class Measures(NamedTuple):
    """The figures of one step; arrays have an entry a layer, as `mask_leaves` has them.

    Attributes:
        itop_rate: float32 scalar, R_s: the share of weights that were ever active.
        empty_layers: int32 scalar, layers without an active weight.
        active: int32[layers], active weights.
        gradient_flow: float32[layers], the squared norm of the step's gradient over the
            weights that were active in it, before the topology changed.
        dead_units: int32[layers], output units without an active weight.
        dead_inputs: int32[layers], input units without one.
    """

    itop_rate: jax.Array
    empty_layers: jax.Array
    active: jax.Array
    gradient_flow: jax.Array
    dead_units: jax.Array
    dead_inputs: jax.Array


def measure(grads: PyTree, before: PyTree, masks: PyTree, explored: PyTree) -> Measures:
    """Measures the topology after a step, and the gradient that the step was taken by.

    Args:
        grads: The step's gradients, averaged over the batch and the devices.
        before: The masks in force when they were taken.
        masks: The masks after the step.
        explored: The union of all masks so far.

    Returns:
        The figures.
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


def named(measures: Measures, masks: PyTree) -> dict[str, float]:
    """Gives the figures the names that they have in a record.

    Args:
        measures: Figures, on the host.
        masks: The masks; only their shapes matter.

    Returns:
        Overall figures by name, and those of a layer by "name/path". Active weights
        become "density", and units a share of the layer's, or of all layers'.
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
    """How many inputs (side 0) or outputs (side 1) a layer has."""
    if len(shape) < 2:  # it has none; see `sparsejax.dead_units`
        return 0
    return math.prod(shape[axis] for axis in kernel_axes(path, len(shape))[side])
