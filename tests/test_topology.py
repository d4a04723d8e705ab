"""Topology updates: pruning only removes, growth only adds, every count is exact."""

import math
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

moderate = settings(max_examples=60, deadline=None, derandomize=True)

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]
SHAPES = {"conv": (3, 3, 2, 3), "dense": (5, 7), "one": (1, 1)}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
TOTAL = sum(SIZES.values())

SEEDS = st.integers(0, 2**32 - 1)
DENSITIES = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])
LAYERS = {name: st.integers(0, size) for name, size in SIZES.items()}


def weights(seed, dtype=np.float32, levels=None):
    """Random weights; with `levels`, only so many distinct magnitudes."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        if levels:
            return rng.integers(-levels, levels + 1, shape).astype(dtype)
        return rng.normal(size=shape).astype(dtype)

    return {**{n: draw(s) for n, s in SHAPES.items()}, "bias": draw((7,))}


def dense(params):
    """Masks of ones, also of the layer of one weight, no kernel by default."""
    return sj.dense_masks(params, lambda path, leaf: path != "bias")


class Params(NamedTuple):
    """The same as a NamedTuple."""

    conv: Any
    dense: Any
    one: Any
    bias: Any

    @classmethod
    def of(cls, tree):
        return cls(**tree)


def masks_at(seed, density):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(shape) < density for name, shape in SHAPES.items()}
    return {**masks, "bias": optax.MaskedNode()}


def counts_of(values):
    return {**{n: jnp.int32(v) for n, v in values.items()}, "bias": optax.MaskedNode()}


def arrays(masks):
    return {name: np.asarray(masks[name]) for name in SHAPES}


def count(masks):
    return {name: int(mask.sum()) for name, mask in arrays(masks).items()}


def flat(tree):
    return np.concatenate([np.ravel(tree[name]).astype(np.float64) for name in SHAPES])


def is_subset(a, b):
    a, b = arrays(a), arrays(b)
    return all(not (a[name] & ~b[name]).any() for name in SHAPES)


keep_of_all = jax.jit(lambda sparsity: sj.keep_count(sparsity, TOTAL))


@jax.jit
def prune_to(params, masks, sparsity):
    return {
        scope: sj.prune_magnitude(params, masks, sparsity=sparsity, scope=scope)
        for scope in ("global", "layer")
    }


@jax.jit
def prune_by(params, masks, fraction):
    return {
        scope: sj.prune_magnitude(params, masks, fraction=fraction, scope=scope)
        for scope in ("global", "layer")
    }


@jax.jit
def grow_by_gradient(grads, masks, counts):
    return sj.regrow_gradient(grads, masks, counts)


@jax.jit
def grow_at_random(key, masks, counts):
    return sj.regrow_random(key, masks, counts)


# Pruning.


@moderate
@given(SEEDS, DENSITIES, st.floats(0, 1, exclude_max=True, width=32))
def test_pruning_to_a_sparsity_only_removes_and_keeps_the_exact_count(
    seed, density, sparsity
):
    masks = masks_at(seed, density)
    pruned = prune_to(weights(seed, levels=4), masks, sparsity)
    keep = int(keep_of_all(sparsity))
    before, after = count(masks), count(pruned["global"])
    assert is_subset(pruned["global"], masks)
    assert sum(after.values()) == min(keep, sum(before.values()))
    assert is_subset(pruned["layer"], masks)
    for name, after in count(pruned["layer"]).items():
        keep = round((1 - sparsity) * SIZES[name])
        assert after == min(keep, before[name])


@moderate
@given(SEEDS, DENSITIES, st.integers(0, 100))
def test_pruning_by_a_fraction_drops_its_ceiling(seed, density, percent):
    masks = masks_at(seed, density)
    pruned = prune_by(weights(seed, levels=4), masks, percent / 100)
    drop = lambda active: -(-percent * active // 100)
    before = count(masks)
    active = sum(before.values())
    assert is_subset(pruned["global"], masks)
    assert sum(count(pruned["global"]).values()) == active - drop(active)
    assert is_subset(pruned["layer"], masks)
    expected = {name: n - drop(n) for name, n in before.items()}
    assert count(pruned["layer"]) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruning_drops_the_smallest_magnitudes(dtype):
    params, masks = weights(0, dtype), masks_at(1, 0.7)
    pruned = prune_to(params, masks, 0.6)
    magnitude, active = np.abs(flat(params)), flat(masks) == 1
    kept = flat(pruned["global"]) == 1
    assert magnitude[kept].min() >= magnitude[active & ~kept].max()
    for name, mask in arrays(pruned["layer"]).items():
        size = np.abs(params[name].astype(np.float64))
        gone = masks[name] & ~mask
        if mask.any() and gone.any():
            assert size[mask].min() >= size[gone].max()


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_pruning_equal_weights_keeps_the_first_ones(value):
    params = jax.tree.map(lambda leaf: np.full_like(leaf, value), weights(0))
    pruned = prune_to(params, dense(params), 0.75)["global"]
    keep = round(0.25 * TOTAL)
    assert flat(pruned).tolist() == [1.0] * keep + [0.0] * (TOTAL - keep)


def test_pruning_to_sparsity_0_changes_nothing():
    params, masks = weights(0), masks_at(0, 0.5)
    np.testing.assert_array_equal(
        flat(prune_to(params, masks, 0.0)["global"]), flat(masks)
    )


def test_pruning_near_sparsity_1_can_drop_a_layer_or_everything():
    params = weights(0)
    params["one"] = np.full((1, 1), 1e-6, np.float32)
    masks = dense(params)
    pruned = prune_to(params, masks, 1 - 1 / TOTAL)
    assert sum(count(pruned["global"]).values()) == 1
    assert count(pruned["global"])["one"] == 0
    assert set(count(prune_to(params, masks, 0.999)["global"]).values()) == {0}
    again = prune_by(params, prune_to(params, masks, 0.999)["global"], 0.5)["layer"]
    assert set(count(again).values()) == {0}


def test_pruning_to_a_number_keeps_it():
    params, masks = weights(0), dense(weights(0))
    keep = {"conv": 0, "dense": 35, "one": 1}
    by_layer = sj.prune_magnitude(params, masks, keep=counts_of(keep), scope="layer")
    assert count(by_layer) == keep


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_dropped_first(bad):
    params = {"w": np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)}
    params["w"][1, 1] = bad
    masks = sj.prune_magnitude(params, dense(params), keep=8)
    assert np.argwhere(~np.asarray(masks["w"])).tolist() == [[1, 1]]


def test_amounts_known_when_a_step_is_compiled_may_be_jax_arrays():
    params, masks = weights(0), dense(weights(0))
    fraction, sparsity, keep = jnp.float32(0.25), jnp.float32(0.5), jnp.int32(7)

    @jax.jit
    def prune(params):
        return [
            sj.count_active(sj.prune_magnitude(params, masks, **amount))
            for amount in (
                {"fraction": fraction},
                {"sparsity": sparsity},
                {"keep": keep},
            )
        ]

    found = [int(n) for n in prune(params)]
    assert found == [TOTAL - math.ceil(TOTAL / 4), round(TOTAL / 2), 7]


def test_pruning_by_any_score_drops_the_lowest():
    score = {"w": jnp.array([[-3.0, -1.0, 2.0], [5.0, -9.0, 0.0]])}
    masks = sj.prune_by_score(score, sj.dense_masks(score), sparsity=0.5)
    assert masks["w"].tolist() == [[False, False, True], [True, False, True]]


# Growth.


@moderate
@given(SEEDS, DENSITIES, st.fixed_dictionaries(LAYERS), st.sampled_from([None, 2]))
def test_growth_only_adds_and_adds_what_it_is_told(seed, density, counts, levels):
    masks, before = masks_at(seed, density), count(masks_at(seed, density))
    expected = {n: min(before[n] + counts[n], SIZES[n]) for n in SIZES}
    tree = counts_of(counts)
    by_gradient = grow_by_gradient(weights(seed, levels=levels), masks, tree)
    at_random = grow_at_random(jax.random.key(seed), masks, tree)
    for grown in (by_gradient, at_random):
        assert is_subset(masks, grown)
        assert count(grown) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_growth_takes_the_largest_gradients(dtype):
    grads, masks = weights(2, dtype), masks_at(3, 0.3)
    grown = grow_by_gradient(grads, masks, counts_of({"conv": 9, "dense": 8, "one": 0}))
    for name in ("conv", "dense"):
        size = np.abs(grads[name].astype(np.float64))
        new = np.asarray(grown[name]) & ~masks[name]
        assert size[new].min() >= size[~np.asarray(grown[name])].max()


def test_gradient_growth_over_all_layers_adds_the_number_in_total():
    grads, masks = weights(2), masks_at(3, 0.3)
    grown = sj.regrow_gradient(grads, masks, 11, scope="global")
    assert is_subset(masks, grown)
    assert sum(count(grown).values()) == sum(count(masks).values()) + 11
    new, rest = flat(grown) > flat(masks), flat(grown) == 0
    assert np.abs(flat(grads))[new].min() >= np.abs(flat(grads))[rest].max()


def test_growth_with_all_zero_gradients_takes_the_first_inactive_weights():
    grads = jax.tree.map(np.zeros_like, weights(0))
    masks = masks_at(4, 0.5)
    grown = grow_by_gradient(grads, masks, counts_of({"conv": 5, "dense": 0, "one": 1}))
    first = np.flatnonzero(~masks["conv"].ravel())[:5]
    new = np.asarray(grown["conv"]) & ~masks["conv"]
    assert np.flatnonzero(new).tolist() == first.tolist()


def test_a_gradient_that_is_not_finite_never_wins_a_place():
    grads = {"w": jnp.array([[jnp.nan, 0.1, jnp.inf, 0.0, -jnp.inf]])}
    masks = {"w": jnp.zeros((1, 5), bool)}
    grown = sj.regrow_gradient(grads, masks, {"w": 2})
    assert grown["w"].tolist() == [[False, True, False, True, False]]


def test_random_growth_follows_the_key_and_reaches_every_place_equally_often():
    masks = {"w": jnp.zeros((4, 5), bool).at[0].set(True)}
    grow = jax.jit(jax.vmap(lambda key: sj.regrow_random(key, masks, {"w": 3})["w"]))
    keys = jax.random.split(jax.random.key(0), 3000)
    grown = np.asarray(grow(keys))
    np.testing.assert_array_equal(grown, grow(keys))
    assert grown[:, 0].all()
    hits = grown[:, 1:].reshape(3000, 15).sum(0)
    assert hits.sum() == 3000 * 3
    variance = 3000 * 0.2 * 0.8
    assert 2 < ((hits - 600) ** 2 / variance).sum() * 14 / 15 < 36.1  # 99.9 %, 14 dof


# Ties. Most rows of an embedding have no gradient in a step.

EMBEDDING = jnp.zeros((1000, 64))
HALF = jax.random.bernoulli(jax.random.key(1), 0.5, EMBEDDING.shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equal_gradients_grow_at_random_with_a_key_and_by_position_without(dtype):
    grads, counts = EMBEDDING.astype(dtype), jnp.int32(6400)
    grow = lambda key: sj.regrow_gradient(grads, HALF, counts, key=key)
    by_position = np.asarray(grow(None) & ~HALF)
    first = np.flatnonzero(~np.asarray(HALF))[:6400]
    assert np.flatnonzero(by_position).tolist() == first.tolist()

    grown = grow(jax.random.key(0))
    new = np.asarray(grown & ~HALF)
    assert new.sum() == 6400 and not np.any(HALF & ~grown)
    # Of 6400 in tenths: each has 640, with a deviation of 24 or less.
    tenths = new.reshape(10, -1).sum(axis=1)
    assert np.all(abs(tenths - 640) < 100), tenths
    columns = new.sum(axis=0)
    assert np.all(abs(columns - 100) < 50), columns
    np.testing.assert_array_equal(jax.jit(grow)(jax.random.key(0)), grown)
    other = np.asarray(grow(jax.random.key(1)) & ~HALF)
    assert (other & new).sum() < 0.3 * 6400  # a fifth by chance


def test_only_ties_at_the_threshold_are_spread():
    grads = EMBEDDING.at[500:600].set(-2.0).at[600:].set(1.0)
    masks, counts = jnp.zeros(grads.shape, bool), 6400 + 640
    grown = np.asarray(sj.regrow_gradient(grads, masks, counts, key=jax.random.key(0)))
    assert grown[500:600].all() and not grown[:500].any()
    assert abs(grown[600:700].sum() - 160) < 60 and grown.sum() == counts


def test_layers_of_one_shape_break_ties_apart():
    zeros = {name: jnp.zeros((40, 50)) for name in "ab"}
    masks = sj.dense_masks(zeros)
    none = jax.tree.map(jnp.zeros_like, masks)
    counts = {"a": 200, "b": 200}
    grown = sj.regrow_gradient(zeros, none, counts, key=jax.random.key(0))
    assert sj.count_active(grown, "layer") == counts
    assert sj.jaccard({"w": grown["a"]}, {"w": grown["b"]}) < 0.2


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_at_any_dtype_keep_exact_counts_and_give_bool_masks(dtype):
    params, grads, masks = weights(0, dtype), weights(1, dtype), masks_at(2, 0.6)
    pruned = prune_to(params, masks, 0.7)["global"]
    assert sum(count(pruned).values()) == round(0.3 * TOTAL)
    room = {name: SIZES[name] - n for name, n in count(pruned).items()}
    grown = grow_by_gradient(grads, pruned, counts_of(room))
    assert count(grown) == SIZES
    for tree in (pruned, grown):
        assert all(leaf.dtype == bool for leaf in jax.tree.leaves(tree))


def test_counts_need_no_integers_of_32_bits():
    masks = {"w": jnp.arange(8).reshape(2, 4) < 4}
    for dtype in (jnp.int8, jnp.int16, jnp.uint8):
        grown = sj.regrow_random(jax.random.key(0), masks, {"w": dtype(2)})
        assert grown["w"].sum() == 6


@pytest.mark.parametrize("to", [flax.core.freeze, Params.of])
def test_masks_fit_trees_of_other_nodes_and_come_back_on_theirs(to):
    params, masks = weights(0), masks_at(1, 0.7)
    pruned = sj.prune_magnitude(to(params), masks, sparsity=0.6)
    counts = jax.tree.map(lambda _: 1, pruned)
    grown = sj.regrow_gradient(to(weights(2)), masks, counts)
    for found, expected in (
        (pruned, sj.prune_magnitude(params, masks, sparsity=0.6)),
        (
            grown,
            sj.regrow_gradient(weights(2), masks, counts_of(dict.fromkeys(SIZES, 1))),
        ),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(to(expected))
        jax.tree.map(np.testing.assert_array_equal, found, to(expected))
