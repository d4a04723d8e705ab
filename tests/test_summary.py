"""The table of what is pruned."""

import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj

PARAMS = {
    "conv": {"kernel": np.ones((3, 3, 4, 8)), "bias": np.ones(8)},
    "head": np.ones((8, 250)),
    "temperature": np.float32(1.0),
    "token_embedding": np.ones((50, 8)),
    "steps": np.int32(3),
}
MASKS = {
    "conv": {
        "kernel": np.arange(288).reshape(3, 3, 4, 8) < 72,
        "bias": optax.MaskedNode(),
    },
    "head": np.arange(2000).reshape(8, 250) < 500,
    "temperature": optax.MaskedNode(),
    "token_embedding": optax.MaskedNode(),
    "steps": optax.MaskedNode(),
}


def test_summary_counts_each_layer_and_the_totals_and_says_why_leaves_are_dense():
    assert sj.summary(sj.apply_masks(PARAMS, MASKS), MASKS).splitlines() == [
        "path             shape    weights  active  sparsity  note",
        "conv/bias        8              8       8         -  dense: a bias",
        "conv/kernel      3x3x4x8      288      72    0.7500",
        "head             8x250      2,000     500    0.7500",
        "steps            scalar         1       1         -  "
        "dense: no array of floats",
        "temperature      scalar         1       1         -  "
        "dense: fewer than two axes longer than 1",
        "token_embedding  50x8         400     400         -  dense: an embedding",
        "prunable                    2,288     572    0.7500",
        "all                         2,698     982",
    ]


def notes(*args):
    lines = [line.split("  ") for line in sj.summary(*args).splitlines()[1:-2]]
    return {line[0]: line[-1] for line in lines}


def test_summary_says_what_is_wrong_with_weights_and_masks():
    masks = MASKS | {"head": optax.MaskedNode()}
    masks["conv"] = MASKS["conv"] | {"kernel": np.zeros((3, 3, 4, 8), bool)}
    found = notes(PARAMS, masks)
    assert found["head"] == "dense: left out by prunable"
    assert (
        found["conv/kernel"] == "288 outside the mask are not 0; empty: nothing passes"
    )


def test_summary_gives_the_range_of_stacked_layers():
    params = {"blocks": np.ones((3, 4, 5), np.float32)}
    masks = {
        "blocks": np.arange(20).reshape(4, 5) < np.array([5, 10, 20])[:, None, None]
    }
    stacked = [("blocks", sj.LayerRule(stacked=True))]
    found = notes(sj.apply_masks(params, masks), masks, stacked)
    assert found["blocks"] == "layers: 0.0000 to 0.7500"


def test_summary_of_masks_in_an_optimizer_state():
    tx = sj.static_transform(optax.sgd(0.1), sparsity=0.9)
    params, opt_state = sj.init_sparse(tx, {"w": jnp.ones((10, 20))})
    last = sj.summary(params, sj.get_masks(opt_state)).splitlines()[-2]
    assert last.split() == ["prunable", "200", "20", "0.9000"]


def test_summary_of_a_layer_without_active_or_without_any_weights():
    params = {"a": np.ones((2, 2)), "b": np.ones((0, 3))}
    masks = {"a": np.zeros((2, 2), bool), "b": np.zeros((0, 3), bool)}
    lines = sj.summary(params, masks).splitlines()
    assert lines[1].split()[:5] == ["a", "2x2", "4", "0", "1.0000"]
    assert lines[2].split() == ["b", "0x3", "0", "0", "1.0000"]
