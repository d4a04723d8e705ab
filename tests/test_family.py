"""What every method must keep with every optimizer: the tables are in families.py.

A cell of the table is trained once, one compiled step called again and again. The tests
look at that history on the host.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from families import (
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

    def grown(self, step: int) -> dict[str, np.ndarray]:
        """The weights grown at a step: active and 0, as no others are by then."""
        masks, weights = self.masks(step), self.weights(step)
        is_update = step in self.method.update_steps
        return {path: masks[path] & (weights[path] == 0) & is_update for path in LAYERS}

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


@pytest.fixture(
    scope="module",
    params=[pytest.param((m, o), id=f"{m}-{o}") for m in METHODS for o in OPTIMIZERS],
)
def cell(
    request: pytest.FixtureRequest,
    quick_compilation: None,
    strict_ranks: None,
    one_device: None,
) -> Cell:
    method, optimizer = METHODS[request.param[0]], OPTIMIZERS[request.param[1]]
    tx, traces = make_cell(*request.param), []

    def step(params: Any, opt_state: Any, noise: Any) -> Any:
        grads = gradients(params, noise)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def compiled(*args: Any) -> Any:
        traces.append(1)
        return step(*args)

    calls = [sj.init_sparse(tx, make_params())]
    for call in range(STEPS * optimizer.micro_steps):
        calls.append(compiled(*calls[-1], noise_of(call)))
    calls = jax.device_get(calls)
    at_steps = calls[:: optimizer.micro_steps]
    return Cell(
        method,
        optimizer,
        tx,
        step,
        compiled,
        traces,
        calls,
        [by_path(params) for params, _ in at_steps],
        [sparsify_state(opt_state) for _, opt_state in at_steps],
    )


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
        figures = cell.states[step + 1].figures
        assert figures.active == cell.method.kept(last), step
        expected = 1 - cell.method.kept(last) / TOTAL
        np.testing.assert_allclose(figures.sparsity, expected, atol=1e-6)


def test_inactive_weights_are_exactly_zero_after_every_step(cell):
    for step in range(-1, STEPS):
        for path, mask in cell.masks(step).items():
            weights = cell.weights(step)[path]
            assert np.all(weights[~mask] == 0), (step, path)
            assert np.all(np.isfinite(weights)), (step, path)


def test_active_weights_and_leaves_left_dense_are_trained(cell):
    masks = cell.masks(STEPS - 1)
    for path, last in cell.params[-1].items():
        moved = last != cell.params[-2][path]
        assert np.all(moved[masks.get(path, np.ones(last.shape, bool))]), path


def restored(cell: Cell, step: int) -> int:
    """The weights that a method without a prune rate grows at a step: all or none."""
    if step not in cell.method.update_steps or not cell.method.restores(step):
        return 0
    return sum(int(np.sum(~mask)) for mask in cell.masks(step - 1).values())


def test_masks_change_at_update_steps_alone_and_no_weight_is_revived(cell):
    ever_changed = False
    for step in range(STEPS):
        before, after = cell.masks(step - 1), cell.masks(step)
        revived = sum(np.sum(after[path] & ~before[path]) for path in LAYERS)
        changed = any(np.any(after[path] != before[path]) for path in LAYERS)
        ever_changed |= changed
        if step not in cell.method.update_steps:
            assert not changed, step
        elif cell.method.prune_rate is None and not cell.method.redistributes:
            assert revived == restored(cell, step), step
        else:
            assert revived <= cell.states[step + 1].figures.grown, step
    assert ever_changed == bool(cell.method.update_steps)


def test_each_layer_grows_what_the_prune_rate_says(cell):
    if cell.method.redistributes:
        pytest.skip("layers grow other numbers than they dropped")
    if cell.method.prune_rate is None:
        grown = [cell.states[0].figures.grown]
        for step in range(STEPS):
            is_update = step in cell.method.update_steps
            grown.append(restored(cell, step) if is_update else grown[-1])
        assert grown == [state.figures.grown for state in cell.states]
        assert any(grown) == any(map(cell.method.restores, cell.method.update_steps))
        return
    for step in cell.method.update_steps:
        rate = cell.method.prune_rate(step)
        expected = {
            # The tolerance is for a float32 rate: 0.3 of 50 is 15.
            path: math.ceil(rate * mask.sum() - 1e-4)
            for path, mask in cell.masks(step).items()
        }
        if cell.method.grown_by_layer is not None:
            expected = cell.method.grown_by_layer(step)
        grown = {path: new.sum() for path, new in cell.grown(step).items()}
        assert grown == expected, step
        assert cell.states[step + 1].figures.grown == sum(expected.values())


def test_what_is_redistributed_is_grown_to_the_unit(cell):
    if not cell.method.redistributes:
        pytest.skip("each layer grows what it dropped")
    total = 0
    for step in cell.method.update_steps:
        before, rate = cell.masks(step - 1), cell.method.prune_rate
        grown = sum(int(new.sum()) for new in cell.grown(step).values())
        assert grown == cell.states[step + 1].figures.grown
        if rate is not None:
            drops = (math.ceil(rate(step) * m.sum() - 1e-4) for m in before.values())
            assert grown == sum(drops), step
        total += grown
    counts = {
        tuple(int(cell.masks(step)[path].sum()) for path in LAYERS)
        for step in range(-1, STEPS)
    }
    assert total > 0 and len(counts) > 1


def test_momentum_of_inactive_and_newly_grown_weights_is_zero(cell):
    found = 0
    for step in range(STEPS):
        kept = {
            path: mask & ~cell.grown(step)[path]
            for path, mask in cell.masks(step).items()
        }
        for path, slot in cell.slots(step, cell.optimizer.momenta):
            assert np.all(slot[~kept[path]] == 0), (step, path)
            found += int(np.any(slot[kept[path]] != 0))
    assert found > STEPS, "the momenta of the table must be there to be looked at"


def test_second_moments_of_grown_weights_are_the_mean_of_the_kept(cell):
    looked_at = 0
    for step in range(STEPS):
        for path, slot in cell.slots(step, cell.optimizer.second_moments):
            mask, grown = cell.masks(step)[path], cell.grown(step)[path]
            kept = mask & ~grown
            # Adafactor adds 1e-30 to the square of a gradient of 0.
            drift = 0 if step in cell.method.update_steps else 1e-28
            assert np.all(np.abs(slot[~mask]) <= drift), (step, path)
            mean = np.mean(slot[kept], dtype=np.float64) if kept.any() else 0.0
            np.testing.assert_allclose(slot[grown], mean, rtol=1e-5)
            looked_at += 1
    assert bool(looked_at) == bool(cell.optimizer.second_moments)


def test_one_trace_serves_all_steps_and_the_state_keeps_its_type(cell):
    assert len(cell.traces) == 1
    first, last = cell.calls[0], cell.calls[-1]
    assert jax.tree.structure(first) == jax.tree.structure(last)
    assert types(first) == types(last)


def types(tree: Any) -> list[Any]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def crossed(cell: Cell) -> Cell:
    """A cell to spend seconds more on: a row and a column of the table.

    How a step is run and saved depends on the method and on the optimizer, not on the
    pair.
    """
    if cell.method is METHODS["rigl"] or cell.optimizer is OPTIMIZERS["adam"]:
        return cell
    pytest.skip("done for one optimizer a method and one method an optimizer")


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


def test_it_can_be_the_body_of_a_scan(crossed):
    cell, calls = crossed, range(len(crossed.calls) - 1)
    noises = jax.tree.map(lambda *leaves: np.stack(leaves), *map(noise_of, calls))
    start, last = cell.calls[0], cell.calls[-1]
    params, opt_state = jax.jit(lambda: scan(cell, start, noises))()
    assert_same_masks_and_close(params, opt_state, *last)


def test_eager_equals_compiled(crossed):
    cell = crossed
    # The last update but one (RigL's last moves nothing), from the state that the
    # compiled steps led to.
    call = cell.optimizer.micro_steps * (cell.method.update_steps or [14, 18])[-2]
    call += cell.optimizer.micro_steps - 1
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


def test_a_checkpoint_brings_the_state_back_and_training_goes_on(crossed, tmp_path):
    cell = crossed
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
