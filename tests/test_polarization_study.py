"""The network with gates, what is left without them, and the study at toy size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

import sparsejax as sj
from experiments import polarization, study
from experiments.configs.polarization_digits import get_config
from experiments.models.digits_cnn import LAYERS, DigitsCNN
from experiments.models.gated_digits_cnn import (
    GatedDigitsCNN,
    static_network,
    without_gates,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = GatedDigitsCNN()
rng = np.random.default_rng(0)
IMAGES = rng.uniform(-1, 1, size=(6, 8, 8, 1)).astype(np.float32)
UNITS = {
    layer: rng.permutation(np.arange(width) < 0.4 * width)
    for layer, width in zip(LAYERS, MODEL.widths)
}


@jax.jit  # one program for all tests, and the next
def at(params):
    """(logits, gates, slopes of the squared logits)."""

    def energy(params):
        logits, state = MODEL.apply({"params": params}, IMAGES, mutable=["gates"])
        return jnp.sum(logits**2), (logits, state["gates"])

    slopes, (logits, gates) = jax.grad(energy, has_aux=True)(params)
    return logits, gates, slopes


@jax.jit
def logits_with(params, units):
    return MODEL.apply({"params": params, "units": units}, IMAGES)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes
    )


def with_bias(params, layer, bias):
    """With a bias of its gates that no input comes up against."""
    dense = params[f"gate_{layer}"]["Dense_0"]
    bias = np.broadcast_to(np.float32(bias), dense["bias"].shape)
    return {**params, f"gate_{layer}": {"Dense_0": {**dense, "bias": bias}}}


def test_gates_depend_on_the_input_and_are_trained(params):
    _, gates, slopes = at(params)
    assert {layer: gates[layer].shape for layer in LAYERS} == {
        layer: (6, width) for layer, width in zip(LAYERS, MODEL.widths)
    }
    assert 0 < sj.polarization_penalty(gates) < 0.25
    for layer in LAYERS:
        assert np.any(slopes[f"gate_{layer}"]["Dense_0"]["kernel"] != 0)


def test_gates_that_agree_are_removed_without_a_change(params):
    agreed = params
    for layer, on in UNITS.items():
        agreed = with_bias(agreed, layer, np.where(on, 100.0, -100.0))
    logits, gates, _ = at(agreed)
    units = sj.consensus(gates)
    jax.tree.map(np.testing.assert_array_equal, units, UNITS)
    small, small_params = static_network(agreed, units)
    assert small.widths == tuple(int(UNITS[layer].sum()) for layer in LAYERS)
    shapes = jax.eval_shape(small.init, jax.random.key(0), IMAGES)["params"]
    assert jax.tree.map(jnp.shape, small_params) == jax.tree.map(jnp.shape, shapes)
    expected = jax.jit(small.apply)({"params": small_params}, IMAGES)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    fixed = logits_with(agreed, units)
    np.testing.assert_allclose(fixed, expected, atol=1e-4)


def test_all_units_are_the_network_without_gates(params):
    full = {layer: jnp.ones(len(on), bool) for layer, on in UNITS.items()}
    logits = logits_with(params, full)
    plain = jax.jit(DigitsCNN().apply)({"params": without_gates(params)}, IMAGES)
    np.testing.assert_allclose(logits, plain, atol=1e-5)


def test_a_layer_without_units_is_refused_and_trains_without_nan(params):
    units = {**UNITS, "conv2": np.zeros(32, bool)}
    with pytest.raises(ValueError, match="none in 'conv2'"):
        static_network(params, units)
    shut = with_bias(params, "conv2", -100.0)
    _, gates, slopes = at(shut)
    assert not gates["conv2"].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_study_at_toy_size(tmp_path):
    config = get_config()
    config.update({"epochs": 2, "seeds": (0, 1), "targets": (0.5,)})
    config.update({"validation_share": 0.45, "test_share": 0.45})  # few to train on
    study.run(polarization.STUDY, config, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = [dict(zip(content["columns"], row)) for row in content["rows"]]
    assert [(row["form"], row["target"], row["seed"]) for row in rows] == [
        (form, 1.0 if form == "dense" else 0.5, seed)
        for form in ("polarized", "no_penalty", "random", "dense", "magnitude")
        for seed in (0, 1)
    ]
    by_form = {(row["form"], row["seed"]): row for row in rows}
    for seed in (0, 1):
        wanted, dense = by_form["polarized", seed], by_form["dense", seed]
        assert len(wanted["undecided"]) == 2
        for form in ("random", "magnitude"):
            row = by_form[form, seed]
            for field in ("widths", "parameters", "flops"):
                assert row[field] == wanted[field]
            assert row["undecided"] is None
        assert dense["widths"] == [16, 32, 64, 64]
        assert dense["parameters"] == 27_914
    assert "| 50 % " in (tmp_path / "results.md").read_text()
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("targets", (0.5, 1.0)),
        ("seeds", (1,)),
        ("polarization", 0.0),
        ("activation", -1.0),
        ("epochs", 1),
        ("batch_size", 900),
        ("test_share", 0.5),
    ],
)
def test_config_is_checked(field, value):
    config = get_config()
    study.check_config(polarization.STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(polarization.STUDY, config)
