"""The library as users of Flax call it: TrainState, NNX, what is saved, devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import jax_utils, nnx, serialization
from flax import linen as nn
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jax.random.normal(jax.random.key(1), (8, 5))
Y = jax.random.normal(jax.random.key(2), (8, 4))
PRUNABLE, ACTIVE = 5 * 6 + 6 * 4, 14  # at 75 %, rounded half to even
STEPS = range(3)  # masks change at step 2, and at 4 and 6 where a run is longer


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.relu(nn.Dense(6)(x)))


class Nnx(nnx.Module):
    """With batch statistics, which are no parameters, and scales, which are dense."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.body(x))))


LINEN = Linen()


def linen_params() -> Any:
    return LINEN.init(jax.random.key(0), X)["params"]


def static(inner: Any) -> Any:
    return sj.static_transform(inner, sparsity=0.75)


def granet(inner: Any, initial_sparsity: float = 0.0) -> Any:
    return sj.granet_transform(
        inner,
        total_steps=20,
        end_step=2,
        update_interval=2,
        initial_sparsity=initial_sparsity,
        final_sparsity=0.75,
    )


def stray(params: Any, masks: Any) -> int:
    """Counts the weights outside the masks that are not 0, apart from the library."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    pairs = zip(kernels, jax.tree.leaves(masks), strict=True)
    return sum(np.count_nonzero(np.asarray(w)[~np.asarray(m)]) for w, m in pairs)


def assert_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def structure_of(tree: Any) -> Any:
    """The structure where a node for a leaf left dense is a leaf as well."""
    is_dense = lambda node: isinstance(node, optax.MaskedNode)
    return jax.tree.structure(tree, is_leaf=is_dense)


STATIC, GRANET = static(optax.adam(0.05)), granet(optax.adamw(0.05))
PACKED = sj.with_packed_masks(GRANET)


# TrainState.


def create(params: Any, tx: Any) -> TrainState:
    state = TrainState.create(apply_fn=LINEN.apply, params=params, tx=tx)
    return state.replace(step=jnp.int32(0))  # as restored: to compile steps once


def take_step(state: TrainState) -> tuple[TrainState, jax.Array]:
    def loss(params: Any) -> jax.Array:
        return jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


step = jax.jit(take_step)


def test_a_train_state_starts_dense_and_two_lines_make_its_first_step_sparse():
    """`TrainState.create` calls `tx.init`, which cannot give it other parameters."""
    dense = create(linen_params(), STATIC)
    masks = sj.get_masks(dense.opt_state)
    assert stray(dense.params, masks) == PRUNABLE - ACTIVE
    with pytest.raises(ValueError, match="kernel"):
        sj.check(dense.params, masks)
    # The two lines:
    params = sj.apply_masks(dense.params, sj.get_masks(dense.opt_state))
    sparse = dense.replace(params=params)
    sj.check(sparse.params, masks)
    after_dense, after_sparse = step(dense)[0], step(sparse)[0]
    assert step(dense)[1] != step(sparse)[1]
    assert optax.tree.get(after_dense.opt_state, "stray") == PRUNABLE - ACTIVE
    assert optax.tree.get(after_sparse.opt_state, "stray") == 0
    # One step makes both sparse, and the next look at them finds nothing.
    assert stray(after_dense.params, masks) == stray(after_sparse.params, masks) == 0
    assert optax.tree.get(step(after_dense)[0].opt_state, "stray") == 0


def test_a_train_state_of_parameters_from_init_sparse_starts_sparse():
    params, opt_state = sj.init_sparse(STATIC, linen_params())
    state = create(params, STATIC)
    assert_equal(state.opt_state, opt_state)
    assert stray(state.params, sj.get_masks(state.opt_state)) == 0


@pytest.mark.parametrize("container", [dict, FrozenDict])
def test_a_train_state_trains_sparsely_and_is_donated_from_the_first_step(container):
    state = create(container(linen_params()), GRANET)
    donating = jax.jit(take_step, donate_argnums=0)
    for _ in STEPS:
        before = state
        state, _ = donating(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    masks = sj.get_masks(state.opt_state)
    assert type(state.params) is container and stray(state.params, masks) == 0
    assert sj.count_active(masks) == ACTIVE


def test_masks_in_plain_dicts_fit_frozen_parameters_which_stay_frozen():
    params = linen_params()
    frozen, masks = freeze(params), sj.random_masks(jax.random.key(0), params, 0.75)
    expected = sj.apply_masks(params, masks)
    masked = sj.apply_masks(frozen, masks)
    assert isinstance(masked, FrozenDict)
    assert_equal(masked.unfreeze(), expected)
    sj.check(masked, masks)
    assert sj.summary(frozen, masks) == sj.summary(params, masks)
    pruned = sj.prune_magnitude(frozen, sj.dense_masks(params), sparsity=0.5)
    assert isinstance(pruned, FrozenDict) and sj.count_active(pruned) == 27

    tx = sj.static_transform(optax.adam(0.05), masks=masks)
    started, opt_state = sj.init_sparse(tx, frozen)
    assert_equal(started, masked)
    assert isinstance(sj.get_masks(opt_state, frozen), FrozenDict)
    state, _ = step(create(frozen, tx))
    assert isinstance(state.params, FrozenDict) and stray(state.params, masks) == 0


# NNX.


def nnx_step(model: Nnx, optimizer: nnx.Optimizer, **options: Any) -> None:
    grads = nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
    optimizer.update(model, grads, **options)


def trained_nnx(tx: Any, take: Any) -> tuple[Any, Any]:
    """The parameters and the optimizer state after all steps."""
    model = Nnx()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in STEPS:
        take(model, optimizer)
    return nnx.state(model, nnx.Param), optimizer.opt_state


# Eagerly, a change of masks compiles for seconds at each step: there masks are static.
NNX_STEPS = {
    "plain": (static(optax.adam(0.05)), nnx_step),
    "nnx_jit": (granet(optax.adam(0.05)), nnx.jit(nnx_step)),
}


@pytest.fixture(scope="module", params=NNX_STEPS)
def trained(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return trained_nnx(*NNX_STEPS[request.param])


def test_an_nnx_optimizer_trains_sparsely(trained):
    params, opt_state = trained
    masks = sj.get_masks(opt_state)
    assert stray(params, masks) == 0
    assert sj.count_active(masks) == optax.tree.get(opt_state, "active")[...] == ACTIVE


@pytest.mark.parametrize("given", [True, False], ids=["with_params", "alone"])
def test_masks_of_an_nnx_optimizer_fit_the_state_of_any_such_model(trained, given):
    params, opt_state = trained
    masks = sj.get_masks(opt_state, params) if given else sj.get_masks(opt_state)
    if given:
        assert structure_of(masks) == jax.tree.structure(params)
    sj.check(params, masks)
    other = Nnx()
    dense = nnx.state(other, nnx.Param)
    with pytest.raises(ValueError, match="kernel"):
        sj.check(dense, masks)
    assert f" {ACTIVE} " in sj.summary(params, masks)
    masked = sj.apply_masks(dense, masks)
    assert isinstance(masked, nnx.State)
    assert jax.tree.structure(masked) == jax.tree.structure(dense)
    nnx.update(other, masked)
    assert stray(nnx.state(other, nnx.Param), masks) == 0
    zeros = sum(np.sum(layer.kernel[...] == 0) for layer in (other.body, other.head))
    assert zeros == PRUNABLE - ACTIVE and np.all(other.norm.scale[...] == 1)


def test_an_nnx_optimizer_starts_dense_and_two_lines_make_its_first_step_sparse():
    model = Nnx()
    optimizer = nnx.Optimizer(model, static(optax.sgd(0.1)), wrt=nnx.Param)
    dense = model(X)
    masks = sj.get_masks(optimizer.opt_state)
    assert stray(nnx.state(model, nnx.Param), masks) == PRUNABLE - ACTIVE
    # The two lines:
    params = nnx.state(model, nnx.Param)
    nnx.update(model, sj.apply_masks(params, sj.get_masks(optimizer.opt_state)))
    assert stray(nnx.state(model, nnx.Param), masks) == 0
    assert not np.allclose(model(X), dense)


def test_packed_masks_train_alike_in_an_nnx_optimizer():
    tx, compiled = NNX_STEPS["nnx_jit"]
    params, opt_state = trained_nnx(tx, compiled)
    packed_params, packed_state = trained_nnx(sj.with_packed_masks(tx), compiled)
    sparsity = optax.tree.get(packed_state, "sparsity")[...]
    assert sparsity == pytest.approx(1 - ACTIVE / PRUNABLE)
    masks = sj.get_masks(packed_state, params)
    assert_equal(masks, sj.get_masks(opt_state, params))
    assert stray(packed_params, masks) == 0


def test_an_nnx_optimizer_hands_update_topology_on():
    ordinary = nnx.jit(partial(nnx_step, update_topology=False))
    _, opt_state = trained_nnx(granet(optax.adam(0.05)), ordinary)
    assert sj.count_active(sj.get_masks(opt_state)) == PRUNABLE
    assert optax.tree.get(opt_state, "skipped")[...] == 1


# Saved and read again.


def run(state: TrainState, steps: range) -> TrainState:
    for _ in steps:
        state, _ = step(state)
    return state


def assert_resumes(restored: TrainState, saved: TrainState) -> None:
    """Not dense any more, and the same to the bit from there on."""
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert sj.count_active(sj.get_masks(restored.opt_state)) == ACTIVE
    assert_equal(*(run(state, range(3, 5)) for state in (restored, saved)))


@pytest.mark.parametrize("tx", [GRANET, PACKED], ids=["bytes", "bits"])
def test_flax_bytes_resume_a_run_to_the_bit(tx):
    saved = run(create(linen_params(), tx), STEPS)
    other = create(jax.tree.map(jnp.zeros_like, linen_params()), tx)
    restored = serialization.from_bytes(other, serialization.to_bytes(saved))
    assert_resumes(restored, saved)


def through_orbax(tree: Any, folder: Any, *target: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "saved", *target)


def through_bytes(tree: Any, folder: Any) -> Any:
    return serialization.msgpack_restore(serialization.to_bytes(tree))


def test_orbax_with_a_target_resumes_a_run_to_the_bit(tmp_path):
    saved = run(create(linen_params(), PACKED), STEPS)
    restored = through_orbax(saved, tmp_path, jax.eval_shape(lambda: saved))
    assert_resumes(restored, saved)


LOADERS = [through_orbax, through_bytes]


@pytest.mark.parametrize("load", LOADERS)
def test_masks_of_a_state_restored_without_a_target_fit_the_parameters(tmp_path, load):
    state = run(create(linen_params(), GRANET), STEPS)
    saved = {"params": state.params, "opt_state": state.opt_state}
    restored = load(saved, tmp_path)
    params, masks = restored["params"], restored["opt_state"]["masks"]
    assert not masks["Dense_0"]["bias"]  # what was a MaskedNode is None or {}
    sj.check(params, masks)
    assert_equal(
        sj.apply_masks(linen_params(), masks),
        sj.apply_masks(linen_params(), sj.get_masks(state.opt_state)),
    )


@pytest.mark.parametrize("load", LOADERS)
def test_masks_restored_without_a_target_are_masks_to_train_under(tmp_path, load):
    params = linen_params()
    masks = sj.random_masks(jax.random.key(3), params, 0.5)
    masks["Dense_1"] = optax.MaskedNode()  # a whole layer
    restored = load(masks, tmp_path)
    assert not restored["Dense_1"] and not restored["Dense_0"]["bias"]
    assert sj.summary(params, restored) == sj.summary(params, masks)
    tx = sj.static_transform(optax.adam(0.05), masks=restored)
    state = create(sj.init_sparse(tx, params)[0], tx)
    assert_equal(state.params, sj.apply_masks(params, masks))
    state, _ = step(state)
    found = sj.get_masks(state.opt_state, state.params)
    assert stray(state.params["Dense_0"], found["Dense_0"]) == 0
    assert_equal(found["Dense_0"]["kernel"], masks["Dense_0"]["kernel"])
    assert np.all(state.params["Dense_1"]["kernel"] != params["Dense_1"]["kernel"])


def test_a_sparse_network_saved_without_masks_trains_on_under_those_of_its_zeros():
    params, opt_state = sj.init_sparse(STATIC, linen_params())
    masks = sj.masks_of(params)
    assert_equal(masks, sj.get_masks(opt_state))
    tx = sj.static_transform(optax.adam(0.05), masks=masks)
    state, _ = step(create(params, tx))
    assert stray(state.params, masks) == 0
    assert sj.count_active(sj.get_masks(state.opt_state)) == ACTIVE


# Several devices. Each of 8 examples is the gradients that it adds to the mean; all is
# in multiples of powers of two, so that sums are exact in whatever order.

SHAPES = {"kernel": (8, 16), "bias": (16,)}


def draw(seed: int, *axes: int) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.float32(rng.integers(1, 65, (*axes, *shape)) / 64)
        * rng.choice([-1, 1], (*axes, *shape))
        for name, shape in SHAPES.items()
    }


BATCHES = [draw(1 + t, 8) for t in STEPS]


EXACT = granet(optax.sgd(2**-4, momentum=0.5), initial_sparsity=0.5)


def start(params: Any) -> TrainState:
    return create(sj.init_sparse(EXACT, params)[0], EXACT)


def train_step(state: TrainState, batch: Any, axis_name: Any = None) -> TrainState:
    grads = jax.tree.map(lambda x: jnp.mean(x, axis=0), batch)
    if axis_name is not None:
        grads = jax.lax.pmean(grads, axis_name)
    return state.apply_gradients(grads=grads)


def outcome(state: TrainState) -> Any:
    """The parameters and masks, on the host."""
    return jax.device_get((state.params, sj.get_masks(state.opt_state)))


def train(state: TrainState, put: Any = lambda batch: batch) -> TrainState:
    compiled = jax.jit(train_step)
    for batch in BATCHES:
        state = compiled(state, put(batch))
    return state


@pytest.fixture(scope="module")
def alone() -> Any:
    """What one device ends with, and that it is worth a comparison."""
    state = start(draw(0))
    first, (params, last) = sj.get_masks(state.opt_state), outcome(train(state))
    assert sj.count_active(last) == 32 and stray(params, last) == 0
    assert sj.count_active(sj.difference(last, first)) > 0  # some have grown
    return params, last


@pytest.fixture(scope="module")
def mesh() -> Any:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_pmap_gives_the_masks_of_one_device_on_every_replica(alone):
    mapped = jax.pmap(partial(train_step, axis_name="batch"), "batch", donate_argnums=0)
    state = jax_utils.replicate(start(draw(0)))
    for batch in BATCHES:
        state = mapped(state, jax.tree.map(lambda x: x[:, None], batch))
    params, masks = outcome(state)
    for replica in range(8):
        assert_equal(jax.tree.map(lambda x: x[replica], (params, masks)), alone)  # noqa: B023


def test_jit_of_a_replicated_state_gives_the_masks_of_one_device(alone, mesh):
    state = jax.device_put(start(draw(0)), NamedSharding(mesh, P()))
    by_example = NamedSharding(mesh, P("data"))
    state = train(state, lambda batch: jax.device_put(batch, by_example))
    assert len(state.params["kernel"].sharding.device_set) == 8
    assert_equal(outcome(state), alone)


def test_parameters_over_a_mesh_give_the_masks_of_one_device(alone, mesh):
    columns = lambda leaf: NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "data"))
    params = draw(0)
    state = train(start(jax.device_put(params, jax.tree.map(columns, params))))
    for leaf in (state.params["kernel"], sj.get_masks(state.opt_state)["kernel"]):
        assert leaf.addressable_shards[0].data.shape == (8, 2)
    assert_equal(outcome(state), alone)
