"""The table of what is pruned."""

import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj

PARAMS = {
    "conv": {"kernel": np.ones((3, 3, 4, 8)), "bias": np.ones(8)},
    "head": np.ones((8, 250)),
    "temperature": np.float32(1.0),
}
MASKS = {
    "conv": {
        "kernel": np.arange(288).reshape(3, 3, 4, 8) < 72,
        "bias": optax.MaskedNode(),
    },
    "head": np.arange(2000).reshape(8, 250) < 500,
    "temperature": optax.MaskedNode(),
}


def test_summary_counts_each_layer_and_the_totals():
    assert sj.summary(PARAMS, MASKS).splitlines() == [
        "path         shape    weights  active  sparsity",
        "conv/bias    8              8       8         -",
        "conv/kernel  3x3x4x8      288      72    0.7500",
        "head         8x250      2,000     500    0.7500",
        "temperature  scalar         1       1         -",
        "prunable                2,288     572    0.7500",
        "all                     2,297     581",
    ]


def test_summary_of_masks_in_an_optimizer_state():
    tx = sj.static_transform(optax.sgd(0.1), sparsity=0.9)
    params, opt_state = sj.init_sparse(tx, {"w": jnp.ones((10, 20))})
    last = sj.summary(params, sj.get_masks(opt_state)).splitlines()[-2]
    assert last.split() == ["prunable", "200", "20", "0.9000"]


def test_summary_of_a_layer_without_active_or_without_any_weights():
    params = {"a": np.ones((2, 2)), "b": np.ones((0, 3))}
    masks = {"a": np.zeros((2, 2), bool), "b": np.zeros((0, 3), bool)}
    lines = sj.summary(params, masks).splitlines()
    assert lines[1].split() == ["a", "2x2", "4", "0", "1.0000"]
    assert lines[2].split() == ["b", "0x3", "0", "0", "1.0000"]
