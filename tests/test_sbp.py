"""The rescaling trick, and what the edge of chaos is for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from experiments.configs.edge_of_chaos import get_config
from experiments.edge_of_chaos_study.experiment import run_experiment
from experiments.edge_of_chaos_study.network import empty_layers

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


def test_no_layer_is_pruned_away_on_the_edge_of_chaos():
    sizes = {"width": WIDTH, "examples": 16, "sparsity": 0.95}
    depths = (4, 12, 24)
    on = [empty_layers(2.0, 0.0, depth, 0, **sizes) for depth in depths]
    off = [empty_layers(1.0, 0.25, depth, 0, **sizes) for depth in depths]
    assert on == [0, 0, 0]
    assert off[0] == 0 < off[1] < off[2]


def test_the_study_of_the_edge_writes_its_results(tmp_path):
    config = get_config()
    config.update({"depths": (1, 12), "seeds": (0, 1)})
    run_experiment(config, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = {tuple(row[:4]): row[4] for row in content["rows"]}
    assert len(rows) == 8 and rows[1.0, 0.25, 12, 0] > 0 == rows[2.0, 0.0, 12, 0]
    assert content["summary"][-1]["with_any"] == 1
    assert "(0 of 2)" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "empty_by_depth.png").read_bytes().startswith(b"\x89PNG")
    config.variances = ((0.0, 1.0),)
    with pytest.raises(ValueError, match=r"config\.variances must be different pairs"):
        run_experiment(config, tmp_path)
