"""What the optimizer remembers of inactive and newly grown weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import by_path, sparsify_state

import sparsejax as sj
from sparsejax import slots

# Late enough that Adam's bias correction, 1 - 0.999^t, is near 1.
STEPS, INTERVAL = 2021, 2000
SHAPE = (32, 32)


def noisy_gradients(step: Any) -> jax.Array:
    """Gradients of about the same size everywhere, of random sign."""
    size_key, sign_key = jax.random.split(jax.random.fold_in(jax.random.key(7), step))
    size = jax.random.uniform(size_key, SHAPE, minval=0.5, maxval=1.5)
    return size * jax.random.rademacher(sign_key, SHAPE, jnp.float32)


def largest_steps_after_growth(inner: optax.GradientTransformation) -> Any:
    """The largest |update| of grown and of kept weights in 20 steps after a growth."""
    tx = sj.rigl_transform(
        inner,
        sparsity=0.8,
        total_steps=STEPS,
        update_interval=INTERVAL,
        stop_step=INTERVAL,
        prune_rate=sj.constant_prune_rate(0.3),
    )
    start = jax.random.normal(jax.random.key(0), SHAPE)

    def step(carry: Any, t: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(noisy_gradients(t), opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (updates, opt_state.masks, params)

    _, (updates, masks, params) = jax.jit(
        lambda: jax.lax.scan(step, sj.init_sparse(tx, start), jnp.arange(STEPS))
    )()
    grown = masks[INTERVAL] & (params[INTERVAL] == 0)
    kept = masks[INTERVAL] & ~grown
    after = jnp.abs(updates[INTERVAL + 1 :])
    assert grown.sum() > 20 and len(after) == 20
    return after[:, grown].max(), after[:, kept].max()


@pytest.mark.parametrize(
    "inner",
    [optax.adam(0.01), optax.adamw(0.01), optax.rmsprop(0.01, decay=0.99)],
    ids=["adam", "adamw", "rmsprop"],
)
def test_grown_weights_do_not_jump(inner):
    grown, kept = largest_steps_after_growth(inner)
    assert grown <= 2 * kept


def test_grown_weights_would_jump_if_second_moments_started_from_zero(monkeypatch):
    monkeypatch.setattr(slots, "SECOND_MOMENTS", frozenset())
    grown, kept = largest_steps_after_growth(optax.adam(0.01))
    assert grown > 2 * kept


def kept_and_grown() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masks of one layer: active and there before, newly grown, and neither."""
    kept = jnp.array([[True, True, False], [False, True, False]])
    grown = jnp.array([[False, False, True], [False, False, False]])
    return kept, grown, ~kept & ~grown


def reset(inner: optax.GradientTransformation, grown: jax.Array) -> Any:
    """The slots after two steps of `inner` and a reset: (before, after)."""
    params = {"w": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(2)}
    kept = kept_and_grown()[0]
    left_dense = optax.MaskedNode()
    state = inner.init(params)
    for scale in (1.0, 3.0):
        grads = jax.tree.map(lambda p: scale * p, params)  # noqa: B023
        _, state = inner.update(grads, state, params)
    return state, slots.reset_slots(
        inner,
        state,
        params,
        {"w": kept, "b": left_dense},
        {"w": kept | grown, "b": left_dense},
        jnp.array(True),
    )


class FieldCase(NamedTuple):
    """An optimizer and which fields of its state are of which kind."""

    inner: optax.GradientTransformation
    momenta: tuple[str, ...] = ()
    second_moments: tuple[str, ...] = ()


FIELDS = {
    "adam": FieldCase(optax.adam(0.1), ("mu",), ("nu",)),
    "adamax": FieldCase(optax.adamax(0.1), ("mu",), ("nu",)),
    "amsgrad": FieldCase(optax.amsgrad(0.1), ("mu",), ("nu", "nu_max")),
    "adabelief": FieldCase(optax.adabelief(0.1), ("mu",), ("nu",)),
    "adan": FieldCase(optax.adan(0.1), ("m", "v", "g"), ("n",)),
    "ademamix": FieldCase(optax.contrib.ademamix(0.1), ("m1", "m2"), ("nu",)),
    "simplified_ademamix": FieldCase(
        optax.contrib.simplified_ademamix(0.1), ("m",), ("n",)
    ),
    "adadelta": FieldCase(optax.adadelta(0.1), (), ("e_g", "e_x")),
    "adagrad": FieldCase(optax.adagrad(0.1, 0.0), (), ("sum_of_squares",)),
    "adafactor": FieldCase(optax.adafactor(0.1), (), ("v",)),
    "centered_rmsprop": FieldCase(
        optax.rmsprop(0.1, centered=True, momentum=0.9), ("mu", "trace"), ("nu",)
    ),
    "lion": FieldCase(optax.lion(0.1), ("mu",)),
    "optimistic": FieldCase(optax.optimistic_adam_v2(0.1), ("mu",), ("nu",)),
    "prodigy": FieldCase(
        optax.contrib.prodigy(0.1), ("exp_avg", "grad_sum"), ("exp_avg_sq",)
    ),
}


def slots_of_w(state: Any, field: str) -> list[np.ndarray]:
    return [
        leaf
        for path, leaf in by_path(state).items()
        if path.endswith("w") and field in path.split("/") and leaf.shape == (2, 3)
    ]


@pytest.mark.parametrize("case", FIELDS.values(), ids=FIELDS)
def test_each_slot_starts_again_as_its_kind_needs(case):
    kept, grown, inactive = kept_and_grown()
    before, after = reset(case.inner, grown)
    for field in (*case.momenta, *case.second_moments):
        [old], [new] = slots_of_w(before, field), slots_of_w(after, field)
        assert np.any(old[grown] != 0), "there must be something to forget"
        np.testing.assert_array_equal(new[kept], old[kept])
        assert np.all(new[inactive] == 0), field
        start = old[kept].mean() if field in case.second_moments else 0.0
        np.testing.assert_allclose(new[grown], start, rtol=1e-6, err_msg=field)


def test_slots_of_leaves_left_dense_and_counters_stay():
    before, after = reset(optax.adam(0.1), kept_and_grown()[1])
    assert before[0].count == after[0].count == 2
    np.testing.assert_array_equal(before[0].mu["b"], after[0].mu["b"])
    np.testing.assert_array_equal(before[0].nu["b"], after[0].nu["b"])


def test_slots_start_again_from_what_init_gives_a_weight_of_zero():
    before, after = reset(optax.adagrad(0.1, 0.25), jnp.zeros((2, 3), bool))
    kept = kept_and_grown()[0]
    [old], [new] = (slots_of_w(s, "sum_of_squares") for s in (before, after))
    np.testing.assert_array_equal(new[kept], old[kept])
    assert np.all(new[~kept] == 0.25)


def test_factored_moments_belong_to_no_weight_and_stay():
    inner = optax.adafactor(0.1, min_dim_size_to_factor=2)
    before, after = reset(inner, kept_and_grown()[1])
    for field in ("v_row", "v_col"):
        old = [x for p, x in by_path(before).items() if field in p and p.endswith("w")]
        new = [x for p, x in by_path(after).items() if field in p and p.endswith("w")]
        assert len(old) == 1 and np.any(old[0] != 0)
        np.testing.assert_array_equal(old, new)


class Attention(NamedTuple):
    """Parameters with a field named like a second moment."""

    k: jax.Array
    v: jax.Array


def test_a_parameter_named_like_a_second_moment_has_no_stale_momentum():
    inner = optax.sgd(0.1, momentum=0.9)
    params = Attention(jnp.ones((4, 4)), jnp.ones((4, 4)))
    state = inner.init(params)
    _, state = inner.update(params, state, params)
    grown = jax.tree.map(lambda p: jnp.eye(4, dtype=bool), params)
    kept = jax.tree.map(jnp.logical_not, grown)
    masks = jax.tree.map(jnp.ones_like, kept)
    after = slots.reset_slots(inner, state, params, kept, masks, jnp.array(True))
    for slot in after[0].trace:
        np.testing.assert_array_equal(slot, 1.0 - jnp.eye(4))


def test_a_state_can_be_slots_and_nothing_else():
    inner = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )
    _, after = reset(inner, kept_and_grown()[1])
    kept = kept_and_grown()[0]
    assert np.all(after["w"][kept] != 0) and np.all(after["w"][~kept] == 0)


def test_schedule_free_evaluates_sparse_as_its_own_weights_are_reset():
    """Its own copy z of the weights is a slot, so x, found from y and z, is sparse.

    `sj.apply_masks` changes nothing here; an average kept outside of the wrapped
    optimizer, as by `optax.ema` of the parameters, needs it.
    """
    inner = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    tx = sj.rigl_transform(inner, sparsity=0.8, total_steps=20, update_interval=2)
    params, state = sj.init_sparse(tx, jax.random.normal(jax.random.key(0), (12, 12)))
    average = params
    update = jax.jit(tx.update)
    for step in range(7):
        grads = jax.random.normal(jax.random.key(step), (12, 12))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = 0.5 * average + 0.5 * params
    masks = sj.get_masks(state)
    assert sparsify_state(state).metrics.grown > 0
    evaluated = optax.contrib.schedule_free_eval_params(state.inner_state, params)
    assert np.all(evaluated[~masks] == 0) and np.any(evaluated != params)
    assert np.any(average[~masks] != 0)
    assert np.all(sj.apply_masks(average, masks)[~masks] == 0)
