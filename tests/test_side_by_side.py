"""Seeds side by side: each run is the one that it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.configs import digits_resnet
from experiments.record.metrics import read_metrics
from experiments.training import loop, program
from experiments.training.loop import train_and_evaluate, train_side_by_side
from experiments.training.sparse import LABELS, sparse_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = (1, 2)


def digits(seed, **changes):
    config = digits_resnet.get_config("method=granet,sparsity=0.9")
    config.seed, config.parallel, config.total_steps = seed, "jit", 6
    config.update_interval_steps, config.checkpoint_every_steps = 2, 3
    config.log_every_steps, config.steps_per_call = 3, 2
    config.batch_size, config.validation_examples = 16, 20
    config.update(changes)
    return config


def assert_same_run(outcome, lines, expected, expected_lines):
    """Compares two runs: the same but for the order of sums."""
    described = [(line["step"], line["kind"], line.keys()) for line in lines]
    assert described == [(x["step"], x["kind"], x.keys()) for x in expected_lines]
    for line, other in zip(lines, expected_lines):
        for name in other:
            if name == "loss" or name.startswith("density"):
                assert line[name] == pytest.approx(other[name], abs=0.05), name
    masks, same = (sj.get_masks(each.state.opt_state) for each in (outcome, expected))
    assert sj.count_active(masks) == sj.count_active(same)
    differ = jax.tree.map(lambda a, b: int((a != b).sum()), masks, same)
    assert sum(jax.tree.leaves(differ)) <= 0.01 * sj.count_prunable(masks)
    for leaf, other in zip(*map(jax.tree.leaves, (outcome.state, expected.state))):
        assert leaf.shape == other.shape and leaf.dtype == other.dtype
    params = outcome.state.params
    jax.tree.map(np.testing.assert_array_equal, params, sj.apply_masks(params, masks))
    distance = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - b).mean(), params, expected.state.params
    )
    assert max(jax.tree.leaves(distance)) < 1e-3
    assert int(outcome.state.step) == int(expected.state.step)
    assert outcome.best.step == expected.best.step


@pytest.fixture
def compiled_once(monkeypatch):
    """Keeps what is compiled from one part of a run to the next."""
    prepare, make, runs, programs = loop.prepare_run, loop.make_program, {}, {}

    def prepare_run(config):
        if config.seed not in runs:
            runs[config.seed] = prepare(config)
        return runs[config.seed]

    def make_program(runs, clock):
        seeds = tuple(run.config.seed for run in runs)
        if seeds not in programs:
            programs[seeds] = make(runs, clock)
        return programs[seeds]

    monkeypatch.setattr(loop, "prepare_run", prepare_run)
    monkeypatch.setattr(loop, "make_program", make_program)


def test_each_run_is_what_it_is_alone(compiled_once, tmp_path):
    """Side by side they are stopped and gone on with on the way."""
    configs = [digits(seed) for seed in SEEDS]
    folders = [tmp_path / str(seed) for seed in SEEDS]

    def fails(*args):
        raise RuntimeError("the power is off")

    with pytest.MonkeyPatch.context() as patch:
        # After the first of two checkpoints.
        patch.setattr(loop, "_evaluate", fails)
        with pytest.raises(RuntimeError, match="power"):
            train_side_by_side(configs, folders)
    outcomes = train_side_by_side(configs, folders)
    alone = train_and_evaluate(configs[1], tmp_path / "alone")
    lines = read_metrics(folders[1]), read_metrics(tmp_path / "alone")
    assert_same_run(outcomes[1], lines[0], alone, lines[1])
    for folder in folders:
        assert (folder / "report.html").exists() and (folder / "layers.json").exists()
    weights = [jax.tree.leaves(outcome.state.params)[-1] for outcome in outcomes]
    assert not np.allclose(*weights)

    # Together with one that begins now, the finished one is a group of its own. Each
    # could be gone on with alone.
    groups = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_train", groups.append)
        patch.setattr(loop, "_finish", lambda lane: lane.run.config.seed)
        begun = [folders[0], tmp_path / "another"]
        assert train_side_by_side(configs, begun) == [*SEEDS]
    started = [
        [(lane.run.config.seed, lane.start) for lane in lanes] for lanes in groups
    ]
    assert started == [[(1, 6)], [(2, 0)]]


@pytest.mark.parametrize("method", LABELS)
def test_a_topology_update_stays_a_branch_for_every_method(method):
    """A counter that is mapped over would make it a choice of both sides."""
    config = digits(1, output_layer="b")
    tx = sparse_optimizer(method, optax.sgd(0.1), config, 40, sparsity=0.9, seed=1)
    axes = program._AXES.opt_state
    stacked = {name: jax.ShapeDtypeStruct((2, 12, 8), jnp.float32) for name in "ab"}
    params, state = jax.eval_shape(
        jax.vmap(lambda own: sj.init_sparse(tx, own), out_axes=(0, axes)), stacked
    )
    update = jax.vmap(tx.update, in_axes=(0, axes, 0), out_axes=(0, axes))
    assert jax.eval_shape(update, params, state, params) == (params, state)
    equations = jax.make_jaxpr(update)(params, state, params).eqns
    branches = [x for x in equations if x.primitive.name == "cond"]
    # The update is one, and the look at weights outside the masks another. For Top-KAST
    # new masks are one, and the metrics of them another.
    expected = {"dense": 1, "static": 1}
    assert len(branches) == expected.get(method, 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rate": 0.5}, "differ in their seeds alone; got learning_rate was"),
        ({"parallel": "pmap"}, 'parallel must be "jit" for runs side by side'),
        ({"shard_state": True}, "shard_state must be False for runs side by side"),
    ],
)
def test_refused_before_anything_is_read(tmp_path, changes, message):
    both = {} if "learning_rate" in changes else changes
    configs = [digits(1, **both), digits(2, **changes)]
    with pytest.raises(ValueError, match=message) as refusal:
        train_side_by_side(configs, [tmp_path / "one", tmp_path / "two"])
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())
