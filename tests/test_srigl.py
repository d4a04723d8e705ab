"""SRigL against NumPy, written from the paper; the same fan-in in every active neuron.

Its counts depend on which neurons are ablated: the row in families.py ablates none.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SHAPES = {"conv": (3, 3, 4, 12), "dense": (20, 16), "head": (16, 10), "one": (1, 1)}
SPARSITY, STEPS, INTERVAL, END = 0.8, 48, 4, 36
LEARNING_RATE, RATE, GAMMA = 0.05, 0.5, 0.6
PRUNABLE = [("^one$", True)]  # no kernel unless one says so

pytestmark = pytest.mark.usefixtures("quick_compilation")

rng = np.random.default_rng(3)


def uneven(shape, spread=1.0):
    """Weights of neurons of different size, so that some neurons are weak."""
    return rng.normal(size=shape) * rng.uniform(1 - spread, 1, shape[-1])


START = {name: uneven(s).astype(np.float32) for name, s in SHAPES.items()}
TARGET = {name: uneven(s).astype(np.float32) for name, s in SHAPES.items()}
NOISE = [
    {name: 0.5 * uneven(s).astype(np.float32) for name, s in SHAPES.items()}
    for _ in range(STEPS)
]
# Erdos-Renyi-Kernel by hand: 183 of 913 weights are active, one of them in the layer of
# one; the other 182 are shared out as 22 : 36 : 26, the sums of the shapes.
BUDGETS = {"conv": 48, "dense": 78, "head": 56, "one": 1}
FAN_INS = {"conv": 4, "dense": 4, "head": 5, "one": 1}


def transform(inner, **settings):
    known = {
        "sparsity": SPARSITY,
        "total_steps": STEPS,
        "update_interval": INTERVAL,
        "prune_rate": RATE,
        "ablation_threshold": GAMMA,
        "keep_neurons": ["head", "^one$"],
        "prunable": PRUNABLE,
        "seed": 1,
    }
    return sj.srigl_transform(inner, **known | settings)


def gradients(params, noise):
    return {n: params[n] - TARGET[n] + noise[n] for n in SHAPES}


def run(tx, steps=STEPS):
    """(params, state) at the start and after every step, on the host."""

    @jax.jit
    def step(params, state, noise):
        updates, state = tx.update(gradients(params, noise), state, params)
        return optax.apply_updates(params, updates), state

    history = [sj.init_sparse(tx, START)]
    for t in range(steps):
        history.append(step(*history[-1], NOISE[t]))
    return jax.device_get(history)


def first_largest(scores, n, allowed):
    """Positions of the n largest scores among those allowed; of equals, the first."""
    positions = [i for i in range(len(scores)) if allowed[i]]
    return sorted(positions, key=lambda i: (-scores[i], i))[:n]


def update_layer(name, w, g, mask, rate):
    """Steps 1 to 5 for one layer, weight by weight; gives the new mask."""
    if BUDGETS[name] == mask.size:
        return mask
    neurons = mask.shape[-1]
    size, w, g = mask.size, np.abs(w).ravel(), np.abs(g).ravel()
    neuron_of = np.arange(size) % neurons  # row-major, the neuron is the last axis
    active_weights = mask.ravel()

    n = math.ceil(rate * active_weights.sum() - 1e-4)
    n_keep = active_weights.sum() - n
    largest = first_largest(w, n_keep, active_weights)
    salient = {*largest, *first_largest(g, n, np.ones(size, bool))}

    stay = set(range(neurons))
    if name not in ("head", "one"):
        counts = [sum(neuron_of[i] == j for i in salient) for j in range(neurons)]
        threshold = max(1, math.floor(GAMMA * FAN_INS[name]))
        least = math.ceil(BUDGETS[name] / (size // neurons))
        best = first_largest(counts, least, [True] * neurons)
        stay = {j for j in range(neurons) if counts[j] >= threshold or j in best}

    # Ranked anew: what ablated neurons had leaves its place to what the others have.
    in_stay = np.isin(neuron_of, list(stay))
    largest = first_largest(w, n_keep, active_weights & in_stay)
    k = BUDGETS[name] // len(stay)
    after = np.zeros(size, bool)
    for j in stay:
        own = [i for i in largest if neuron_of[i] == j][:k]
        after[own] = True
        candidates = (neuron_of == j) & ~after
        after[first_largest(g, k - len(own), candidates)] = True
    return after.reshape(mask.shape)


def oracle(mask, momentum):
    w = {name: START[name] * mask[name] for name in SHAPES}
    v = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for t in range(STEPS):
        g = gradients(w, NOISE[t])
        before = dict(mask)
        if t > 0 and t % INTERVAL == 0 and t <= END:
            rate = RATE * (1 + math.cos(math.pi * t / END)) / 2
            for n in SHAPES:
                mask[n] = update_layer(n, w[n], g[n], mask[n], rate)
        for n in SHAPES:
            # What was dropped and came back in the same update was never away.
            kept = mask[n] & before[n]
            v[n] = np.where(kept, np.float32(momentum) * v[n] + g[n], 0)
            w[n] = np.where(kept, w[n] - np.float32(LEARNING_RATE) * v[n], 0)
        yield {n: m.copy() for n, m in mask.items()}, dict(w)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_run_takes_the_masks_and_weights_of_the_oracle(momentum):
    history = run(transform(optax.sgd(LEARNING_RATE, momentum=momentum or None)))
    masks = {n: np.array(m) for n, m in sj.get_masks(history[0][1]).items()}
    changed = 0
    for t, (mask, w) in enumerate(oracle(dict(masks), momentum)):
        params, state = history[t + 1]
        for name in SHAPES:
            found = sj.get_masks(state)[name]
            np.testing.assert_array_equal(found, mask[name], f"{name}, step {t}")
            np.testing.assert_allclose(params[name], w[name], atol=1e-5)
        changed += any((mask[name] != masks[name]).any() for name in SHAPES)
        masks = mask
    assert changed == END // INTERVAL - 1  # the prune rate is 0 at the last


def neurons_of(masks):
    """By layer: the active neurons, and the fan-ins that occur in them."""
    counts = {n: np.asarray(sj.count_per_neuron(m)) for n, m in masks.items()}
    return {n: ((c > 0).sum(), set(c[c > 0].tolist())) for n, c in counts.items()}


def test_first_masks_are_random_with_one_fan_in_a_layer():
    masks = [
        sj.get_masks(transform(optax.sgd(0.1), seed=s).init(START)) for s in (1, 2)
    ]
    for found in masks:
        for name, (active, fan_ins) in neurons_of(found).items():
            assert active == SHAPES[name][-1] and fan_ins == {FAN_INS[name]}
    assert 0 < sj.jaccard(*masks) < 1


@functools.cache
def trained(optimizer):
    inner = {
        "momentum": optax.sgd(LEARNING_RATE, momentum=0.9, nesterov=True),
        "adam": optax.adam(LEARNING_RATE),
        "adafactor": optax.adafactor(LEARNING_RATE, min_dim_size_to_factor=4),
    }
    return run(transform(inner[optimizer]))


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adafactor"])
def test_every_active_neuron_has_the_same_fan_in_and_the_budget_is_kept(optimizer):
    ablated, revived = 0, 0
    before = None
    for params, state in trained(optimizer):
        masks = sj.get_masks(state)
        for name, (active, fan_ins) in neurons_of(masks).items():
            assert fan_ins == {BUDGETS[name] // active}, name
            assert 0 <= BUDGETS[name] - masks[name].sum() < active
            assert not np.any(params[name][~masks[name]])
        assert neurons_of(masks)["head"][0] == 10
        alive = {n: np.asarray(sj.count_per_neuron(m)) > 0 for n, m in masks.items()}
        total = sum(BUDGETS[n] // a.sum() * a.sum() for n, a in alive.items())
        assert state.metrics.active == total
        if before is not None:
            ablated += sum((before[n] & ~alive[n]).sum() for n in SHAPES)
            revived += sum((alive[n] & ~before[n]).sum() for n in SHAPES)
        before = alive
    assert ablated > 0 and revived > 0, "the data must make both happen"


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_slots_of_inactive_and_grown_weights_are_reset(optimizer):
    field = {"momentum": "trace", "adam": "mu"}[optimizer]
    history = trained(optimizer)
    for t in range(STEPS):
        params, state = history[t + 1]
        slot = optax.tree.get(state, field)
        for name, mask in sj.get_masks(state).items():
            assert not slot[name][~mask].any()
            if t > 0 and t % INTERVAL == 0 and t <= END:
                assert not slot[name][params[name] == 0].any()
            assert slot[name][mask].any()


def test_without_ablation_layer_counts_never_change():
    history = run(transform(optax.sgd(LEARNING_RATE), ablation_threshold=0))
    grown = 0
    for _, state in history:
        for name, (active, fan_ins) in neurons_of(sj.get_masks(state)).items():
            assert active == SHAPES[name][-1] and fan_ins == {FAN_INS[name]}
        grown += int(state.metrics.grown)
    assert grown > 0


def test_so_many_neurons_stay_that_the_budget_fits():
    """16 weights for neurons of a fan-in of 4: four neurons at the least.

    Of the 15 salient gradients, 8 are in the first two neurons, 2 in the third and 1 in
    each other, where 2 are needed to stay: the fourth is the first of those.
    """
    params = {"w": jnp.ones((4, 8)).at[:, 0].set(9.0)}
    tx = sj.srigl_transform(
        optax.sgd(0.0),
        sparsity=0.5,
        total_steps=1000,
        update_interval=2,
        prune_rate=0.9,
        ablation_threshold=1.0,
        keep_neurons=(),
    )
    params, state = sj.init_sparse(tx, params)
    falling = jnp.linspace(0.5, 0.1, 32).reshape(4, 8)
    grads = {"w": falling.at[:, :2].set(1.0)}
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    counts = sj.count_per_neuron(sj.get_masks(state)["w"]).tolist()
    assert counts == [4, 4, 4, 4, 0, 0, 0, 0]


def test_layers_without_sparsity_and_stacked_layers():
    params = {"blocks": jnp.ones((3, 20, 10)), "first": jnp.ones((6, 10))}
    tx = transform(
        optax.sgd(0.1),
        prunable=[("first", 0.0), ("blocks", sj.LayerRule(stacked=True))],
        keep_neurons=["blocks/1"],
        sparsity=0.7,
    )
    params, state = sj.init_sparse(tx, params)
    update = jax.jit(tx.update)
    for t in range(2 * INTERVAL + 1):
        key = jax.random.key(t)
        grads = {n: jax.random.normal(key, p.shape) for n, p in params.items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    masks = sj.get_masks(state)
    assert masks["first"].all()
    counts = [np.asarray(sj.count_per_neuron(m)) for m in masks["blocks"]]
    assert all(len(set(c[c > 0].tolist())) == 1 for c in counts)
    assert (counts[1] > 0).all()


def test_given_masks_get_the_fan_in_of_the_sparsity_at_the_first_update():
    masks = sj.random_masks(jax.random.key(5), START, SPARSITY, prunable=PRUNABLE)
    history = run(transform(optax.sgd(0.05), masks=masks), INTERVAL + 1)
    jax.tree.map(
        np.testing.assert_array_equal, sj.get_masks(history[INTERVAL][1]), masks
    )
    assert len(neurons_of(masks)["conv"][1]) > 1
    after = neurons_of(sj.get_masks(history[-1][1]))
    assert all(fan == {BUDGETS[n] // a} for n, (a, fan) in after.items())


def test_eager_and_scan_equal_compiled():
    tx = transform(optax.sgd(LEARNING_RATE, momentum=0.9))
    history = run(tx, 2 * INTERVAL + 1)

    def body(carry, noise):
        params, state = carry
        updates, state = tx.update(gradients(params, noise), state, params)
        return (optax.apply_updates(params, updates), state), None

    noises = jax.tree.map(lambda *n: np.stack(n), *NOISE[: 2 * INTERVAL + 1])
    scanned, _ = jax.jit(lambda c: jax.lax.scan(body, c, noises))(history[0])
    eager, _ = body(jax.tree.map(jnp.asarray, history[-2]), NOISE[2 * INTERVAL])
    for params, state in (scanned, eager):
        jax.tree.map(
            np.testing.assert_array_equal,
            sj.get_masks(state),
            sj.get_masks(history[-1][1]),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            params,
            history[-1][0],
        )


REFUSALS = [
    ({"sparsity": 1.0}, r"sparsity must be in [0, 1)"),
    ({"ablation_threshold": 1.5}, "ablation_threshold must be in [0, 1]; got 1.5"),
    ({"keep_neurons": None}, "keep_neurons must name the layers"),
    ({"keep_neurons": "head"}, "keep_neurons must be a list of regexes; got 'head'"),
    ({"keep_neurons": ["h("]}, "keep_neurons must hold regexes; got 'h('"),
    ({"keep_neurons": ["tail"]}, "keep_neurons: pattern 'tail' matches no masked"),
    ({"prune_rate": 1.0}, "prune_rate must be in (0, 1)"),
    ({"update_interval": STEPS}, "update_interval must be below total_steps=48"),
    ({"begin_step": STEPS}, "begin_step must be below total_steps=48"),
    ({"stop_step": 0}, "stop_step must be an integer of at least 1; got 0"),
    ({"distribution": "ERK"}, "distribution must be one of"),
    (
        {"sparsity": 0.99},
        "sparsity must leave each neuron a weight; got 2 active weights for the 12 "
        "neurons at 'conv'",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_bad_input_is_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as refusal:
        transform(optax.sgd(0.1), **settings).init(START)
    assert str(refusal.value).endswith(".") and ". " not in str(refusal.value)


def test_too_sparse_a_budget_is_refused_with_given_masks_too():
    masks = sj.dense_masks(START, prunable=PRUNABLE)
    tx = transform(optax.sgd(0.1), sparsity=0.99, masks=masks)
    with pytest.raises(ValueError, match="sparsity must leave each neuron"):
        tx.init(START)
