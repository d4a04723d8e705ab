"""The study of depth: its networks, the rescaling of their layers, toy size."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("ml_collections", reason="of the experiments extra")

import sparsejax as sj
from experiments import deep_snip, fit, study
from experiments.configs.deep_snip import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_logits_are_those_of_the_formula(scale):
    model = deep_snip.DeepMLP(2, 5, scale)
    variables = fit.first_params(model, 0, IMAGES)
    params, relu = variables["params"], lambda x: np.maximum(x, 0)
    x = relu(IMAGES.reshape(3, -1) @ params["Dense_0"]["kernel"])
    for kernel in params["kernels"]:
        x = relu(x @ kernel) if scale is None else x + scale * relu(x @ kernel)
    expected = x @ params["Dense_1"]["kernel"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, IMAGES), expected, atol=1e-5
    )


def test_every_layer_is_back_on_the_edge_of_chaos():
    params = fit.first_params(deep_snip.DeepMLP(3, 20), 0, IMAGES)
    dense, rng = sj.dense_masks(params, deep_snip._PRUNABLE), np.random.default_rng(0)
    masks = jax.tree.map(lambda mask: rng.random(mask.shape) < 0.2, dense)
    rescaled = jax.jit(deep_snip.rescale)(params, masks)["params"]
    for kernel in (*rescaled["kernels"], rescaled["Dense_0"]["kernel"]):
        assert np.mean(kernel == 0) > 0.5
        assert len(kernel) * np.mean(kernel**2) == pytest.approx(2, rel=1e-4)


def test_the_study_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_snip, "PAIRS", {"rescaled": "snip"})
    forms = {form: deep_snip.FORMS[form] for form in ("snip", "rescaled")}
    monkeypatch.setattr(deep_snip, "FORMS", forms)
    config = get_config()
    config.update({"depths": (2,), "width": 16, "seeds": (0, 1), "epochs": 1})
    config.update({"validation_share": 0.45, "test_share": 0.45, "batch_size": 90})
    text = study.run(deep_snip.STUDY, config, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = study.frame_of(content)
    assert list(rows["form"]) == ["snip", "snip", "rescaled", "rescaled"]
    assert text.count("| SNIP, rescaled |") == 3
    assert (tmp_path / "by_depth.png").read_bytes().startswith(b"\x89PNG")
    config.depths = (0,)
    with pytest.raises(ValueError, match=r"config\.depths must be different integers"):
        study.run(deep_snip.STUDY, config, tmp_path)
