"""The study of freezing against pruning, at toy size."""

import json

import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

from experiments.configs.freezing_digits import get_config
from experiments.freezing_study import experiment
from experiments.freezing_study.settings import check_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

PRUNABLE, OTHERS = 27_408, 506


def toy(**changes):
    config = get_config()
    config.update(
        {
            "methods": ("random_pruned", "random_frozen"),
            "seeds": (0, 3),
            "epochs": 1,
            "batch_size": 256,
            "densities": (0.1,),
        }
        | changes
    )
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("freezing")
    experiment.run_experiment(toy(), folder)
    return folder


def test_a_method_changes_what_it_trains_and_nothing_else(workdir):
    content = json.loads((workdir / "results.json").read_text())
    rows = [dict(zip(content["columns"], row)) for row in content["rows"]]
    assert len(rows) == 2 * 2
    for row in rows:
        kept = round(PRUNABLE * row["density"])
        most = kept + OTHERS
        # Some weights of a toy run have no gradient yet.
        assert 0.9 * most < row["changed"] <= most, row
        nonzero = PRUNABLE if row["method"] == "random_frozen" else kept
        assert nonzero - 10 <= row["nonzero"] <= nonzero, row
    assert "| Random, frozen |" in (workdir / "results.md").read_text()
    assert (workdir / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_finished_methods_are_not_trained_again(workdir, monkeypatch):
    def train_method(*args):
        raise AssertionError("trained again")

    before = (workdir / "results.md").read_text()
    monkeypatch.setattr(experiment, "train_method", train_method)
    experiment.run_experiment(toy(), workdir)
    assert (workdir / "results.md").read_text() == before
    with pytest.raises(ValueError, match="workdir holds another study"):
        experiment.run_experiment(toy(epochs=2), workdir)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("methods", ("dense", "snip_frozen")),
        ("methods", ("freeze", "snip_pruned", "snip_frozen")),
        ("densities", (0.5, 1.0)),
        ("seeds", (1,)),
        ("batch_size", 900),
        ("edge_popup_learning_rate", 0.0),
        ("distribution", "random"),
    ],
)
def test_config_is_checked(field, value):
    config = toy()
    check_config(config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        check_config(config)
