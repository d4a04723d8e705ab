"""The rescaling trick, and what the edge of chaos is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
WIDTH, DEPTH = 32, 20


def network(weight_variance):
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(0, (weight_variance / WIDTH) ** 0.5, (WIDTH, WIDTH))
    return [draw().astype(np.float32) for _ in range(DEPTH)]


def signals(params, x):
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return x


X = np.random.default_rng(1).normal(size=(16, WIDTH)).astype(np.float32)


def test_rescaling_against_numpy_on_dense_and_convolutional_layers():
    rng = np.random.default_rng(2)
    shapes = {"conv": (3, 3, 4, 6), "dense": (7, 5), "empty": (2, 2)}
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    masks = {n: jnp.asarray(rng.random(s) < 0.3) for n, s in shapes.items()}
    masks["empty"] = jnp.zeros((2, 2), bool)
    params["bias"], masks["bias"] = np.ones(3, np.float32), optax.MaskedNode()
    got = jax.jit(sj.rescale_to_edge_of_chaos)(params, masks)
    for name, inputs in (("conv", 36), ("dense", 7)):
        kept = params[name] * masks[name]
        rho = (2 / (inputs * np.mean(kept**2))) ** 0.5
        np.testing.assert_allclose(got[name], rho * kept, rtol=1e-5)
    np.testing.assert_array_equal(got["empty"], 0)
    np.testing.assert_array_equal(got["bias"], 1)


def test_signals_keep_their_scale_once_rescaled():
    params = network(2.0)
    masks = [
        jnp.asarray(np.random.default_rng(3).random(w.shape) < 0.5) for w in params
    ]
    power = lambda weights: float(jnp.mean(signals(weights, X) ** 2))
    pruned = power(sj.apply_masks(params, masks))
    assert pruned < 1e-3 * power(params)  # a half a layer
    rescaled = power(sj.rescale_to_edge_of_chaos(params, masks))
    assert 0.03 < rescaled / power(params) < 30


def test_a_variance_that_is_none_is_refused():
    with pytest.raises(ValueError, match="weight_variance must be above 0 and finite"):
        sj.rescale_to_edge_of_chaos(jnp.ones((2, 2)), jnp.ones((2, 2), bool), 0.0)
