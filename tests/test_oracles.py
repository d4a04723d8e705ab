"""Whole training runs against plain NumPy, written from the papers' equations.

An oracle is one loop over the steps of a run: SGD on masked weights and, at update
steps, what the paper does to the masks. The library must take the same masks at every
step and the same weights up to rounding.

An update is a list of masks, one for each time that the method's official code
multiplies the weights by its masks: what any of them leaves out has lost its value and
its momentum, even if a later one takes it back.
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
LEARNING_RATE, MOMENTUM = 0.05, 0.9
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


def drop(scores, mask, counts):
    """In each layer, so many of the active weights of smallest score go."""
    after = {}
    for name in SHAPES:
        m = mask[name].ravel().copy()
        active = np.flatnonzero(m)
        m[active[smallest(scores[name].ravel()[active], counts[name])]] = False
        after[name] = m.reshape(SHAPES[name])
    return after


def grow(scores, mask, counts):
    """In each layer, so many of the inactive weights of largest score come."""
    after = {}
    for name in SHAPES:
        m = mask[name].ravel().copy()
        inactive = np.flatnonzero(~m)
        m[inactive[largest(scores[name].ravel()[inactive], counts[name])]] = True
        after[name] = m.reshape(SHAPES[name])
    return after


def size_of(tree):
    return {name: np.abs(tree[name]) for name in SHAPES}


def part_of(mask, rate):
    """ceil(rate * active) by layer."""
    return {name: ceil(rate * mask[name].sum()) for name in SHAPES}


def drop_and_grow(w, grow_scores, mask, rate):
    """RigL, GraNet: in each layer, ceil(rate * active) weights change places.

    What has just been dropped may come back, and then it was never away.
    """
    counts = part_of(mask, rate)
    return grow(grow_scores, drop(size_of(w), mask, counts), counts)


def cubic(initial, final, step):
    progress = min(step / END, 1)
    return final + (initial - final) * (1 - progress) ** 3


def cosine(first, last, length, step):
    return last + (first - last) * (1 + math.cos(math.pi * step / length)) / 2


def periodic(step):
    return step > 0 and step % INTERVAL == 0


# The methods: at an update step the masks by which weights are multiplied in turn, the
# last of them the new ones; else None.


def static(step, w, g, mask):
    return None


def gmp(prune):
    def update(step, w, g, mask):
        if (periodic(step) and step < END) or step == END:
            return [prune(w, mask, cubic(0.0, 0.9, step))]
        return None

    return update


def granet(prune, initial, remember=lambda step, g: g):
    """Prunes to s(t), then regenerates each layer; the latter never stops.

    At the end of pruning, between two of the periodic updates, it prunes alone.
    """

    def update(step, w, g, mask):
        remembered = remember(step, g)
        if not (periodic(step) or step == END):
            return None
        pruned = prune(w, mask, cubic(initial, 0.9, step))
        if not periodic(step):
            return [pruned]
        rate = cosine(0.5, 0.005, STEPS, step)
        return [pruned, drop_and_grow(w, size_of(remembered), pruned, rate)]

    return update


def rigl(step, w, g, mask):
    t_end = 3 * STEPS // 4
    if not periodic(step) or step > t_end:
        return None
    return [drop_and_grow(w, size_of(g), mask, cosine(0.3, 0.0, t_end, step))]


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
    counts = part_of(mask, 0.3)
    kept = drop(size_of(w), mask, counts)
    return [kept, grow(random_scores(step), kept, counts)]


PHASES = [5, 12, 18, 25, 33]  # sparse, dense, sparse, dense, sparse


def acdc(prune):
    """Dense and sparse phases in turn; what was pruned comes back at 0."""

    def update(step, w, g, mask):
        if step not in PHASES:
            return None
        everything = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
        if PHASES.index(step) % 2 == 0:
            return [prune(w, everything, 0.8)]
        return [everything]

    return update


def train(method, mask):
    """SGD on masked weights; yields masks, weights and momentum after each step."""
    w = {name: START[name] * mask[name] for name in SHAPES}
    v = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        g = gradient(w, step)
        stages = [mask, *(method(step, w, g, mask) or [])]
        mask = stages[-1]
        for name in SHAPES:
            # A weight that has just grown starts at 0 and takes its first step next.
            goes_on = np.logical_and.reduce([stage[name] for stage in stages])
            v[name] = np.where(goes_on, np.float32(MOMENTUM) * v[name] + g[name], 0)
            moved = w[name] - np.float32(LEARNING_RATE) * v[name]
            w[name] = np.where(goes_on, moved, 0)
        yield mask, dict(w), dict(v)


# A layer of one weight, which is no kernel unless one says so, can be full or empty.
PRUNABLE = {"prunable": [("^one$", True)]}
GRADUAL = {
    "final_sparsity": 0.9,
    "total_steps": STEPS,
    "end_step": END,
    "update_interval": INTERVAL,
    **PRUNABLE,
}
SPARSE = {
    "sparsity": 0.8,
    "total_steps": STEPS,
    "update_interval": INTERVAL,
    **PRUNABLE,
}
ALTERNATING = {"final_sparsity": 0.8, "phases": PHASES, **PRUNABLE}

# Name: the transform, its settings, the oracle, how many updates change masks.
METHODS = {
    "static": (sj.static_transform, {"sparsity": 0.8, **PRUNABLE}, static, 0),
    "GMP, all layers together": (
        sj.gmp_transform,
        GRADUAL,
        gmp(prune_all_layers_together),
        7,
    ),
    "GMP, each layer": (
        sj.gmp_transform,
        GRADUAL | {"scope": "layer"},
        gmp(prune_each_layer),
        7,
    ),
    "GraNet from dense": (
        sj.granet_transform,
        GRADUAL,
        granet(prune_all_layers_together, 0.0),
        12,
    ),
    "GraNet from sparse": (
        sj.granet_transform,
        GRADUAL | {"initial_sparsity": 0.5},
        granet(prune_all_layers_together, 0.5),
        12,
    ),
    # From ERK one layer starts sparser than s(t), and waits until it has come to it. At
    # the end of pruning no layer has a whole weight to lose.
    "GraNet, each layer": (
        sj.granet_transform,
        GRADUAL | {"initial_sparsity": 0.5, "scope": "layer"},
        granet(prune_each_layer, 0.5),
        11,
    ),
    "AC/DC, all layers together": (
        sj.acdc_transform,
        ALTERNATING,
        acdc(prune_all_layers_together),
        5,
    ),
    "AC/DC, each layer": (
        sj.acdc_transform,
        ALTERNATING | {"scope": "layer"},
        acdc(prune_each_layer),
        5,
    ),
    "RigL": (sj.rigl_transform, SPARSE, rigl, 8),
    "SET": (sj.set_transform, SPARSE, set_, 11),
}


def compare_with_oracle(transform, settings, oracle):
    """Checks a run step by step; gives the steps at which masks changed."""
    tx = transform(optax.sgd(LEARNING_RATE, MOMENTUM), seed=SEED, **settings)
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
    for t, (mask, w, v) in enumerate(train(oracle, masks)):
        params, state = step(params, state, NOISE[t])
        found = sj.get_masks(state)
        for name in SHAPES:
            np.testing.assert_array_equal(found[name], mask[name], f"{name}, step {t}")
            np.testing.assert_allclose(params[name], w[name], atol=1e-4)
            assert not np.asarray(params[name])[~mask[name]].any()
            trace = optax.tree.get(state, "trace")
            np.testing.assert_allclose(trace[name], v[name], atol=1e-3)
        if any((mask[name] != masks[name]).any() for name in SHAPES):
            changes.append(t)
        masks = mask
    return changes


@pytest.mark.parametrize("method", METHODS)
def test_a_run_takes_the_masks_and_weights_of_the_oracle(method, quick_compilation):
    transform, settings, oracle, changes = METHODS[method]
    assert len(compare_with_oracle(transform, settings, oracle)) == changes
