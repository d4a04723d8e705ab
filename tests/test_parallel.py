"""Eager, compiled, on many devices: one sequence of masks, bit for bit.

Weights and inputs are such that every sum is exact (small integers times powers of
two), so that no order of summation can change a mask.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import sparsify_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, INTERVAL, END, BATCH = 9, 2, 6, 8
SHAPES = {"conv": (2, 2, 4, 16), "dense": (16, 8), "bias": (8,)}

GRADUAL = {"final_sparsity": 0.75, "end_step": END, "update_interval": INTERVAL}
EXCHANGE = {
    "sparsity": 0.75,
    "total_steps": STEPS,
    "stop_step": STEPS,
    "update_interval": INTERVAL,
}
METHODS = {
    "set": lambda tx: sj.set_transform(tx, **EXCHANGE),
    "rigl": lambda tx: sj.rigl_transform(tx, **EXCHANGE),
    "gmp_global": lambda tx: sj.gmp_transform(tx, **GRADUAL),
    "granet_sparse": lambda tx: sj.granet_transform(
        tx, total_steps=STEPS, initial_sparsity=0.5, **GRADUAL
    ),
}


def make_params() -> Any:
    """Weights k / 64 with distinct integers k != 0 of either sign."""
    rng = np.random.default_rng(0)
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    values = np.split(rng.permutation(sum(sizes)) + 1, np.cumsum(sizes)[:-1])
    return {
        name: (rng.choice([-1, 1], v.size) * v / 64).reshape(shape).astype(np.float32)
        for (name, shape), v in zip(SHAPES.items(), values)
    }


def make_batches() -> Any:
    rng = np.random.default_rng(1)
    return {
        name: rng.integers(-8, 9, (STEPS, BATCH, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def loss(params: Any, batch: Any) -> jax.Array:
    """The batch mean of <params, example>: its gradient is the mean example."""
    each = jax.tree.map(lambda p, x: jnp.sum(p * x) / x.shape[0], params, batch)
    return sum(jax.tree.leaves(each))


def train_step(tx: Any, state: Any, batch: Any, axis_name: str | None = None) -> Any:
    params, opt_state = state
    grads = jax.grad(loss)(params, batch)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def history(step: Any, state: Any, batch_of: Any) -> list[Any]:
    """The parameters and the state of `sparsify` after every step, on the host."""
    states = [jax.device_get(state)]
    for t in range(STEPS):
        state = step(state, batch_of(t))
        states.append(jax.device_get(state))
    return states


def shard_of(leaf: Any) -> P:
    """Splits the last axis over the 8 devices where it can be split."""
    if leaf.ndim > 1 and leaf.shape[-1] % 8 == 0:
        return P(*[None] * (leaf.ndim - 1), "data")
    return P()


@pytest.fixture(
    scope="module",
    params=METHODS,
)
def trained_alone(request: pytest.FixtureRequest) -> Any:
    """(tx, the first state, the history on one device), and that it is worth a test."""
    tx = METHODS[request.param](optax.sgd(2**-4, momentum=0.5))
    start = sj.init_sparse(tx, make_params())
    batches = make_batches()
    step = jax.jit(lambda state, batch: train_step(tx, state, batch))
    alone = history(step, start, lambda t: jax.tree.map(lambda x: x[t], batches))
    first, last = (sparsify_state(state[1]) for state in (alone[0], alone[-1]))
    shared = sj.jaccard(first.masks, last.masks)
    assert shared < 1
    return tx, start, alone


def assert_same_history(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) == STEPS + 1
    for a, b in zip(one, other):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_eager_update_gives_the_same_masks_and_weights(trained_alone):
    tx, _, alone = trained_alone
    batch = jax.tree.map(lambda x: x[END], make_batches())
    after = train_step(tx, jax.tree.map(jnp.asarray, alone[END]), batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), alone[END + 1])


def test_pmap_over_four_devices_gives_the_same_masks_and_weights(trained_alone):
    tx, start, alone = trained_alone
    batches = make_batches()
    step = jax.pmap(
        lambda state, batch: train_step(tx, state, batch, "batch"),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=jax.devices()[:4],
    )
    parts = jax.tree.map(lambda x: x.reshape(STEPS, 4, 2, *x.shape[2:]), batches)
    spread = history(step, start, lambda t: jax.tree.map(lambda x: x[t], parts))
    assert_same_history(spread, alone)


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_a_mesh_of_eight_devices_gives_the_same_masks_and_weights(
    trained_alone, sharded
):
    tx, start, alone = trained_alone
    batches = make_batches()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layouts = jax.tree.map(
        lambda leaf: NamedSharding(mesh, shard_of(leaf) if sharded else P()), start
    )
    by_example = NamedSharding(mesh, P("data"))
    step = jax.jit(
        lambda state, batch: train_step(tx, state, batch),
        in_shardings=(layouts, by_example),
        out_shardings=layouts,
    )
    state = jax.device_put(start, layouts)
    mask = sj.get_masks(state[1])["conv"]
    assert mask.addressable_shards[0].data.size == mask.size // (8 if sharded else 1)
    spread = history(
        step,
        state,
        lambda t: jax.device_put(jax.tree.map(lambda x: x[t], batches), by_example),
    )
    assert_same_history(spread, alone)


COLLECTIVE = re.compile(
    r"= \(?(.*?)\)? (?:all-gather|all-to-all|all-reduce|collective-permute"
    r"|reduce-scatter)(?:-start)?\("
)


@pytest.mark.parametrize("method", ["granet_sparse", "rigl"])
def test_a_sharded_update_sends_counts_and_no_arrays_of_weights(method):
    tx, params = METHODS[method](optax.sgd(0.5, momentum=0.5)), make_params()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    start = sj.init_sparse(tx, params)
    layouts = jax.tree.map(lambda leaf: NamedSharding(mesh, shard_of(leaf)), start)
    step = jax.jit(
        lambda state, grads: tx.update(grads, state[1], state[0]),
        in_shardings=(layouts, layouts[0]),
    )
    compiled = step.lower(start, params).compile().as_text()
    sent = [
        math.prod(map(int, filter(None, dimensions.split(","))))
        for result in COLLECTIVE.findall(compiled)
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", result)
    ]
    # A number or two from each device at a time; the layers have 128 weights and more.
    assert sent and max(sent) <= 16


def test_random_masks_are_the_same_however_the_parameters_are_sharded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = make_params()
    layouts = jax.tree.map(lambda leaf: NamedSharding(mesh, shard_of(leaf)), params)
    sharded = jax.device_put(params, layouts)
    draw = jax.jit(lambda params: sj.random_masks(jax.random.key(3), params, 0.6))
    jax.tree.map(np.testing.assert_array_equal, draw(params), draw(sharded))
    assert sj.jaccard(draw(params), sj.random_masks(jax.random.key(4), params, 0.6)) < 1
