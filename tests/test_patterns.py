"""Selection within neurons: exact counts, ties by position, any dtype, traced k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

SHAPE = (3, 2, 5, 4)  # four neurons of a fan-in of 30


def expected(score, k, among):
    """Neuron by neuron: the k best of those allowed, of equal ones the first."""
    chosen = np.zeros(score.shape, bool)
    for neuron in range(score.shape[-1]):
        values = np.asarray(score[..., neuron], np.float64).ravel()
        values = np.where(np.isnan(values), -np.inf, values)
        allowed = np.flatnonzero(among[..., neuron].ravel())
        best = allowed[np.argsort(-values[allowed], kind="stable")][: k[neuron]]
        column = np.zeros(values.size, bool)
        column[best] = True
        chosen[..., neuron] = column.reshape(score.shape[:-1])
    return chosen


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32], ids=str
)
@pytest.mark.parametrize("ties", [False, True])
def test_each_neuron_gets_its_k_best(dtype, ties):
    rng = np.random.default_rng(0)
    values = rng.integers(-2, 3, SHAPE) if ties else 100 * rng.normal(size=SHAPE)
    score = jnp.asarray(values).astype(dtype)
    among = rng.random(SHAPE) < 0.7
    for k in ([0, 1, 7, 30], [3, 3, 3, 3]):
        found = jax.jit(sj.top_k_per_neuron)(score, jnp.array(k), among)
        as_float = np.asarray(score.astype(jnp.float32))
        np.testing.assert_array_equal(found, expected(as_float, k, among))
        allowed = among.sum((0, 1, 2))
        assert sj.count_per_neuron(found).tolist() == np.minimum(k, allowed).tolist()


def test_one_k_serves_all_neurons_and_agrees_with_the_selection_over_a_leaf():
    score = jax.random.normal(jax.random.key(0), SHAPE)
    among = jnp.ones(SHAPE, bool)
    found = sj.top_k_per_neuron(score, 11, among)
    for neuron in range(SHAPE[-1]):
        alone = sj.top_k_mask(score[..., neuron], 11)
        np.testing.assert_array_equal(found[..., neuron], alone)


def test_nan_ranks_below_everything_that_is_allowed_and_zeros_tie_whatever_their_sign():
    nan, inf = jnp.nan, jnp.inf
    score = jnp.array([[nan, -0.0], [-inf, 0.0], [5.0, -0.0]])
    everything = jnp.ones((3, 2), bool)
    assert sj.top_k_per_neuron(score, 2, everything).tolist() == [
        [False, True],
        [True, True],
        [True, False],
    ]
    but_one = everything.at[2, 0].set(False)
    assert sj.top_k_per_neuron(score, 2, but_one)[:, 0].tolist() == [True, True, False]
