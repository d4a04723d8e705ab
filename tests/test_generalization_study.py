"""The study of generalization at toy size."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

from experiments import generalization, study
from experiments.configs.generalization import get_config
from experiments.generalization import Examples, bernoulli_masks, logits, signals

pytestmark = pytest.mark.usefixtures("quick_compilation")


def toy():
    config = get_config()
    config.update({"dimension": 200, "width": 16, "steps": 60, "seeds": (0, 1)})
    config.update({"densities": (1.0, 0.5, 0.01), "noise_stds": (0.3,)})
    return config


def test_signal_is_learned_where_weights_see_it_and_only_there(tmp_path):
    text = study.run(generalization.STUDY, toy(), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = [dict(zip(content["columns"], row)) for row in content["rows"]]
    assert [(r["density"], r["seed"]) for r in rows] == [
        (density, seed) for density in (1.0, 0.5, 0.01) for seed in (0, 1)
    ]
    for row in rows:
        assert row["train_accuracy"] == 1
        if row["density"] >= 0.5:
            assert row["reached"] == 1 and row["test_accuracy"] > 0.95
        else:
            assert row["reached"] < 1 and row["test_accuracy"] < 0.75
            assert row["signal"] < row["noise"]
    assert rows[0]["active"] == 4 * 16 * 200
    assert "| 1 % " in text
    assert (tmp_path / "by_density.png").read_bytes().startswith(b"\x89PNG")


def test_logits_are_those_of_the_formula():
    config = toy()
    config.signal_support = 3
    mu, rng = signals(config), np.random.default_rng(0)
    np.testing.assert_allclose(mu @ mu.T, 9 * np.eye(4), atol=1e-5)
    weights = rng.normal(size=(4, 16, 200)).astype(np.float32)
    noise, labels = rng.normal(size=(5, 200)).astype(np.float32), np.arange(5) % 4
    expected = [
        [
            np.mean([max(0, w @ mu[y]) ** 2 + max(0, w @ xi) ** 2 for w in of_class])
            for of_class in weights
        ]
        for y, xi in zip(labels, noise)
    ]
    got = logits(weights, Examples(labels, noise), config)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_masks_of_one_key_are_nested():
    key, weights = jax.random.key(0), np.zeros((100, 100))
    few, many = (np.asarray(bernoulli_masks(key, weights, p)) for p in (0.1, 0.4))
    assert (many | ~few).all()
    assert few.mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", 1),
        ("power", 0),
        ("signal_support", 251),
        ("train_examples", 41),
        ("densities", (0.5,)),
        ("densities", (1.0, 0.0)),
        ("noise_stds", (0.1, 0.1)),
        ("seeds", (1,)),
        ("learning_rate", 0.0),
    ],
)
def test_config_is_checked(field, value):
    config = get_config()
    study.check_config(generalization.STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(generalization.STUDY, config)
