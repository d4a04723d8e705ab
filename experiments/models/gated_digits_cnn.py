"""The network for the digits with a gate at each unit, and without those that are off.

Its variables may have three collections:

    params    those of `DigitsCNN`, and the gates' own under gate_LAYER
    gates     where it is mutable, the gates of each input, [batch, units] a layer
    units     where it is given, gates in place of those, [units] a layer
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sparsejax as sj
from experiments.models.digits_cnn import LAYERS, DigitsCNN

PyTree = Any

# Where the units of each layer lie in the weights.
AXES: Mapping[str, Mapping[str, int]] = {
    "conv1": {"conv1/kernel": -1, "conv1/bias": 0, "conv2/kernel": -2},
    "conv2": {
        "conv2/kernel": -1,
        "conv2/bias": 0,
        "GroupNorm_0/scale": 0,
        "GroupNorm_0/bias": 0,
        "conv3/kernel": -2,
    },
    "conv3": {
        "conv3/kernel": -1,
        "conv3/bias": 0,
        "GroupNorm_1/scale": 0,
        "GroupNorm_1/bias": 0,
        "hidden/kernel": 0,
    },
    "hidden": {
        "hidden/kernel": 1,
        "hidden/bias": 0,
        "GroupNorm_2/scale": 0,
        "GroupNorm_2/bias": 0,
        "output/kernel": 0,
    },
}


class UnitGates(nn.Module):
    """Opens or shuts the units of a layer by what the layer reads.

    Channels are averaged over positions, a single one is read whole; then come a
    normalization without weights and one dense layer. That is our choice: the paper's
    module was not found.
    """

    units: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns gates of 1 or 0, [batch, units]; see `sparsejax.binary_gate`."""
        if inputs.shape[-1] > 1:
            features = jnp.mean(inputs, axis=tuple(range(1, inputs.ndim - 1)))
        else:
            features = inputs.reshape(len(inputs), -1)
        norm = nn.LayerNorm(use_scale=False, use_bias=False)
        return sj.binary_gate(nn.Dense(self.units)(norm(features)))


class GatedDigitsCNN(DigitsCNN):
    """`DigitsCNN` with units that each input turns on and off."""

    def gates(self, layer: str, inputs: jax.Array, units: int) -> jax.Array:
        """Returns the gates: those of the collection "units", or by the inputs."""
        if self.has_variable("units", layer):
            fixed: jax.Array = self.get_variable("units", layer)
            return fixed.astype(inputs.dtype)
        gates: jax.Array = UnitGates(units, name=f"gate_{layer}")(inputs)
        if self.is_mutable_collection("gates"):
            self.put_variable("gates", layer, gates)
        return gates


def without_gates(params: PyTree) -> PyTree:
    """Returns the "params" of a `GatedDigitsCNN` without the gates' own."""
    return {name: params[name] for name in params if not name.startswith("gate_")}


def static_network(
    params: PyTree, units: Mapping[str, jax.Array]
) -> tuple[DigitsCNN, PyTree]:
    """Returns a smaller network and its "params", without gates and units that are off.

    It gives the logits that the large one gives with these units, bool[units] a layer.
    """
    kept = without_gates(params)
    small = sj.remove_units(kept, units, AXES)
    widths = tuple(len(small[layer]["bias"]) for layer in LAYERS)
    return DigitsCNN(classes=len(small["output"]["bias"]), widths=widths), small
