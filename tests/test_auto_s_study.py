"""The study of AutoS at toy size."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

import sparsejax as sj
from experiments.auto_s_study import study
from experiments.auto_s_study.experiment import run_experiment
from experiments.auto_s_study.problem import load_problem
from experiments.auto_s_study.programs import draw_order
from experiments.auto_s_study.settings import check_config
from experiments.configs.auto_s import get_config
from experiments.models.mlp import ScoreMLP
from experiments.training.criterion import load_score

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
    run_experiment(toy(), folder)
    return folder


def test_every_measure_is_recorded(workdir):
    content = json.loads((workdir / "results.json").read_text())
    rows = [dict(zip(content["columns"], row)) for row in content["rows"]]
    size = 13 * 60 + 2 * 60 * 60 + 60 * 3
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


def test_seeds_have_criteria_of_their_own_and_are_gone_on_with(workdir, monkeypatch):
    variables = [
        load_score(workdir / f"score_{s}.msgpack", ScoreMLP(8)) for s in (0, 3)
    ]
    assert not any(
        np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, variables))
    )
    before = (workdir / "results.md").read_text()
    for name in ("_learn", "_rank_weights", "_prune"):
        monkeypatch.setattr(study, name, pytest.fail)
    run_experiment(toy(), workdir)
    assert (workdir / "results.md").read_text() == before


def test_an_epoch_has_each_example_once():
    config = toy(steps=7, batch_size=30)
    order = draw_order(jax.random.key(0), 100, config)
    assert order.shape == (7, 30)
    for epoch in (order[:3], order[3:6]):
        assert len(np.unique(epoch)) == 90


def test_data_is_split_by_seed_and_scaled_by_the_training_part():
    problem = load_problem("wine_mlp", toy())
    assert problem.train.inputs.shape == (2, 124, 13)
    assert problem.test.inputs.shape == (2, 54, 13)
    np.testing.assert_allclose(problem.train.inputs.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(problem.train.inputs.std(axis=1), 1, rtol=1e-4)
    assert np.any(problem.test.labels[0] != problem.test.labels[1])
    assert np.bincount(problem.prune_set.labels[0]).tolist() == [10, 10, 10]


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
    check_config(config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        check_config(config)
