"""The study of plasticity, end to end at toy size and piece by piece."""

import itertools
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from ml_collections import ConfigDict

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments import plasticity, study
from experiments.configs import plasticity_cifar, plasticity_digits
from experiments.dense_runs import Runs, under_masks
from experiments.optimizer import make_optimizer
from experiments.plasticity import STUDY, UNPRUNED, Setting, new_topology
from experiments.step import TrainState
from sparsejax.trees import is_left_dense

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compilation")

KERNELS = {"hidden_1": (64, 16), "hidden_2": (16, 8), "output": (8, 10)}
SIZES = [math.prod(shape) for shape in KERNELS.values()]
SPARSE = 0.7
QUICK = STUDY._replace(plots={})
KEY = ["initial_sparsity", "epoch", "learning_rate", "seed", *Setting._fields]


def toy(**changes):
    config = plasticity_digits.get_config()
    fields = {
        "model": "digits_mlp",
        "model_options": {"widths": (16, 8)},
        "seeds": (0, 3),
        "epochs": 2,
        "batch_size": 128,
        "validation_examples": 1181,  # which leaves two batches
        "initial_sparsities": (0.0, SPARSE),
        "prune_at_epochs": (1, 2),
        "continue_epochs": 1,
        "continue_to_end": True,
        "fixed_learning_rates": (0.01,),
        "rates": (0.9,),
        "scopes": ("layer",),
        "units": ("weight",),
    }
    config.update(fields | changes)
    return config


class Stopped:
    """Runs that stop a study at one of its steps, as a kill would."""

    def __init__(self, runs):
        self.runs, self.last, self.steps = runs, math.inf, 0

    def __getattr__(self, name):
        return getattr(self.runs, name)

    def train(self, *args):
        self.steps += 1
        if self.steps > self.last:
            raise KeyboardInterrupt
        return self.runs.train(*args)


@pytest.fixture(scope="module")
def shared(quick_compilation):
    """Networks of all tests, which share what is compiled."""
    return Runs(toy())


@pytest.fixture(scope="module")
def finished(shared, tmp_path_factory):
    """Folders of the same study, stopped twice and not at all, and its steps."""
    stopped, whole = (tmp_path_factory.mktemp(name) for name in ("stopped", "whole"))
    with pytest.MonkeyPatch.context() as patch:
        runs = Stopped(shared)
        patch.setattr(plasticity, "Runs", lambda config: runs)
        for runs.last in (4, 9):
            with pytest.raises(KeyboardInterrupt):
                study.run(QUICK, toy(), stopped)
            assert not (stopped / "results.json").exists()
        runs.last = math.inf
        study.run(QUICK, toy(), stopped)
        steps, runs.steps = runs.steps, 0
        study.run(QUICK, toy(), whole)
    return stopped, whole, steps, runs.steps


def frame_of(workdir):
    return study.frame_of(json.loads((workdir / "results.json").read_text()))


def test_a_study_that_was_stopped_has_the_records_of_one_that_was_not(finished):
    stopped, whole, steps, fewest = finished
    pd.testing.assert_frame_equal(frame_of(stopped), frame_of(whole))
    # Dense epochs, and of two checkpoints four settings at two learning rates.
    assert fewest == 2 * (2 + 2 * 4 * 2)
    # Not more than a part is done again: two calls before one that stopped it.
    assert fewest < steps <= fewest + 4


def test_a_finished_study_loads_nothing(finished, monkeypatch):
    monkeypatch.setattr(plasticity, "Runs", None)
    text = study.run(STUDY, toy(seeds_at_once=1), finished[0])
    assert text == (finished[0] / "results.md").read_text()
    for name in ("heat_map_weight_layer.png", "by_epoch.png"):
        assert (finished[0] / name).read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_that_is_damaged_is_refused(finished, tmp_path):
    path = next((finished[0] / "checkpoints").iterdir())
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    (tmp_path / path.name).write_bytes(content)
    bench = plasticity._Bench(toy(), tmp_path)
    sparsity, epoch = path.name.removeprefix("from_").split("_epoch_")
    with pytest.raises(ValueError, match="must hold what was saved"):
        bench.checkpoint(float(sparsity), int(epoch))


def test_what_a_study_records(finished):
    frame = frame_of(finished[1])
    assert len(frame) == 2 * 2 * 4 * 2 * 2 == len(frame[KEY].drop_duplicates())
    cells = frame.set_index(KEY)
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in KERNELS.items()
    }
    erk = sj.active_counts(shapes, SPARSE, "erk")
    for start, counts in ((0.0, SIZES), (SPARSE, [int(n) for n in erk.values()])):
        before = sum(counts)
        kept = before - sum(math.ceil(0.9 * count) for count in counts)
        assert before == round((1 - start) * sum(SIZES))
        active = frame[frame.initial_sparsity == start].groupby(
            ["rate", "regeneration"]
        )["active"]
        assert active.min().equals(active.max())
        expected = {"none": kept, "exchange": kept, "as_many": before}
        assert active.min().to_dict() == {
            (0.0, "none"): before,
            **{(0.9, name): count for name, count in expected.items()},
        }
    assert set(frame.prunable) == {sum(SIZES)} and not frame.empty_layers.any()
    accuracies = frame[["before", "pruned", "continued", "at_end"]]
    assert accuracies.ge(0).all(axis=None) and accuracies.le(1).all(axis=None)
    for start, seed in itertools.product((0.0, SPARSE), (0, 3)):
        # The control is the run itself, at the next checkpoint and the run's end.
        first, second = (
            cells.loc[(start, epoch, "schedule", seed, *UNPRUNED)] for epoch in (1, 2)
        )
        assert first.pruned == first.before and second.pruned == second.before
        assert first.continued == first.at_end == second.before == second.at_end
        # What comes back comes back as 0.
        settings = (Setting(0.9, "layer", "weight", r) for r in ("as_many", "none"))
        new, plain = (cells.loc[(start, 1, "0.01", seed, *s)] for s in settings)
        assert new.pruned == plain.pruned and new.before == plain.before


def test_tables_are_means_and_paired_differences(finished):
    frame = frame_of(finished[1])
    cells = frame.set_index(KEY)
    text = (finished[1] / "results.md").read_text()
    setting = Setting(0.9, "layer", "weight", "exchange")
    plain = setting._replace(regeneration="none")

    def value(epoch, label, seed, of, field):
        return 100 * cells.loc[(0.0, epoch, label, seed, *of)][field]

    def text_of(values):
        return study_text(sj.mean_with_interval(values))

    places = [(epoch, label) for epoch in (1, 2) for label in ("schedule", "0.01")]
    effect = lambda place, seed: (
        value(*place, seed, setting, "continued")
        - value(*place, seed, plain, "continued")
    )
    each = [[effect(place, seed) for seed in (0, 3)] for place in places]
    lines = [" ".join(line.split()) for line in text.split("\n")]
    overall = text_of(np.mean(each, axis=0))
    assert f"| Exchanged at equal density | weights by layer | {overall} |" in lines
    gap = [
        value(1, "0.01", seed, plain, "at_end")
        - value(1, "0.01", seed, UNPRUNED, "at_end")
        for seed in (0, 3)
    ]
    end = lines[
        lines.index(
            "## At the end of training: minus the network that was not pruned"
        ) :
    ]
    assert f"| 0.01 | 1 | {text_of(gap)} |" in end


def test_a_study_without_regeneration_has_the_other_tables(finished):
    frame = frame_of(finished[1])
    text = plasticity.report(frame[frame.regeneration == "none"], toy())
    whole = plasticity.report(frame, toy())
    assert "adds" not in text and text.count("###") == 8 < whole.count("###")
    assert all(line in whole for line in text.split("\n"))


def study_text(estimate):
    text = f"{estimate.mean:+.1f} ± {estimate.half_width:.1f}"
    return f"**{text}**" if abs(estimate.mean) > estimate.half_width else text


def test_comparisons_are_counted_once_and_where_they_differ():
    """Of three labels one repeats another; of the others one cell has no difference."""
    rows = []
    for label, shift in (("schedule", 0.2), ("0.1", 0.2), ("0.01", 0.0)):
        for seed in (0, 1):
            for name, gain in (("none", 0.0), ("exchange", shift)):
                accuracy = 0.5 + 0.01 * seed + 0.1 * (label == "0.01") + gain
                rows.append((2, label, seed, 0.9, "layer", "weight", name, accuracy))
            control = (2, label, seed, 0.0, "none", "none", "none", 0.9)
            rows.append(control)
    fields = ["epoch", "learning_rate", "seed", *Setting._fields, "continued"]
    frame = pd.DataFrame(rows, columns=fields).assign(before=0.9, pruned=0.1)
    text = plasticity.comparisons_text(plasticity.with_changes(frame))
    assert "of 3 cells 1 repeat another" in text and "1 more differ for no seed" in text
    assert "Of the other 1 the interval lies above 0 in 1 and below 0 in 0" in text


def test_records_of_before_initial_sparsities_are_read():
    content = json.loads((ROOT / "results/plasticity/digits.json").read_text())
    frame = study.frame_of(content)
    assert "initial_sparsity" not in frame
    text = plasticity.report(frame, ConfigDict(content["config"]))
    assert text.strip() in (ROOT / "results/plasticity/README.md").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "resnet21"),
        ("augment", "imagenet"),
        ("schedule", "linear"),
        ("dtype", "float8"),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("continue_epochs", 0),
        ("seeds_at_once", 0),
        ("seeds", (1,)),
        ("seeds", (1, 1)),
        ("initial_sparsities", ()),
        ("initial_sparsities", (0.0, 1.0)),
        ("prune_at_epochs", (33,)),
        ("prune_at_epochs", ()),
        ("rates", (0.5, 1.0)),
        ("scopes", ("all",)),
        ("units", ()),
        ("regenerations", ("as_many",)),
        ("regenerations", ("none", "random")),
        ("fixed_learning_rates", (0.1, 0.1)),
        ("fixed_learning_rates", (0.0,)),
        ("exchange_rate", 1.0),
    ],
)
def test_config_is_checked(field, value):
    config = plasticity_digits.get_config("sparse")
    study.check_config(STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(STUDY, config)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be from 1 to the 1437"):
        study.run(STUDY, toy(batch_size=2000, validation_examples=0), tmp_path)


SHAPES = {"conv": (3, 3, 2, 6), "dense": (10, 7), "stem": (1, 3, 1, 5)}


def normal(seed):
    rng = np.random.default_rng(seed)
    shapes = {**SHAPES, "bias": (3,)}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture(scope="module")
def checkpoints(quick_compilation):
    """A small network with momentum by its sparsity, and the functions of a study."""
    inner = make_optimizer(toy(), lambda count: 0.1, "dense")

    def checkpoint(share):
        rng, params = np.random.default_rng(3), normal(0)
        masks = sj.dense_masks(params)
        masks |= {name: rng.random(shape) < share for name, shape in SHAPES.items()}
        params = sj.apply_masks(params, masks)
        opt_state = sj.static_transform(inner, masks=masks).init(params)
        trace = sj.apply_masks(normal(1), masks)
        opt_state = optax.tree.set(opt_state, trace=trace, step=jnp.int32(3))
        return TrainState(jnp.int32(3), params, {}, opt_state, masks)

    tx = sj.static_transform(inner, sparsity=0.5)  # the state decides on the masks
    change = jax.jit(partial(under_masks, toy()))
    return {0.0: checkpoint(1.0), 0.5: checkpoint(0.5)}, change, jax.jit(tx.update)


@pytest.mark.parametrize("regeneration", ["none", "as_many", "exchange"])
@pytest.mark.parametrize(
    ("unit", "sparsity"), [("weight", 0.0), ("weight", 0.5), ("filter", 0.5)]
)
def test_a_pruned_checkpoint_keeps_zeros_and_momentum(
    checkpoints, unit, sparsity, regeneration
):
    states, change, update = checkpoints
    state = states[sparsity]
    old_masks, grads = sj.get_masks(state.opt_state), normal(2)
    setting = Setting(0.5, "layer", unit, regeneration)
    kept, masks = new_topology(state.params, grads, old_masks, setting, 0.3)
    after = change(state, kept, masks)
    trace = optax.tree.get(after.opt_state, "trace")
    old = optax.tree.get(state.opt_state, "trace")
    for name in SHAPES:
        for new, before in ((after.params, state.params), (trace, old)):
            goes_on = np.where(kept[name], before[name], 0)
            np.testing.assert_array_equal(new[name], goes_on)
        found = sj.get_masks(after.opt_state)[name]
        np.testing.assert_array_equal(found, masks[name])
        assert (kept[name] <= masks[name]).all()
        assert (kept[name] <= old_masks[name]).all()
        counts = [int(m[name].sum()) for m in (old_masks, kept, masks)]
        if unit == "weight":
            survivors = counts[0] - math.ceil(0.5 * counts[0])
            if regeneration == "exchange":
                assert counts[1] == survivors - math.ceil(0.3 * survivors)
                assert counts[2] == survivors
            else:
                assert counts[1] == survivors
                assert counts[2] == counts[0 if regeneration == "as_many" else 1]
        elif name == "dense":  # filters are those of convolutions
            np.testing.assert_array_equal(masks[name], old_masks[name])
    assert is_left_dense(masks["bias"])
    np.testing.assert_array_equal(after.params["bias"], state.params["bias"])
    np.testing.assert_array_equal(trace["bias"], old["bias"])
    assert after.opt_state.step == 3

    updates, _ = update(grads, after.opt_state, after.params)
    moved = optax.apply_updates(after.params, updates)
    for name in SHAPES:
        mask = np.asarray(masks[name])
        assert (np.asarray(moved[name])[~mask] == 0).all()
        assert (np.asarray(moved[name])[mask & ~np.asarray(kept[name])] != 0).all()


def test_sparse_networks_regenerate_where_the_gradient_is_largest(checkpoints):
    """By NumPy: the pruned weights and those that never were active compete."""
    state = checkpoints[0][0.5]
    old, grads = sj.get_masks(state.opt_state), normal(2)
    setting = Setting(0.5, "layer", "weight", "as_many")
    kept, masks = new_topology(state.params, grads, old, setting, 0.3)
    for name in SHAPES:
        weights = abs(np.where(old[name], state.params[name], 0))
        keep = np.sort(weights.ravel())[-int(kept[name].sum()) :].min()
        np.testing.assert_array_equal(kept[name], weights >= keep)
        scores = np.where(kept[name], -1, abs(grads[name]))
        grown = int(old[name].sum() - kept[name].sum())
        least = np.sort(scores.ravel())[-grown:].min()
        np.testing.assert_array_equal(masks[name], (scores >= least) | kept[name])
    assert (masks["conv"] & ~old["conv"]).any()


def test_seeds_one_after_the_other_are_those_side_by_side(shared):
    one_by_one = Runs(toy(seeds_at_once=1))
    states, expected = (runs.train(runs.create(), 0) for runs in (one_by_one, shared))
    for leaf, other in zip(*map(jax.tree.leaves, (states, expected))):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)


def test_a_sparse_start_has_the_weights_of_the_dense_one(shared):
    dense, sparse = shared.create(), shared.create(SPARSE)
    masks = sj.get_masks(sparse.opt_state)
    pairs = zip(
        *map(jax.tree.leaves, (sj.apply_masks(dense.params, masks), sparse.params))
    )
    for leaf, other in pairs:
        np.testing.assert_array_equal(leaf, other)
    assert all((m[0] != m[1]).any() for m in jax.tree.leaves(masks) if not m.all())


def test_networks_of_cifar_are_traced_with_statistics_crops_and_flips(tmp_path):
    images, labels = np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "cifar.npz", **arrays)
    config = plasticity_cifar.get_config("network=resnet20")
    config.data_dir = str(tmp_path / "cifar.npz")
    config.update({"validation_examples": 2, "batch_size": 16})
    runs = Runs(config)
    states = jax.eval_shape(lambda states: runs.train(states, 0), runs.like)
    assert jax.tree.map(jnp.shape, states) == jax.tree.map(jnp.shape, runs.like)
    assert jax.tree.leaves(states.batch_stats)
    hits = jax.eval_shape(runs._hits, (states,), runs._test_set)
    assert hits.shape == (3,)


def test_arguments_of_configurations():
    with pytest.raises(ValueError, match="must be nothing or sparse; got 'spares'"):
        plasticity_digits.get_config("spares")
    config = plasticity_cifar.get_config("network=vgg19,classes=100")
    found = config.model, config.dataset, config.pad_mode
    assert found == ("vgg19", "cifar100", "zero")
    study.check_config(STUDY, config)
    for argument in ("network=resnet50", "classes=7", "method=rigl"):
        with pytest.raises(ValueError, match="must be"):
            plasticity_cifar.get_config(argument)
