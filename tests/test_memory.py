"""What methods remember: renewed at every step, never poisoned, not through a cond."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import (
    BEGIN,
    EXCHANGE,
    GRADUAL,
    INTERVAL,
    METHODS,
    PRUNABLE,
    STEPS,
    gradients,
    make_params,
    noise_of,
    sparsify_state,
)

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation", "strict_ranks")

UPDATE = BEGIN + INTERVAL  # the first update step
SGD = optax.apply_if_finite(optax.sgd(0.05, momentum=0.9), 3)
KEYS = ("conv", "dense", "scale")

WITH_MEMORY = {
    "rigl": lambda inner=SGD, **more: sj.rigl_transform(
        inner, **EXCHANGE | {"grow": sj.scores.mean_gradient(3)} | more
    ),
    "granet": lambda inner=SGD, **more: sj.granet_transform(
        inner,
        **GRADUAL | {"grow": sj.scores.momentum(0.9), "total_steps": STEPS} | more,
    ),
    "snfs": lambda inner=SGD, **more: sj.snfs_transform(inner, **EXCHANGE | more),
    "dsr": lambda inner=SGD, **more: sj.dsr_transform(
        inner, **EXCHANGE | {"initial_threshold": 0.1} | more
    ),
}


def poison(grads: Any, value: float) -> Any:
    kernel = jnp.asarray(grads["dense"]["kernel"]).at[0, 0].set(value)
    return {**grads, "dense": {**grads["dense"], "kernel": kernel}}


@functools.cache
def compiled(method: str) -> tuple[Any, Any]:
    """A method's transformation and its update, compiled once for all tests."""
    tx = WITH_MEMORY[method]()
    return tx, jax.jit(tx.update)


def train(
    tx: Any, update: Any, steps: int, spoil: Any = None
) -> tuple[list[Any], list[Any]]:
    """The states at the start and after each step, and the gradients of each step."""
    params, opt_state = sj.init_sparse(tx, make_params())
    states, seen = [sparsify_state(opt_state)], []
    for t in range(steps):
        grads = gradients(params, noise_of(t))
        if spoil is not None:
            grads = spoil(t, grads)
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        states.append(sparsify_state(opt_state))
        seen.append(jax.device_get(grads))
    return states, seen


def remembered(state: sj.SparsifyState) -> Any:
    """The tree that one of the scores of the method's chain remembers."""
    is_dict = lambda node: isinstance(node, dict)
    nodes = jax.tree.leaves(state.memory, is_leaf=is_dict)
    [found] = filter(is_dict, nodes)
    return found


def kernels(tree: Any) -> list[np.ndarray]:
    return [np.asarray(tree[key]["kernel"]) for key in KEYS]


def test_a_method_without_memory_has_no_leaf_for_it():
    for name in ("static", "set", "rigl", "gmp_global", "granet_dense", "mest"):
        opt_state = METHODS[name].wrap(optax.sgd(0.1)).init(make_params())
        assert jax.tree.leaves(sparsify_state(opt_state).memory) == []


def test_momentum_is_the_running_mean_of_dense_gradients():
    states, grads = train(*compiled("granet"), UPDATE + 2)
    mean = [np.zeros_like(g) for g in kernels(grads[0])]
    for state, g in zip(states[1:], grads):
        mean = [0.9 * m + 0.1 * x for m, x in zip(mean, kernels(g))]
        found = remembered(state)
        for expected, got in zip(mean, kernels(found)):
            np.testing.assert_allclose(got, expected, atol=1e-6)
        assert found["conv"]["bias"] == optax.MaskedNode()
    inactive = ~np.asarray(states[-1].masks["conv"]["kernel"])
    assert np.all(kernels(found)[0][inactive] != 0)


def test_gradients_are_summed_up_to_an_update_and_forgotten_after_it():
    states, grads = train(*compiled("rigl"), UPDATE + INTERVAL)
    for t in range(UPDATE + INTERVAL):
        end = UPDATE if t <= UPDATE else UPDATE + INTERVAL
        window = range(end - 2, t + 1)
        sums = kernels(remembered(states[t + 1]))
        for i, got in enumerate(sums):
            expected = sum((kernels(grads[u])[i] for u in window), np.zeros_like(got))
            np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "value"), [*((name, np.nan) for name in WITH_MEMORY), ("snfs", np.inf)]
)
@pytest.mark.parametrize("at", [UPDATE - 1, UPDATE])
def test_a_gradient_that_is_not_finite_leaves_the_memory_as_it_was(method, value, at):
    def spoil(t: int, grads: Any) -> Any:
        return poison(grads, value) if t == at else grads

    states, _ = train(*compiled(method), UPDATE + INTERVAL + 1, spoil)
    before, after = states[at].memory, states[at + 1].memory
    jax.tree.map(np.testing.assert_array_equal, before, after)
    last = states[-1]
    assert all(map(np.all, map(np.isfinite, jax.tree.leaves(last.memory))))
    assert last.metrics.updates == (1 if at == UPDATE else 2)
    assert last.metrics.skipped == (1 if at == UPDATE else 0)


def test_a_gradient_that_is_not_finite_does_not_keep_an_old_window_alive():
    """What is spoiled is the step after an update, the one that is to forget."""

    def spoil(t: int, grads: Any) -> Any:
        return poison(grads, np.nan) if t == UPDATE + 1 else grads

    states, grads = train(*compiled("rigl"), UPDATE + INTERVAL, spoil)
    window = range(UPDATE + INTERVAL - 2, UPDATE + INTERVAL)
    for i, got in enumerate(kernels(remembered(states[-1]))):
        expected = sum(kernels(grads[t])[i] for t in window)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_mean_that_would_overflow_stays_as_it_was():
    tx, update = compiled("rigl")
    params, opt_state = sj.init_sparse(tx, make_params())
    huge = jax.tree.map(lambda p: jnp.full(p.shape, 3e38), params)
    for _ in range(UPDATE):
        _, opt_state = update(huge, opt_state, params)
    sums = remembered(sparsify_state(opt_state))
    assert all(map(np.all, map(np.isfinite, jax.tree.leaves(sums))))


@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_means_of_narrow_gradients_are_kept_in_float32(method):
    tx = WITH_MEMORY[method]()
    start = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), make_params())
    params, opt_state = sj.init_sparse(tx, start)
    update = jax.jit(tx.update)
    types = [leaf.dtype for leaf in jax.tree.leaves(opt_state)]
    for t in range(UPDATE + 1):
        grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), noise_of(t))
        _, opt_state = update(grads, opt_state, params)
    assert [leaf.dtype for leaf in jax.tree.leaves(opt_state)] == types
    means = jax.tree.leaves(remembered(sparsify_state(opt_state)))
    assert {leaf.dtype for leaf in means} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_nothing_but_masks_and_scalars_comes_out_of_the_conditional(method):
    tx = WITH_MEMORY[method](inner=optax.adam(0.1))
    params, opt_state = sj.init_sparse(tx, make_params())
    program = jax.make_jaxpr(tx.update)(params, opt_state, params)
    conditionals = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "cond"]
    outputs = [out.aval for eqn in conditionals for out in eqn.outvars]
    # What is kept and what is active.
    assert sum(out.dtype == bool for out in outputs) == 2 * len(KEYS)
    assert all(out.dtype == bool or out.size == 1 for out in outputs)


STACKED = [("blocks", sj.LayerRule(stacked=True))]
STACK = {"blocks": (3, 8, 10), "head": (10, 5)}
RUN = {"total_steps": 12, "update_interval": 3}
EVERY_WEIGHT = {
    "rigl": lambda **more: sj.rigl_transform(
        SGD, grow=sj.scores.mean_gradient(2), **RUN, **more
    ),
    "granet": lambda **more: sj.granet_transform(
        SGD,
        grow=sj.scores.momentum(0.9),
        initial_sparsity=0.5,
        final_sparsity=0.8,
        end_step=6,
        **RUN,
        **more,
    ),
    "snfs": lambda **more: sj.snfs_transform(SGD, **RUN, **more),
    "mest": lambda **more: sj.mest_transform(SGD, soft_bound=True, **RUN, **more),
}


def draw(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in STACK.items()}


def unstacked(tree: Any) -> Any:
    blocks = {f"blocks{i}": tree["blocks"][i] for i in range(3)}
    return {**blocks, "head": tree["head"]}


@pytest.mark.parametrize("method", EVERY_WEIGHT)
def test_each_slice_of_stacked_layers_is_remembered_as_a_layer_of_its_own(method):
    masks = sj.random_masks(jax.random.key(0), draw(0), 0.5, prunable=STACKED)

    def counts_at_each_step(tx: Any, reshape: Any) -> Any:
        params, opt_state = sj.init_sparse(tx, reshape(draw(0)))
        update, found = jax.jit(tx.update), []
        for t in range(8):
            updates, opt_state = update(reshape(draw(1 + t)), opt_state, params)
            params = optax.apply_updates(params, updates)
            found.append(sj.get_masks(opt_state))
        return found

    make = EVERY_WEIGHT[method]
    together = counts_at_each_step(make(masks=masks, prunable=STACKED), lambda x: x)
    separate = counts_at_each_step(make(masks=unstacked(masks)), unstacked)
    for one, other in zip(together, separate):
        if method == "mest":  # chance is drawn by path
            one = jax.tree.map(jnp.sum, unstacked(one))
            other = jax.tree.map(jnp.sum, other)
            jax.tree.map(np.testing.assert_array_equal, one, other)
        else:
            jax.tree.map(np.testing.assert_array_equal, unstacked(one), other)
    assert sj.jaccard(masks, together[-1]) < 1


def run_all(tx: Any, start: Any, steps: int) -> Any:
    def body(carry: Any, noise: Any) -> Any:
        params, opt_state = carry
        grads = gradients(params, noise)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    noises = jax.tree.map(
        lambda *leaves: np.stack(leaves), *map(noise_of, range(steps))
    )
    return jax.lax.scan(body, start, noises)[0]


@pytest.mark.parametrize("method", ["snfs", "dsr"])
def test_runs_over_seeds_can_be_vmapped(method):
    def run(seed: Any) -> Any:
        masks = sj.random_masks(
            jax.random.key(seed),
            make_params(),
            counts=sj.active_counts(make_params(), 0.8, prunable=PRUNABLE),
            prunable=PRUNABLE,
        )
        tx = WITH_MEMORY[method](sparsity=None, masks=masks, seed=seed)
        _, state = run_all(tx, sj.init_sparse(tx, make_params()), UPDATE + INTERVAL + 1)
        return sj.get_masks(state), sparsify_state(state).memory

    many = jax.jit(jax.vmap(run))(jnp.arange(2))
    for seed in range(2):
        masks, memory = jax.jit(run)(seed)
        mine = jax.tree.map(lambda leaf: leaf[seed], many)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, mine[0], masks)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine[1], memory
        )


def test_a_run_under_pmap_with_unstacked_state_is_the_run_of_one_device():
    tx = WITH_MEMORY["rigl"]()

    def step(carry: Any, noise: Any, axis: str | None = None) -> Any:
        params, opt_state = carry
        grads = gradients(params, noise)
        if axis is not None:
            grads = jax.lax.pmean(grads, axis)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    start = sj.init_sparse(tx, make_params())
    mapped = jax.pmap(
        lambda carry, noise: step(carry, noise, "batch"),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.devices()[:2],
    )
    one, two, alone = start, start, jax.jit(step)
    for t in range(UPDATE + 2):
        pair = jax.tree.map(lambda n: np.stack([1.5 * n, 0.5 * n]), noise_of(t))
        one, two = alone(one, noise_of(t)), jax.device_get(mapped(two, pair))
    one, two = (sparsify_state(x[1]) for x in (one, two))
    assert one.metrics.updates == 1
    jax.tree.map(np.testing.assert_array_equal, one.masks, two.masks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.memory, two.memory
    )


def test_the_threshold_of_dsr_is_halved_and_doubled_by_what_it_drops():
    thresholds = {}
    for first in (1e-6, 10.0):
        tx = WITH_MEMORY["dsr"](initial_threshold=first)
        states, _ = train(tx, jax.jit(tx.update), UPDATE + INTERVAL + 1)
        thresholds[first] = [float(optax.tree.get(s, "threshold")) for s in states]
        counts = {int(sj.count_active(state.masks)) for state in states}
        assert counts == {METHODS["dsr"].kept(0)}
    low, high = thresholds[1e-6], thresholds[10.0]
    np.testing.assert_allclose(low[UPDATE::INTERVAL], [1e-6, 2e-6], rtol=1e-6)
    np.testing.assert_allclose(high[UPDATE::INTERVAL], [10.0, 5.0], rtol=1e-6)
    assert low[-1] == pytest.approx(4e-6) and high[-1] == 2.5
