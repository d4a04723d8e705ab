"""Topology updates: pruning only removes, growth only adds, every count is exact."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("both_layouts")

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


@jax.jit
def regenerate(params, grads, masks, fraction):
    magnitude = lambda tree: {
        name: jnp.abs(leaf) if name in SHAPES else optax.MaskedNode()
        for name, leaf in tree.items()
    }
    return sj.exchange(magnitude(params), magnitude(grads), masks, fraction)


# Pruning.


@moderate
@given(SEEDS, DENSITIES, st.floats(0, 1, exclude_max=True, width=32))
def test_pruning_to_a_sparsity_only_removes_and_keeps_the_exact_count(
    seed, density, sparsity
):
    masks = masks_at(seed, density)
    pruned = prune_to(weights(seed, levels=4), masks, sparsity)
    keep = int(jax.jit(sj.keep_count)(jnp.float32(sparsity), TOTAL))
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
    pruned = prune_to(params, sj.dense_masks(params), 0.75)["global"]
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
    dense = sj.dense_masks(params)
    pruned = prune_to(params, dense, 1 - 1 / TOTAL)
    assert sum(count(pruned["global"]).values()) == 1
    assert count(pruned["global"])["one"] == 0
    assert set(count(prune_to(params, dense, 0.999)["global"]).values()) == {0}
    again = prune_by(params, prune_to(params, dense, 0.999)["global"], 0.5)["layer"]
    assert set(count(again).values()) == {0}


def test_pruning_to_a_number_keeps_it():
    params, dense = weights(0), sj.dense_masks(weights(0))
    keep = {"conv": 0, "dense": 35, "one": 1}
    by_layer = sj.prune_magnitude(params, dense, keep=counts_of(keep), scope="layer")
    assert count(by_layer) == keep


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_dropped_first(bad):
    params = {"w": np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)}
    params["w"][1, 1] = bad
    masks = sj.prune_magnitude(params, sj.dense_masks(params), keep=8)
    assert np.argwhere(~np.asarray(masks["w"])).tolist() == [[1, 1]]


def test_amounts_known_when_a_step_is_compiled_may_be_jax_arrays():
    params, dense = weights(0), sj.dense_masks(weights(0))
    fraction, sparsity, keep = jnp.float32(0.25), jnp.float32(0.5), jnp.int32(7)

    @jax.jit
    def prune(params):
        return [
            sj.count_active(sj.prune_magnitude(params, dense, **amount))
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


@moderate
@given(SEEDS, DENSITIES, st.floats(0, 1), st.sampled_from([None, 1, 3]))
def test_counts_after_pruning_are_those_of_the_masks_that_pruning_leaves(
    seed, density, share, levels
):
    masks, score = masks_at(seed, density), weights(seed, levels=levels)
    keep = round(share * sum(count(masks).values()))
    pruned = sj.prune_by_score(score, masks, keep=keep)
    counted = sj.counts_after_pruning(score, masks, keep)
    assert {name: int(counted[name]) for name in SHAPES} == count(pruned)


# Exchange.


@moderate
@given(SEEDS, DENSITIES, st.integers(0, 100), st.sampled_from([None, 3]))
def test_exchange_keeps_each_layers_count_and_never_grows_a_kept_weight(
    seed, density, percent, levels
):
    masks = masks_at(seed, density)
    params, grads = weights(seed, levels=levels), weights(seed + 1, levels=levels)
    update = regenerate(params, grads, masks, percent / 100)
    assert count(update.masks) == count(masks)
    kept = prune_by(params, masks, percent / 100)["layer"]
    for name, active in count(masks).items():
        mask, grown = np.asarray(update.masks[name]), np.asarray(update.grown[name])
        assert grown.sum() == -(-percent * active // 100)
        np.testing.assert_array_equal(grown, mask & ~np.asarray(kept[name]))
        assert not (np.asarray(kept[name]) & ~mask).any()


def test_exchange_may_choose_a_dropped_weight_again_and_counts_it_as_grown():
    masks = jnp.array([True, True, True, False])
    weights, grads = jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([9.0, 0.0, 5.0, 1.0])
    update = sj.exchange(weights, grads, masks, 1 / 3)
    assert update.masks.tolist() == [True, True, True, False]
    assert update.grown.tolist() == [False, False, True, False]


def test_exchange_with_all_zero_gradients_keeps_the_count():
    params, masks = weights(5), masks_at(5, 0.4)
    grads = jax.tree.map(np.zeros_like, params)
    assert count(regenerate(params, grads, masks, 0.5).masks) == count(masks)


def test_exchange_in_an_empty_layer_and_in_a_layer_of_one_weight():
    params, grads = weights(6), weights(7)
    masks = masks_at(6, 0.5) | {
        "conv": np.zeros(SHAPES["conv"], bool),
        "one": np.ones((1, 1), bool),
    }
    update = regenerate(params, grads, masks, 0.3)
    assert count(update.masks) == count(masks)
    assert not update.grown["conv"].any()
    assert update.grown["one"].item()  # dropped and, alone in its layer, chosen again


def test_exchange_of_nothing_and_of_everything():
    params, grads, masks = weights(8), weights(9), masks_at(8, 0.5)
    nothing = regenerate(params, grads, masks, 0.0)
    np.testing.assert_array_equal(flat(nothing.masks), flat(masks))
    assert not flat(nothing.grown).any()
    everything = regenerate(params, grads, masks, 1.0)
    assert count(everything.masks) == count(masks)
    np.testing.assert_array_equal(flat(everything.grown), flat(everything.masks))


def test_no_growth_has_grown_nothing():
    update = sj.no_growth(masks_at(0, 0.5))
    np.testing.assert_array_equal(flat(update.masks), flat(masks_at(0, 0.5)))
    np.testing.assert_array_equal(flat(update.kept), flat(masks_at(0, 0.5)))
    assert not flat(update.grown).any()


def test_an_update_says_of_each_weight_whether_it_is_kept_or_grown():
    kept, grown = jnp.array([True, True, False, False]), jnp.array([0, 1, 1, 0], bool)
    update = sj.TopologyUpdate.of(kept, grown)  # the second is dropped and grown again
    assert update.masks.tolist() == [True, True, True, False]
    assert update.kept.tolist() == [True, False, False, False]
    assert update.grown.tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_at_any_dtype_keep_exact_counts_and_give_bool_masks(dtype):
    params, grads, masks = weights(0, dtype), weights(1, dtype), masks_at(2, 0.6)
    pruned = prune_to(params, masks, 0.7)["global"]
    assert sum(count(pruned).values()) == round(0.3 * TOTAL)
    update = regenerate(params, grads, pruned, 0.3)
    assert count(update.masks) == count(pruned)
    for tree in (pruned, update.masks, update.grown):
        assert all(leaf.dtype == bool for leaf in jax.tree.leaves(tree))
