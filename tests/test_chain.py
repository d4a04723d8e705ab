"""Elements and chains: what is active after them, what goes on, what restarts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax.scores import magnitude

pytestmark = pytest.mark.usefixtures("quick_compilation")

moderate = settings(max_examples=40, deadline=None, derandomize=True)
LEFT = optax.MaskedNode()
SHAPES = {"conv": (3, 3, 2, 3), "dense": (5, 7), "one": (1, 1)}
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
SEEDS = st.integers(0, 2**32 - 1)


def context(masks, params=None, grads=None, step=0, before=None, memory=(), seed=0):
    """What an element sees, by hand; params and grads default to zeros."""
    zeros = jax.tree.map(lambda mask: jnp.zeros(mask.shape), masks)
    return sj.Context(
        step=jnp.int32(step),
        key=jax.random.key(seed),
        masks=masks,
        params=zeros if params is None else params,
        grads=zeros if grads is None else grads,
        rules=jax.tree.map(lambda mask: sj.LayerRule(), masks),
        when=sj.every(1),
        before=masks if before is None else before,
        memory=memory,
    )


def array(text):
    """ "1010" as a bool array."""
    return jnp.array([c == "1" for c in text])


def text(mask):
    return "".join(map(str, np.asarray(mask).astype(int)))


def apply(element, *args, **kwargs):
    [element] = sj.chain(element)
    return element.apply(context(*args, **kwargs))


# Pruning.

TREE = {"a": jnp.array([4.0, -1.0, 3.0, 0.5]), "b": jnp.array([-9.0, 8.0]), "c": LEFT}
PARAMS = TREE | {"c": jnp.ones(3)}
EVERYWHERE = {"a": array("1111"), "b": array("11"), "c": LEFT}


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ({"to": 0.5}, ("1000", "11")),
        ({"to": 0.5, "scope": "layer"}, ("1010", "10")),
        ({"to": lambda step: step / 6}, ("1000", "11")),
        ({"fraction": 0.3}, ("1010", "10")),
        ({"fraction": lambda step: 0.1 * step}, ("1010", "10")),
        ({"keep": lambda ctx: {"a": 3, "b": 0, "c": LEFT}}, ("1110", "00")),
        ({"to": lambda step: 2.0}, ("0000", "10")),
        ({"to": lambda step: -1.0}, ("1111", "11")),
        ({"fraction": lambda step: 5.0}, ("0000", "00")),
    ],
)
def test_prune_drops_the_lowest_scores(amount, expected):
    masks = apply(sj.prune(magnitude, **amount), EVERYWHERE, PARAMS, step=3)
    assert (text(masks["a"]), text(masks["b"])) == expected
    assert masks["c"] == LEFT


def test_prune_never_activates_and_a_score_is_any_function_of_the_context():
    masks = EVERYWHERE | {"a": array("0111")}
    pruned = apply(sj.prune(magnitude, to=0.0), masks, PARAMS)
    assert text(pruned["a"]) == "0111"
    largest = lambda ctx: jax.tree.map(lambda w: -w, ctx.params)
    pruned = apply(sj.prune(largest, to=0.5), EVERYWHERE, PARAMS)
    assert (text(pruned["a"]), text(pruned["b"])) == ("0101", "10")


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_layers_of_their_own_sparsity_follow_the_curve_to_it(scope):
    """Halfway to 0.8, a layer of 0.5 is at 0.25 and the other makes up for it."""
    size = jnp.arange(1.0, 41.0)
    rules = {"a": sj.LayerRule(sparsity=0.5), "b": sj.LayerRule()}
    masks = {"a": jnp.ones(40, bool), "b": jnp.ones(40, bool)}
    ctx = context(masks, {"a": size, "b": -size}, step=1)._replace(rules=rules)
    at = lambda **final: sj.prune(
        magnitude, to=lambda step: 0.4 * step, scope=scope, **final
    )
    for final, own in (({"final": 0.8}, 30), ({}, 20)):
        pruned = at(**final).apply(ctx)
        assert pruned["a"].sum() == own and pruned["a"][-own:].all()
        assert pruned["b"].sum() == 48 - own


# Growth.


@pytest.mark.parametrize(
    ("before", "now", "grown"),
    [("11100", "10000", 2), ("11100", "11100", 0), ("11111", "00000", 5)],
)
def test_growth_makes_up_for_what_the_elements_before_dropped(before, now, grown):
    grads = jnp.array([9.0, 1.0, -5.0, 3.0, -4.0])
    masks = apply(
        sj.grow(sj.scores.gradient), array(now), grads=grads, before=array(before)
    )
    inactive = [i for i in np.argsort(-np.abs(grads)) if now[i] == "0"]
    expected = np.array([c == "1" for c in now])
    expected[inactive[:grown]] = True
    assert text(masks) == text(expected)


def test_growth_takes_a_count_by_layer_as_far_as_there_is_room():
    masks = {"a": array("1000"), "b": array("110")}
    count = lambda ctx: {"a": ctx.step, "b": 3}
    grown = apply(sj.grow(sj.scores.random, count=count), masks, step=2)
    assert grown["a"].sum() == 3 and grown["a"][0]
    assert text(grown["b"]) == "111"


def test_random_growth_follows_the_key_and_never_the_position():
    masks = jnp.zeros(40, bool)
    [element] = sj.chain(sj.grow(sj.scores.random, count=lambda ctx: 10))
    draws = [text(element.apply(context(masks, seed=s))) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != "1" * 10 + "0" * 30


# drop_and_grow.


def weights(seed, levels=None):
    rng = np.random.default_rng(seed)
    draw = (
        (lambda s: rng.normal(size=s))
        if levels is None
        else (lambda s: rng.integers(-levels, levels + 1, s))
    )
    return {name: draw(shape).astype(np.float32) for name, shape in SHAPES.items()}


def masks_at(seed, density):
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape) < density for name, shape in SHAPES.items()}


def count(masks):
    return {name: int(np.sum(mask)) for name, mask in masks.items()}


PERCENT = lambda step: step / 100
BY_GRADIENT = sj.drop_and_grow(fraction=PERCENT)


@jax.jit
def regenerate(params, grads, masks, percent):
    ctx = context(masks, params, grads, percent, memory=((), ()))
    kept = sj.drop(magnitude, fraction=PERCENT).apply(ctx)
    return kept, BY_GRADIENT.apply(ctx)


@moderate
@given(
    SEEDS,
    st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    st.integers(0, 100),
    st.sampled_from([None, 3]),
)
def test_drop_and_grow_keeps_each_layers_count_and_the_largest_of_both(
    seed, density, percent, levels
):
    masks = masks_at(seed, density)
    params, grads = weights(seed, levels), weights(seed + 1, levels)
    kept, update = regenerate(params, grads, masks, percent)
    assert count(update) == count(masks)
    for name, active in count(masks).items():
        stays, mask = np.asarray(kept[name]), np.asarray(update[name])
        assert not (stays & ~(mask & masks[name])).any()
        assert stays.sum() == active - -(-percent * active // 100)
        grown = np.abs(grads[name][mask & ~stays])
        left = np.abs(grads[name][~mask])
        if grown.size and left.size:
            assert grown.min() >= left.max()


def test_drop_and_grow_may_choose_a_dropped_weight_again():
    params, grads = jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([9.0, 0.0, 5.0, 1.0])
    element = sj.drop_and_grow(fraction=1 / 3)
    masks = apply(element, array("1110"), params, grads, memory=((), ()))
    assert text(masks) == "1110"


def test_drop_and_grow_by_scores_of_ones_own():
    element = sj.drop_and_grow(
        drop=lambda ctx: -ctx.params, grow=lambda ctx: ctx.params, fraction=0.5
    )
    params = jnp.array([4.0, 1.0, 3.0, 2.0])
    masks = apply(element, array("1100"), params, memory=((), ()))
    assert text(masks) == "1100"  # the largest goes and is, of all, the first to grow


# Chains.


def test_chains_are_flat_and_hold_elements_and_functions():
    own = lambda ctx: ctx.masks
    one = sj.drop(magnitude, fraction=0.3)
    found = sj.chain(one, sj.chain(own, sj.grow(sj.scores.random)))
    assert len(found) == 3 and found[0] is one and found[1].apply is own
    assert all(isinstance(element, sj.Element) for element in found)
    assert sj.chain() == ()


W = jnp.array([[8.0, 7.0, 6.0, 1.0, 2.0, 5.0]])
START = jnp.array([[True, True, True, True, True, False]])
# The dropped weight at 3 has the largest gradient, that at 4 the next one.
G = jnp.array([[1.0, 1.0, 1.0, 9.0, 5.0, 3.0]])
DROP = sj.drop(magnitude, fraction=0.4)
CHAINS = {
    "one element": (
        sj.drop_and_grow(fraction=0.4),
        "111110",
        "111110",
    ),
    "drop, then grow": (
        sj.chain(DROP, sj.grow(sj.scores.gradient)),
        "111110",
        "111000",
    ),
    # Of six weights three stay, then of these the smallest goes; 3 has the largest
    # gradient, but was taken by the prune.
    "a victim of prune": (
        sj.chain(sj.prune(magnitude, to=0.5), sj.drop_and_grow(fraction=0.1)),
        "110100",
        "110000",
    ),
    "chosen again after a prune": (
        sj.chain(
            sj.prune(magnitude, to=0.5),
            sj.drop_and_grow(grow=magnitude, fraction=0.1),
        ),
        "111000",
        "111000",
    ),
    "functions": (
        sj.chain(
            lambda ctx: {"w": ctx.masks["w"].at[0, 1].set(False)},
            lambda ctx: {"w": ctx.masks["w"].at[0, 1].set(True).at[0, 5].set(True)},
        ),
        "111111",
        "101110",
    ),
    "one function": (lambda ctx: {"w": ~ctx.before["w"]}, "000001", "000000"),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("chain", "active", "goes_on"), CHAINS.values(), ids=CHAINS)
def test_a_weight_goes_on_if_it_is_active_after_each_element(
    chain, active, goes_on, compiled
):
    method = sj.Method(sj.dense_start, chain, when=lambda step: step == 2)
    tx = sj.sparsify(optax.sgd(0.01, momentum=0.9), method, masks={"w": START})
    params, state = sj.init_sparse(tx, {"w": W})
    update = jax.jit(tx.update) if compiled else tx.update
    for _ in range(3):
        before = params["w"][0]
        updates, state = update({"w": G}, state, params)
        params = optax.apply_updates(params, updates)
    stays, w = np.asarray(array(goes_on)), params["w"][0]
    trace = optax.tree.get(state, "trace")["w"][0]
    assert text(sj.get_masks(state)["w"][0]) == active
    # What goes on took its third step with its momentum, the rest is at zero.
    momentum = (1 + 0.9 + 0.81) * G[0]
    np.testing.assert_allclose(trace, np.where(stays, momentum, 0), rtol=1e-6)
    moved = before - 0.01 * momentum
    np.testing.assert_allclose(w, np.where(stays, moved, 0), rtol=1e-5)
    active, was = np.asarray(array(active)), np.asarray(START[0])
    metrics = state.metrics
    assert metrics.grown == (active & ~stays).sum()
    assert metrics.dropped == (was & ~stays).sum()
    assert metrics.active == active.sum() and metrics.updates == 1


def test_an_element_that_returns_no_masks_is_refused():
    tx = sj.sparsify(
        optax.sgd(0.1), sj.Method(sj.dense_start, lambda ctx: ctx.params, sj.every(1))
    )
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"^masks must hold bool .* got float32 at 'w"):
        tx.update(params, tx.init(params), params)


# Memory and settings.


def run(element, steps, grads, when=None):
    """The states of a method of one element, at the start and after each step."""
    method = sj.Method(sj.dense_start, element, when or sj.every(2))
    params, masks = {"w": W}, {"w": jnp.ones(W.shape, bool)}
    tx = sj.sparsify(optax.sgd(0.0), method, masks=masks)
    states, update = [tx.init(params)], jax.jit(tx.update)
    for t in range(steps):
        _, state = update({"w": grads(t)}, states[-1], params)
        states.append(state)
    return states


def noise(t):
    return jax.random.normal(jax.random.key(t), W.shape)


def test_momentum_is_the_running_mean_of_the_dense_gradients():
    states = run(sj.drop_and_grow(grow=sj.scores.momentum(0.7), fraction=0.4), 5, noise)
    mean = np.zeros(W.shape)
    for t, state in enumerate(states[1:]):
        mean = 0.7 * mean + 0.3 * np.asarray(noise(t))
        _, found = state.memory[0]
        np.testing.assert_allclose(found["w"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_mean_gradient_sums_the_steps_up_to_an_update_and_no_earlier_ones(steps):
    element = sj.drop_and_grow(grow=sj.scores.mean_gradient(steps), fraction=0.4)
    states = run(element, 9, noise, sj.every(4))
    for update in (4, 8):
        first = max(update - steps + 1, 0 if update == 4 else 5)
        total = sum(np.asarray(noise(t)) for t in range(first, update + 1))
        _, (found, _) = states[update + 1].memory[0]
        np.testing.assert_allclose(found["w"], total, rtol=1e-5, atol=1e-6)


def test_growth_ranks_by_what_a_score_remembers():
    """At step 2 the mean gradient of steps 1 and 2 is largest at 5, the last at 3."""
    then = lambda t: jnp.zeros(W.shape).at[0, 5].set(-9.0 * (t == 1)).at[0, 3].set(t)
    method = sj.Method(
        sj.dense_start,
        sj.drop_and_grow(grow=sj.scores.mean_gradient(2), fraction=0.4),
        sj.every(2),
    )
    tx = sj.sparsify(optax.sgd(0.0), method, masks={"w": jnp.arange(6)[None] < 3})
    params, state = sj.init_sparse(tx, {"w": W})
    for t in range(3):
        _, state = tx.update({"w": then(t)}, state, params)
    assert text(sj.get_masks(state)["w"][0]) == "100101"


def test_a_gradient_that_is_not_finite_is_not_remembered():
    element = sj.drop_and_grow(grow=sj.scores.momentum(0.5), fraction=0.4)
    spoilt = lambda t: noise(t).at[0, 2].set(jnp.nan) if t == 2 else noise(t)
    states = run(element, 4, spoilt)
    jax.tree.map(np.testing.assert_array_equal, states[2].memory, states[3].memory)
    assert np.isfinite(states[4].memory[0][1]["w"]).all()
    assert states[3].metrics.skipped == 1


def test_a_setting_that_is_not_a_number_leaves_the_masks_and_is_counted():
    to = lambda step: jnp.where(step == 4, jnp.nan, 0.5)
    states = run(sj.prune(magnitude, to=to), 7, noise, lambda t: (t == 4) | (t == 6))
    active = [int(state.metrics.active) for state in states]
    assert active == [6] * 7 + [3]
    assert [int(state.metrics.skipped) for state in states] == [0] * 5 + [1] * 3
    assert states[-1].metrics.updates == 1


def test_an_element_can_remember_what_it_did():
    def halve(ctx):
        left = ctx.memory["left"] // 2
        kept = sj.prune(magnitude, keep=lambda _: {"w": left}).apply(ctx)
        return kept, {"left": left}

    init = lambda params, rules: {"left": jnp.int32(6)}
    states = run(sj.Element(halve, init, changes_memory=True), 6, noise)
    assert [int(state.memory[0]["left"]) for state in states] == [6, 6, 6, 3, 3, 1, 1]
    assert [int(state.metrics.active) for state in states] == [6, 6, 6, 3, 3, 1, 1]
