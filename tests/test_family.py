"""What every method and every optimizer must keep: the tables are in families.py.

A cell of the table is trained once, one compiled step called again and again. The tests
look at that history on the host.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from families import (
    CELLS,
    LAYERS,
    METHODS,
    OPTIMIZERS,
    STEPS,
    TOTAL,
    MethodCase,
    OptimizerCase,
    by_path,
    gradients,
    make_cell,
    make_params,
    noise_of,
    sparsify_state,
)

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation", "strict_ranks")


class Cell(NamedTuple):
    """A method with an optimizer and how the two trained together.

    Attributes:
        method: The row of the method.
        optimizer: The row of the optimizer.
        tx: The transformation.
        step: (params, opt_state, call) -> (params, opt_state), not compiled.
        compiled: The same compiled.
        traces: A list that grows with every trace of `compiled`.
        calls: (params, opt_state) before training and after every call of `update`.
        params: The parameters by path, at the start and after every step.
        states: The `SparsifyState` at the same times.
    """

    method: MethodCase
    optimizer: OptimizerCase
    tx: optax.GradientTransformation
    step: Any
    compiled: Any
    traces: list[int]
    calls: list[Any]
    params: list[dict[str, np.ndarray]]
    states: list[sj.SparsifyState]

    def masks(self, step: int) -> dict[str, np.ndarray]:
        return by_path(self.states[step + 1].masks)

    def weights(self, step: int) -> dict[str, np.ndarray]:
        return {path: self.params[step + 1][path] for path in LAYERS}

    def new(self, step: int) -> dict[str, np.ndarray]:
        """The weights that an update step has left at 0 for their first step to come.

        Those that went on have just taken theirs, and none of them is 0.
        """
        masks, weights = self.masks(step), self.weights(step)
        is_update = step in self.method.update_steps
        return {path: masks[path] & (weights[path] == 0) & is_update for path in LAYERS}

    def arrived(self, step: int) -> dict[str, np.ndarray]:
        """The weights that are active after a step and were not before it."""
        before, after = self.masks(step - 1), self.masks(step)
        return {path: after[path] & ~before[path] for path in LAYERS}

    def slots(self, step: int, fields: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
        """The optimizer's slots shaped like a masked layer, with the layer's path."""
        return [
            (layer, leaf)
            for path, leaf in by_path(self.states[step + 1].inner_state).items()
            for layer, mask in self.masks(step).items()
            if path.endswith(layer)
            and leaf.shape == mask.shape
            and set(fields) & set(path.split("/"))
        ]


@functools.cache
def train(method: str, optimizer: str) -> Cell:
    micro_steps = OPTIMIZERS[optimizer].micro_steps
    tx, traces = make_cell(method, optimizer), []

    def step(params: Any, opt_state: Any, noise: Any) -> Any:
        grads = gradients(params, noise)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def compiled(*args: Any) -> Any:
        traces.append(1)
        return step(*args)

    calls = [sj.init_sparse(tx, make_params())]
    for call in range(STEPS * micro_steps):
        calls.append(compiled(*calls[-1], noise_of(call)))
    calls = jax.device_get(calls)
    at_steps = calls[::micro_steps]
    return Cell(
        METHODS[method],
        OPTIMIZERS[optimizer],
        tx,
        step,
        compiled,
        traces,
        calls,
        [by_path(params) for params, _ in at_steps],
        [sparsify_state(opt_state) for _, opt_state in at_steps],
    )


@pytest.fixture(scope="module", params=CELLS, ids="-".join)
def cell(request: pytest.FixtureRequest) -> Cell:
    return train(*request.param)


def test_the_number_of_active_weights_is_exact_at_every_step(cell):
    updates = [-1, *cell.method.update_steps]
    for step in range(-1, STEPS):
        last = max(update for update in updates if update <= step)
        counts = {path: int(mask.sum()) for path, mask in cell.masks(step).items()}
        assert sum(counts.values()) == cell.method.kept(last), step
        if cell.method.kept_by_layer is not None:
            assert counts == cell.method.kept_by_layer(last), step
        if cell.method.keeps_layer_counts:
            first = {path: mask.sum() for path, mask in cell.masks(-1).items()}
            assert counts == first, step
        metrics = cell.states[step + 1].metrics
        assert metrics.active == cell.method.kept(last), step
        expected = 1 - cell.method.kept(last) / TOTAL
        np.testing.assert_allclose(metrics.sparsity, expected, atol=1e-6)


def test_inactive_weights_are_exactly_zero_after_every_step(cell):
    for step in range(-1, STEPS):
        for path, mask in cell.masks(step).items():
            weights = cell.weights(step)[path]
            assert np.all(weights[~mask] == 0), (step, path)
            assert np.all(np.isfinite(weights)), (step, path)
        assert cell.states[step + 1].metrics.stray == 0, step


def test_active_weights_and_leaves_left_dense_are_trained(cell):
    masks = cell.masks(STEPS - 1)
    for path, last in cell.params[-1].items():
        moved = last != cell.params[-2][path]
        assert np.all(moved[masks.get(path, np.ones(last.shape, bool))]), path


def test_masks_change_at_update_steps_alone(cell):
    ever_changed = False
    for step in range(STEPS):
        before, after = cell.masks(step - 1), cell.masks(step)
        changed = any(np.any(after[path] != before[path]) for path in LAYERS)
        assert not changed or step in cell.method.update_steps, step
        ever_changed |= changed
    assert ever_changed == bool(cell.method.update_steps)


def test_weights_that_arrive_start_from_zero_and_what_was_never_away_goes_on(cell):
    for step in cell.method.update_steps:
        before, new, arrived = cell.masks(step - 1), cell.new(step), cell.arrived(step)
        for path in LAYERS:
            assert np.all(new[path][arrived[path]]), (step, path)
            if not cell.method.restarts(step):
                assert not np.any(new[path] & before[path]), (step, path)


def test_metrics_count_what_the_last_update_has_done(cell):
    grown, dropped, updates = 0, 0, 0
    for step in range(STEPS):
        if step in cell.method.update_steps:
            before, after = cell.masks(step - 1), cell.masks(step)
            grown = sum(int(new.sum()) for new in cell.new(step).values())
            # What did not go on: what went on is active after it and not new.
            went_on = sum(int(after[p].sum()) for p in LAYERS) - grown
            dropped = sum(int(before[p].sum()) for p in LAYERS) - went_on
            updates += 1
        metrics = cell.states[step + 1].metrics
        found = metrics.grown, metrics.dropped, metrics.updates, metrics.skipped
        assert found == (grown, dropped, updates, 0), step


def quota(cell: Cell, step: int, masks: dict[str, np.ndarray]) -> dict[str, int]:
    """The prune rate's part of each layer; 0.3 of 50 is 15 in float32 too."""
    assert cell.method.prune_rate is not None
    rate = cell.method.prune_rate(step)
    return {path: math.ceil(rate * mask.sum() - 1e-4) for path, mask in masks.items()}


def count(masks: dict[str, np.ndarray]) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in masks.items()}


@pytest.mark.parametrize("method", ["static", "gmp_global", "gmp_layer", "acdc"])
def test_a_method_that_only_prunes_or_restores_grows_nothing_or_all(method):
    cell = train(method, "adam")
    for step in cell.method.update_steps:
        everything = {path: ~mask for path, mask in cell.masks(step - 1).items()}
        nothing = dict.fromkeys(LAYERS, 0)
        expected = count(everything) if cell.method.restores(step) else nothing
        assert count(cell.arrived(step)) == expected, step


@pytest.mark.parametrize("method", ["set", "mest", "mest_em"])
def test_each_layer_restarts_the_part_that_the_prune_rate_says(method):
    cell = train(method, "adam")
    came_back = 0
    for step in cell.method.update_steps:
        before, new = cell.masks(step - 1), cell.new(step)
        expected = quota(cell, step, before)
        if cell.method.grown_by_layer is not None:
            expected = cell.method.grown_by_layer(step)
        assert count(new) == expected, step
        came_back += sum(int(np.sum(new[path] & before[path])) for path in LAYERS)
    assert came_back > 0, "the data must make some be dropped and grown again"


EXCHANGING = ["rigl", "itop", *(name for name in METHODS if "granet" in name)]


@pytest.mark.parametrize("method", EXCHANGING)
def test_no_layer_exchanges_more_than_the_prune_rate_says(method):
    cell = train(method, "adam")
    grown, went_on = 0, 0
    for step in cell.method.update_steps:
        # The exchange leaves the counts as the prune before it has made them.
        most = quota(cell, step, cell.masks(step))
        new = count(cell.new(step))
        assert all(new[path] <= most[path] for path in LAYERS), step
        grown += sum(new.values())
        went_on += sum(most.values()) - sum(new.values())
    assert grown > 0
    assert went_on > 0, "the data must make some be dropped and grown again"


@pytest.mark.parametrize("method", ["snfs", "dsr"])
def test_layers_that_redistribute_change_their_counts(method):
    cell = train(method, "adam")
    new = [sum(count(cell.new(step)).values()) for step in cell.method.update_steps]
    assert all(new)
    if cell.method.prune_rate is not None:
        for step, n in zip(cell.method.update_steps, new):
            assert n <= sum(quota(cell, step, cell.masks(step - 1)).values()), step
    counts = {tuple(count(cell.masks(step)).values()) for step in range(-1, STEPS)}
    assert len(counts) > 1


def test_momentum_of_inactive_and_new_weights_is_zero(cell):
    found = 0
    for step in range(STEPS):
        kept = {
            path: mask & ~cell.new(step)[path]
            for path, mask in cell.masks(step).items()
        }
        for path, slot in cell.slots(step, cell.optimizer.momenta):
            assert np.all(slot[~kept[path]] == 0), (step, path)
            found += int(np.any(slot[kept[path]] != 0))
    assert found > STEPS, "the momenta of the table must be there to be looked at"


def test_second_moments_of_new_weights_are_the_mean_of_those_that_go_on(cell):
    """The mean before the step, which they then take without a gradient."""
    looked_at = 0
    for step in range(STEPS):
        old = dict(cell.slots(step - 1, cell.optimizer.second_moments))
        for path, slot in cell.slots(step, cell.optimizer.second_moments):
            mask, new = cell.masks(step)[path], cell.new(step)[path]
            # Adafactor adds 1e-30 to the square of a gradient of 0.
            assert np.all(np.abs(slot[~mask]) <= 1e-30), (step, path)
            goes_on = mask & ~new
            mean = np.mean(old[path][goes_on], dtype=np.float64) if goes_on.any() else 0
            expected = cell.optimizer.decay(step) * mean
            np.testing.assert_allclose(slot[new], expected, rtol=1e-5, atol=1e-30)
            looked_at += 1
    assert bool(looked_at) == bool(cell.optimizer.second_moments)


def test_one_trace_serves_all_steps_and_the_state_keeps_its_type(cell):
    assert len(cell.traces) == 1
    first, last = cell.calls[0], cell.calls[-1]
    assert jax.tree.structure(first) == jax.tree.structure(last)
    assert types(first) == types(last)


def types(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def assert_same_masks_and_close(params, opt_state, other_params, other_state) -> None:
    jax.tree.map(
        np.testing.assert_array_equal,
        sparsify_state(opt_state).masks,
        sparsify_state(other_state).masks,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (params, opt_state),
        (other_params, other_state),
    )


def scan(cell: Cell, start: Any, noises: Any) -> Any:
    def body(carry: Any, noise: Any) -> Any:
        return cell.step(*carry, noise), None

    return jax.lax.scan(body, start, noises)[0]


# A method with a memory of each kind, and optimizers that count steps themselves.
SCANNED = [
    ("acdc", "adam"),
    ("dsr", "adam"),
    ("granet_momentum", "adam"),
    ("rigl", "multi_steps_inside"),
    ("rigl", "multi_steps_outside"),
    ("granet_dense", "momentum"),
]
assert set(SCANNED) <= set(CELLS)  # trained once for all tests


@pytest.mark.parametrize(("method", "optimizer"), SCANNED)
def test_it_can_be_the_body_of_a_scan(method, optimizer):
    cell = train(method, optimizer)
    calls = range(len(cell.calls) - 1)
    noises = jax.tree.map(lambda *leaves: np.stack(leaves), *map(noise_of, calls))
    start, last = cell.calls[0], cell.calls[-1]
    params, opt_state = jax.jit(lambda: scan(cell, start, noises))()
    assert_same_masks_and_close(params, opt_state, *last)


@pytest.mark.parametrize("method", METHODS)
def test_eager_equals_compiled(method):
    # The second update, from the state that the compiled steps led to.
    cell = train(method, "adam")
    call = (cell.method.update_steps or [6, 10])[1]
    start = jax.tree.map(jnp.asarray, cell.calls[call])
    params, opt_state = cell.step(*start, noise_of(call))
    assert_same_masks_and_close(params, opt_state, *cell.calls[call + 1])


def test_tree_map_params_maps_all_that_is_shaped_like_the_parameters(cell):
    _, opt_state = cell.calls[-1]
    same = optax.tree.map_params(cell.tx, lambda leaf: leaf, opt_state)
    assert jax.tree.structure(same) == jax.tree.structure(opt_state)
    jax.tree.map(np.testing.assert_array_equal, same, opt_state)

    emptied = optax.tree.map_params(cell.tx, lambda leaf: 0 * leaf, opt_state)
    ours = sparsify_state(emptied)
    assert not any(map(np.any, jax.tree.leaves(ours.masks)))
    assert ours.step == STEPS and np.all(ours.key == cell.states[-1].key)


def test_init_needs_shapes_alone(cell):
    abstract = jax.eval_shape(cell.tx.init, make_params())
    concrete = cell.calls[0][1]
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert types(abstract) == types(concrete)


def test_a_checkpoint_brings_the_state_back_and_training_goes_on(cell, tmp_path):
    middle = STEPS * cell.optimizer.micro_steps // 2
    saved = cell.calls[middle]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding), saved
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    restored = jax.device_get(restored)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert all(
        m.dtype == bool for m in by_path(sparsify_state(restored[1]).masks).values()
    )
    for call in range(middle, len(cell.calls) - 1):
        restored = cell.compiled(*restored, noise_of(call))
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(restored), cell.calls[-1]
    )
