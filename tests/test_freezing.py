"""Freezing: frozen weights stay to the bit, pruned ones at 0; edge-popup."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

rng = np.random.default_rng(0)
SHAPES = {"first": (6, 8), "last": (8, 6), "bias": (6,)}
PARAMS = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
PARAMS["first"][0, 0] = -0.0
MASKS = {
    "first": jnp.asarray(rng.random((6, 8)) < 0.4).at[0, 0].set(False),
    "last": jnp.asarray(rng.random((8, 6)) < 0.4),
    "bias": optax.MaskedNode(),
}
STEPS = 8
OPTIMIZERS = {
    "momentum": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9)),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "adafactor": optax.adafactor(0.05, min_dim_size_to_factor=100, momentum=0.9),
    "lion": optax.lion(0.05, weight_decay=0.1),
}


def bits(leaf):
    return np.asarray(leaf).view(np.int32)


def train(tx):
    """Parameters and the state after a scan of steps."""

    def step(carry, t):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.cos(3 * p + t), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params, state = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS))[0])
    return run((params, state))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_stay_to_the_bit_and_their_slots_at_zero(name):
    tx = sj.freeze_transform(OPTIMIZERS[name], masks=MASKS)
    params, state = train(tx)
    for layer in ("first", "last"):
        mask = np.asarray(MASKS[layer])
        same = bits(params[layer]) == bits(PARAMS[layer])
        assert same[~mask].all() and not same[mask].any()
    assert not np.any(params["bias"] == PARAMS["bias"])
    slots = [s for s in jax.tree.leaves(state.inner_state) if s.shape == (6, 8)]
    assert slots
    for slot in slots:
        # Adafactor adds 1e-30 to every squared gradient.
        assert np.abs(np.asarray(slot)[~np.asarray(MASKS["first"])]).max() < 1e-29
        assert np.abs(slot).max() > 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_and_frozen_ones_as_they_were(name):
    inner = sj.freeze_transform(
        OPTIMIZERS[name], masks=MASKS, trainable=[("last", False)]
    )
    tx = sj.gmp_transform(
        inner, final_sparsity=0.5, begin_step=1, end_step=5, update_interval=2
    )
    params, state = train(tx)
    kept = sj.get_masks(state)
    assert sj.count_active(kept) == 48
    for layer, trained in (("first", MASKS["first"]), ("last", False)):
        active, trained = np.asarray(kept[layer]), np.asarray(trained)
        assert not np.any(np.asarray(params[layer])[~active])
        frozen = active & ~trained
        assert frozen.any()
        assert np.all(bits(params[layer])[frozen] == bits(PARAMS[layer])[frozen])
    assert not any(s.shape == (8, 6) for s in jax.tree.leaves(inner.init(PARAMS)[1]))


GROWING = {
    "rigl": partial(
        sj.rigl_transform, sparsity=0.5, total_steps=STEPS, update_interval=2
    ),
    "granet": partial(
        sj.granet_transform,
        final_sparsity=0.5,
        end_step=4,
        total_steps=STEPS,
        update_interval=2,
    ),
}
WHOLE_LAYERS = [("last|bias", False)]


def around(method):
    """Hides the frozen layers from the method."""
    return sj.freeze_transform(method(optax.adam(0.05)), trainable=WHOLE_LAYERS)


def inside(method):
    """Leaves them out of what the method may prune."""
    inner = sj.freeze_transform(optax.adam(0.05), trainable=WHOLE_LAYERS)
    return method(inner, prunable=[("first", True), ("", False)])


@pytest.mark.parametrize(("place", "name"), [(around, "rigl"), (inside, "granet")])
def test_whole_layers_are_frozen_by_path_beside_a_method_that_grows(place, name):
    params, state = train(place(GROWING[name]))
    for layer in ("last", "bias"):
        assert np.all(bits(params[layer]) == bits(PARAMS[layer]))
    kept = np.asarray(sj.get_masks(state)["first"])
    assert kept.sum() == 24 and not np.any(np.asarray(params["first"])[~kept])
    trained = np.asarray(params["first"])[kept]
    assert np.mean(trained != PARAMS["first"][kept]) > 0.9
    assert sj.get_masks(state)["last"] == optax.MaskedNode()
    assert optax.tree.get(state, "updates") == 3


def test_a_frozen_weight_that_granet_prunes_and_grows_again_stays_zero():
    """The documents warn of it: such a weight is active and of no use."""
    tx = GROWING["granet"](sj.freeze_transform(optax.adam(0.05), masks=MASKS))
    params, state = train(tx)
    stuck = 0
    for layer in ("first", "last"):
        active = np.asarray(sj.get_masks(state)[layer])
        weights, frozen = np.asarray(params[layer]), ~np.asarray(MASKS[layer])
        assert not np.any(weights[~active])
        as_drawn = bits(weights) == bits(PARAMS[layer])
        assert np.all((as_drawn | (weights == 0))[frozen & active])
        stuck += np.sum((weights == 0)[frozen & active])
    assert stuck > 0


def test_restored_weights_are_the_initial_ones():
    stored = sj.apply_masks(PARAMS, MASKS)
    restored = sj.restore_frozen(stored, PARAMS, MASKS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), restored, PARAMS)


def test_supermasks_have_exact_counts_and_gradients_go_straight_through():
    scores = sj.init_scores(jax.random.key(0), PARAMS)
    assert scores["bias"] == optax.MaskedNode()
    assert np.abs(scores["first"]).max() <= 1 / np.sqrt(6)
    masks = sj.supermask(scores, 0.7)
    assert [int(masks[n].sum()) for n in ("first", "last")] == [14, 14]
    order = np.argsort(-np.abs(scores["first"]).ravel())
    assert np.asarray(masks["first"]).ravel()[order[:14]].all()
    on = sj.supermask_params(PARAMS, scores, 0.7)
    np.testing.assert_array_equal(on["first"], sj.apply_masks(PARAMS, masks)["first"])
    weight = rng.normal(size=(6, 8)).astype(np.float32)
    loss = lambda s: jnp.sum(sj.supermask_params(PARAMS, s, 0.7)["first"] * weight)
    expected = weight * PARAMS["first"] * np.sign(scores["first"])
    np.testing.assert_allclose(jax.grad(loss)(scores)["first"], expected, rtol=1e-6)


def test_signed_constants_keep_signs_and_have_the_papers_size():
    weights = np.asarray(sj.signed_constant(PARAMS, 0.5)["last"])
    np.testing.assert_allclose(np.abs(weights), np.sqrt(2 / (8 * 0.5)), rtol=1e-6)
    np.testing.assert_array_equal(np.sign(weights), np.sign(PARAMS["last"]))


SPARSE = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
REFUSALS = [
    (lambda: sj.freeze_transform(optax.sgd(0.1)), "masks or trainable must be given"),
    (
        lambda: sj.freeze_transform(optax.sgd(0.1), trainable=[("first", 0.5)]),
        "trainable must hold (regex, True or False) pairs; got ('first', 0.5)",
    ),
    (
        lambda: sj.freeze_transform(optax.sgd(0.1), trainable=[("", False)]).init(
            PARAMS
        ),
        "trainable must leave at least one leaf to train",
    ),
    (
        lambda: sj.freeze_transform(SPARSE, masks=MASKS).init(PARAMS),
        "inner must not be sparse where masks freeze single weights",
    ),
    (
        lambda: sj.supermask_params(PARAMS, {"first": PARAMS["first"]}, 0.5),
        "scores do not fit params: scores have nothing at 'bias'",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as refusal:
        call()
    assert str(refusal.value).endswith(".") and ". " not in str(refusal.value)


def test_the_state_goes_through_orbax_and_compiles_once(tmp_path):
    frozen = sj.freeze_transform(
        optax.adamw(0.05), masks=MASKS, trainable=[("last", False)]
    )
    tx, traces = sj.static_transform(frozen, sparsity=0.5), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    first = step(*sj.init_sparse(tx, jax.tree.map(jnp.asarray, PARAMS)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", first)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", first)
    assert jax.tree.structure(restored) == jax.tree.structure(first)
    jax.tree.map(np.testing.assert_array_equal, step(*restored), step(*first))
    assert len(traces) == 1
