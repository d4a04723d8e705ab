"""Consensus sub-networks: gates' gradients, and penalties that make them agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

rng = np.random.default_rng(0)
LOGITS = {
    n: rng.normal(size=(32, u)).astype(np.float32) for n, u in (("a", 6), ("b", 4))
}


def gates_of(logits):
    return jax.tree.map(sj.binary_gate, logits)


def test_gates_are_binary_with_the_slope_of_a_sigmoid():
    gates = sj.binary_gate(jnp.asarray(LOGITS["a"]))
    np.testing.assert_array_equal(gates, LOGITS["a"] > 0)
    slope = jax.grad(lambda z: sj.binary_gate(z).sum())(LOGITS["a"])
    sigmoid = 1 / (1 + np.exp(-LOGITS["a"]))
    np.testing.assert_allclose(slope, sigmoid * (1 - sigmoid), rtol=1e-5)


def test_penalties_are_the_formulas():
    shares = np.concatenate([(LOGITS[n] > 0).mean(0) for n in LOGITS])
    gates = gates_of(LOGITS)
    polarization = np.mean(shares * (1 - shares))
    np.testing.assert_allclose(sj.polarization_penalty(gates), polarization, rtol=1e-5)
    wanted = abs(shares.mean() - 0.3)
    np.testing.assert_allclose(sj.activation_penalty(gates, 0.3), wanted, rtol=1e-5)
    votes = sj.consensus(gates)
    np.testing.assert_array_equal(votes["a"], (LOGITS["a"] > 0).mean(0) > 0.5)


def test_descent_on_the_penalties_makes_gates_agree_at_the_target():
    def penalty(logits):
        gates = gates_of(logits)
        return sj.polarization_penalty(gates) + sj.activation_penalty(gates, 0.5)

    def step(logits, _):
        slopes = jax.grad(penalty)(logits)
        return jax.tree.map(lambda z, g: z - 20 * g, logits, slopes), None

    before = sj.polarization_penalty(gates_of(LOGITS))
    run = jax.jit(lambda z: jax.lax.scan(step, z, length=1000)[0])
    gates = gates_of(run(LOGITS))
    assert before > 0.2 and sj.polarization_penalty(gates) < 0.02
    assert sj.activation_penalty(gates, 0.5) <= 0.1


def test_what_are_no_gates_is_refused():
    with pytest.raises(ValueError, match=r"gates must hold arrays of shape \[batch"):
        sj.consensus({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="target must be in"):
        sj.activation_penalty(jnp.ones((2, 3)), 1.5)


def test_removed_units_leave_the_function_of_the_rest():
    units = {"hidden": np.array([True, False, True, True, False, False])}
    # Two positions of six channels, flattened, are read by the last layer.
    params = {"in": rng.normal(size=(5, 6)), "out": rng.normal(size=(12, 3))}
    small = sj.remove_units(params, units, {"hidden": {"in": -1, "out": 0}})
    assert small["in"].shape == (5, 3) and small["out"].shape == (6, 3)
    x = rng.normal(size=(4, 2, 5))
    large = np.tanh(x @ params["in"]) * units["hidden"]
    expected = large.reshape(4, -1) @ params["out"]
    got = np.tanh(x @ small["in"]).reshape(4, -1) @ small["out"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("units", "axes", "message"),
    [
        ([0, 0], {"a": {"w": 0}}, "none in 'a'"),
        ([1, 0], {"b": {"w": 0}}, r"units must be of the layers of axes, \['b'\]"),
        ([1, 0], {"a": {"v": 0}}, "axes of 'a' must name leaves of params; got 'v'"),
        ([1, 0], {"a": {"w": 1}}, "axis 1 of 'w' must be a multiple of the 2 units"),
    ],
)
def test_units_that_cannot_be_removed_are_refused(units, axes, message):
    with pytest.raises(ValueError, match=message):
        sj.remove_units({"w": jnp.ones((2, 3))}, {"a": np.array(units, bool)}, axes)
