"""Every method of the experiments, as the training loop and the comparison use it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.configs import digits, imagenet_resnet50
from experiments.configs.common import base_config
from experiments.methods import (
    METHODS,
    decayed_leaves,
    finds_masks,
    masks_before_training,
    names,
    run_flops,
    sparse_optimizer,
)
from experiments.optimizer import make_optimizer
from experiments.top_kast import top_kast_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 40
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


IMAGE_METHODS = names("before", "during")
LABELS = [name for name in IMAGE_METHODS if not finds_masks(name)]


# Those that no test of the digits trains.
@pytest.mark.parametrize(
    "name", [n for n in LABELS if n not in digits.get_config().methods]
)
def test_reaches_the_sparsity(name):
    tx = sparse_optimizer(
        name, optax.sgd(0.1), config_of(name), STEPS, sparsity=0.8, seed=0
    )
    goal = make_params(1)

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p, g: p - g, params, goal)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), sj.count_active(sj.get_masks(state))

    start = sj.init_sparse(tx, make_params())
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=STEPS))
    (params, state), active = run(start)
    masks = sj.get_masks(state)
    by_layer = name in ("gmp_layer", "granet_uniform")
    kept = sum(round(0.2 * n) for n in (256, 128)) if by_layer else round(0.2 * 384)
    count = sj.count_active(masks)
    assert 0 < count <= kept if name == "srigl" else count == kept
    jax.tree.map(np.testing.assert_array_equal, params, sj.apply_masks(params, masks))
    assert len(set(active.tolist())) > 1 or METHODS[name].first != "dense"


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_layers_that_the_configuration_leaves_dense_have_no_mask(name):
    config, params = config_of(name), make_params()
    config.prunable, config.output_layer = (("head", False),), ""
    if finds_masks(name):
        options = {"apply_fn": lambda p, x: x @ p["stem"], "image_shape": (16,)}
        masks = masks_before_training(
            name,
            params,
            0.5,
            loss_fn=lambda p, x, temperature=1.0: jnp.mean((x @ p["stem"]) ** 2),
            batches=lambda number: [jnp.ones((2, 16))],
            balanced=lambda: [jnp.ones((2, 16))],
            dense_batches=lambda: [jnp.ones((2, 16))],
            rounds=2,
            prunable=config.prunable,
            **options,
        )
    else:
        tx = sparse_optimizer(name, optax.sgd(0.1), config, STEPS, sparsity=0.5, seed=0)
        masks = sj.get_masks(jax.eval_shape(tx.init, params))
    assert masks["stem"].shape == (16, 16) and not jax.tree.leaves(masks["head"])


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
