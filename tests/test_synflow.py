"""SynFlow against its axiom and a NumPy oracle, within float32 and beyond its range."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
ONE = jax.ShapeDtypeStruct((1, 5), jnp.float32)


def mlp(params, x):
    for kernel, bias in zip(params["kernels"], params["biases"]):
        x = jax.nn.relu(x @ kernel + bias)
    return x


def make(sizes, rng, bias=0.0):
    pairs = list(itertools.pairwise(sizes))
    kernels = [rng.normal(size=pair).astype(np.float32) for pair in pairs]
    biases = [np.full(out, bias, np.float32) for _, out in pairs]
    return {"kernels": kernels, "biases": biases}


def numpy_scores(kernels, biases):
    """|theta dR / d theta| of each kernel at an input of ones, in float64."""
    kernels = [np.abs(np.float64(kernel)) for kernel in kernels]
    signals = [np.ones((1, len(kernels[0])))]
    for kernel, bias in zip(kernels, biases):
        signals.append(signals[-1] @ kernel + np.abs(bias))
    back, scores = np.ones_like(signals[-1]), []
    for kernel, signal in zip(kernels[::-1], signals[-2::-1]):
        scores.insert(0, kernel * (signal.T @ back))
        back = back @ kernel.T
    return scores


scores_of = jax.jit(lambda params, masks: sj.synflow_scores(mlp, params, ONE, masks))


@given(st.sampled_from([(5, 4, 3), (5, 7, 2, 6)]), st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_flow_is_conserved_from_layer_to_layer(sizes, seed, density):
    rng = np.random.default_rng(seed)
    params = make(sizes, rng)
    masks = sj.dense_masks(params)
    masks["kernels"] = [
        jnp.asarray(rng.random(mask.shape) < density) for mask in masks["kernels"]
    ]
    score = scores_of(params, masks)["kernels"]
    flow = numpy_scores(sj.apply_masks(params, masks)["kernels"], params["biases"])
    if np.sum(flow[0]) == 0:  # the masks let nothing through
        assert all(np.isnan(s).all() for s in score)
    else:
        sums = [float(jnp.sum(s)) for s in score]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_synflow_is_the_oracle_round_by_round():
    params = make((5, 8, 6, 4), RNG, bias=-0.3)
    size = sum(kernel.size for kernel in params["kernels"])
    for rounds in (1, 4):
        masks = [np.ones(kernel.shape, bool) for kernel in params["kernels"]]
        for t in range(1, rounds + 1):
            kept = [k * m for k, m in zip(params["kernels"], masks)]
            scores = numpy_scores(kept, params["biases"])
            least = np.sort(np.concatenate([s.ravel() for s in scores]))
            threshold = least[-int(np.rint(size * 0.2 ** (t / rounds)))]
            masks = [s >= threshold for s in scores]
        got = sj.synflow(mlp, params, [ONE], None, 0.8, rounds=rounds)
        for mask, expected in zip(got["kernels"], masks):
            np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("gain", [8.0, 0.1])
def test_scores_are_right_where_float32_does_not_hold_the_flow(shortcut, gain):
    depth, width = 60, 5
    kernels = RNG.normal(size=(depth, width, width)).astype(np.float32)
    kernels *= np.float32(gain / np.abs(kernels).sum(1).mean())
    step = lambda x, w: (shortcut * x + jax.nn.relu(x @ w), None)
    apply = lambda w, x: jax.lax.scan(step, x, w)[0]
    # A shortcut is as good as a kernel with the identity added.
    identity = shortcut * np.eye(width)
    products = numpy_scores(np.abs(kernels) + identity, np.zeros((depth, width)))
    whole = np.abs(kernels) + identity
    expected = np.stack(products) * np.abs(kernels) / np.where(whole, whole, 1)
    flow = np.sum(products[0])
    assert (0.1 < flow < 1e6 and shortcut) or not 1e-45 < flow < 3.4e38
    got = sj.synflow_scores(apply, kernels, ONE, sj.dense_masks(kernels))
    np.testing.assert_allclose(got, expected / expected.max(), rtol=1e-3, atol=1e-9)


def test_no_layer_is_emptied_where_snip_and_magnitude_empty_some():
    """The table of docs/initialization.md: 10 of 3,520 weights, three seeds."""
    loss = lambda p, x: jnp.mean(mlp(p, x) ** 2)
    methods = {sj.synflow: mlp, sj.snip: loss, sj.magnitude_pruning: loss}
    empty = dict.fromkeys(methods, 0)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params = make((5, 40, 40, 40, 3), rng)
        params["kernels"][0] *= 0.05
        xs = [rng.normal(size=(8, 5)).astype(np.float32)]
        for method, function in methods.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sj.EmptyLayerWarning)
                masks = method(function, params, xs, None, 1 - 10 / 3520)
            assert int(sj.count_active(masks)) == 10
            empty[method] += sum(not mask.any() for mask in masks["kernels"])
    assert empty[sj.synflow] == 0 < empty[sj.snip] < empty[sj.magnitude_pruning]


def test_a_network_without_flow_is_refused():
    params = make((5, 4, 3), RNG)
    softmax = lambda p, x: jax.nn.softmax(0 * mlp(p, x))
    with pytest.raises(ValueError, match="round 0; look for layers of zeros"):
        sj.synflow(softmax, params, [ONE], None, 0.5, rounds=2)
    params["kernels"][1][:] = 0
    with pytest.raises(ValueError, match="scores that are all 0"):
        sj.synflow_scores(mlp, params, ONE, sj.dense_masks(params))
    with pytest.raises(ValueError, match="at least one input"):
        sj.synflow(mlp, params, [], None, 0.5)
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        sj.synflow(mlp, params, [ONE], None, 0.5, rounds=0)
