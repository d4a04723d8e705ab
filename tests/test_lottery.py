"""Lottery tickets: what a round prunes, what it rewinds to, and the controls."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZES = {"conv": (3, 3, 2, 6), "dense": (10, 7)}  # 108 and 70 weights


def normal(seed):
    rng = np.random.default_rng(seed)
    shapes = {**SIZES, "bias": (3,)}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def test_rounds_of_a_fifth_agree_with_numpy():
    start, masks = normal(0), sj.dense_masks(normal(0))
    alive = {name: np.ones(shape, bool) for name, shape in SIZES.items()}
    active = 178
    for number in range(1, 4):
        trained = normal(number)
        params, masks = sj.lottery_ticket(trained, start, masks, fraction=0.2)
        active -= math.ceil(0.2 * active)
        ranked = [np.abs(trained[name][alive[name]]) for name in SIZES]
        threshold = np.sort(np.concatenate(ranked))[-active]
        for name in SIZES:
            alive[name] &= np.abs(trained[name]) >= threshold
            np.testing.assert_array_equal(masks[name], alive[name])
            rewound = np.where(alive[name], start[name], 0)
            np.testing.assert_array_equal(params[name], rewound)
        np.testing.assert_array_equal(params["bias"], start["bias"])
        assert sj.count_active(masks) == active


def test_one_program_serves_every_count():
    start, trained = normal(0), normal(1)
    masks = sj.dense_masks(start)
    ticket = jax.jit(lambda keep: sj.lottery_ticket(trained, start, masks, keep=keep))
    for keep in (100, 7):
        assert sj.count_active(ticket(keep)[1]) == keep
    assert ticket._cache_size() == 1


def test_shuffled_masks_keep_the_counts_and_leave_dense_leaves_dense():
    _, masks = sj.lottery_ticket(
        normal(1), normal(0), sj.dense_masks(normal(0)), fraction=0.5
    )
    first, again, other = (
        sj.shuffle_masks(jax.random.key(seed), masks) for seed in (0, 0, 1)
    )
    assert first["bias"] == masks["bias"]
    for name in SIZES:
        assert first[name].sum() == masks[name].sum()
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != masks[name]).any()
        assert (first[name] != other[name]).any()


def test_counts_pass_through_each_sparsity_at_about_one_rate():
    sparsities = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    counts = sj.lottery_counts(27_408, sparsities)
    assert {int(sj.keep_count(s, 27_408)) for s in sparsities} <= set(counts)
    assert counts[-1] == sj.keep_count(0.995, 27_408)
    dropped = 1 - np.array(counts) / [27_408, *counts[:-1]]
    assert dropped.min() > 0.19 and dropped.max() < 0.22


@pytest.mark.parametrize(
    ("size", "sparsities", "fraction", "message"),
    [
        (100, [0.9], 0.0, "fraction must be in"),
        (100, [1.0], 0.2, "sparsities must be in"),
        (100, [0.9, 0.8], 0.2, "sparsities must rise"),
        (100, [0.999], 0.2, "leave one of the 100 weights"),
    ],
)
def test_counts_are_refused(size, sparsities, fraction, message):
    with pytest.raises(ValueError, match=message):
        sj.lottery_counts(size, sparsities, fraction)


def test_an_amount_is_needed():
    ones = jnp.ones(3)
    with pytest.raises(ValueError, match="exactly one of"):
        sj.lottery_ticket(ones, ones, ones > 0)
