"""The study of freezing against pruning, at toy size."""

import json

import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

from experiments import freezing, study
from experiments.configs.freezing_digits import get_config
from experiments.models.mlp import DigitsMLP

# A perceptron in place of the network, which compiles in a fraction of the time.
PRUNABLE, OTHERS = 64 * 16 + 16 * 10, 3 * 16 + 10


def toy(**changes):
    config = get_config()
    config.update({"methods": ("random_pruned", "random_frozen"), "seeds": (0, 3)})
    config.update({"validation_share": 0.45, "test_share": 0.45, "densities": (0.1,)})
    config.update({"epochs": 1, "batch_size": 90} | changes)
    return config


def test_a_method_changes_what_it_trains_and_nothing_else(
    tmp_path, monkeypatch, quick_compilation
):
    network = lambda classes: DigitsMLP(classes, widths=(16,))
    monkeypatch.setattr(freezing, "DigitsCNN", network)
    text = study.run(freezing.STUDY, toy(), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = study.frame_of(content).to_dict("records")
    assert len(rows) == 2 * 2
    for row in rows:
        kept = round(PRUNABLE * row["density"])
        most = kept + OTHERS
        # Some weights of a toy run have no gradient yet.
        assert 0.9 * most < row["changed"] <= most, row
        nonzero = PRUNABLE if row["method"] == "random_frozen" else kept
        assert nonzero - 10 <= row["nonzero"] <= nonzero, row
    assert "| Random, frozen |" in text
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("methods", ("dense", "snip_frozen")),
        ("methods", ("freeze", "snip_pruned", "snip_frozen")),
        ("densities", (0.5, 1.0)),
        ("seeds", (1,)),
        ("batch_size", 900),
        ("edge_popup_learning_rate", float("nan")),
        ("distribution", "random"),
    ],
)
def test_config_is_checked(field, value):
    config = toy()
    study.check_config(freezing.STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(freezing.STUDY, config)
