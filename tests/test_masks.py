"""Mask algebra: making, applying, counting, comparing and packing masks."""

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

SHAPES = {"conv": (2, 3, 1, 5), "dense": (3, 7)}
SIZES = {"conv": 30, "dense": 21}
LEFT = optax.MaskedNode()


def mask_of(shape):
    size = int(np.prod(shape))
    flags = st.integers(0, 2**size - 1) | st.sampled_from([0, 1, 2**size - 1])
    return flags.map(
        lambda n: np.array([n >> i & 1 for i in range(size)], bool).reshape(shape)
    )


masks_of = st.fixed_dictionaries(
    {name: mask_of(shape) for name, shape in SHAPES.items()}
).map(lambda masks: {**masks, "bias": optax.MaskedNode()})


def flat(masks) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(masks)])


def make_params(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {**SHAPES, "bias": (5,)}
    return {name: rng.normal(size=s).astype(dtype) for name, s in shapes.items()}


# Making.


def test_dense_masks_are_true_at_each_matrix_and_kernel():
    masks = sj.dense_masks(make_params())
    assert masks["bias"] == optax.MaskedNode()
    for name, shape in SHAPES.items():
        assert masks[name].dtype == bool
        assert masks[name].shape == shape
        assert masks[name].all()


MIXED = {"a": np.zeros((3, 3, 4, 8)), "b": np.zeros((50, 31)), "c": np.zeros(9)}


@jax.jit
def draw_mixed(key, counts):
    return sj.random_masks(key, MIXED, counts=counts)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.998])
def test_random_masks_have_the_exact_total(distribution, sparsity):
    counts = sj.active_counts(MIXED, sparsity, distribution)
    masks = draw_mixed(jax.random.key(0), counts)
    size = 288 + 1550
    assert int(sj.count_active(masks)) == round((1 - sparsity) * size)
    assert sj.count_active(masks, "layer") == counts


def test_random_masks_of_a_layer_of_one_weight():
    params = {"one": np.zeros((1, 1)), "many": np.zeros((10, 10))}
    layers = {"prunable": [("", True)]}  # a layer of one weight is no kernel by default
    draw = jax.jit(
        lambda counts: sj.random_masks(
            jax.random.key(0), params, counts=counts, **layers
        )
    )
    masks = draw(sj.active_counts(params, 0.95, **layers))
    assert int(sj.count_active(masks)) == 5  # round(5.05)
    assert masks["one"].item()
    uniform = draw(sj.active_counts(params, 0.95, "uniform", **layers))
    assert int(sj.count_active(uniform)) == 5
    assert not uniform["one"].item()


def test_random_masks_follow_the_key():
    params = make_params()
    draw = jax.jit(lambda key: sj.random_masks(key, params, 0.5))
    zero, again, one = (flat(draw(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(zero, again)
    assert (zero != one).any()


def test_layers_of_one_shape_get_different_random_masks():
    params = {"a": np.zeros((20, 20)), "b": np.zeros((20, 20))}
    masks = sj.random_masks(jax.random.key(0), params, 0.5)
    assert (masks["a"] != masks["b"]).any()


def test_random_masks_choose_every_position_equally_often():
    """Chi-square over 2,000 draws of 6 in 24: the 99.9 % quantile of 23 dof is 49.7."""
    draws, size, kept = 2000, 24, 6
    params = {"w": np.zeros((4, 6))}
    counts = {"w": jnp.int32(kept)}
    draw = lambda key: sj.random_masks(key, params, counts=counts)["w"]
    masks = jax.vmap(draw)(jax.random.split(jax.random.key(0), draws))
    hits = np.asarray(masks).reshape(draws, size).sum(0)
    assert hits.sum() == draws * kept
    # The hits of a draw always sum to `kept`, hence the factor (size - 1) / size.
    variance = draws * (kept / size) * (1 - kept / size)
    chi_square = (
        ((hits - draws * kept / size) ** 2 / variance).sum() * (size - 1) / size
    )
    assert 5 < chi_square < 49.7
    # Neighbors are chosen independently of each other: 99.9 % within 3.3 sigma.
    pairs = np.asarray(masks).reshape(draws, size)
    together = (pairs[:, :-1] & pairs[:, 1:]).sum() / (draws * (size - 1))
    assert together == pytest.approx(kept / size * (kept - 1) / (size - 1), rel=0.05)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_random_masks_from_traced_counts_equal_those_from_the_sparsity(distribution):
    params, key = make_params(), jax.random.key(3)
    expected = sj.random_masks(key, params, 0.7, distribution)

    @jax.jit
    def draw(key, counts):
        return sj.random_masks(key, params, counts=counts)

    masks = draw(key, sj.active_counts(params, 0.7, distribution))
    np.testing.assert_array_equal(flat(masks), flat(expected))


def test_stacked_layers_get_counts_and_masks_of_their_own():
    params = {"blocks": np.zeros((3, 10, 20)), "head": np.zeros((20, 5))}
    prunable = [("blocks", sj.LayerRule(stacked=True))]
    counts = sj.active_counts(params, 0.8, "uniform", prunable)
    assert counts["blocks"].tolist() == [40, 40, 40]
    masks = sj.random_masks(jax.random.key(0), params, 0.8, "uniform", prunable)
    assert masks["blocks"].sum((1, 2)).tolist() == [40, 40, 40]
    assert (masks["blocks"][0] != masks["blocks"][1]).any()
    assert int(masks["head"].sum()) == 20


# Applying.


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_apply_masks_zeroes_the_inactive_and_leaves_the_rest_bit_identical(dtype):
    params = make_params(dtype)
    params["dense"][0, :3] = [np.nan, np.inf, -0.0]
    params["dense"][1, 0] = np.array(1, f"u{np.dtype(dtype).itemsize}").view(dtype)

    @moderate
    @given(masks_of)
    def check(masks):
        masked = sj.apply_masks(params, masks)
        for name in SHAPES:
            result, mask = np.asarray(masked[name]), masks[name]
            assert result.dtype == dtype
            bits = lambda a: a.view(f"u{a.dtype.itemsize}")
            np.testing.assert_array_equal(
                bits(result), np.where(mask, bits(params[name]), 0)
            )
        assert masked["bias"] is params["bias"]

    check()


def test_apply_masks_twice_changes_nothing_more():
    params = make_params()
    masks = sj.random_masks(jax.random.key(0), params, 0.6)
    once = sj.apply_masks(params, masks)
    twice = sj.apply_masks(once, masks)
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_apply_masks_is_differentiable_as_a_product_with_the_masks():
    params = make_params()
    masks = sj.random_masks(jax.random.key(0), params, 0.6)
    loss = lambda p: sum(
        jnp.sum(jnp.sin(leaf)) for leaf in sj.apply_masks(p, masks).values()
    )
    slope = jax.grad(loss)(params)
    for name, w in params.items():
        mask = masks[name] if name in SHAPES else True
        np.testing.assert_allclose(slope[name], np.where(mask, np.cos(w), 0), rtol=1e-6)


# Sparse parameters and their masks.


def test_masks_of_sparse_parameters_are_where_a_weight_is_not_zero():
    params = make_params()
    masks = sj.random_masks(jax.random.key(0), params, 0.6)
    found = sj.masks_of(sj.apply_masks(params, masks))
    assert jax.tree.structure(found) == jax.tree.structure(masks)
    np.testing.assert_array_equal(flat(found), flat(masks))
    alone = sj.masks_of(params, [("conv", True), ("", False)])
    assert alone["dense"] == alone["bias"] == optax.MaskedNode()
    assert alone["conv"].all()


def test_weights_outside_the_masks_are_counted_and_refused():
    params = make_params()
    masks = sj.random_masks(jax.random.key(0), params, 0.6)
    sparse = sj.apply_masks(params, masks)
    assert sj.check(sparse, masks) is None
    assert sj.count_stray(sparse, masks) == 0
    off = tuple(np.argwhere(~np.asarray(masks["dense"]))[[0, 3]].T)
    stray = sparse | {"dense": sparse["dense"].at[off].set(jnp.array([1e-30, np.nan]))}
    assert sj.count_stray(stray, masks) == 2
    assert jax.jit(sj.count_stray)(stray, masks) == 2
    with pytest.raises(
        ValueError, match=r"^params must be 0 .* got 2 of 21 weights at 'dense'"
    ):
        sj.check(stray, masks)


@pytest.mark.parametrize("function", [sj.apply_masks, sj.check, sj.count_stray])
def test_masks_fit_parameters_in_other_nodes(function):
    """As Orbax, flax.serialization and optax.partition leave them."""
    params = {"block": make_params(), "head": {"w": np.ones((2, 2)), "b": np.ones(2)}}
    masks = sj.random_masks(jax.random.key(0), params["block"], 0.6)
    sparse = {**params, "block": sj.apply_masks(params["block"], masks)}
    expected = function(sparse, {"block": masks, "head": {"w": LEFT, "b": LEFT}})
    for left in (LEFT, None, {}):
        stored = flax.core.freeze({"block": masks | {"bias": left}, "head": left})
        found = function(sparse, stored)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "function",
    [
        sj.count_active,
        sj.count_prunable,
        sj.density,
        sj.sparsity,
        sj.pack_masks,
        lambda masks: sj.union(masks, masks),
        lambda masks: sj.difference(masks, masks),
        lambda masks: sj.jaccard(masks, masks),
        lambda masks: sj.churn(masks, masks),
    ],
)
@pytest.mark.parametrize("bad", [np.ones((3, 7)), np.ones((3, 7), np.int8), True])
def test_what_is_not_bool_is_no_mask(function, bad):
    masks = sj.dense_masks(make_params())
    with pytest.raises(ValueError, match=r"bool.* got (float64|int8|bool) .*dense"):
        function(masks | {"dense": bad})


# Counting.


@moderate
@given(masks_of)
def test_counts_density_and_sparsity_are_those_of_numpy(masks):
    ones, size = int(flat(masks).sum()), flat(masks).size
    assert size == sum(SIZES.values()) == sj.count_prunable(masks)
    assert int(sj.count_active(masks)) == ones
    assert float(sj.density(masks)) == pytest.approx(ones / size, abs=1e-7)
    assert float(sj.sparsity(masks)) == pytest.approx(1 - ones / size, abs=1e-7)
    by_layer = {
        f: f(masks, scope="layer") for f in (sj.count_active, sj.density, sj.sparsity)
    }
    for name, mask in masks.items():
        if name == "bias":
            assert all(
                result[name] == optax.MaskedNode() for result in by_layer.values()
            )
            continue
        assert int(by_layer[sj.count_active][name]) == mask.sum()
        assert float(by_layer[sj.density][name]) == pytest.approx(mask.mean(), abs=1e-7)
        share = 1 - mask.mean()
        assert float(by_layer[sj.sparsity][name]) == pytest.approx(share, abs=1e-7)


def test_counts_are_int32_and_shares_float32():
    masks = sj.dense_masks(make_params())
    assert sj.count_active(masks).dtype == jnp.int32
    assert sj.density(masks).dtype == jnp.float32
    assert sj.sparsity(masks).dtype == jnp.float32
    assert isinstance(sj.count_prunable(masks), int)


def test_counts_work_on_traced_masks():
    masks = sj.random_masks(jax.random.key(0), make_params(), 0.5)
    assert int(jax.jit(sj.count_active)(masks)) == int(sj.count_active(masks))
    assert jax.jit(sj.sparsity)(masks) == sj.sparsity(masks)


# Comparing.


@moderate
@given(masks_of, masks_of)
def test_union_difference_jaccard_and_churn_are_those_of_sets(a, b):
    x, y = flat(a), flat(b)
    np.testing.assert_array_equal(flat(sj.union(a, b)), x | y)
    np.testing.assert_array_equal(flat(sj.difference(a, b)), x & ~y)
    either, both = (x | y).sum(), (x & y).sum()
    shared = both / either if either else 1.0
    assert float(sj.jaccard(a, b)) == pytest.approx(shared, abs=1e-6)
    lost = (x & ~y).sum() / x.sum() if x.any() else 0.0
    assert float(sj.churn(a, b)) == pytest.approx(lost, abs=1e-6)


@moderate
@given(masks_of, masks_of)
def test_identities_of_the_mask_algebra(a, b):
    same = lambda p, q: np.testing.assert_array_equal(flat(p), flat(q))
    same(sj.union(a, b), sj.union(b, a))
    same(sj.union(a, a), a)
    same(sj.union(sj.difference(a, b), b), sj.union(a, b))
    assert not flat(sj.difference(a, a)).any()
    assert float(sj.jaccard(a, a)) == 1.0
    assert float(sj.jaccard(a, b)) == float(sj.jaccard(b, a))
    assert float(sj.churn(a, a)) == 0.0
    assert float(sj.churn(a, sj.union(a, b))) == 0.0


# Packing.


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (7,), (8,), (9,), (3, 5), (4, 4), (2, 3, 5), (3, 3, 2, 5), (0, 3)],
)
def test_packing_and_unpacking_gives_the_mask_back(shape):
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.5 if shape else np.array(True)
    masks = {"w": jnp.asarray(mask), "b": optax.MaskedNode()}
    packed, params = sj.pack_masks(masks), {"w": mask, "b": np.ones(3)}
    assert packed["w"].shape.tolist() == list(shape)
    assert packed["b"] == optax.MaskedNode()
    assert packed["w"].bits.dtype == jnp.uint8
    assert packed["w"].bits.shape == (-(-mask.size // 8),)
    for back in (
        sj.unpack_masks(packed),
        jax.jit(lambda m, p: sj.unpack_masks(sj.pack_masks(m), p))(masks, params),
        jax.jit(sj.unpack_masks)(jax.jit(sj.pack_masks)(masks), params),
    ):
        assert back["b"] == optax.MaskedNode()
        assert back["w"].dtype == bool
        assert back["w"].shape == shape
        np.testing.assert_array_equal(back["w"], mask)


@moderate
@given(masks_of)
def test_packing_any_masks_round_trips_and_is_one_bit_a_weight(masks):
    packed = sj.pack_masks(masks)
    bits = [packed[name].bits for name in SHAPES]
    assert sum(leaf.size for leaf in bits) == 4 + 3
    np.testing.assert_array_equal(flat(sj.unpack_masks(packed)), flat(masks))


def test_packed_masks_need_their_shapes_inside_jit_and_bits_for_them():
    packed = sj.pack_masks(sj.dense_masks(make_params()))
    with pytest.raises(ValueError, match=r"^params must be given .* got none for 'co"):
        jax.jit(sj.unpack_masks)(packed)
    with pytest.raises(ValueError, match=r"must have 2 bytes for shape \(4, 4\) at 'c"):
        sj.unpack_masks(packed, make_params() | {"conv": np.ones((4, 4))})


def test_check_warns_of_layers_without_any_active_weight():
    masks = {"a": jnp.array([True, False]), "b": jnp.array([False, False])}
    params = {"a": jnp.array([1.0, 0.0]), "b": jnp.zeros(2)}
    with pytest.warns(sj.EmptyLayerWarning, match=r"1 of 2 layers .*: 'b'; nothing"):
        sj.check(params, masks)
