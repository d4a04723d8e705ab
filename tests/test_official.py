"""GraNet and RigL against their official codes, told here in NumPy.

Weights and momentum are multiplied by masks of floats where the official code does it:
that alone decides which of them start again from 0. The oracles of test_oracles decide
it in another way, by sets.

Two things are not official. Counts are exact, where the official ones depend on ties
and on what `int` cuts off. And an update takes weights and gradients of the same step;
in the official GraNet code the weights have moved since their gradients were computed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"conv": (3, 3, 4, 10), "dense": (20, 24), "bias": (24,)}
MASKED = {"conv": 360, "dense": 480}
INTERVAL, UPDATES, END = 4, 10, 20  # pruning ends half way, at the fifth update
STEPS = INTERVAL * (UPDATES + 1)
RATE, DECAY, MOMENTUM = np.float32(0.05), np.float32(5e-3), np.float32(0.9)

rng = np.random.default_rng(11)


def draw(scale=1.0):
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


START, TARGET = draw(), draw()
NOISE = [draw(0.7) for _ in range(STEPS)]


def gradient(w, step):
    """Of |w - target|^2 / 2 with a minibatch's noise: dense, as autograd gives it."""
    return {name: w[name] - TARGET[name] + NOISE[step][name] for name in SHAPES}


def cosine(first, last, length, step):
    return last + (first - last) * (1 + math.cos(math.pi * step / length)) / 2


def multiply(tree, mask):
    """What the official code calls `apply_mask`; leaves without a mask stay."""
    return {name: leaf * mask.get(name, 1) for name, leaf in tree.items()}


# GraNet, `Masking.step` of the official code.


def global_prune(w, k, strict=False):
    """The k-th largest |w| of all layers together is the threshold."""
    magnitudes = np.concatenate([np.abs(leaf).ravel() for leaf in w.values()])
    threshold = np.sort(magnitudes)[::-1][k - 1]
    stays = np.greater if strict else np.greater_equal
    return {n: stays(np.abs(w[n]), threshold).astype(np.float32) for n in w}


def regenerate(w, g, mask, rate):
    """Death of the smallest |w| of a layer, and birth of the largest gradients."""
    after = {}
    for name in mask:
        m = mask[name].ravel().copy()
        n_remove = math.ceil(rate * m.sum())
        n_zeros = int((m == 0).sum())
        # What is masked is 0 and comes first in the order.
        order = np.argsort(np.abs(w[name]).ravel(), kind="stable")
        m[order[: n_zeros + n_remove]] = 0.0
        score = np.abs(g[name]).ravel() * (m == 0)
        m[np.argsort(-score, kind="stable")[:n_remove]] = 1.0
        after[name] = m.reshape(mask[name].shape)
    return after


def granet_update(w, g, mask, k, rate, strict=False):
    """Prunes, regenerates; gives the masks of both and the weights that are left."""
    only_masked = multiply({name: w[name] for name in mask}, mask)
    pruned = global_prune(only_masked, k, strict)
    w = multiply(w, pruned)
    regenerated = regenerate(w, g, pruned, rate)
    return pruned, regenerated, multiply(w, regenerated)


def official_granet(mask, initial_sparsity):
    """Yields (w, momentum, masks, what an update has left at 0 or None)."""
    w, buffer = multiply(START, mask), multiply(START, dict.fromkeys(START, 0))
    for t in range(STEPS):
        g = gradient(w, t)
        moving, new = mask, None
        if t > 0 and t % INTERVAL == 0:
            i, final = t // INTERVAL, END // INTERVAL
            progress = min(i / final, 1)
            sparsity = initial_sparsity + (0.9 - initial_sparsity) * (
                1 - (1 - progress) ** 3
            )
            k = round((1 - sparsity) * sum(MASKED.values()))
            rate = cosine(0.5, 0.005, STEPS, t)
            pruned, mask, w = granet_update(w, g, mask, k, rate)
            buffer = multiply(multiply(buffer, pruned), mask)
            # New weights are at 0, as their momentum is; their first step is the next.
            moving = {name: mask[name] * (w[name] != 0) for name in mask}
            new = {name: mask[name] * (w[name] == 0) for name in mask}
        # SGD with Nesterov momentum, decay on all parameters, then `apply_mask`.
        d = {name: g[name] + DECAY * w[name] for name in SHAPES}
        buffer = {name: MOMENTUM * buffer[name] + d[name] for name in SHAPES}
        w = {n: w[n] - RATE * (d[n] + MOMENTUM * buffer[n]) for n in SHAPES}
        w, buffer = multiply(w, moving), multiply(buffer, moving)
        yield w, buffer, mask, new


# RigL, `SparseRigLOptimizer` of the official code, in TensorFlow. A masked weight's
# variable keeps whatever value it had: layers multiply it by the mask, and a new
# connection sets it to 0.
#
# Not as there: an update spends its iteration on the masks alone there, and here the
# weights that go on take their optimizer step too; `n_prune` is rounded down there and
# up here; ranks have a little noise there, against ties.


def generic_mask_update(variable, g, mask, fraction):
    """Gives the new mask and the new connections of a layer."""
    mask, score_grow = mask.ravel(), np.abs(g).ravel()
    n_ones = int(mask.sum())
    n_prune = math.ceil(fraction * n_ones)
    mask1, mask2 = np.zeros_like(mask), np.zeros_like(mask)
    score_drop = np.abs(variable.ravel() * mask)
    mask1[np.argsort(-score_drop, kind="stable")[: n_ones - n_prune]] = 1.0
    lifted = np.where(mask1 == 1, score_grow.min() - 1, score_grow)
    mask2[np.argsort(-lifted, kind="stable")[:n_prune]] = 1.0
    # reinit_when_same=False: what is dropped and comes back is no new connection.
    new = (mask2 == 1) & (mask == 0)
    return (mask1 + mask2).reshape(g.shape), new.astype(np.float32).reshape(g.shape)


def official_rigl(mask):
    """Yields (w, momentum, masks, what an update has left at 0 or None)."""
    variable, slot = dict(START), multiply(START, dict.fromkeys(START, 0))
    for t in range(STEPS):
        g = gradient(multiply(variable, mask), t)
        moving, new = mask, None
        if t > 0 and t % INTERVAL == 0:
            fraction = cosine(0.3, 0.0, STEPS - 1, t)
            pairs = {
                name: generic_mask_update(variable[name], g[name], mask[name], fraction)
                for name in mask
            }
            mask = {name: pair[0] for name, pair in pairs.items()}
            new = {name: pair[1] for name, pair in pairs.items()}
            moving = {name: mask[name] - new[name] for name in mask}
            old = {name: 1 - new[name] for name in mask}
            variable, slot = multiply(variable, old), multiply(slot, old)
        d = multiply(
            g, moving
        )  # layers multiply by masks, so that gradients are masked
        slot = {name: MOMENTUM * slot[name] + d[name] for name in SHAPES}
        variable = {n: variable[n] - RATE * (d[n] + MOMENTUM * slot[n]) for n in SHAPES}
        yield multiply(variable, mask), multiply(slot, mask), mask, new


def nesterov(decay=0.0):
    return optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(RATE, MOMENTUM, nesterov=True)
    )


RUNS = {
    "GraNet from dense": (
        sj.granet_transform(
            nesterov(DECAY),
            total_steps=STEPS,
            end_step=END,
            update_interval=INTERVAL,
            final_sparsity=0.9,
        ),
        lambda mask: official_granet(mask, 0.0),
    ),
    "GraNet from sparse": (
        sj.granet_transform(
            nesterov(DECAY),
            total_steps=STEPS,
            end_step=END,
            update_interval=INTERVAL,
            initial_sparsity=0.5,
            final_sparsity=0.9,
        ),
        lambda mask: official_granet(mask, 0.5),
    ),
    "RigL": (
        sj.rigl_transform(
            nesterov(),
            sparsity=0.8,
            total_steps=STEPS,
            stop_step=STEPS - 1,
            update_interval=INTERVAL,
        ),
        official_rigl,
    ),
}


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_ten_updates_give_the_weights_momentum_and_masks_of_the_official_code(run):
    tx, official = RUNS[run]
    params, state = sj.init_sparse(tx, START)
    masks = sj.get_masks(state)
    before = {name: np.asarray(masks[name], np.float32) for name in MASKED}
    step, came_back, updates = jax.jit(tx.update), 0, 0
    for t, (w, buffer, mask, new) in enumerate(official(before)):
        changes, state = step(gradient(params, t), state, params)
        params = optax.apply_updates(params, changes)
        masks, trace = sj.get_masks(state), optax.tree.get(state, "trace")
        for name in SHAPES:
            assert_close(params[name], w[name])
            assert_close(trace[name], buffer[name])
        for name in MASKED:
            np.testing.assert_array_equal(masks[name], mask[name] == 1)
        if new is not None:
            updates += 1
            for name in MASKED:
                at_zero = np.asarray(masks[name] & (params[name] == 0))
                np.testing.assert_array_equal(at_zero, new[name] == 1)
                came_back += int((before[name] * new[name]).sum())
        before = mask
    assert updates == UPDATES
    # Weights that were active all along and start again: the global prune's victims.
    assert (came_back > 0) == (run != "RigL")


def random_case(seed):
    rng = np.random.default_rng(seed)
    trees = [
        {n: rng.normal(size=SHAPES[n]).astype(np.float32) for n in MASKED}
        for _ in range(2)
    ]
    return *trees, {n: rng.random(SHAPES[n]) < 0.7 for n in MASKED}


@jax.jit
def our_granet_update(w, g, mask, keep, rate):
    pruned = sj.prune_magnitude(w, mask, keep=keep)
    left = sj.prune_magnitude(w, pruned, fraction=rate, scope="layer")
    counts = jax.tree.map(
        lambda before, after: before - after,
        sj.count_active(pruned, "layer"),
        sj.count_active(left, "layer"),
    )
    return sj.regrow_gradient(g, left, counts)


@pytest.mark.parametrize("strict", [True, False], ids=["CIFAR", "ImageNet"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_pure_functions_give_the_masks_of_the_official_granet_code(
    strict, sparsity, seed
):
    """CIFAR keeps what is above the k-th largest, ImageNet what is as large too."""
    w, g, mask = random_case(seed)
    rate = cosine(0.5, 0.005, 100, 10 * seed)
    k = int(sum(MASKED.values()) * (1 - sparsity))
    floats = {name: mask[name].astype(np.float32) for name in mask}
    _, official, _ = granet_update(w, g, floats, k, rate, strict)
    kept = k - 1 if strict else k
    ours = our_granet_update(w, g, mask, kept, rate)
    for name in MASKED:
        np.testing.assert_array_equal(ours[name], official[name] == 1)
    assert sum(int(m.sum()) for m in official.values()) == kept


# What an update costs a network: GraNet's first from dense, on a small MLP, whose
# gradients are large for whole rows and columns of weights.

FIRST, LAST = 5, 28 * 5  # the first of 28 updates that prune, as on CIFAR-10


def mlp_loss(params, x, y):
    hidden = jax.nn.relu(x @ params["in"])
    logits = hidden @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def test_the_first_update_of_granet_zeroes_as_few_weights_as_the_official_one():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 24)) * rng.uniform(0.1, 2.0, 24)
    y = np.argmax(x @ rng.normal(size=(24, 10)), axis=1)
    params = {
        "in": jnp.asarray(rng.normal(size=(24, 32)) / 5, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(32, 10)) / 6, jnp.float32),
    }
    tx = sj.granet_transform(
        optax.sgd(0.1, 0.9),
        total_steps=2 * LAST,
        end_step=LAST,
        update_interval=FIRST,
        final_sparsity=0.9,
        prune_rate=0.5,
    )
    params, state = sj.init_sparse(tx, params)
    gradients, update = jax.jit(jax.grad(mlp_loss)), jax.jit(tx.update)
    for _ in range(FIRST + 1):
        before, g = params, gradients(params, x, y)
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)

    size = sum(leaf.size for leaf in before.values())
    sparsity = 0.9 * (1 - (1 - FIRST / LAST) ** 3)
    rate = cosine(0.5, 0.005, 2 * LAST, FIRST)
    k = round((1 - sparsity) * size)
    everything = {
        name: np.ones(leaf.shape, np.float32) for name, leaf in before.items()
    }
    before, g = jax.tree.map(np.asarray, (before, g))
    pruned, mask, left = granet_update(before, g, everything, k, rate)

    zeros = {n: int((mask[n] * (left[n] == 0)).sum()) for n in mask}
    regrown = {n: math.ceil(rate * pruned[n].sum()) for n in mask}
    masks = sj.get_masks(state)
    ours = {n: int((masks[n] & (params[n] == 0)).sum()) for n in masks}
    assert ours == zeros
    # If all that is regrown started again, half of the network would be at 0.
    assert 0.45 * k < sum(regrown.values()) < 0.55 * k
    assert 0 < sum(ours.values()) < 0.2 * k
