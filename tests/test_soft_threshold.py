"""STR: soft thresholds against the paper's formulas, their gradients, and training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SHAPES = {"conv": (3, 3, 4, 8), "blocks": (3, 5, 6), "bias": (8,)}
STACKED = [("blocks", sj.LayerRule(stacked=True))]

rng = np.random.default_rng(0)
PARAMS = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
UPSTREAM = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
THRESHOLDS = {
    "conv": jnp.float32(-0.4),
    "blocks": jnp.array([-2.0, 0.0, 1.0]).reshape(3, 1, 1),
    "bias": optax.MaskedNode(),
}
# One row a layer: weights, what comes back through them, and s.
LAYERS = [
    (PARAMS["conv"], UPSTREAM["conv"], -0.4),
    *zip(PARAMS["blocks"], UPSTREAM["blocks"], (-2.0, 0.0, 1.0)),
]


def sigmoid(s):
    return 1 / (1 + np.exp(-np.float64(s)))


def loss(params, thresholds):
    weights = sj.soft_threshold(params, thresholds)
    return sum(jnp.sum(weights[n] * UPSTREAM[n]) for n in SHAPES)


def by_layer(tree):
    return [tree["conv"], *tree["blocks"]]


def test_weights_are_the_papers_formula_with_exact_zeros():
    weights = jax.jit(sj.soft_threshold)(PARAMS, THRESHOLDS)
    np.testing.assert_array_equal(weights["bias"], PARAMS["bias"])
    for found, (w, _, s) in zip(by_layer(weights), LAYERS):
        expected = np.sign(w) * np.maximum(np.abs(w) - sigmoid(s), 0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.all((np.asarray(found) == 0) == (np.abs(w) <= sigmoid(s)))
        assert not np.signbit(found)[np.asarray(found) == 0].any()


def test_gradients_are_the_papers_formulas():
    for_w, for_s = jax.grad(loss, (0, 1))(PARAMS, THRESHOLDS)
    np.testing.assert_allclose(for_w["bias"], UPSTREAM["bias"])
    assert for_s["bias"] == optax.MaskedNode()
    pairs = zip(by_layer(for_w), by_layer(for_s))
    for (grad_w, grad_s), (w, upstream, s) in zip(pairs, LAYERS):
        stays = np.abs(w) > sigmoid(s)
        np.testing.assert_allclose(grad_w, upstream * stays, atol=1e-6)
        slope = sigmoid(s) * (1 - sigmoid(s))
        expected = -slope * np.sum(upstream * np.sign(w) * stays, dtype=np.float64)
        np.testing.assert_allclose(grad_s.item(), expected, rtol=1e-4)


def test_gradients_agree_with_finite_differences():
    h = 1e-3
    for_w, for_s = jax.grad(loss, (0, 1))(PARAMS, THRESHOLDS)

    def numpy_loss(w, upstream, s):
        shrunk = np.sign(w) * np.maximum(np.abs(w) - sigmoid(s), 0)
        return np.sum(shrunk * np.float64(upstream))

    for i, (w, upstream, s) in enumerate(LAYERS):
        # Weights so close to the threshold that the difference straddles its corner are
        # left out of the sum for s, in both.
        far = np.abs(np.abs(w) - sigmoid(s)) > 2 * h
        slope = (
            numpy_loss(w[far], upstream[far], s + h)
            - numpy_loss(w[far], upstream[far], s - h)
        ) / (2 * h)
        assert far.mean() > 0.9
        if far.all():
            np.testing.assert_allclose(by_layer(for_s)[i].item(), slope, rtol=1e-3)
        position = np.unravel_index(np.argmax(np.abs(w)), w.shape)
        for sign in (1, -1):
            bump = np.zeros_like(w)
            bump[position] = sign * h
            rise = numpy_loss(w + bump, upstream, s) - numpy_loss(w, upstream, s)
            slope = rise / (sign * h)
            np.testing.assert_allclose(by_layer(for_w)[i][position], slope, rtol=1e-2)


def test_masks_are_where_weights_are_not_zero_and_end_the_training():
    masks = sj.threshold_masks(PARAMS, THRESHOLDS)
    assert masks["bias"] == optax.MaskedNode()
    expected = sum(int(np.sum(np.abs(w) > sigmoid(s))) for w, _, s in LAYERS)
    assert sj.count_active(masks) == expected
    params, same = sj.fold_thresholds(PARAMS, THRESHOLDS)
    jax.tree.map(np.testing.assert_array_equal, masks, same)
    weights = sj.soft_threshold(PARAMS, THRESHOLDS)
    jax.tree.map(np.testing.assert_array_equal, params, weights)
    tx = sj.static_transform(optax.sgd(0.1, momentum=0.9), masks=masks)
    started, state = sj.init_sparse(tx, params)
    jax.tree.map(np.testing.assert_array_equal, started, params)
    updates, state = tx.update(UPSTREAM, state, started)
    tuned = optax.apply_updates(started, updates)
    for name in ("conv", "blocks"):
        assert not np.any(np.asarray(tuned[name])[~np.asarray(masks[name])])
    assert sj.count_active(sj.get_masks(state)) == expected


def test_the_official_start_is_no_threshold_at_all_and_has_no_gradient():
    thresholds = sj.init_thresholds(PARAMS, STACKED)
    shapes = {"conv": (), "blocks": (3, 1, 1)}
    assert {n: thresholds[n].shape for n in shapes} == shapes
    assert all(np.all(thresholds[n] == -3200) for n in shapes)
    weights = sj.soft_threshold(PARAMS, thresholds)
    jax.tree.map(np.testing.assert_array_equal, weights, PARAMS)
    for_s = jax.grad(loss, 1)(PARAMS, thresholds)
    assert not any(map(np.any, jax.tree.leaves(for_s)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_keep_their_dtype_and_thresholds_theirs(dtype):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
    weights = sj.soft_threshold(params, THRESHOLDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(dtype)}
    masks = sj.threshold_masks(params, THRESHOLDS)
    np.testing.assert_array_equal(masks["conv"], weights["conv"] != 0)
    grads = jax.grad(lambda s: loss(params, s).astype(jnp.float32))(THRESHOLDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_what_is_not_a_number_stays_so():
    weights = sj.soft_threshold(jnp.array([jnp.nan, 0.1, -3.0]), jnp.array(0.0))
    assert weights.tolist()[1:] == [0.0, -2.5] and np.isnan(weights[0])


# Training. Most weights of the teacher are 0, and the noise keeps the student's off 0.

INPUTS = rng.normal(size=(128, 20)).astype(np.float32)
TEACHER = (rng.normal(size=(20, 6)) * (rng.random((20, 6)) < 0.2)).astype(np.float32)
OUTPUTS = INPUTS @ TEACHER + 0.5 * rng.normal(size=(128, 6)).astype(np.float32)
FIRST = {"w": (0.3 * rng.normal(size=(20, 6))).astype(np.float32)}


def regression_loss(trained):
    weights = sj.soft_threshold(trained["weights"], trained["thresholds"])
    return jnp.mean((INPUTS @ weights["w"] - OUTPUTS) ** 2)


def train(tx, decay, steps=300):
    """The parameters after training; the decay is of the thresholds alone."""
    thresholds = sj.init_thresholds(FIRST, initial=-8.0)
    trained = {"weights": FIRST, "thresholds": thresholds}
    is_decayed = {"weights": False, "thresholds": True}
    is_weight = {"weights": True, "thresholds": False}
    tx = optax.chain(
        optax.add_decayed_weights(decay, is_decayed),
        optax.add_decayed_weights(0.03, is_weight),
        tx,
    )

    def body(carry, _):
        trained, state = carry
        grads = jax.grad(regression_loss)(trained)
        updates, state = tx.update(grads, state, trained)
        return (optax.apply_updates(trained, updates), state), None

    start = (trained, tx.init(trained))
    (trained, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=steps))(start)
    return trained


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.05, momentum=0.9), optax.adam(0.02)], ids=["momentum", "adam"]
)
def test_decay_of_the_thresholds_makes_the_network_sparse(tx):
    runs = [train(tx, decay) for decay in (0.0, 0.01, 0.03)]
    s = [trained["thresholds"]["w"].item() for trained in runs]
    masks = [sj.threshold_masks(t["weights"], t["thresholds"]) for t in runs]
    sparsities = [sj.sparsity(m).item() for m in masks]
    assert s[0] < s[1] < s[2]
    assert sparsities[0] < 0.1 < sparsities[1] < sparsities[2]
    # The weights that the teacher has survive.
    kept = np.asarray(masks[-1]["w"])[np.abs(TEACHER) > 0.5]
    assert kept.all() and kept.size > 5


REFUSALS = [
    (
        lambda: sj.init_thresholds(PARAMS, initial=float("nan")),
        "initial must be a finite number; got nan",
    ),
    (
        lambda: sj.init_thresholds(PARAMS, [("conv", 0.9)]),
        "prunable must be True or False for thresholds, which learn the sparsity; got "
        "the sparsity 0.9",
    ),
    (
        lambda: sj.init_thresholds(PARAMS, lambda path, leaf: False),
        "params hold nothing to prune",
    ),
    (
        lambda: sj.soft_threshold(PARAMS, {"conv": jnp.float32(0)}),
        "thresholds do not fit params: thresholds have nothing at 'bias'",
    ),
    (
        lambda: sj.threshold_masks({"conv": PARAMS["conv"]}, THRESHOLDS),
        "thresholds do not fit params: params have nothing at 'bias'",
    ),
    (
        lambda: sj.fold_thresholds(PARAMS, THRESHOLDS | {"conv": jnp.zeros(8)}),
        "thresholds do not fit params at 'conv': a shape of () or (3, 1, 1, 1) is "
        "needed; got (8,)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as refusal:
        call()
    assert str(refusal.value).endswith(".") and ". " not in str(refusal.value)
