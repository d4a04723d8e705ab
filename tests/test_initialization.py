"""SNIP and GraSP: scores against finite differences, counts, refusals, warnings."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 6)), "b": np.zeros(6), "c": RNG.normal(size=(6, 2))}
PARAMS = jax.tree.map(np.float32, PARAMS)
BATCHES = [
    (RNG.normal(size=(8, 5)).astype("f4"), RNG.normal(size=(8, 2)).astype("f4"))
    for _ in range(3)
]
METHODS = [sj.snip, sj.grasp]


def loss(params, batch):
    hidden = jnp.tanh(batch[0] @ params["a"] + params["b"])
    return jnp.mean((hidden @ params["c"] - batch[1]) ** 2)


def numpy_gradient(p):
    """The mean gradient over all batches in float64, by hand."""
    total = {"a": 0.0, "c": 0.0}
    for x, y in BATCHES:
        h = np.tanh(x @ p["a"] + p["b"])
        e = 2 * (h @ p["c"] - y) / y.size
        total["c"] += h.T @ e / len(BATCHES)
        total["a"] += x.T @ (e @ p["c"].T * (1 - h**2)) / len(BATCHES)
    return total


def test_scores_are_those_of_numpy_and_finite_differences():
    wide = jax.tree.map(np.float64, PARAMS)
    g, dense, eps = numpy_gradient(wide), sj.dense_masks(PARAMS), 1e-5
    shifted = [
        numpy_gradient({**wide, **{n: wide[n] + s * eps * g[n] for n in g}})
        for s in (1, -1)
    ]
    snip = sj.snip_scores(loss, PARAMS, iter(BATCHES), dense)
    grasp = sj.grasp_scores(loss, PARAMS, iter(BATCHES), dense)
    for n in g:
        product = (shifted[0][n] - shifted[1][n]) / (2 * eps)
        np.testing.assert_allclose(snip[n], abs(wide[n] * g[n]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(grasp[n], wide[n] * product, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_and_jit_equals_eager(method):
    masks = method(loss, PARAMS, iter(BATCHES), None, 0.7)
    assert sj.count_active(masks) == sj.keep_count(0.7, 42)
    traced = jax.jit(lambda p, b: method(loss, p, b, None, 0.7))(PARAMS, BATCHES)
    assert sj.overlap(masks, traced) == 1


@pytest.mark.parametrize("method", METHODS)
def test_refusals_and_warnings(method):
    bad = [BATCHES[0], (BATCHES[1][0] * np.nan, BATCHES[1][1])]
    with pytest.raises(ValueError, match="batch 1 gives"):
        method(loss, PARAMS, bad, None, 0.5)
    with pytest.raises(ValueError, match="at least one batch"):
        method(loss, PARAMS, [], None, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sj.EmptyLayerWarning)
        with pytest.raises(sj.EmptyLayerWarning, match=r"'a'|'c'"):
            method(loss, PARAMS, BATCHES, None, 0.98)


@pytest.mark.parametrize("decay", ["exponential", "linear"])
@pytest.mark.parametrize("may_return", [True, False])
def test_force_has_exact_counts_and_is_snip_at_one_round(may_return, decay):
    options = {"may_return": may_return, "decay": decay}
    one = sj.force(loss, PARAMS, BATCHES, None, 0.7, rounds=1, **options)
    assert sj.overlap(one, sj.snip(loss, PARAMS, BATCHES, None, 0.7)) == 1
    many = sj.force(loss, PARAMS, BATCHES, None, 0.7, rounds=4, **options)
    assert sj.count_active(many) == sj.keep_count(0.7, 42)
