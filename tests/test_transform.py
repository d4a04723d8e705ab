"""The wrapper itself: skipped updates, metrics, containers, dtypes, stacked layers."""

from typing import Any

import equinox as eqx
import flax.core
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import (
    BEGIN,
    END,
    INTERVAL,
    METHODS,
    PRUNABLE,
    SPARSITY,
    STEPS,
    TOTAL,
    by_path,
    gradients,
    make_params,
    noise_of,
    sparsify_state,
)
from flax import nnx

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation", "strict_ranks")

UPDATE = BEGIN + INTERVAL  # the first update step


def train(tx: Any, steps: int = STEPS, spoil: Any = None) -> list[Any]:
    """(params, opt_state) at the start and after each step.

    `spoil(t, params, grads)` gives other parameters and gradients for step t.
    """
    params, opt_state = sj.init_sparse(tx, make_params())
    history, update = [(params, opt_state)], jax.jit(tx.update)
    for t in range(steps):
        grads = gradients(params, noise_of(t))
        if spoil is not None:
            params, grads = spoil(t, params, grads)
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, opt_state))
    return history


def assert_equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def poison(tree: Any, value: float) -> Any:
    kernel = jnp.asarray(tree["dense"]["kernel"]).at[0, 0].set(value)
    return {**tree, "dense": {**tree["dense"], "kernel": kernel}}


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("set", np.nan),
        ("rigl", np.inf),
        ("gmp_layer", np.nan),
        ("granet_sparse", -np.inf),
    ],
)
def test_an_update_with_a_gradient_that_is_not_finite_is_left_out(method, value):
    def spoil(t: int, params: Any, grads: Any) -> Any:
        return params, poison(grads, value) if t == UPDATE else grads

    # apply_if_finite inside keeps the optimizer sound, as one would have it in use.
    inner = optax.apply_if_finite(optax.sgd(0.05, momentum=0.9), 3)
    history = train(METHODS[method].wrap(inner), spoil=spoil)
    before, after = (sparsify_state(history[t][1]) for t in (UPDATE, UPDATE + 1))
    assert_equal(before.masks, after.masks)
    assert before.metrics.skipped == 0 and after.metrics.skipped == 1
    assert after.metrics.active == before.metrics.active
    assert after.step == UPDATE + 1

    params, opt_state = history[-1]
    last = sparsify_state(opt_state)
    assert last.metrics.skipped == 1
    assert sj.count_active(last.masks) == METHODS[method].kept(END)
    assert all(map(np.all, map(np.isfinite, jax.tree.leaves(params))))
    assert_equal(params, sj.apply_masks(params, last.masks))
    assert sj.jaccard(before.masks, last.masks) < 1


@pytest.mark.parametrize("method", ["gmp_layer", "granet_dense"])
def test_a_final_prune_left_out_is_made_up_for_at_a_later_update(method):
    def spoil(t: int, params: Any, grads: Any) -> Any:
        return params, poison(grads, np.nan) if t == END else grads

    inner = optax.apply_if_finite(optax.sgd(0.05), 3)
    history = train(METHODS[method].wrap(inner), spoil=spoil)
    active = [int(sparsify_state(s).metrics.active) for _, s in history]
    later = BEGIN + 3 * INTERVAL
    assert END < later < STEPS
    assert active[END] == active[later] > METHODS[method].kept(END)
    assert active[later + 1] == active[-1] == METHODS[method].kept(END)


@pytest.mark.parametrize("method", ["rigl", "gmp_global"])
def test_an_update_with_a_weight_that_is_not_finite_is_left_out(method):
    def spoil(t: int, params: Any, grads: Any) -> Any:
        return poison(params, np.inf) if t == UPDATE else params, grads

    history = train(METHODS[method].wrap(optax.sgd(0.05)), UPDATE + 1, spoil)
    before, after = (sparsify_state(history[t][1]) for t in (UPDATE, UPDATE + 1))
    assert_equal(before.masks, after.masks)
    assert after.metrics.skipped == 1


def test_an_inactive_weight_with_a_gradient_that_is_not_finite_stays_zero():
    def spoil(t: int, params: Any, grads: Any) -> Any:
        return params, jax.tree.map(
            lambda g: jnp.where(g > 0.2, jnp.nan, g), grads
        ) if t == 1 else grads

    tx = METHODS["static"].wrap(optax.apply_if_finite(optax.adam(0.05), 3))
    history = train(tx, 4, spoil)
    for params, opt_state in history:
        assert_equal(params, sj.apply_masks(params, sj.get_masks(opt_state)))


def test_metrics_are_read_by_name():
    _, opt_state = train(METHODS["granet_sparse"].wrap(optax.adam(0.05)))[-1]
    masks = sj.get_masks(opt_state)
    read = {
        name: optax.tree.get(opt_state, name)
        for name in ("sparsity", "active", "grown", "dropped", "churn", "skipped")
    }
    assert read["active"] == sj.count_active(masks) == METHODS["granet_sparse"].kept(22)
    np.testing.assert_allclose(read["sparsity"], sj.sparsity(masks))
    assert 0 < read["dropped"] <= read["grown"]
    np.testing.assert_allclose(read["churn"], read["dropped"] / read["active"])
    assert read["skipped"] == 0


ADD_ONE = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u + 1, updates))


def test_weights_that_something_trains_behind_the_optimizer_are_counted_seldom():
    """It looks at steps 0, 1, 2, 4, 8, ...: not at 3 and 5."""
    tx = optax.chain(METHODS["static"].wrap(optax.sgd(0.05)), ADD_ONE)
    masks = sj.get_masks(tx.init(make_params()))

    def spoil(t: int, params: Any, grads: Any) -> Any:
        return (sj.apply_masks(params, masks) if t == 4 else params), grads

    history = train(tx, 6, spoil)
    found = [int(optax.tree.get(state, "stray")) for _, state in history[1:]]
    outside = TOTAL - METHODS["static"].kept(0)
    assert found == [0, outside, outside, outside, 0, 0]
    with pytest.raises(ValueError, match="params must be 0 outside their masks"):
        sj.check(history[-1][0], masks)


@pytest.mark.parametrize("steps", [0, UPDATE])
def test_update_topology_decides_whether_masks_change(steps):
    tx = METHODS["rigl"].wrap(optax.sgd(0.05))
    params, state = train(tx, steps)[-1]
    due = bool(tx.is_update_step(steps))
    assert due == (steps == UPDATE)
    for told, updates, skipped in ((False, 0, due), (True, 1, 0), (None, due, 0)):
        _, after = tx.update(noise_of(steps), state, params, update_topology=told)
        assert after.metrics.updates == updates and after.metrics.skipped == skipped
        assert (sj.jaccard(state.masks, after.masks) < 1) == bool(updates)


def test_layers_without_an_active_weight_are_counted():
    history = train(METHODS["mest_em"].wrap(optax.sgd(0.05)), 1)
    assert optax.tree.get(history[-1][1], "empty") == 1  # a fifth of one weight


@pytest.mark.parametrize("update_topology", [False, True])
def test_the_step_is_differentiable(update_topology):
    """Of SGD: what goes on has the slope 1 - 0.1 LR, through its gradient; others 0."""
    tx = METHODS["set"].wrap(optax.sgd(0.05))
    params, state = sj.init_sparse(tx, make_params())

    def after(params: Any) -> Any:
        grads = gradients(params, noise_of(0))
        updates, new = tx.update(grads, state, params, update_topology=update_topology)
        params = optax.apply_updates(params, updates)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), (params, new)

    slope, (moved, new) = jax.grad(after, has_aux=True)(params)
    assert (new.metrics.grown > 0) == update_topology
    kept = sj.masks_of(moved, PRUNABLE)
    expected = jax.tree.map(jnp.ones_like, params)
    expected = jax.tree.map(lambda e: (1 - 0.005) * e, sj.apply_masks(expected, kept))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), slope, expected
    )


@pytest.mark.parametrize("method", ["set", "rigl", "granet_dense"])
def test_grown_weights_are_zero_after_their_update_and_move_at_the_next_step(method):
    history = train(METHODS[method].wrap(optax.adam(0.05)), UPDATE + 2)
    (at_update, opt_state), (next_step, _) = history[UPDATE + 1 :]
    masks = by_path(sj.get_masks(opt_state))
    at_update, next_step = by_path(at_update), by_path(next_step)
    grown = {path: mask & (at_update[path] == 0) for path, mask in masks.items()}
    total = sum(g.sum() for g in grown.values())
    assert total == sparsify_state(opt_state).metrics.grown > 0
    assert all(np.all(next_step[path][g] != 0) for path, g in grown.items())


def test_update_without_params_is_refused():
    tx = METHODS["rigl"].wrap(optax.sgd(0.05))
    params, opt_state = sj.init_sparse(tx, make_params())
    with pytest.raises(ValueError, match=r"params must be given to update.*got None"):
        tx.update(params, opt_state)


def test_extra_arguments_reach_the_inner_optimizer():
    def scale(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any):
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), scale)
    tx = METHODS["static"].wrap(inner)
    params, opt_state = sj.init_sparse(tx, make_params())
    updates, _ = tx.update(params, opt_state, params, value=-2.0)
    assert_equal(updates["conv"]["bias"], -2.0 * params["conv"]["bias"])
    with_sgd = METHODS["static"].wrap(optax.sgd(0.05))
    params, opt_state = sj.init_sparse(with_sgd, make_params())
    with_sgd.update(params, opt_state, params, value=-2.0)


def test_what_an_ordinary_step_does_not_change_stays():
    history = train(METHODS["set"].wrap(optax.sgd(0.05)), UPDATE)
    first, last = (sparsify_state(state) for _, state in (history[0], history[-1]))
    assert_equal((first.masks, first.key), (last.masks, last.key))
    assert last.step == UPDATE and first.step == 0


# Containers and libraries: what params look like, with a mask wherever ndim >= 2.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.relu(nn.Dense(6)(x)))


class Nnx(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(5, 6, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(6, 4, rngs=nnx.Rngs(1))


def haiku_params() -> Any:
    model = hk.transform(lambda x: hk.Linear(4)(jax.nn.relu(hk.Linear(6)(x))))
    return model.init(jax.random.key(0), jnp.ones((1, 5)))


def equinox_params() -> Any:
    model = eqx.nn.MLP(5, 4, 6, 1, key=jax.random.key(0))
    return eqx.filter(model, eqx.is_array)


TREES = {
    "flax_linen": lambda: Linen().init(jax.random.key(0), jnp.ones((1, 5))),
    "nnx_state": lambda: nnx.split(Nnx(), nnx.Param, ...)[1],
    "nnx_pure_dict": lambda: nnx.to_pure_dict(nnx.state(Nnx(), nnx.Param)),
    "haiku": haiku_params,
    "equinox": equinox_params,
    "list": lambda: [jnp.ones((5, 6)), jnp.ones(6), (jnp.ones((6, 4)), jnp.ones(4))],
    "bare_array": lambda: jnp.arange(54.0).reshape(6, 9),
    "with_none": lambda: {"w": jnp.ones((6, 9)), "nothing": None, "empty": {}},
}


# With what is prunable by default: the families' methods look for kernels.
ANYWHERE = {
    "granet": lambda tx: sj.granet_transform(
        tx,
        initial_sparsity=0.5,
        final_sparsity=SPARSITY,
        total_steps=STEPS,
        end_step=END,
        update_interval=INTERVAL,
    ),
    "static": lambda tx: sj.static_transform(tx, sparsity=SPARSITY),
}


@pytest.mark.parametrize("tree", TREES)
def test_any_tree_of_parameters_can_be_trained(tree):
    params = TREES[tree]()
    tx = ANYWHERE["granet"](optax.adam(0.05))
    params, opt_state = sj.init_sparse(tx, params)
    structure = jax.tree.structure((params, opt_state))
    update = jax.jit(tx.update)
    size = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert sj.count_prunable(sj.get_masks(opt_state)) == size == 54
    for t in range(END + 1):
        key = jax.random.key(t)
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)  # noqa: B023
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    masks = sj.get_masks(opt_state)
    assert jax.tree.structure((params, opt_state)) == structure
    assert sj.count_active(masks) == np.rint((1 - SPARSITY) * size)
    assert_equal(params, sj.apply_masks(params, masks))


def test_a_trained_nnx_model_runs_with_its_sparse_weights():
    graph, params, rest = nnx.split(Nnx(), nnx.Param, ...)
    params, _ = sj.init_sparse(METHODS["static"].wrap(optax.sgd(0.1)), params)
    model = nnx.merge(graph, params, rest)
    assert np.sum(model.first.kernel[...] == 0) > 15


def test_a_trained_equinox_model_runs_with_its_sparse_weights():
    model = eqx.nn.MLP(5, 4, 6, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    params, opt_state = sj.init_sparse(ANYWHERE["static"](optax.sgd(0.1)), params)
    grads = jax.grad(lambda p: eqx.combine(p, static)(jnp.ones(5)).sum())(params)
    tx = ANYWHERE["static"](optax.sgd(0.1))
    updates, opt_state = tx.update(grads, opt_state, params)
    params = eqx.apply_updates(params, updates)
    assert_equal(params, sj.apply_masks(params, sj.get_masks(opt_state)))


# Dtypes.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", ["set", "granet_sparse"])
def test_counts_and_zeros_are_exact_at_any_float_dtype(method, dtype):
    # Adam's eps is 0 in float16, so that plain optax gives weights that are not finite.
    inner = optax.sgd(0.05, 0.9) if dtype == jnp.float16 else optax.adam(0.05)
    tx = METHODS[method].wrap(inner)
    start = jax.tree.map(lambda p: jnp.asarray(p, dtype), make_params())
    params, opt_state = sj.init_sparse(tx, start)
    types = jax.tree.map(lambda leaf: leaf.dtype, (params, opt_state))

    @jax.jit
    def step(params: Any, opt_state: Any, noise: Any) -> Any:
        grads = gradients(params, noise)
        grads = jax.tree.map(lambda g: g.astype(dtype), grads)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for t in range(END + 1):
        params, opt_state = step(params, opt_state, noise_of(t))
        masks = sj.get_masks(opt_state)
        assert_equal(params, sj.apply_masks(params, masks))
    assert sj.count_active(masks) == METHODS[method].kept(END)
    assert jax.tree.map(lambda leaf: leaf.dtype, (params, opt_state)) == types


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("grad_dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_are_exact_where_gradients_have_another_dtype(param_dtype, grad_dtype):
    tx = METHODS["gmp_layer"].wrap(optax.sgd(0.05))
    start = jax.tree.map(lambda p: jnp.asarray(p, param_dtype), make_params())
    params, opt_state = sj.init_sparse(tx, start)
    update = jax.jit(tx.update)
    for t in range(UPDATE + 1):
        grads = jax.tree.map(lambda g: jnp.asarray(g, grad_dtype), noise_of(t))
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    masks = sj.get_masks(opt_state)
    assert sj.count_active(masks) == METHODS["gmp_layer"].kept(UPDATE) < TOTAL
    assert_equal(params, sj.apply_masks(params, masks))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(param_dtype)}


# Stacked layers and layers of fixed sparsity.

STACK = {"blocks": jnp.zeros((3, 8, 10)), "head": jnp.zeros((10, 5))}


def stacked_params(seed: int = 5) -> Any:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        name: jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, STACK.items())
    }


def run(tx: Any, params: Any, steps: int = STEPS) -> tuple[Any, list[Any]]:
    """The last parameters and the masks at the start and after each step."""
    params, opt_state = sj.init_sparse(tx, params)
    masks, update = [sj.get_masks(opt_state)], jax.jit(tx.update)
    for t in range(steps):
        keys = dict(zip(params, jax.random.split(jax.random.key(t), len(params))))
        grads = {
            name: jax.random.normal(keys[name], params[name].shape) for name in params
        }
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        masks.append(sj.get_masks(opt_state))
    return params, masks


def test_each_slice_of_stacked_layers_is_pruned_as_a_layer_of_its_own():
    tx = sj.gmp_transform(
        optax.sgd(0.01),
        final_sparsity=0.7,
        end_step=4,
        update_interval=2,
        scope="layer",
        prunable=[("blocks", sj.LayerRule(stacked=True))],
    )
    params, masks = run(tx, stacked_params(), 5)
    assert masks[-1]["blocks"].sum((1, 2)).tolist() == [24, 24, 24]
    assert masks[-1]["head"].sum() == 15
    assert_equal(params, sj.apply_masks(params, masks[-1]))


STACKED = [("blocks", sj.LayerRule(stacked=True))]
RUN = {"total_steps": 12, "update_interval": 3}
TO_80_PERCENT = {"initial_sparsity": 0.5, "final_sparsity": 0.8, "end_step": 6}


@pytest.mark.parametrize("make", [sj.set_transform, sj.rigl_transform])
def test_each_slice_of_stacked_layers_keeps_its_count_in_an_exchange(make):
    tx = make(optax.sgd(0.1), sparsity=0.7, prunable=STACKED, **RUN)
    _, masks = run(tx, stacked_params(), 12)
    active = [mask["blocks"].sum((1, 2)).tolist() for mask in masks]
    assert active == [active[0]] * len(masks)
    assert {int(sj.count_active(mask)) for mask in masks} == {87}  # 0.3 * 290
    assert sj.jaccard(masks[0], masks[-1]) < 1


def unstacked(tree: Any) -> Any:
    blocks = {f"blocks{i}": tree["blocks"][i] for i in range(3)}
    return {**blocks, "head": tree["head"]}


@pytest.mark.parametrize(
    ("make", "options"),
    [(sj.rigl_transform, {}), (sj.granet_transform, TO_80_PERCENT)],
    ids=["rigl", "granet"],
)
def test_stacked_layers_get_the_masks_that_separate_leaves_get(make, options):
    params, grads = stacked_params(), stacked_params(seed=6)
    masks = sj.random_masks(jax.random.key(0), params, 0.5, prunable=STACKED)

    def masks_after_first_update(tx: Any, params: Any, grads: Any) -> Any:
        params, opt_state = sj.init_sparse(tx, params)
        update = jax.jit(tx.update)
        for _ in range(RUN["update_interval"] + 1):
            updates, opt_state = update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        return sj.get_masks(opt_state)

    options = {**options, **RUN}
    together = make(optax.sgd(0.1), masks=masks, prunable=STACKED, **options)
    separate = make(optax.sgd(0.1), masks=unstacked(masks), **options)
    one = masks_after_first_update(together, params, grads)
    other = masks_after_first_update(separate, unstacked(params), unstacked(grads))
    assert_equal(unstacked(one), other)
    assert sj.jaccard(one, masks) < 1


FIXED = [("dense", 0.5), *PRUNABLE]  # 40 of the 80 weights of dense/kernel stay
FIXED_METHODS = {
    "static": lambda: sj.static_transform(
        optax.sgd(0.05), sparsity=SPARSITY, prunable=FIXED
    ),
    "rigl": lambda: sj.rigl_transform(
        optax.sgd(0.05),
        sparsity=SPARSITY,
        total_steps=STEPS,
        update_interval=INTERVAL,
        prunable=FIXED,
    ),
    **{
        f"gmp_{scope}": lambda scope=scope: sj.gmp_transform(
            optax.sgd(0.05),
            final_sparsity=SPARSITY,
            end_step=END,
            update_interval=INTERVAL,
            scope=scope,
            prunable=FIXED,
        )
        for scope in ("global", "layer")
    },
    "granet": lambda: sj.granet_transform(
        optax.sgd(0.05),
        initial_sparsity=0.4,
        final_sparsity=SPARSITY,
        total_steps=STEPS,
        end_step=END,
        update_interval=INTERVAL,
        prunable=FIXED,
    ),
    "acdc": lambda: sj.acdc_transform(
        optax.sgd(0.05), final_sparsity=SPARSITY, phases=[4, 8, END], prunable=FIXED
    ),
}


@pytest.mark.parametrize("method", FIXED_METHODS)
def test_a_layer_of_fixed_sparsity_ends_there_and_the_total_is_exact(method):
    tx = FIXED_METHODS[method]()
    # "dense" matches dense/bias too, which has a mask then: 379 prunable weights.
    history = train(tx, END + 1)
    masks = by_path(sj.get_masks(history[-1][1]))
    assert masks["dense/kernel"].sum() == 40 and masks["dense/bias"].sum() == 5
    assert sum(mask.sum() for mask in masks.values()) == np.rint(0.2 * (TOTAL + 10))
    for params, opt_state in history:
        assert_equal(params, sj.apply_masks(params, sj.get_masks(opt_state)))


def test_random_masks_hold_a_layer_of_fixed_sparsity():
    params = make_params()
    masks = sj.random_masks(
        jax.random.key(0), params, SPARSITY, prunable=[("dense/kernel", 0.5), *PRUNABLE]
    )
    assert masks["dense"]["kernel"].sum() == 40
    assert sj.count_active(masks) == np.rint(0.2 * TOTAL)


# Finding the masks.


def both_groups() -> optax.GradientTransformation:
    return optax.partition(
        {
            "conv": sj.rigl_transform(
                optax.sgd(0.1), sparsity=0.5, total_steps=9, update_interval=2
            ),
            "rest": sj.gmp_transform(
                optax.adam(0.1),
                final_sparsity=0.8,
                end_step=3,
                update_interval=2,
                prunable=PRUNABLE,
            ),
        },
        lambda params: {
            name: jax.tree.map(lambda _: "conv" if name == "conv" else "rest", leaves)  # noqa: B023
            for name, leaves in params.items()
        },
    )


static = METHODS["static"].wrap
NESTED = {
    "alone": lambda: static(optax.sgd(0.1)),
    "chain": lambda: optax.chain(optax.clip(1.0), static(optax.sgd(0.1))),
    "multi_steps": lambda: optax.MultiSteps(static(optax.sgd(0.1)), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(static(optax.sgd(0.1)), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate: static(optax.sgd(learning_rate))
    )(learning_rate=0.1),
    "all": lambda: optax.MultiSteps(
        optax.apply_if_finite(optax.chain(static(optax.adam(0.1))), 3), 2
    ),
}


@pytest.mark.parametrize("nesting", NESTED)
def test_masks_are_found_wherever_they_are_nested(nesting):
    tx = NESTED[nesting]()
    opt_state = tx.init(make_params())
    masks = sj.get_masks(opt_state)
    assert_equal(masks, sparsify_state(opt_state).masks)
    assert sj.count_active(masks) == METHODS["static"].kept(0)
    params, _ = sj.init_sparse(tx, make_params())
    assert_equal(params, sj.apply_masks(make_params(), masks))
    on_params = sj.get_masks(opt_state, flax.core.freeze(params))
    assert_equal(on_params, flax.core.freeze(masks))


def test_masks_of_two_groups_are_put_together_and_both_train_sparsely():
    tx = both_groups()
    history = train(tx, 5)
    for params, opt_state in history:
        masks = sj.get_masks(opt_state)
        assert jax.tree.structure(masks) == jax.tree.structure(
            sj.dense_masks(make_params(), PRUNABLE)
        )
        assert masks["conv"]["kernel"].sum() == 144
        assert_equal(params, sj.apply_masks(params, masks))
    assert sum(int(masks[name]["kernel"].sum()) for name in ("dense", "scale")) == 16


def test_a_learning_rate_can_be_set_from_outside_through_inject_hyperparams():
    tx = NESTED["inject_hyperparams"]()
    params, opt_state = sj.init_sparse(tx, make_params())
    opt_state = optax.tree.set(opt_state, learning_rate=0.0)
    updates, _ = tx.update(noise_of(0), opt_state, params)
    assert all(map(np.all, jax.tree.leaves(jax.tree.map(lambda u: u == 0, updates))))


def test_a_state_without_masks_is_refused():
    with pytest.raises(ValueError, match="opt_state must hold the state of sparsify"):
        sj.get_masks(optax.adam(0.1).init(make_params()))


def test_two_masks_for_one_leaf_are_refused():
    tx = optax.chain(static(optax.sgd(0.1)), static(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="masks must be one a leaf"):
        sj.get_masks(tx.init(make_params()))
