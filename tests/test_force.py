"""FORCE and Iterative SNIP against a NumPy oracle, round by round."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 7)), "c": RNG.normal(size=(7, 3))}
PARAMS = {name: leaf.astype(np.float32) for name, leaf in PARAMS.items()}
SIZE, ROUNDS, DENSITY = 56, 4, 0.1
BATCHES = [
    (RNG.normal(size=(6, 5)).astype("f4"), RNG.normal(size=(6, 3)).astype("f4"))
    for _ in range(2)
]


def loss(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["c"] - batch[1]) ** 2)


def numpy_gradient(p):
    """The mean gradient over all batches in float64, by hand."""
    total = {"a": 0.0, "c": 0.0}
    for x, y in BATCHES:
        h = np.tanh(x @ p["a"])
        e = 2 * (h @ p["c"] - y) / y.size
        total["c"] += h.T @ e / len(BATCHES)
        total["a"] += x.T @ (e @ p["c"].T * (1 - h**2)) / len(BATCHES)
    return total


def density_after(decay, t):
    linear = 1 - (1 - DENSITY) * t / ROUNDS
    return DENSITY ** (t / ROUNDS) if decay == "exponential" else linear


def oracle(decay, may_return):
    """The masks after each round."""
    weights = {name: np.float64(leaf) for name, leaf in PARAMS.items()}
    masks, history = {name: weights[name] < np.inf for name in weights}, []
    for t in range(1, ROUNDS + 1):
        grads = numpy_gradient({n: weights[n] * masks[n] for n in weights})
        score = {n: np.abs(weights[n] * grads[n]) for n in weights}
        if not may_return:
            score = {n: np.where(masks[n], score[n], -1) for n in weights}
        ranked = np.sort(np.concatenate([score["a"].ravel(), score["c"].ravel()]))
        threshold = ranked[-int(np.rint(SIZE * density_after(decay, t)))]
        masks = {n: score[n] >= threshold for n in weights}
        history.append(masks)
    return history


def after_each_round(decay, may_return):
    """The masks after t of T rounds: t rounds to the density that T rounds pass."""
    history = []
    for t in range(1, ROUNDS + 1):
        sparsity = 1 - density_after(decay, t)
        options = {"rounds": t, "decay": decay, "may_return": may_return}
        history.append(sj.force(loss, PARAMS, BATCHES, None, sparsity, **options))
    return history


@pytest.mark.parametrize("decay", ["exponential", "linear"])
@pytest.mark.parametrize("may_return", [True, False])
def test_every_round_is_the_oracle_and_only_force_lets_weights_return(
    may_return, decay
):
    history = after_each_round(decay, may_return)
    for masks, expected in zip(history, oracle(decay, may_return)):
        assert masks["a"].tolist() == expected["a"].tolist()
        assert masks["c"].tolist() == expected["c"].tolist()
    returned = [
        int(sj.count_active(sj.difference(after, before)))
        for before, after in itertools.pairwise(history)
    ]
    assert (sum(returned) > 0) == may_return


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="decay must be one of 'exponential', 'line"):
        sj.force(loss, PARAMS, BATCHES, None, 0.5, decay="cubic")
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        sj.force(loss, PARAMS, BATCHES, None, 0.5, rounds=0)
