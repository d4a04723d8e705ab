"""Every method of the experiments, as the training loop and the comparison use it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.comparison import replicas as rep
from experiments.comparison.methods import first_sparsity, make_transform
from experiments.configs import digits, imagenet_resnet50
from experiments.configs.common import base_config
from experiments.optimizer import make_optimizer
from experiments.record.flops import run_flops
from experiments.training.sparse import (
    LABELS,
    NEED_SPARSITY,
    START_DENSE,
    decayed_leaves,
    sparse_optimizer,
)
from experiments.training.top_kast import top_kast_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, SPARSITIES = 40, (0.8, 0.9)
SHAPES = {"stem": (16, 16), "head": {"kernel": (16, 8), "bias": (8,)}}


def config_of(name):
    config = base_config()
    config.method, config.update_interval_steps = name, 4
    return config


def make_params(seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape), SHAPES, is_leaf=is_shape
    )


def train(tx, params, state):
    """Trains towards other weights; gives the masks' counts after each step too."""
    goal = make_params(1)

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p, g: p - g, params, goal)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), sj.count_active(sj.get_masks(state))

    return jax.lax.scan(step, (params, state), None, length=STEPS)


def check(name, sparsity, params, masks, active):
    if name in ("gmp_layer", "granet_uniform"):
        kept = sum(round((1 - sparsity) * size) for size in (256, 128))
    else:
        kept = round((1 - sparsity) * 384)
    count = sj.count_active(masks)
    assert 0 < count <= kept if name == "srigl" else count == kept
    jax.tree.map(np.testing.assert_array_equal, params, sj.apply_masks(params, masks))
    assert len(set(active.tolist())) > 1 or name not in START_DENSE


# Those that no other test runs side by side.
@pytest.mark.parametrize(
    "name", [n for n in LABELS if n not in digits.get_config().methods]
)
def test_reaches_the_sparsity(name):
    """Side by side with a traced sparsity, or one sparsity after the other."""
    groups = [[s] for s in SPARSITIES] if name in NEED_SPARSITY else [SPARSITIES]
    for group in groups:
        config = config_of(name)
        known = group[0] if name in NEED_SPARSITY else None
        transform = make_transform(name, optax.sgd(0.1), config, STEPS, known)
        runs = []
        for sparsity in group:
            start = first_sparsity(name, sparsity, config)
            params = make_params()
            replica = rep.make_replica(0, sparsity, start, params, "erk")
            runs.append((replica, params))
        replicas, params = rep.stack(runs)
        state = rep.compile_start(transform)(replicas, params)

        def run(replica, state, transform=transform):
            (params, opt_state), active = train(transform(replica), *state)
            return params, sj.get_masks(opt_state), active

        axes = (0, rep._STATE_AXES)
        results = jax.jit(jax.vmap(run, in_axes=axes))(replicas, state)
        for i, sparsity in enumerate(group):
            check(name, sparsity, *jax.tree.map(lambda x, i=i: x[i], results))


@pytest.mark.parametrize("name", LABELS)
def test_tells_its_update_steps_and_takes_ordinary_ones(name):
    tx = sparse_optimizer(
        name, optax.sgd(0.1), config_of(name), STEPS, sparsity=0.8, seed=0
    )
    at = np.asarray(tx.is_update_step(np.arange(STEPS)))
    assert at.shape == (STEPS,) and not at[0]
    assert at.any() == (name not in ("dense", "static"))
    assert at.tolist() == [bool(tx.is_update_step(t)) for t in range(STEPS)]

    params, state = sj.init_sparse(tx, make_params())
    step = jax.jit(lambda *args: tx.update(*args, update_topology=False))
    updates, after = step(make_params(2), state, params)
    masks = sj.get_masks(state)
    jax.tree.map(np.testing.assert_array_equal, masks, sj.get_masks(after))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    params = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, params, sj.apply_masks(params, masks))


def test_top_kast_trains_as_in_the_library():
    options = {"sparsity": 0.8, "backward_sparsity": 0.6, "exploration": 0.01}
    mine = top_kast_optimizer(optax.adam(0.05), update_interval=3, **options)
    theirs = sj.top_kast_transform(optax.adam(0.05), update_interval=3, **options)
    goal = make_params(1)

    @jax.jit
    def one(params, state):
        grads = jax.tree.map(jnp.subtract, params, goal)
        updates, state = mine.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def other(theta, state):
        def loss(theta):
            alpha = sj.top_kast_params(theta, state)
            each = jax.tree.map(lambda a, g: jnp.sum((a - g) ** 2) / 2, alpha, goal)
            return sum(jax.tree.leaves(each))

        updates, after = theirs.update(jax.grad(loss)(theta), state, theta)
        return optax.apply_updates(theta, updates), after

    params, state = sj.init_sparse(mine, make_params())
    theta = make_params()
    reference = theirs.init(theta)
    for t in range(8):
        before = sj.get_masks(state)
        params, state = one(params, state)
        theta, reference = other(theta, reference)
        alpha = sj.top_kast_params(theta, reference)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
        jax.tree.map(close, params, alpha)
        masks = sj.get_masks(state)
        assert state.metrics.updates == (t + 1) // 3
        if mine.is_update_step(t):
            grown = sj.count_active(sj.difference(masks, before))
            assert state.metrics.grown == grown == state.metrics.dropped > 0
    assert state.metrics.active == sj.count_active(masks)


def test_weight_decay_of_top_kast_is_its_penalty():
    params, grads = make_params(), jax.tree.map(jnp.zeros_like, make_params())
    config = config_of("top_kast")
    updates, _ = (tx := make_optimizer(config, lambda step: 1.0, "top_kast")).update(
        grads, tx.init(params), params
    )
    assert not updates["stem"].any() and updates["head"]["bias"].any()
    updates, _ = (tx := make_optimizer(config, lambda step: 1.0, "rigl")).update(
        grads, tx.init(params), params
    )
    assert updates["stem"].any()
    assert jax.tree.leaves(decayed_leaves("rigl", small=False)(params)) == [
        False,
        True,
        True,
    ]


def test_every_method_has_a_rule_for_its_flops():
    forward = sj.ForwardFlops({"w": 1000}, other=0)
    for name in LABELS:
        history = [(0, {"w": 0.5})]
        flops = run_flops(name, forward, history, 10, [5], backward={"w": 0.75})
        assert flops.inference == 0.5
        expected = {
            "dense": 1.0,
            "snfs": 2 / 3,
            "top_kast": (2 * 0.5 + 0.75) / 3,
        }
        if name in ("rigl", "rigl_itop", "srigl") or name.startswith("granet"):
            expected[name] = 0.5 + 0.5 / 30  # a dense gradient in one step of ten
        assert flops.training == pytest.approx(expected.get(name, 0.5))


def test_phases_of_acdc_on_imagenet_are_the_papers():
    percent = sj.acdc_phases(
        100, warm_up_steps=10, phase_steps=5, last_dense_steps=10, last_sparse_steps=15
    )
    shares = imagenet_resnet50.get_config("method=acdc").acdc_phases
    assert tuple(round(100 * share) for share in shares) == percent
