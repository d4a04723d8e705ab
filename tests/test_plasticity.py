"""Pruning plasticity: one-shot pruning and regeneration against NumPy, the measure."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"conv": (3, 3, 2, 6), "dense": (10, 7), "stem": (1, 3, 1, 5)}
RATES = (0.2, 0.5, 0.9, 0.98)


def levels(seed, most=4):
    """Arrays of few distinct magnitudes, so that many scores tie."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.integers(-most, most + 1, shape).astype(np.float32)
    return {**{name: draw(shape) for name, shape in SHAPES.items()}, "bias": draw((3,))}


def masks_at(seed, density):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(shape) < density for name, shape in SHAPES.items()}
    return {**masks, "bias": optax.MaskedNode()}


# The oracle. A layer is a list of units: weights in row-major order, or filters.


def units_of(array, unit):
    """A row for each unit of a kernel."""
    return (
        array.reshape(-1, 1)
        if unit == "weight"
        else array.reshape(-1, array.shape[-1]).T
    )


def best(score, allowed, count):
    """Positions of the highest scores among those allowed; of equal ones, the first."""
    order = [i for i in np.argsort(-score, kind="stable") if allowed[i]]
    return set(order[:count])


def prune_oracle(w, mask, rate, scope, unit):
    """The positions (layer, unit) that are kept."""
    places, score, active = [], [], []
    for name in SHAPES:
        weights, alive = units_of(w[name], unit), units_of(mask[name], unit)
        norm = np.abs(weights * alive).sum(axis=1)
        if unit == "filter" and scope == "global":
            norm = norm / np.float32(alive.shape[1])
        places += [(name, i) for i in range(len(norm))]
        score += norm.tolist()
        active += alive.any(axis=1).tolist()

    def keep(chosen):
        s, a = (np.array(values)[chosen] for values in (score, active))
        count = a.sum()
        dropped = math.ceil(rate * count) if unit == "weight" else int(rate * count)
        return {places[chosen[i]] for i in best(s, a, count - dropped)}

    if scope == "global":
        return keep(range(len(places)))
    each = [[i for i, place in enumerate(places) if place[0] == n] for n in SHAPES]
    return set.union(*map(keep, each))


def regenerate_oracle(g, kept, before, unit):
    """The positions (layer, unit) that grow: as many in each layer as have gone."""
    grown = set()
    for name in SHAPES:
        alive, had = (units_of(m[name], unit).any(axis=1) for m in (kept, before))
        norm = np.abs(units_of(g[name], unit)).sum(axis=1)
        chosen = best(norm, ~alive, had.sum() - alive.sum())
        grown |= {(name, i) for i in chosen}
    return grown


def marked(masks, unit):
    found = {n: units_of(np.asarray(masks[n]), unit).any(axis=1) for n in SHAPES}
    return {(name, int(i)) for name in SHAPES for i in np.flatnonzero(found[name])}


@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("unit", ["weight", "filter"])
def test_prune_and_regenerate_are_those_of_the_oracle(unit, scope, density):
    for number, rate in enumerate(RATES):
        w, g = levels(number), levels(number + 10)
        before = masks_at(number, density)
        kept = sj.prune_once(w, before, rate, scope=scope, unit=unit)
        assert marked(kept, unit) == prune_oracle(w, before, rate, scope, unit)
        for name in SHAPES:  # pruning only removes, and filters go whole
            assert not (np.asarray(kept[name]) & ~before[name]).any()
            rows, old = (units_of(np.asarray(m[name]), unit) for m in (kept, before))
            assert (rows[rows.any(axis=1)] == old[rows.any(axis=1)]).all()
        assert isinstance(kept["bias"], optax.MaskedNode)

        after = sj.regenerate(g, kept, before, unit=unit)
        assert sj.count_active(sj.difference(kept, after)) == 0
        grown = sj.difference(after, kept)
        assert marked(grown, unit) == regenerate_oracle(g, kept, before, unit)
        for name in SHAPES:  # a grown filter is whole
            rows = units_of(np.asarray(grown[name]), unit)
            assert (rows.all(axis=1) == rows.any(axis=1)).all()


def test_counts_are_those_of_the_official_code():
    """ceil of a layer's weights, int of all that stay, int of a layer's filters."""
    w = levels(0)
    dense = sj.dense_masks(w)
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    for rate in RATES:
        by_layer = sj.prune_once(w, dense, rate)
        together = sj.prune_once(w, dense, rate, scope="global")
        filters = sj.prune_once(w, dense, rate, unit="filter")
        for name, size in sizes.items():
            assert by_layer[name].sum() == size - math.ceil(rate * size)
            width = SHAPES[name][-1]
            kept = width - int(rate * width)
            assert filters[name].sum() == kept * size // width
        total = sum(sizes.values())
        assert sj.count_active(together) == int((1 - rate) * total)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.3, 0.8, 1.0]),
    rate=st.floats(0.01, 0.99),
    scope=st.sampled_from(["layer", "global"]),
    unit=st.sampled_from(["weight", "filter"]),
)
def test_regeneration_keeps_the_count_and_never_selects_a_kept_unit(
    seed, density, rate, scope, unit
):
    before = masks_at(seed, density)
    kept = sj.prune_once(levels(seed), before, rate, scope=scope, unit=unit)
    after = sj.regenerate(levels(seed + 1), kept, before, unit=unit)
    grown = sj.difference(after, kept)
    assert not marked(grown, unit) & marked(kept, unit)
    assert marked(after, unit) == marked(grown, unit) | marked(kept, unit)
    count = lambda masks: [name for name, _ in sorted(marked(masks, unit))]
    assert count(after) == count(before)


def test_a_score_that_is_not_finite_wins_no_place():
    w = {"w": jnp.array([[1.0, jnp.nan, 3.0, jnp.inf], [1.0, 9.0, 3.0, 9.0]])}
    kept = sj.prune_once(w, sj.dense_masks(w), 0.5, unit="filter")
    assert kept["w"][0].tolist() == [True, False, True, False]
    after = sj.regenerate(w, {"w": jnp.zeros((2, 4), bool)}, kept, unit="filter")
    assert after["w"][1].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda w, m: sj.prune_once(w, m, 1.0), r"rate must be in \(0, 1\)"),
        (lambda w, m: sj.prune_once(w, m, 0.5, unit="block"), "unit must be one of"),
        (lambda w, m: sj.prune_once(w, m, 0.5, scope="all"), "scope must be one of"),
        (lambda w, m: sj.prune_once(w, m["conv"], 0.5), "masks do not fit params"),
        (
            lambda w, m: jax.jit(lambda rate: sj.prune_once(w, m, rate))(0.5),
            "rate must be known when the program is compiled",
        ),
        (lambda w, m: sj.regenerate(w, m, m, unit="n:m"), "unit must be one of"),
        (lambda w, m: sj.regenerate(w["conv"], m, m), "masks do not fit grads"),
        (lambda w, m: sj.mean_with_interval([1.0]), "values must be two or more"),
        (lambda w, m: sj.mean_with_interval([1, np.nan]), "values must be two or more"),
        (lambda w, m: sj.mean_with_interval([1, 2], 1.0), "confidence must be in"),
        (lambda w, m: sj.pruning_plasticity([1.0], [1.0], 1.0), "must have one shape"),
    ],
)
def test_refusals(call, message):
    w = levels(0)
    with pytest.raises(ValueError, match=message) as refusal:
        call(w, sj.dense_masks(w))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("size", [2, 5, 30])
def test_the_interval_is_students(size, confidence):
    values = np.random.default_rng(size).normal(3, 2, size)
    estimate = sj.mean_with_interval(values, confidence)
    low, high = stats.t.interval(
        confidence, size - 1, loc=values.mean(), scale=stats.sem(values)
    )
    assert estimate.samples == size
    np.testing.assert_allclose(estimate.mean - estimate.half_width, low, rtol=1e-10)
    np.testing.assert_allclose(estimate.mean + estimate.half_width, high, rtol=1e-10)


def test_equal_values_have_an_interval_of_no_width():
    assert sj.mean_with_interval([2.0, 2.0, 2.0]) == (2.0, 0.0, 3)
