"""Edges where users' programs meet the library, each for every method that has it.

A kind of fault is one test: settings that are traced, out of range or NaN, layers of a
sparsity of their own, trees of any size, optimizers of any state.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"w": (16, 16), "v": (16, 8), "bias": (8,)}
PARAMS = {
    name: jax.random.normal(jax.random.key(i), shape)
    for i, (name, shape) in enumerate(SHAPES.items())
}
CONSTANT = {"sparsity": 0.8, "total_steps": 40, "update_interval": 2}
GRADUAL = {"end_step": 8, "update_interval": 2}
SGD = optax.sgd(0.05, momentum=0.9)


def granet(**more: Any) -> Any:
    return sj.granet_transform(SGD, **GRADUAL | {"total_steps": 40} | more)


def gmp(**more: Any) -> Any:
    return sj.gmp_transform(SGD, **GRADUAL | more)


def acdc(**more: Any) -> Any:
    return sj.acdc_transform(SGD, **{"phases": [2, 4, 6]} | more)


def constant(make: Any, **own: Any) -> Any:
    return lambda **more: make(SGD, **CONSTANT | own | more)


AT_ONE_SPARSITY = {
    "set": constant(sj.set_transform),
    "rigl": constant(sj.rigl_transform),
    "itop": constant(sj.itop_transform),
    "snfs": constant(sj.snfs_transform),
    "dsr": constant(sj.dsr_transform),
    "mest_em": constant(sj.mest_transform),
    "mest_em_and_s": constant(sj.mest_transform, soft_bound=True),
    "srigl": constant(sj.srigl_transform, keep_neurons=()),
}
TO_A_SPARSITY = {"granet": granet, "gmp": gmp, "acdc": acdc}
WITH_RATE = [name for name in AT_ONE_SPARSITY if name != "dsr"]


def gradients(step: Any, params: Any = PARAMS) -> Any:
    key = jax.random.fold_in(jax.random.key(7), step)
    return jax.tree.map(lambda p: jax.random.normal(key, p.shape) + 0.1 * p, params)


def train(tx: Any, steps: int = 9, params: Any = PARAMS) -> Any:
    """All steps in one compiled program."""

    def step(carry: Any, i: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradients(i, params), state, params)
        return (optax.apply_updates(params, updates), state), state.metrics

    start = sj.init_sparse(tx, params)
    (params, state), metrics = jax.lax.scan(step, start, jnp.arange(steps))
    return params, state, metrics


# Schedules


@pytest.mark.parametrize("name", WITH_RATE)
def test_a_prune_rate_out_of_range_is_clipped_as_it_runs(name):
    make = AT_ONE_SPARSITY[name]
    first = make().init(PARAMS).metrics.active
    tx = make(prune_rate=lambda t: jnp.where(t < 4, -0.5, 1.7))
    _, state, _ = train(tx)
    assert state.metrics.updates == 4
    if name == "mest_em_and_s":
        assert first <= state.metrics.active <= 2 * first
    elif name == "srigl":
        assert state.metrics.active <= round(0.2 * 384)
    else:
        assert state.metrics.active == first


@pytest.mark.parametrize("name", ["granet", "gmp"])
def test_a_sparsity_out_of_range_is_clipped_as_it_runs(name):
    size = 16 * 16 + 16 * 8
    for sparsity, active in (1.5, 1), (-0.3, size):
        made = TO_A_SPARSITY[name](final_sparsity=lambda t, s=sparsity: s + 0 * t)
        assert train(made)[1].metrics.active == active


@pytest.mark.parametrize("name", [*WITH_RATE, "granet", "gmp"])
def test_a_setting_that_is_nan_leaves_the_masks_and_counts(name):
    setting = "final_sparsity" if name == "gmp" else "prune_rate"
    make = (AT_ONE_SPARSITY | TO_A_SPARSITY)[name]
    tx = make(**{setting: lambda t: jnp.where(t > 3, jnp.nan, 0.3)})
    params, state, metrics = train(tx)
    assert state.metrics.updates == 1 and state.metrics.skipped == 3
    np.testing.assert_array_equal(metrics.active[3:], metrics.active[3])
    sj.check(params, sj.get_masks(state))


@pytest.mark.parametrize(
    "schedule",
    [optax.constant_schedule(0.5), lambda t: 0.5, lambda t: jnp.float32(0.5)],
    ids=["optax", "number", "array"],
)
def test_a_constant_schedule_is_a_setting(schedule):
    assert train(granet(final_sparsity=schedule))[1].metrics.active == 192
    for name in WITH_RATE:
        AT_ONE_SPARSITY[name](prune_rate=schedule).init(PARAMS)


@pytest.mark.parametrize("name", [*WITH_RATE, "granet"])
def test_a_prune_rate_may_be_traced(name):
    make = (AT_ONE_SPARSITY | TO_A_SPARSITY)[name]

    def active(rate):
        return train(make(prune_rate=rate), 5)[1].metrics.active

    expected = train(make(prune_rate=0.25), 5)[1].metrics.active
    assert jax.jit(active)(0.25) == expected


@pytest.mark.parametrize("name", TO_A_SPARSITY)
def test_a_final_sparsity_may_be_traced(name):
    def active(sparsity):
        return train(TO_A_SPARSITY[name](final_sparsity=sparsity))[1].metrics.active

    assert jax.jit(active)(0.75) == 96


# Lengths


@pytest.mark.parametrize("name", TO_A_SPARSITY)
def test_what_ends_too_late_for_the_run_is_refused(name):
    with pytest.raises(ValueError, match=r"must be below total_steps=6"):
        TO_A_SPARSITY[name](final_sparsity=0.5, total_steps=6)


@pytest.mark.parametrize("name", AT_ONE_SPARSITY)
def test_an_interval_longer_than_the_run_is_refused(name):
    with pytest.raises(ValueError, match=r"update_interval must be below"):
        AT_ONE_SPARSITY[name](update_interval=40)


def test_off_the_grid_granet_only_prunes_at_its_end():
    _, _, metrics = train(granet(end_step=7, final_sparsity=0.5), 8)
    assert metrics.updates.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
    assert metrics.grown[6] > 0 and metrics.grown[7] == 0
    assert metrics.active[7] == 192


# Layers of a sparsity of their own


OWN = [("w", 0.75), ("v", 0.5)]  # keep 64 of 256 and 64 of 128
COUNTS = {"w": 64, "v": 64}


def counts_of(state: Any) -> Any:
    counts = sj.count_active(sj.get_masks(state, PARAMS), "layer")
    return {name: int(counts[name]) for name in COUNTS}


@pytest.mark.parametrize("name", TO_A_SPARSITY)
@pytest.mark.parametrize("end, interval", [(7, 1), (4, 2)])
@pytest.mark.parametrize("overall", [{}, {"final_sparsity": 1 - 128 / 384}])
def test_every_layer_may_have_its_own_sparsity(name, end, interval, overall):
    own = {"phases": [end]} if name == "acdc" else {}
    if name != "acdc":
        own = {"end_step": end, "update_interval": interval}
    tx = TO_A_SPARSITY[name](prunable=OWN, **own, **overall)
    assert counts_of(train(tx)[1]) == COUNTS


@pytest.mark.parametrize("name", AT_ONE_SPARSITY)
def test_the_overall_sparsity_may_be_left_out_for_those(name):
    tx = AT_ONE_SPARSITY[name](prunable=OWN, sparsity=None)
    assert counts_of(tx.init(PARAMS)) == COUNTS
    with pytest.raises(ValueError, match="sparsity can be left out where"):
        AT_ONE_SPARSITY[name](prunable=OWN[:1], sparsity=None).init(PARAMS)


@pytest.mark.parametrize("name", [*AT_ONE_SPARSITY, *TO_A_SPARSITY])
def test_a_mix_out_of_reach_is_refused_at_init(name):
    setting = "final_sparsity" if name in TO_A_SPARSITY else "sparsity"
    make = (AT_ONE_SPARSITY | TO_A_SPARSITY)[name]
    with pytest.raises(ValueError, match="cannot be reached"):
        make(prunable=[("w", 0.1)], **{setting: 0.95}).init(PARAMS)


def test_a_layer_without_weights_gets_none():
    counts = sj.layer_counts({"a": (10, 10), "empty": (0, 10)}, 0.5, "erk")
    assert counts == {"a": 50, "empty": 0}


# Axes


def test_attention_kernels_get_the_density_of_their_matrices():
    shapes = {"query": (768, 12, 64), "out": (12, 64, 768), "mlp": (768, 3072)}
    flat = {"query": (768, 768), "out": (768, 768), "mlp": (768, 3072)}
    for distribution in "er", "erk":
        counts = sj.layer_counts(shapes, 0.9, distribution)
        assert counts == sj.layer_counts(flat, 0.9, distribution)


def test_attention_biases_train_and_are_not_pruned():
    layer = nn.MultiHeadDotProductAttention(2)
    params = layer.init(jax.random.key(0), jnp.ones((1, 5, 8)))
    tx = sj.gmp_transform(optax.sgd(1.0), final_sparsity=0.5, **GRADUAL)
    params, state = sj.init_sparse(tx, params)
    update = jax.jit(tx.update)
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["params"]["query"]["bias"], -3.0)


# Any size


@pytest.mark.parametrize("name", [*AT_ONE_SPARSITY, *TO_A_SPARSITY])
def test_more_weights_than_int32_counts_lower(name):
    make = (AT_ONE_SPARSITY | TO_A_SPARSITY)[name]
    setting = {"final_sparsity": 0.9} if name in TO_A_SPARSITY else {}
    params = {k: jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16) for k in "abc"}
    tx = make(**setting)
    state = jax.eval_shape(tx.init, params)
    assert state.metrics.active.dtype == jnp.uint32
    _, after = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_totals_beyond_int32_are_exact():
    # Optimized, or an int32 would be written for each of a GiB of bools.
    jax.config.update("jax_disable_most_optimizations", False)
    big = jnp.ones((2**15, 2**15), bool)
    masks = {"a": big, "b": big, "c": jnp.array([[True, False, True]])}
    count = sj.count_active(masks)
    jax.config.update("jax_disable_most_optimizations", True)
    assert int(count) == 2**31 + 2
    assert sj.keep_count(0.1, 2**33) == round(0.9 * 2**33)


# Optimizers


def test_a_state_that_cannot_be_reset_is_refused_at_init():
    tx = sj.rigl_transform(optax.sm3(0.1), **CONSTANT)
    with pytest.raises(ValueError, match="inner must keep its state in trees like"):
        tx.init(PARAMS)
    sj.static_transform(optax.sm3(0.1), sparsity=0.5).init(PARAMS)  # resets nothing


def test_named_scopes_of_the_inner_optimizer_are_in_the_program():
    def update(updates, state, params=None):
        with jax.named_scope("my_preconditioner"):
            return jax.tree.map(
                lambda u: -0.1 * u / jnp.sqrt(1 + u * u), updates
            ), state

    inner = optax.GradientTransformation(lambda params: (), update)
    tx = sj.rigl_transform(inner, **CONSTANT)
    state = tx.init(PARAMS)
    compiled = jax.jit(tx.update).lower(PARAMS, state, PARAMS).compile()
    assert "my_preconditioner" in compiled.as_text()


def test_the_derivative_of_training_is_that_of_where():
    masks = sj.random_masks(jax.random.key(0), PARAMS, 0.5)

    def sparse(rate):
        tx = sj.static_transform(optax.sgd(rate), masks=masks)
        params, state = sj.init_sparse(tx, PARAMS)
        for step in range(3):
            updates, state = tx.update(gradients(step, params), state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    def where(tree):
        return {
            k: jnp.where(masks[k], tree[k], 0) if k != "bias" else tree[k] for k in tree
        }

    def dense(rate):
        params = where(PARAMS)
        for step in range(3):
            grads = where(gradients(step, params))
            params = {k: params[k] - rate * grads[k] for k in params}
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    np.testing.assert_allclose(jax.grad(sparse)(0.1), jax.grad(dense)(0.1), rtol=1e-5)


@pytest.mark.parametrize("name", [*AT_ONE_SPARSITY, *TO_A_SPARSITY])
def test_the_derivative_passes_an_update_of_the_masks(name):
    make = {**AT_ONE_SPARSITY, **TO_A_SPARSITY}[name]
    setting = {"final_sparsity": 0.5} if name in TO_A_SPARSITY else {}
    tx = make(**setting)
    params, state = sj.init_sparse(tx, PARAMS)
    state = state._replace(step=jnp.int32(2))  # an update step

    def after(params):
        updates, new = tx.update(gradients(2), state, params, update_topology=True)
        params = optax.apply_updates(params, updates)
        return sum(map(jnp.sum, jax.tree.leaves(params))), new.masks

    slope, masks = jax.jit(jax.grad(after, has_aux=True))(params)
    for layer in "w", "v":
        goes_on = masks[layer] & (params[layer] != 0)
        assert goes_on.any() and np.all(slope[layer][~masks[layer]] == 0)
        assert np.isin(slope[layer], [0.0, 1.0]).all()
