"""`kth_largest` and `top_k_mask` against a stable sort in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

thorough = settings(max_examples=150, deadline=None, derandomize=True)
moderate = settings(max_examples=40, deadline=None, derandomize=True)

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]
SHAPE = (3, 7)
SIZE = 21

kth_jit = jax.jit(sj.kth_largest)
mask_jit = jax.jit(sj.top_k_mask, static_argnames=("scope", "rank"))


# The oracle.


def ranking(scores: np.ndarray) -> np.ndarray:
    """Positions from the largest score to the smallest: ties by position, NaN last."""
    values = np.ravel(scores).astype(np.float64)
    is_nan = np.isnan(values)
    return np.lexsort((-np.where(is_nan, 0.0, values), is_nan))


def expected_mask(scores: np.ndarray, k: int, among: np.ndarray | None = None):
    order = ranking(scores)
    if among is not None:
        order = order[np.ravel(among)[order]]
    mask = np.zeros(scores.size, bool)
    mask[order[:k]] = True
    return mask.reshape(scores.shape)


def assert_same_value(result, expected, dtype):
    assert result.dtype == jnp.dtype(dtype)
    assert result.shape == ()
    np.testing.assert_array_equal(
        np.asarray(result).astype(np.float64), np.asarray(expected).astype(np.float64)
    )


# Scores drawn as bit patterns: all floats there are, and often the same one twice.


def bits_of(values: list[float], dtype) -> list[int]:
    unsigned = f"u{np.dtype(dtype).itemsize}"
    return np.array(values).astype(dtype).view(unsigned).tolist()


def scores_of(dtype, shape=SHAPE):
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    sign = 1 << (8 * unsigned.itemsize - 1)
    specials = bits_of([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan], dtype)
    denormals = [1, 2, 3, sign + 1, sign + 2]
    one = st.sampled_from([*specials, *denormals]) | st.integers(
        0, np.iinfo(unsigned).max
    )
    size = int(np.prod(shape))
    return st.lists(one, min_size=size, max_size=size).map(
        lambda bits: np.array(bits, unsigned).view(dtype).reshape(shape)
    )


bools = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(
    lambda flags: np.array(flags).reshape(SHAPE)
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_mask_is_what_a_stable_sort_gives(dtype):
    @thorough
    @given(scores_of(dtype), st.integers(0, SIZE))
    def check(scores, k):
        np.testing.assert_array_equal(mask_jit(scores, k), expected_mask(scores, k))

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kth_largest_is_what_a_stable_sort_gives(dtype):
    @thorough
    @given(scores_of(dtype), st.integers(1, SIZE))
    def check(scores, k):
        expected = scores.ravel()[ranking(scores)[k - 1]]
        assert_same_value(kth_jit(scores, k), expected, dtype)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_k_mask_marks_only_among_those_allowed(dtype):
    @moderate
    @given(scores_of(dtype), bools, st.integers(0, SIZE))
    def check(scores, among, k):
        mask = mask_jit(scores, k, among)
        np.testing.assert_array_equal(mask, expected_mask(scores, k, among))
        assert int(mask.sum()) == min(k, int(among.sum()))

    check()


TREE_SHAPES = {"a": (2, 3), "b": (4,), "c": (), "d": (1, 2, 2, 2)}
TREE_SIZE = 6 + 4 + 1 + 8


def trees_of(dtypes):
    leaves = {
        name: scores_of(dtype, shape)
        for (name, shape), dtype in zip(TREE_SHAPES.items(), dtypes)
    }
    return st.fixed_dictionaries(leaves)


def flat(tree) -> np.ndarray:
    leaves = jax.tree.leaves(jax.tree.map(np.asarray, tree))
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


@pytest.mark.parametrize(
    "dtypes",
    [[np.float32] * 4, [np.float16, np.float32, ml_dtypes.bfloat16, np.float32]],
    ids=["float32", "mixed"],
)
def test_global_scope_ranks_all_leaves_together(dtypes):
    @moderate
    @given(trees_of(dtypes), st.integers(0, TREE_SIZE))
    def check(tree, k):
        together = flat(tree)
        masks = mask_jit(tree, k)
        assert {name: leaf.shape for name, leaf in masks.items()} == TREE_SHAPES
        np.testing.assert_array_equal(flat(masks), expected_mask(together, k))
        if k:
            kth = kth_jit(tree, k)
            assert_same_value(kth, together[ranking(together)[k - 1]], np.float32)

    check()


@moderate
@given(
    trees_of([np.float32] * 4),
    st.tuples(*[st.integers(0, int(np.prod(s))) for s in TREE_SHAPES.values()]),
)
def test_layer_scope_ranks_each_leaf_by_itself(tree, counts):
    k = dict(zip(tree, counts))
    masks = mask_jit(tree, k, scope="layer")
    for name, scores in tree.items():
        np.testing.assert_array_equal(masks[name], expected_mask(scores, k[name]))


def test_layer_scope_takes_one_count_for_all_layers():
    tree = {"a": jnp.arange(6.0), "b": -jnp.arange(4.0).reshape(2, 2)}
    masks = sj.top_k_mask(tree, 2, scope="layer")
    assert masks["a"].tolist() == [False] * 4 + [True] * 2
    assert masks["b"].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("k", [0, 1, 10, 21])
def test_eager_and_jit_with_a_traced_k_agree(k):
    scores = np.random.default_rng(k).normal(size=SHAPE).astype(np.float32)
    eager = sj.top_k_mask(scores, k)
    np.testing.assert_array_equal(eager, mask_jit(scores, jnp.int32(k)))
    np.testing.assert_array_equal(eager, expected_mask(scores, k))
    if k:
        assert sj.kth_largest(scores, k) == kth_jit(scores, jnp.int32(k))


def test_one_compiled_program_serves_every_k():
    traces = []

    @jax.jit
    def select(scores, k):
        traces.append(k)
        return sj.top_k_mask(scores, k)

    scores = jnp.arange(21.0).reshape(SHAPE)
    assert [int(select(scores, k).sum()) for k in range(22)] == list(range(22))
    assert len(traces) == 1


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, np.inf, -np.inf, np.nan, 1e-40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_equal_scores_are_taken_in_order_of_position(dtype, value):
    scores = np.full(SHAPE, value, dtype)
    for k in (0, 1, 8, 20, 21):
        mask = np.asarray(mask_jit(scores, k))
        assert mask.ravel().tolist() == [True] * k + [False] * (21 - k)


def test_ties_over_leaves_go_to_the_earlier_leaf():
    tree = {"a": jnp.ones(3), "b": jnp.ones((2, 2)), "c": jnp.full(2, 2.0)}
    masks = sj.top_k_mask(tree, 6)
    assert flat(masks).tolist() == [True] * 3 + [True, False, False, False] + [True] * 2


def test_minus_zero_equals_zero():
    scores = jnp.array([-0.0, 0.0, -0.0, 0.0])
    assert sj.top_k_mask(scores, 2).tolist() == [True, True, False, False]
    kth = np.asarray(sj.kth_largest(jnp.array([-1.0, -0.0]), 1))
    assert kth == 0
    assert not np.signbit(kth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_told_apart(dtype):
    unsigned = f"u{np.dtype(dtype).itemsize}"
    scores = np.array([0, 2, 1, 3], unsigned).view(dtype)
    assert mask_jit(scores, 1).tolist() == [False, False, False, True]
    assert mask_jit(scores, 2).tolist() == [False, True, False, True]
    assert mask_jit(scores, 3).tolist() == [False, True, True, True]
    assert np.asarray(kth_jit(scores, 2)).view(unsigned) == 2


def test_nan_ranks_below_minus_infinity():
    scores = jnp.array([jnp.nan, -jnp.inf, jnp.nan, 0.0])
    assert sj.top_k_mask(scores, 2).tolist() == [False, True, False, True]
    assert sj.top_k_mask(scores, 3).tolist() == [True, True, False, True]
    assert sj.kth_largest(scores, 2) == -jnp.inf
    assert jnp.isnan(sj.kth_largest(scores, 3))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 3)])
def test_scalars_single_and_empty_arrays(shape):
    scores = np.zeros(shape, np.float32)
    for k in range(scores.size + 1):
        mask = sj.top_k_mask(scores, k)
        assert mask.shape == shape
        assert int(mask.sum()) == k


def test_an_empty_leaf_among_others():
    masks = sj.top_k_mask({"a": jnp.zeros((0, 2)), "b": jnp.array([1.0, 2.0])}, 1)
    assert masks["a"].shape == (0, 2)
    assert masks["b"].tolist() == [False, True]


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.int8, jnp.int16, jnp.int32])
def test_signed_integers_are_ranked_as_they_are(dtype):
    info = jnp.iinfo(dtype)
    scores = np.array([0, info.min, info.max, -1, info.min + 1], dtype)
    for k in range(6):
        np.testing.assert_array_equal(mask_jit(scores, k), expected_mask(scores, k))
    assert kth_jit(scores, 5) == info.min
    assert sj.kth_largest(scores, 1) == info.max


def test_the_lowest_int32_is_a_score_like_any_other():
    lowest = jnp.iinfo(jnp.int32).min
    scores = jnp.array([lowest, lowest + 1, lowest, 5], jnp.int32)
    assert sj.top_k_mask(scores, 2).tolist() == [False, True, False, True]
    assert sj.top_k_mask(scores, 3).tolist() == [True, True, False, True]
    grown = sj.regrow_by_score({"w": scores[None]}, {"w": scores[None] > 0}, {"w": 2})
    assert grown["w"].tolist() == [[True, True, False, True]]


RANKS = {
    "float": (jnp.abs, np.abs),
    "int32": (
        lambda x: jnp.round(10 * x).astype(jnp.int32),
        lambda x: np.round(np.float32(10) * x),
    ),
    "int16": (
        lambda x: jnp.round(10 * x).astype(jnp.int16),
        lambda x: np.round(np.float32(10) * x),
    ),
    "magnitude": (sj.scores.rank_of_magnitude, np.abs),
}


@pytest.mark.parametrize("name", RANKS)
def test_scores_are_ranked_by_a_function_of_them(name):
    rank, oracle = RANKS[name]
    rng = np.random.default_rng(0)
    tree = {n: rng.normal(size=SHAPE).astype(np.float32) for n in "ab"}
    ranked = np.concatenate([np.ravel(oracle(leaf)) for leaf in tree.values()])
    for k in (0, 1, 17, 42):
        masks = mask_jit(tree, k, rank=rank)
        np.testing.assert_array_equal(flat(masks), expected_mask(ranked, k))


def test_float64_scores_that_float32_cannot_tell_apart():
    scores = np.array([1.0, 1.0 + 1e-15, 1.0 - 1e-15, -0.0, 5e-324, np.nan])
    with jax.enable_x64(True):
        for k in range(1, 7):
            mask = mask_jit(jnp.asarray(scores), k)
            np.testing.assert_array_equal(mask, expected_mask(scores, k))
            value = kth_jit(jnp.asarray(scores), k)
            assert_same_value(value, scores[ranking(scores)[k - 1]], np.float64)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_vmap_equals_a_loop(scope):
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.integers(-2, 3, (5, *SHAPE)).astype(np.float32),
        "b": rng.normal(size=(5, 4)).astype(np.float32),
    }
    counts = jnp.array([0, 1, 2, 3, 4])
    select = lambda scores, k: sj.top_k_mask(scores, k, scope=scope)
    batched = jax.jit(jax.vmap(select))(tree, counts)
    for i, k in enumerate(counts):
        single = jax.jit(select)({name: leaf[i] for name, leaf in tree.items()}, k)
        for name in tree:
            np.testing.assert_array_equal(batched[name][i], single[name])


def test_twenty_million_scores_with_ties():
    size = 20_000_003
    scores = np.random.default_rng(0).integers(0, 1000, size).astype(np.float32)
    k = 1_234_567
    mask = np.asarray(mask_jit(scores, k))
    threshold = np.partition(scores, size - k)[size - k]
    expected = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    expected[ties[: k - expected.sum()]] = True
    assert mask.sum() == k
    np.testing.assert_array_equal(mask, expected)


def test_pruning_twenty_million_weights_keeps_the_number_told():
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 3, 512, 1000), "b": (3000, 4000), "c": (1000, 3392)}
    params = {
        name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    size = sum(leaf.size for leaf in params.values())
    assert size == 20_000_000

    @jax.jit
    def prune(params, sparsity):
        pruned = sj.prune_magnitude(params, sj.dense_masks(params), sparsity=sparsity)
        return pruned, sj.prune_magnitude(params, pruned, fraction=0.3)

    masks, fewer = prune(params, 0.9)
    assert int(sj.count_active(masks)) == 2_000_000
    magnitudes = np.concatenate([np.abs(leaf).ravel() for leaf in params.values()])
    kept = np.concatenate([np.ravel(mask) for mask in masks.values()])
    assert magnitudes[kept].min() >= magnitudes[~kept].max()
    assert int(sj.count_active(fewer)) == 1_400_000
