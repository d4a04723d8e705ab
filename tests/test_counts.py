"""Numbers of weights are exact to the unit, at any size."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax.counts import total_of

LARGEST = 2**31 - 1
SIZES = st.integers(0, LARGEST) | st.integers(0, 100)
RESNET50 = 25_502_912

thorough = settings(max_examples=300, deadline=None, derandomize=True)
moderate = settings(max_examples=100, deadline=None, derandomize=True)

traced_keep = jax.jit(sj.keep_count)
traced_drop = jax.jit(sj.drop_count)


@thorough
@given(st.floats(0, 1, exclude_max=True), SIZES)
def test_keep_count_is_the_rounded_product_of_float64(sparsity, size):
    assert int(sj.keep_count(sparsity, size)) == round((1 - sparsity) * size)


@thorough
@given(st.floats(0, 1, exclude_max=True, width=32), SIZES)
def test_traced_keep_count_is_the_same(sparsity, size):
    counted = traced_keep(jnp.float32(sparsity), jnp.int32(size))
    assert int(counted) == round((1 - sparsity) * size)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1001, 2**20 + 1, LARGEST])
def test_traced_keep_count_rounds_halves_to_even(size):
    assert int(traced_keep(jnp.float32(0.5), size)) == round(size / 2)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999])
def test_counts_of_a_resnet50_are_exact(sparsity):
    exact = round((1 - Fraction(str(sparsity))) * RESNET50)
    assert int(sj.keep_count(sparsity, RESNET50)) == exact
    as_float32 = np.float32(sparsity)
    counted = int(traced_keep(jnp.float32(as_float32), RESNET50))
    assert counted == round((1 - Fraction(float(as_float32))) * RESNET50)
    assert abs(counted - exact) <= 1


def test_keep_count_takes_arrays():
    counts = sj.keep_count([0.0, 0.5, 0.9], np.array([10, 11, RESNET50]))
    assert counts.tolist() == [10, 6, 2_550_291]
    assert counts.dtype == np.int64


# XLA's CPU code flushes subnormal numbers to zero.
@moderate
@given(st.floats(0, 1, allow_subnormal=False), SIZES)
def test_drop_count_is_the_ceiling_of_the_float64_product(fraction, active):
    assert int(sj.drop_count(fraction, active)) == math.ceil(fraction * active)


@moderate
@given(st.integers(1, 999), st.integers(1, 10**6))
def test_drop_count_of_decimals_is_the_ceiling_of_the_float64_product(mills, active):
    fraction = mills / 1000
    assert int(sj.drop_count(fraction, active)) == math.ceil(fraction * active)


@pytest.mark.parametrize("excess", [0, 1, 2**22, 2**23 - 1, 2**23, 2**30, 2**30 + 1])
def test_drop_count_rounds_like_float64_around_half_a_unit(excess):
    """The fraction m / 2^53 for which the rest of m * active is `excess` / 2^53."""
    m = excess * pow(LARGEST, -1, 2**53) % 2**53
    fraction = m / 2**53
    expected = math.ceil(fraction * LARGEST)
    assert int(sj.drop_count(fraction, LARGEST)) == expected


@pytest.mark.parametrize("fraction", [1e-300, 1e-30, 1e-17, 1e-9])
def test_drop_count_of_a_tiny_fraction_is_one(fraction):
    assert int(sj.drop_count(fraction, 7)) == 1
    assert int(sj.drop_count(fraction, 0)) == 0


@pytest.mark.parametrize("active", [0, 1, 50, RESNET50, LARGEST])
def test_drop_count_of_nothing_and_of_everything(active):
    assert int(sj.drop_count(0.0, active)) == 0
    assert int(sj.drop_count(1.0, active)) == active


@moderate
@given(st.integers(1, 999), st.integers(1, 1000))
def test_drop_count_of_a_float32_takes_a_product_next_to_an_integer_for_it(
    mills, active
):
    """0.3 of 50 is 15 although the float32 nearest to 0.3 is above it."""
    expected = math.ceil(Fraction(mills, 1000) * active)
    assert int(traced_drop(jnp.float32(mills / 1000), active)) == expected


@moderate
@given(st.floats(0, 1, width=32), SIZES)
def test_drop_count_of_a_float32_is_the_ceiling_but_for_its_tolerance(fraction, active):
    product = Fraction(fraction) * active
    whole = math.floor(product)
    drop = int(traced_drop(jnp.float32(fraction), jnp.int32(active)))
    assert drop in (whole, math.ceil(product))
    if product - whole > max(whole, 1) * Fraction(1, 2**21):
        assert drop == whole + 1


def test_counts_are_int32_also_with_64_bit_types():
    with jax.enable_x64(True):
        assert sj.drop_count(0.3, jnp.int32(50)).dtype == jnp.int32
        assert int(sj.drop_count(0.3, 50)) == 15
        assert int(jax.jit(sj.keep_count)(jnp.float32(0.25), 10)) == 8


def test_counts_go_beyond_int32_where_they_are_known():
    size = 7 * 2**30 + 1
    assert int(sj.keep_count(0.5, size)) == round(size / 2)
    with pytest.raises(ValueError, match=r"^sparsity must be known now to count"):
        jax.jit(lambda s: sj.keep_count(s, size))(0.5)


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [(1, jnp.int32), (2, jnp.uint32), (3, jnp.float32)],
)
def test_totals_beyond_int32_take_the_narrowest_type_that_holds_them(parts, dtype):
    counts = jnp.full(parts, LARGEST, jnp.int32)
    total = total_of(counts, parts * LARGEST)
    assert total.dtype == dtype
    assert total == np.asarray(parts * LARGEST, dtype)
    shapes = [jax.ShapeDtypeStruct((LARGEST,), bool)] * parts
    assert jax.eval_shape(sj.count_active, shapes).dtype == dtype


def test_a_mask_too_large_for_int32_is_counted_row_by_row():
    mask = jax.ShapeDtypeStruct((3, 2**30), bool)
    assert jax.eval_shape(sj.count_active, mask).dtype == jnp.uint32
    assert sj.count_prunable({"w": mask}) == 3 * 2**30


# Shares of a number over layers.

share = jax.jit(sj.apportion)


def exact_shares(total: int, shares: list[int], room: list[int]) -> list[int]:
    """Quotas in rational numbers, full layers full, by largest remainder."""
    total = min(total, sum(room))
    full: set[int] = set()
    while True:
        rest = total - sum(room[i] for i in full)
        others = [i for i in range(len(room)) if i not in full]
        parts = {i: shares[i] for i in others}
        if not any(parts.values()):
            parts = {i: room[i] for i in others}
        whole = sum(parts.values())
        quota = {i: Fraction(rest * parts[i], whole) if whole else 0 for i in others}
        over = {i for i in others if quota[i] >= room[i]}
        if not over:
            break
        full |= over
    counts = [room[i] if i in full else math.floor(quota[i]) for i in range(len(room))]
    by_remainder = sorted(others, key=lambda i: counts[i] - quota[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


LAYERS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), min_size=5)


@thorough
@given(st.integers(0, 250), LAYERS)
def test_shares_are_those_of_rational_numbers(total, layers):
    shares, room = ([layer[i] for layer in layers[:5]] for i in (0, 1))
    counts = share(total, [jnp.float32(s) for s in shares], room)
    assert [int(n) for n in counts] == exact_shares(total, shares, room)


@moderate
@given(
    st.integers(0, LARGEST),
    st.lists(st.floats(0, 2.0**100, width=32), min_size=5, max_size=5),
    st.lists(st.integers(0, LARGEST // 5), min_size=5, max_size=5),
)
def test_shares_of_any_size_sum_to_the_total_within_the_room(total, shares, room):
    counts = [int(n) for n in share(total, [jnp.float32(s) for s in shares], room)]
    assert sum(counts) == min(total, sum(room))
    assert all(0 <= n <= most for n, most in zip(counts, room))
    not_full = [i for i in range(5) if counts[i] < room[i] and shares[i] > 0]
    for i, j in itertools.pairwise(not_full):
        ratio = shares[i] / (shares[i] + shares[j])
        both = counts[i] + counts[j]
        assert abs(counts[i] - ratio * both) <= 2 + 1e-6 * total


@pytest.mark.parametrize("parts", [3, 5, 11])
def test_equal_shares_that_float32_rounds_up_or_down_are_equal_to_a_few_units(parts):
    total, room = 1_500_000_001, [LARGEST // parts] * parts
    counts = [int(n) for n in share(total, [jnp.float32(1)] * parts, room)]
    assert sum(counts) == total
    assert max(counts) - min(counts) <= 1e-6 * total


def test_shares_that_are_no_numbers_count_as_none():
    shares = {"a": jnp.nan, "b": jnp.inf, "c": -3.0, "d": 1.0}
    counts = sj.apportion(7, shares, dict.fromkeys(shares, 10))
    assert jax.tree.map(int, counts) == {"a": 0, "b": 0, "c": 0, "d": 7}
