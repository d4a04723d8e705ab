"""Sparsity and prune rate over time, and the steps that change masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj

moderate = settings(max_examples=100, deadline=None, derandomize=True)
spans = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6))
steps = st.integers(0, 3 * 10**6)


@moderate
@given(spans, st.floats(0, 0.99), st.floats(0, 0.99), steps)
def test_cubic_sparsity_is_the_papers_formula(span, one, other, step):
    begin, length = span
    initial, final = sorted([one, other])
    value = sj.cubic_sparsity(initial, final, begin, begin + length)(step)
    if step <= begin:
        assert value == pytest.approx(initial, abs=1e-12)
    elif step >= begin + length:
        assert value == pytest.approx(final, abs=1e-12)
    else:
        left = (1 - (step - begin) / length) ** 3
        assert value == pytest.approx(final + (initial - final) * left, abs=1e-12)


def test_cubic_sparsity_reaches_the_final_sparsity_exactly_at_the_end():
    schedule = sj.cubic_sparsity(0.5, 0.9, 100, 28_160)
    assert schedule(28_160) == 0.9
    assert schedule(10**9) == 0.9
    assert schedule(28_159) < 0.9
    assert schedule(0) == schedule(100) == pytest.approx(0.5)


def test_cubic_sparsity_never_falls_and_slows_down():
    values = np.array([sj.cubic_sparsity(0.0, 0.95, 5, 50)(t) for t in range(60)])
    rises = np.diff(values)
    assert (rises >= 0).all()
    assert (np.diff(rises[5:50]) < 0).all()


@moderate
@given(spans, st.floats(0, 0.99), st.floats(0, 0.99), steps)
def test_linear_sparsity_is_a_straight_line(span, one, other, step):
    begin, length = span
    initial, final = sorted([one, other])
    value = sj.linear_sparsity(initial, final, begin, begin + length)(step)
    progress = min(max((step - begin) / length, 0), 1)
    assert value == pytest.approx(initial + (final - initial) * progress, abs=1e-12)


@moderate
@given(st.floats(0.01, 0.99), st.floats(0, 1), st.integers(1, 10**6), steps)
def test_cosine_prune_rate_is_half_a_cosine(rate, share, length, step):
    final = rate * share
    value = sj.cosine_prune_rate(rate, length, final)(step)
    angle = math.pi * min(step / length, 1)
    expected = final + (rate - final) * (1 + math.cos(angle)) / 2
    assert value == pytest.approx(expected, abs=1e-12)


def test_cosine_prune_rate_of_granet_ends_at_its_floor():
    schedule = sj.cosine_prune_rate(0.5, 56_320, 0.005)
    assert schedule(0) == 0.5
    assert schedule(28_160) == pytest.approx(0.2525)
    assert schedule(56_320) == schedule(10**6) == 0.005


def test_linear_and_constant_prune_rates():
    linear = sj.linear_prune_rate(0.4, 200)
    assert [linear(t) for t in (0, 50, 200, 500)] == pytest.approx([0.4, 0.3, 0, 0])
    assert [sj.constant_prune_rate(0.3)(t) for t in (0, 10**6)] == [0.3, 0.3]


@pytest.mark.parametrize(
    "schedule",
    [
        sj.cubic_sparsity(0.2, 0.9, 10, 77),
        sj.linear_sparsity(0.2, 0.9, 10, 77),
        sj.cosine_prune_rate(0.5, 77, 0.005),
        sj.linear_prune_rate(0.5, 77),
    ],
    ids=["cubic", "linear sparsity", "cosine", "linear prune rate"],
)
def test_a_traced_step_gives_what_an_integer_gives_in_float32(schedule):
    traced = jax.jit(schedule)
    for step in (0, 10, 11, 40, 76, 77, 100):
        value = traced(jnp.int32(step))
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(schedule(step)), abs=2e-7)
    array = schedule(np.arange(100))
    assert array.dtype == np.float64
    assert array[40] == pytest.approx(schedule(40), abs=1e-15)


def expected_steps(interval, begin, end, until):
    if end is None:
        return list(range(begin + interval, until, interval))
    return [
        t for t in sorted({*range(begin + interval, end, interval), end}) if t < until
    ]


@moderate
@given(st.integers(1, 30), st.integers(0, 20), st.none() | st.integers(1, 80))
def test_update_steps_are_multiples_after_the_begin_and_the_end(interval, begin, more):
    end = None if more is None else begin + more
    is_update_step = sj.every(interval, begin, end)
    found = [t for t in range(120) if is_update_step(t)]
    assert found == expected_steps(interval, begin, end, 120)
    assert 0 not in found
    np.testing.assert_array_equal(np.flatnonzero(is_update_step(np.arange(120))), found)


def test_update_steps_of_a_traced_step():
    is_update_step = jax.jit(jax.vmap(sj.every(7, 3, 40)))
    found = np.flatnonzero(is_update_step(jnp.arange(60))).tolist()
    assert found == [10, 17, 24, 31, 38, 40]
