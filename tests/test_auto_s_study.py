"""The study of AutoS at toy size."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

import sparsejax as sj
from experiments import auto_s, study
from experiments.configs.auto_s import get_config
from experiments.criterion import ScoreMLP, load_score
from experiments.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("quick_compilation")


def toy(**changes):
    config = get_config()
    config.update(
        {
            "source": "wine_mlp",
            "targets": ("wine_mlp",),
            "seeds": (0, 3),
            "steps": 30,
            "label_sparsity": 0.95,
            "fraction": 0.5,
            "score_width": 8,
            "score_epochs": 20,
            "sparsities": (0.5, 0.9),
        }
        | changes
    )
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto_s")
    small = auto_s.RECIPES["wine_mlp"]._replace(model=MLP((30,), 3))  # compiles quickly
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(auto_s.RECIPES, "wine_mlp", small)
        study.run(auto_s.STUDY, toy(), folder)
    return folder


def test_every_measure_is_recorded(workdir):
    content = json.loads((workdir / "results.json").read_text())
    rows = [dict(zip(content["columns"], row)) for row in content["rows"]]
    size = 13 * 30 + 30 * 3
    sizes = {"held_out": size / 4, "wine_mlp": size}
    correlations = [row for row in rows if row["measure"] == "correlation"]
    assert len(correlations) == 2 * 4 * 2  # networks, scores, seeds
    for row in correlations:
        if row["method"] == "random":
            assert abs(row["value"]) < 5 / np.sqrt(sizes[row["network"]])
    runs = [row for row in rows if row["measure"] == "accuracy"]
    assert len(runs) == (1 + 4 * 2) * 2
    for row in runs:
        assert row["active"] == sj.keep_count(row["sparsity"], size)
    # The largest class has 40 %.
    assert min(row["value"] for row in runs if row["method"] == "dense") > 0.8
    text = (workdir / "results.md").read_text()
    assert text.count("| AutoS ") == 1 and text.count("| SNIP ") == 2
    assert (workdir / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_have_criteria_of_their_own(workdir):
    variables = [load_score(workdir / "scores" / s, ScoreMLP(8)) for s in ("0", "3")]
    assert not any(
        np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, variables))
    )


def test_an_epoch_has_each_example_once():
    config = toy(steps=7, batch_size=30)
    order = auto_s.draw_order(jax.random.key(0), 100, config)
    assert order.shape == (7, 30)
    for epoch in (order[:3], order[3:6]):
        assert len(np.unique(epoch)) == 90


def test_data_is_split_by_seed_and_scaled_by_the_training_part():
    train, test, prune_set = auto_s.load_data("wine_mlp", toy())
    assert train.inputs.shape == (2, 124, 13)
    assert test.inputs.shape == (2, 54, 13)
    np.testing.assert_allclose(train.inputs.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(train.inputs.std(axis=1), 1, rtol=1e-4)
    assert np.any(test.labels[0] != test.labels[1])
    assert np.bincount(prune_set.labels[0]).tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "digits"),
        ("targets", ()),
        ("seeds", (1,)),
        ("batch_size", 125),
        ("test_share", 0.9),
        ("label_sparsity", 1.0),
        ("sparsities", (0.9, 0.9)),
    ],
)
def test_config_is_checked(field, value):
    config = toy()
    study.check_config(auto_s.STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(auto_s.STUDY, config)
