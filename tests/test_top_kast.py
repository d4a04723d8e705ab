"""Top-KAST against NumPy, written from the paper's rule; what is run on and trained."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {"conv": (3, 3, 4, 12), "dense": (20, 16), "bias": (12,)}
# Uniform: 20 % and 50 % of 432 and 320 weights, 150 and 376 together.
FORWARD, BACKWARD = {"conv": 86, "dense": 64}, {"conv": 216, "dense": 160}
STEPS, INTERVAL, LEARNING_RATE, EXPLORATION = 40, 6, 0.05, 0.1

rng = np.random.default_rng(0)


def draw(scale=1.0):
    return {
        n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()
    }


START, TARGET, NOISE = draw(), draw(), [draw() for _ in range(STEPS)]


def transform(inner, **settings):
    known = {
        "sparsity": 0.8,
        "backward_sparsity": 0.5,
        "update_interval": INTERVAL,
        "exploration": EXPLORATION,
    }
    return sj.top_kast_transform(inner, **known | settings)


def loss(params, state, noise):
    """|alpha - target|^2 / 2 and a slope that is the noise of a minibatch."""
    alpha = sj.top_kast_params(params, state)
    return sum(
        jnp.sum((alpha[n] - TARGET[n]) ** 2) / 2 + jnp.sum(alpha[n] * noise[n])
        for n in SHAPES
    )


def make_step(tx):
    def step(params, state, noise):
        grads = jax.grad(loss)(params, state, noise)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, steps=STEPS):
    step, history = jax.jit(make_step(tx)), [(START, tx.init(START))]
    for t in range(steps):
        history.append(step(*history[-1], NOISE[t]))
    return jax.device_get(history)


def top(theta, counts):
    """Masks of the largest |theta| of each layer; of equal ones, the first."""
    masks = {}
    for n, k in counts.items():
        order = np.argsort(-np.abs(theta[n]).ravel(), kind="stable")
        masks[n] = np.isin(np.arange(order.size), order[:k]).reshape(SHAPES[n])
    return masks


def oracle(momentum, exploration):
    """theta is dense; alpha is theta on A; B takes steps of SGD with momentum."""
    theta = {n: p.copy() for n, p in START.items()}
    v = {n: np.zeros_like(p) for n, p in START.items()}
    a, b = top(theta, FORWARD), top(theta, BACKWARD)
    for t in range(STEPS):
        if t % INTERVAL == 0:
            old, a, b = b, top(theta, FORWARD), top(theta, BACKWARD)
            v |= {n: np.where(old[n] & b[n], v[n], 0) for n in b}
        yield dict(theta), a, b, dict(v)
        for n in SHAPES:
            is_masked = n in a
            alpha = np.where(a[n], theta[n], 0) if is_masked else theta[n]
            g = alpha - TARGET[n] + NOISE[t][n]
            if is_masked:
                inverse_d = a[n].size / FORWARD[n]
                g += exploration * np.where(a[n], 1, inverse_d) * theta[n]
                g = np.where(b[n], g, 0)
            v[n] = (np.float32(momentum) * v[n] + g).astype(np.float32)
            theta[n] = theta[n] - np.float32(LEARNING_RATE) * v[n]
    yield dict(theta), a, b, dict(v)


@pytest.mark.parametrize("exploration", [0.0, EXPLORATION])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_run_takes_the_masks_and_weights_of_the_oracle(momentum, exploration):
    inner = optax.sgd(LEARNING_RATE, momentum=momentum or None)
    history = run(transform(inner, exploration=exploration))
    changes = [0, 0]
    for t, (theta, a, b, v) in enumerate(oracle(momentum, exploration)):
        params, state = history[t]
        for n in SHAPES:
            np.testing.assert_allclose(params[n], theta[n], atol=1e-4)
            if momentum:
                trace = optax.tree.get(state, "trace")[n]
                np.testing.assert_allclose(trace, v[n], atol=1e-3)
        for n in a:
            np.testing.assert_array_equal(state.forward[n], a[n], f"{n}, step {t}")
            np.testing.assert_array_equal(state.backward[n], b[n], f"{n}, step {t}")
        if t:
            before = history[t - 1][1]
            for i, found in enumerate(("forward", "backward")):
                now, then = getattr(state, found), getattr(before, found)
                changes[i] += any((now[n] != then[n]).any() for n in a)
    assert changes == [STEPS // INTERVAL] * 2


OPTIMIZERS = {
    "momentum": (lambda: optax.sgd(0.05, momentum=0.9, nesterov=True), "trace"),
    "adam": (lambda: optax.adam(0.05), "mu"),
    "adamw": (lambda: optax.adamw(0.05, weight_decay=0.1), "mu"),
    "lamb": (lambda: optax.lamb(0.05, weight_decay=0.1), "mu"),
}


@functools.cache
def trained(optimizer):
    return run(transform(OPTIMIZERS[optimizer][0]()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_counts_are_exact_and_weights_outside_b_stay_where_they_are(optimizer):
    entered = 0
    for t, (params, state) in enumerate(trained(optimizer)):
        forward, backward = sj.top_kast_masks(state)
        assert {n: int(forward[n].sum()) for n in FORWARD} == FORWARD
        assert {n: int(backward[n].sum()) for n in BACKWARD} == BACKWARD
        assert forward["bias"] == backward["bias"] == optax.MaskedNode()
        assert sj.count_active(sj.difference(forward, backward)) == 0
        alpha = sj.top_kast_params(params, state)
        for n in FORWARD:
            expected = np.where(forward[n], params[n], 0)
            np.testing.assert_array_equal(alpha[n], expected)
        np.testing.assert_array_equal(alpha["bias"], params["bias"])
        if t == 0:
            continue
        before, old = trained(optimizer)[t - 1]
        for n in BACKWARD:
            moved = params[n] != before[n]
            assert not moved[~old.backward[n]].any()
            assert moved[old.backward[n]].mean() > 0.9
            if t % INTERVAL:
                np.testing.assert_array_equal(forward[n], old.forward[n])
            entered += (backward[n] & ~old.backward[n]).sum()
        assert (params["bias"] != before["bias"]).all()
    assert entered > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_slots_live_on_b_alone(optimizer):
    history = trained(optimizer)
    for t, (_, state) in enumerate(history):
        slot = optax.tree.get(state, OPTIMIZERS[optimizer][1])
        for n, mask in state.backward.items():
            if n == "bias" or t == 0:
                continue
            enters = mask & ~history[t - 1][1].backward[n]
            assert not slot[n][~mask | enters].any()
            assert slot[n][mask & ~enters].all()
    if optimizer == "adam":  # second moments start from the mean of those that stay
        state, before = history[INTERVAL][1], history[INTERVAL - 1][1]
        nu = optax.tree.get(state, "nu")["conv"]
        enters = state.backward["conv"] & ~before.backward["conv"]
        stays = state.backward["conv"] & before.backward["conv"]
        assert enters.any()
        np.testing.assert_allclose(nu[enters], nu[stays].mean(), rtol=1e-5)
        assert not nu[~state.backward["conv"]].any()


def test_gradients_outside_b_are_0_and_are_never_looked_at():
    tx = transform(optax.adam(0.05))
    params, state = trained("adam")[INTERVAL + 1]
    grads = jax.grad(loss)(params, state, NOISE[0])
    spoilt = dict(grads)
    for n, b in state.backward.items():
        if n != "bias":
            assert not np.any(grads[n][~b]) and np.all(grads[n][b] != 0)
            spoilt[n] = jnp.where(b, grads[n], jnp.nan)
    expected = tx.update(grads, state, params)
    found = tx.update(spoilt, state, params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_gradient_on_b_is_that_of_the_network_at_alpha():
    params, state = trained("adam")[INTERVAL + 1]
    alpha = sj.top_kast_params(params, state)
    grads = jax.grad(loss)(params, state, NOISE[0])
    for n, b in sj.top_kast_masks(state)[1].items():
        at_alpha = alpha[n] - TARGET[n] + NOISE[0][n]
        expected = at_alpha if n == "bias" else np.where(b, at_alpha, 0)
        np.testing.assert_allclose(grads[n], expected, atol=1e-6)


def test_eager_and_scan_equal_compiled():
    tx = transform(optax.sgd(0.05, momentum=0.9, nesterov=True))
    step, history = make_step(tx), trained("momentum")
    n = INTERVAL + 2
    noises = jax.tree.map(lambda *x: np.stack(x), *NOISE[:n])
    body = lambda carry, noise: (step(*carry, noise), None)
    scanned, _ = jax.jit(lambda: jax.lax.scan(body, history[0], noises))()
    eager = jax.tree.map(jnp.asarray, history[INTERVAL - 1])
    for t in range(INTERVAL - 1, n):
        eager = step(*eager, NOISE[t])
    for params, state in (scanned, eager):
        for found in ("forward", "backward"):
            jax.tree.map(
                np.testing.assert_array_equal,
                getattr(state, found),
                getattr(history[n][1], found),
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            (params, state.inner_state),
            (history[n][0], history[n][1].inner_state),
        )


def test_it_nests_in_optax_and_maps_its_parameter_trees():
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.MultiSteps(transform(optax.adam(0.05)), 2)
    )
    state = tx.init(START)
    update = jax.jit(tx.update)
    params = START
    for t in range(3):
        updates, state = update(NOISE[t], state, params)
        params = optax.apply_updates(params, updates)
    assert optax.tree.get(state, "step") == 1
    forward, _ = sj.top_kast_masks(state)
    assert {n: int(forward[n].sum()) for n in FORWARD} == FORWARD
    inner = transform(optax.adam(0.05))
    same = optax.tree.map_params(inner, lambda leaf: leaf, inner.init(START))
    jax.tree.map(np.testing.assert_array_equal, same, inner.init(START))


def test_stacked_layers_and_layers_of_fixed_sparsity_have_their_own_counts():
    params = {"blocks": jnp.array(rng.normal(size=(3, 10, 10))), "head": jnp.eye(10)}
    stack = sj.LayerRule(stacked=True)
    tx = transform(
        optax.sgd(0.0), prunable=[("blocks", stack), ("head", 0.8)], exploration=1.0
    )
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    forward, backward = sj.top_kast_masks(state := tx.init(params))
    assert forward["blocks"].sum((1, 2)).tolist() == [20, 20, 20]
    assert forward["head"].sum() == backward["head"].sum() == 20
    assert backward["blocks"].sum((1, 2)).tolist() == [60, 60, 60]
    # The penalty alone: lambda theta on A, and 1 / D = 5 times that on the rest of B.
    tx = transform(optax.sgd(1.0), prunable=[("blocks", stack)], exploration=0.1)
    state = tx.init(params)
    forward, backward = sj.top_kast_masks(state)
    zero = jax.tree.map(jnp.zeros_like, params)
    moves, _ = tx.update(zero, state, params)
    strength = np.where(forward["blocks"], 0.1, np.where(backward["blocks"], 0.5, 0))
    expected = -strength * params["blocks"]
    np.testing.assert_allclose(moves["blocks"], expected, rtol=1e-5)


REFUSALS = [
    ({"sparsity": 1.0}, r"sparsity must be in [0, 1)"),
    ({"backward_sparsity": -0.1}, r"backward_sparsity must be in [0, 1)"),
    (
        {"backward_sparsity": 0.9},
        "backward_sparsity must be at most sparsity=0.8, as what the network runs on "
        "is trained; got 0.9",
    ),
    ({"update_interval": 0}, "update_interval must be an integer of at least 1; got 0"),
    ({"exploration": -1.0}, "exploration must be 0 or above; got -1.0"),
    ({"exploration": float("nan")}, "exploration must be 0 or above; got nan"),
    ({"distribution": "ERK"}, "distribution must be one of"),
    ({"prunable": [("tail", True)]}, "prunable: pattern 'tail' matches no parameter"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_bad_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as refusal:
        transform(optax.sgd(0.1), **settings).init(START)
    assert str(refusal.value).endswith(".") and ". " not in str(refusal.value)


def test_missing_parameters_and_states_are_refused():
    tx = transform(optax.sgd(0.1))
    state = tx.init(START)
    with pytest.raises(ValueError, match=r"^params must be given to update"):
        tx.update(START, state)
    with pytest.raises(
        ValueError, match=r"^masks do not fit grads: grads have nothing"
    ):
        tx.update({"conv": START["conv"]}, state, START)
    with pytest.raises(ValueError, match=r"^opt_state must hold the state of top_kast"):
        sj.top_kast_params(START, optax.sgd(0.1).init(START))
    with pytest.raises(ValueError, match=r"^masks do not fit params"):
        sj.top_kast_params({"conv": START["conv"]}, state)
