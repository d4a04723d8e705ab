"""DRIVE against a NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(6, 8)).astype(np.float32), "b": np.zeros(8, np.float32)}
X = RNG.normal(size=(3, 5, 6)).astype(np.float32)


def loss(params, x):
    return jnp.mean((x @ params["w"] + params["b"]) ** 2)


def gradient(w, b, x):
    out = 2 * (x @ w + b) / (len(x) * 8)
    return x.T @ out, out.sum(0)


def test_drive_is_the_oracle_round_by_round():
    w, b = PARAMS["w"], PARAMS["b"]
    for x in X:
        dw, db = gradient(w, b, x)
        w, b = w - 0.2 * dw, b - 0.2 * db
    mask = np.ones((6, 8), bool)
    for t in (1, 2, 3):
        kept = w * mask
        g = np.mean([gradient(kept, b, x)[0] for x in X], axis=0)
        terms = [np.abs(kept), np.abs(kept * g), np.abs(g)]
        score = sum(term / term[mask].mean() for term in terms)
        count = int(np.rint(48 * 0.25 ** (t / 3)))
        mask = mask & (score >= np.sort(score[mask])[-count])
    got = sj.drive(loss, PARAMS, X, None, 0.75, learning_rate=0.2, rounds=3)
    np.testing.assert_array_equal(got["w"], mask)
    assert isinstance(got["b"], optax.MaskedNode) and int(sj.count_active(got)) == 12


def test_the_dense_phase_has_batches_of_its_own_and_rounds_take_new_ones():
    epochs = np.concatenate([X, X[::-1], X])
    w, b = PARAMS["w"], PARAMS["b"]
    for x in epochs:
        dw, db = gradient(w, b, x)
        w, b = w - 0.2 * dw, b - 0.2 * db
    seen = []

    def fresh(number):
        seen.append(number)
        return [X[number]]

    options = {"rounds": 3, "learning_rate": 0.2, "dense_batches": iter(epochs)}
    got = sj.drive(loss, PARAMS, fresh, None, 0.75, **options)
    trained = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
    options = {"rounds": 3, "learning_rate": 0.0}
    expected = sj.drive(loss, trained, lambda n: [X[n]], None, 0.75, **options)
    assert seen == [0, 1, 2] and sj.jaccard(got, expected) == 1
    held = sj.drive(loss, trained, X, None, 0.75, **options)
    assert sj.jaccard(got, held) < 1


def test_drive_refuses_what_it_cannot_use():
    bad = X.copy()
    bad[1] = np.nan
    with pytest.raises(ValueError, match="batch 1 gives gradients that are not finite"):
        sj.drive(loss, PARAMS, bad, jax.random.key(0), 0.5)
    with pytest.raises(ValueError, match="dense_batches: batch 1 gives gradients"):
        sj.drive(loss, PARAMS, X, None, 0.5, dense_batches=bad)
    with pytest.raises(ValueError, match="at least one batch"):
        sj.drive(loss, PARAMS, [], None, 0.5)
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        sj.drive(loss, PARAMS, X, None, 0.5, rounds=0)
    with pytest.raises(ValueError, match="learning_rate must be 0 or more"):
        sj.drive(loss, PARAMS, X, None, 0.5, learning_rate=-1.0)
