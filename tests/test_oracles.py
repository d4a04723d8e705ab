"""Whole training runs against plain NumPy, written from the papers' equations.

An oracle is one loop over the steps of a run: SGD on masked weights and, at update
steps, what the paper does to the masks. The library must take the same masks at every
step and the same weights up to rounding.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

SHAPES = {"conv": (3, 3, 4, 12), "dense": (20, 16), "one": (1, 1)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())
STEPS, INTERVAL, END = 60, 5, 34  # END is no multiple of the interval
LEARNING_RATE = 0.05
SEED = 7

rng = np.random.default_rng(0)
START = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
TARGET = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
NOISE = [
    {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    for _ in range(STEPS)
]


def gradient(weights, step):
    """Of |w - target|^2 / 2, dense, plus the noise of a minibatch."""
    return {name: weights[name] - TARGET[name] + NOISE[step][name] for name in SHAPES}


# What the papers do at an update step. `w`, `g` and `mask` are arrays by layer.


def largest(scores, n):
    """The positions of the n largest scores; of equal ones, the first."""
    return np.argsort(-scores, kind="stable")[:n]


def smallest(scores, n):
    """The positions of the n smallest scores: all but the largest others."""
    return np.argsort(-scores, kind="stable")[len(scores) - n :]


def ceil(x):
    """The ceiling, of a product known to six digits: 0.15 * 20 is 3."""
    return math.ceil(round(x, 6))


def prune_each_layer(w, mask, sparsity):
    """Zhu & Gupta 2017: mask the smallest |w| of a layer until it is that sparse."""
    pruned = {}
    for name in SHAPES:
        m = mask[name].ravel().copy()
        n_drop = m.sum() - round((1 - sparsity) * m.size)
        active = np.flatnonzero(m)
        m[active[smallest(np.abs(w[name].ravel()[active]), max(n_drop, 0))]] = False
        pruned[name] = m.reshape(SHAPES[name])
    return pruned


def prune_all_layers_together(w, mask, sparsity):
    """GMP and GraNet: mask the smallest |w| of the network until it is that sparse."""
    m = np.concatenate([mask[name].ravel() for name in SHAPES])
    magnitude = np.abs(np.concatenate([w[name].ravel() for name in SHAPES]))
    n_drop = m.sum() - round((1 - sparsity) * m.size)
    active = np.flatnonzero(m)
    m[active[smallest(magnitude[active], max(n_drop, 0))]] = False
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])[:-1]
    return {n: part.reshape(SHAPES[n]) for n, part in zip(SHAPES, np.split(m, ends))}


def drop_and_grow(w, grow_score, mask, rate):
    """RigL, SET, GraNet: in each layer, ceil(rate * active) weights change places.

    The smallest |w| go; of all that are then inactive, those just dropped included,
    the largest `grow_score` come. Returns the masks and what came.
    """
    after, grown = {}, {}
    for name in SHAPES:
        m = mask[name].ravel().copy()
        active = np.flatnonzero(m)
        n = ceil(rate * len(active))
        m[active[smallest(np.abs(w[name].ravel()[active]), n)]] = False
        inactive = np.flatnonzero(~m)
        come = np.zeros_like(m)
        come[inactive[largest(grow_score[name].ravel()[inactive], n)]] = True
        after[name] = (m | come).reshape(SHAPES[name])
        grown[name] = come.reshape(SHAPES[name])
    return after, grown


def nothing_grows(masks):
    return masks, {name: np.zeros(shape, bool) for name, shape in SHAPES.items()}


def cubic(initial, final, step):
    progress = min(step / END, 1)
    return final + (initial - final) * (1 - progress) ** 3


def cosine(first, last, length, step):
    return last + (first - last) * (1 + math.cos(math.pi * step / length)) / 2


def periodic(step):
    return step > 0 and step % INTERVAL == 0


# The methods: at each step, the new masks and what has grown, or None.


def static(step, w, g, mask):
    return None


def gmp(prune):
    def update(step, w, g, mask):
        if (periodic(step) and step < END) or step == END:
            return nothing_grows(prune(w, mask, cubic(0.0, 0.9, step)))
        return None

    return update


def granet(initial):
    """Prune the network to s(t), then regenerate each layer; the latter never stops."""

    def update(step, w, g, mask):
        if not (periodic(step) or step == END):
            return None
        pruned = prune_all_layers_together(w, mask, cubic(initial, 0.9, step))
        size_of_gradient = {name: np.abs(g[name]) for name in SHAPES}
        rate = cosine(0.5, 0.005, STEPS, step)
        return drop_and_grow(w, size_of_gradient, pruned, rate)

    return update


def rigl(step, w, g, mask):
    t_end = 3 * STEPS // 4
    if not periodic(step) or step > t_end:
        return None
    size_of_gradient = {name: np.abs(g[name]) for name in SHAPES}
    return drop_and_grow(w, size_of_gradient, mask, cosine(0.3, 0.0, t_end, step))


def random_scores(step):
    """The scores are this library's: a key of the seed, the step and the layer."""
    key = jax.random.fold_in(jax.random.key(SEED), step)
    scores = {}
    for name, shape in SHAPES.items():
        layer_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bits = np.asarray(jax.random.bits(layer_key, shape, jnp.uint32))
        scores[name] = (bits >> 1).astype(np.int64)
    return scores


def set_(step, w, g, mask):
    if not periodic(step):
        return None
    return drop_and_grow(w, random_scores(step), mask, 0.3)


PHASES = [5, 12, 18, 25, 33]  # sparse, dense, sparse, dense, sparse


def acdc(prune):
    """Dense and sparse phases in turn; what was pruned comes back at 0."""

    def update(step, w, g, mask):
        if step not in PHASES:
            return None
        everything = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
        if PHASES.index(step) % 2 == 0:
            return nothing_grows(prune(w, everything, 0.8))
        return everything, {name: ~mask[name] for name in SHAPES}

    return update


def train(method, mask, momentum):
    """SGD on masked weights; yields masks, weights and momentum after each step."""
    w = {name: START[name] * mask[name] for name in SHAPES}
    v = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        g = gradient(w, step)
        update = method(step, w, g, mask)
        mask, grown = update or nothing_grows(mask)
        for name in SHAPES:
            # A weight that has just grown starts at 0 and takes its first step next.
            kept = mask[name] & ~grown[name]
            v[name] = np.where(kept, np.float32(momentum) * v[name] + g[name], 0)
            moved = w[name] - np.float32(LEARNING_RATE) * v[name]
            w[name] = np.where(kept, moved, 0)
        yield mask, dict(w), dict(v)


GRADUAL = {"final_sparsity": 0.9, "end_step": END, "update_interval": INTERVAL}
SPARSE = {"sparsity": 0.8, "total_steps": STEPS, "update_interval": INTERVAL}

METHODS = {
    "static": (sj.static_transform, {"sparsity": 0.8}, static),
    "GMP, all layers together": (
        sj.gmp_transform,
        GRADUAL,
        gmp(prune_all_layers_together),
    ),
    "GMP, each layer": (
        sj.gmp_transform,
        GRADUAL | {"scope": "layer"},
        gmp(prune_each_layer),
    ),
    "GraNet from dense": (
        sj.granet_transform,
        GRADUAL | {"total_steps": STEPS},
        granet(0.0),
    ),
    "GraNet from sparse": (
        sj.granet_transform,
        GRADUAL | {"total_steps": STEPS, "initial_sparsity": 0.5},
        granet(0.5),
    ),
    "AC/DC, all layers together": (
        sj.acdc_transform,
        {"final_sparsity": 0.8, "phases": PHASES},
        acdc(prune_all_layers_together),
    ),
    "AC/DC, each layer": (
        sj.acdc_transform,
        {"final_sparsity": 0.8, "phases": PHASES, "scope": "layer"},
        acdc(prune_each_layer),
    ),
    "RigL": (sj.rigl_transform, SPARSE, rigl),
    "SET": (sj.set_transform, SPARSE, set_),
}


def compare_with_oracle(transform, settings, oracle, momentum):
    """Checks a run step by step; gives the steps at which masks changed."""
    inner = optax.sgd(LEARNING_RATE, momentum=momentum or None)
    tx = transform(inner, seed=SEED, **settings)
    params, state = sj.init_sparse(tx, START)
    masks = jax.tree.map(np.asarray, sj.get_masks(state))
    first = settings.get("sparsity", settings.get("initial_sparsity", 0.0))
    assert sum(mask.sum() for mask in masks.values()) == round((1 - first) * SIZE)

    @jax.jit
    def step(params, state, noise):
        grads = jax.tree.map(lambda w, t, n: w - t + n, params, TARGET, noise)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    changes = []
    for t, (mask, w, v) in enumerate(train(oracle, masks, momentum)):
        params, state = step(params, state, NOISE[t])
        found = sj.get_masks(state)
        for name in SHAPES:
            np.testing.assert_array_equal(found[name], mask[name], f"{name}, step {t}")
            np.testing.assert_allclose(params[name], w[name], atol=1e-4)
            assert not np.asarray(params[name])[~mask[name]].any()
            if momentum:
                trace = optax.tree.get(state, "trace")
                np.testing.assert_allclose(trace[name], v[name], atol=1e-3)
        if any((mask[name] != masks[name]).any() for name in SHAPES):
            changes.append(t)
        masks = mask
    return changes


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_takes_the_masks_and_weights_of_the_oracle(method, momentum):
    changes = compare_with_oracle(*METHODS[method], momentum)
    expected = {"static": 0, "AC/DC": 5, "GMP": 7, "RigL": 8, "SET": 11, "GraNet": 12}
    assert len(changes) == expected[method.split()[0].rstrip(",")]


# The update of the official GraNet code, in both of its forms.


def official_granet_update(w, g, mask, sparsity, rate, form):
    """One mask update as the code of the paper runs it, for CIFAR and for ImageNet.

    The k-th largest |w| of all layers is the threshold. CIFAR keeps what is above it,
    one weight fewer than k; ImageNet what is at least as large. Then in each layer the
    ceil(rate * active) smallest go, and the largest gradients among zeros of the mask
    come. Masks are floats, and weights are multiplied by them.
    """
    mask = {name: mask[name].astype(np.float64) for name in mask}
    w = {name: w[name] * mask[name] for name in w}
    magnitudes = np.concatenate([np.abs(w[name]).ravel() for name in w])
    k = int(magnitudes.size * (1 - sparsity))
    threshold = np.sort(magnitudes)[::-1][k - 1]
    for name in w:
        above = np.abs(w[name]) > threshold
        if form == "ImageNet":
            above = np.abs(w[name]) >= threshold
        mask[name] = above.astype(np.float64)
        w[name] = w[name] * mask[name]

    for name in w:
        n_active = mask[name].sum()
        n_remove = math.ceil(rate * n_active)
        if n_remove == 0:
            continue
        n_zeros = mask[name].size - n_active
        ordered = np.sort(np.abs(w[name]).ravel())
        last_removed = ordered[int(n_zeros + n_remove) - 1]
        mask[name] = (np.abs(w[name]) > last_removed).astype(np.float64)
        gradient = np.abs(g[name]) * (mask[name] == 0)
        come = np.argsort(-gradient.ravel(), kind="stable")[:n_remove]
        mask[name].ravel()[come] = 1.0
    return {name: mask[name] == 1 for name in mask}, k


@jax.jit
def our_granet_update(w, g, mask, keep, rate):
    pruned = sj.prune_magnitude(w, mask, keep=keep)
    magnitude = lambda tree: jax.tree.map(jnp.abs, tree)
    return sj.exchange(magnitude(w), magnitude(g), pruned, rate).masks


@pytest.mark.parametrize("form", ["CIFAR", "ImageNet"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_pure_functions_give_the_masks_of_the_official_granet_code(
    form, sparsity, seed
):
    rng = np.random.default_rng(seed)
    draw = lambda: {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    w, g = draw(), draw()
    mask = {name: rng.random(shape) < 0.7 for name, shape in SHAPES.items()}
    rate = cosine(0.5, 0.005, 100, 10 * seed)
    official, k = official_granet_update(w, g, mask, sparsity, rate, form)
    kept = k - 1 if form == "CIFAR" else k
    kept = min(kept, sum(int(m.sum()) for m in mask.values()))
    ours = our_granet_update(w, g, mask, kept, rate)
    for name in SHAPES:
        np.testing.assert_array_equal(ours[name], official[name])
    assert sum(int(m.sum()) for m in official.values()) == kept
