"""The study of plasticity, end to end at toy size and piece by piece."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.configs import plasticity_cifar, plasticity_digits
from experiments.plasticity_study import study
from experiments.plasticity_study.experiment import run_experiment
from experiments.plasticity_study.problem import inner_optimizer
from experiments.plasticity_study.prune import new_topology, with_topology
from experiments.plasticity_study.results import overall_effect, summarise
from experiments.plasticity_study.settings import UNPRUNED, Setting, check_config
from experiments.plasticity_study.store import Record
from experiments.training.state import TrainState

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compilation")


def toy(**changes):
    config = plasticity_digits.get_config()
    config.update(
        {
            "seeds": (0, 3),
            "epochs": 2,
            "batch_size": 256,
            "prune_at_epochs": (1, 2),
            "continue_epochs": 1,
            "fixed_learning_rates": (0.01,),
            "rates": (0.9,),
            "scopes": ("layer",),
            "units": ("weight",),
            "replicas_at_once": 2,
        }
        | changes
    )
    return config


CELLS = 2 * 2 * 4 * 2  # epochs, seeds, settings and learning rates


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was stopped after three continuations, and then gone on with."""
    workdir = tmp_path_factory.mktemp("study")
    go_on, calls = study._continue, []

    def stop_after(most):
        def run(*args):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(args)
            return go_on(*args)

        return run

    with pytest.MonkeyPatch.context() as patch:
        make, made = study.make_programs, []

        def make_once(*args):  # so that both parts share what is compiled
            made.extend([] if made else [make(*args)])
            return made[0]

        patch.setattr(study, "make_programs", make_once)
        patch.setattr(study, "_continue", stop_after(3))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(toy(), workdir)
        first = json.loads((workdir / "parts/epoch_1.json").read_text())["rows"]
        assert 0 < len(first) < CELLS // 2
        assert not (workdir / "results.json").exists()
        patch.setattr(study, "_continue", stop_after(None))
        run_experiment(toy(), workdir)
    return workdir, calls


def records_of(workdir):
    content = json.loads((workdir / "results.json").read_text())
    assert content["columns"] == list(Record._fields)
    return content, [Record(*row) for row in content["rows"]]


def test_a_study_that_was_stopped_does_each_continuation_once(finished):
    workdir, calls = finished
    tracks = Counter((args[3], args[4].tobytes()) for args in calls)
    # At each of two epochs two tracks of learning rates, for four pairs of networks.
    assert list(tracks.values()) == [4, 4, 4, 4]
    content, records = records_of(workdir)
    assert len(records) == CELLS == len({(r.epoch, r.cell) for r in records})
    assert content["wall_seconds"] > 0
    assert content["environment"]["jax"] == jax.__version__
    assert content["config"]["rates"] == [0.9]


def test_what_a_study_records(finished):
    _, records = records_of(finished[0])
    accuracy = {(r.epoch, *r.cell): r for r in records}
    for record in records:
        kept = record.prunable - sum(
            math.ceil(0.9 * size) for size in (144, 2048, 8192, 16384, 640)
        )
        density = {"none": kept, "exchange": kept, "as_many": record.prunable}
        expected = density[record.regeneration] if record.rate else record.prunable
        assert record.active == expected and record.prunable == 27_408
        assert record.empty_layers == 0
        assert all(0 <= a <= 1 for a in (record.before, record.pruned))
        plain = accuracy[
            (
                record.epoch,
                record.learning_rate,
                record.seed,
                record.setting._replace(regeneration="none"),
            )
        ]
        assert record.before == plain.before
        if record.regeneration == "as_many":  # what comes back comes back as 0
            assert record.pruned == plain.pruned
    for seed in (0, 3):  # the control is the dense run itself
        control = accuracy[1, "schedule", seed, UNPRUNED]
        assert control.pruned == control.before
        after = accuracy[2, "schedule", seed, UNPRUNED].before
        assert control.continued == pytest.approx(after, abs=0.006)


def test_the_results_are_means_and_paired_differences(finished):
    content, records = records_of(finished[0])
    rows = summarise(records)
    assert len(content["summary"]) == len(rows) == CELLS // 2
    setting = Setting(0.9, "layer", "weight", "exchange")
    change = {(r.epoch, *r.cell): 100 * (r.continued - r.before) for r in records}
    plain = setting._replace(regeneration="none")

    def differences(epoch, label):
        return [
            change[epoch, label, seed, setting] - change[epoch, label, seed, plain]
            for seed in (0, 3)
        ]

    for row in rows:
        if row.setting == setting:
            expected = sj.mean_with_interval(differences(row.epoch, row.learning_rate))
            np.testing.assert_allclose(row.effect, expected, atol=1e-9)
        elif row.setting == plain:
            assert row.effect is None
    each = [differences(e, label) for e in (1, 2) for label in ("schedule", "0.01")]
    expected = sj.mean_with_interval(np.mean(each, axis=0))
    np.testing.assert_allclose(overall_effect(records, setting), expected, atol=1e-9)
    text = (finished[0] / "results.md").read_text()
    assert f"{expected.mean:+.1f} ± {expected.half_width:.1f}" in text
    for name in ("heat_map_weight_layer.png", "by_epoch.png"):
        assert (finished[0] / name).read_bytes().startswith(b"\x89PNG")


def command(workdir, *flags):
    config = toy()
    fields = ("seeds", "prune_at_epochs", "fixed_learning_rates", "rates", "scopes")
    fields += ("units", "epochs", "batch_size", "continue_epochs")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.plasticity",
            "--config=experiments/configs/plasticity_digits.py",
            f"--workdir={workdir}",
            *(f"--config.{field}={config[field]}" for field in fields),
            *flags,
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_finished_study_is_not_done_again(finished, monkeypatch):
    """Nothing is loaded: also how many networks go side by side may change."""
    workdir, _ = finished
    parts = [file.read_text() for file in sorted((workdir / "parts").iterdir())]
    monkeypatch.setattr(study, "load_problem", None)
    run_experiment(toy(replicas_at_once=3), workdir)
    assert parts == [file.read_text() for file in sorted((workdir / "parts").iterdir())]


def test_the_command_goes_on_in_a_workdir_and_refuses_another_study(finished):
    done = command(finished[0])
    assert done.returncode == 0, done.stderr
    assert "| Exchanged at equal density | weights by layer |" in done.stdout
    refused = command(finished[0], "--config.weight_decay=0.5")
    assert refused.returncode == 1 and refused.stdout == ""
    assert "weight_decay was 0.002 and is 0.5; use another" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "resnet21"),
        ("augment", "imagenet"),
        ("schedule", "linear"),
        ("epochs", 0),
        ("batch_size", 0),
        ("continue_epochs", 0),
        ("replicas_at_once", 0),
        ("seeds", (1,)),
        ("seeds", (1, 1)),
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
    config = plasticity_digits.get_config()
    check_config(config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        check_config(config)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be from 1 to the 1437"):
        run_experiment(toy(batch_size=2000), tmp_path)


SHAPES = {"conv": (3, 3, 2, 6), "dense": (10, 7), "stem": (1, 3, 1, 5)}


def normal(seed):
    rng = np.random.default_rng(seed)
    shapes = {**SHAPES, "bias": (3,)}
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def checkpoint(config):
    """A small network after three steps, with momentum."""
    params = normal(0)
    tx = sj.static_transform(
        inner_optimizer(config, 0.1), sparsity=0.0, distribution="uniform"
    )
    opt_state = tx.init(params)
    for _ in range(3):
        updates, opt_state = tx.update(normal(1), opt_state, params)
        params = optax.apply_updates(params, updates)
    explored = sj.get_masks(opt_state)
    return TrainState(jnp.int32(3), params, {}, opt_state, explored), tx


@pytest.mark.parametrize("regeneration", ["none", "as_many", "exchange"])
@pytest.mark.parametrize("unit", ["weight", "filter"])
def test_a_pruned_checkpoint_keeps_its_zeros_and_its_momentum(unit, regeneration):
    config = plasticity_digits.get_config()
    state, tx = checkpoint(config)
    grads = normal(2)
    setting = Setting(0.5, "layer", unit, regeneration)
    kept, new_masks = new_topology(state.params, grads, setting, 0.3)
    after = with_topology(state, kept, new_masks, config)
    masks = sj.get_masks(after.opt_state)
    trace = optax.tree.get(after.opt_state, "trace")
    old = optax.tree.get(state.opt_state, "trace")
    for name in SHAPES:
        for new, before in ((after.params, state.params), (trace, old)):
            goes_on = np.where(kept[name], before[name], 0)
            np.testing.assert_array_equal(new[name], goes_on)
        np.testing.assert_array_equal(masks[name], new_masks[name])
        assert (kept[name] <= masks[name]).all()
    assert masks["dense"].all() == (unit == "filter" or regeneration == "as_many")
    np.testing.assert_array_equal(after.params["bias"], state.params["bias"])
    np.testing.assert_array_equal(trace["bias"], old["bias"])
    assert after.opt_state.step == 3

    updates, _ = tx.update(grads, after.opt_state, after.params)
    moved = optax.apply_updates(after.params, updates)
    for name in SHAPES:
        mask = np.asarray(masks[name])
        assert (np.asarray(moved[name])[~mask] == 0).all()
        assert (np.asarray(moved[name])[mask & ~kept[name]] != 0).all()


def test_cifar_end_to_end_at_toy_size(tfds_dir, tmp_path):
    config = plasticity_cifar.get_config("network=resnet20")
    config.update(
        {
            "data_dir": tfds_dir,
            "validation_examples": 2,
            "seeds": (0, 1),
            "epochs": 1,
            "batch_size": 16,
            "prune_at_epochs": (1,),
            "continue_epochs": 1,
            "fixed_learning_rates": (),
            "rates": (0.5,),
            "scopes": ("global",),
            "units": ("filter",),
            "regenerations": ("none",),
            "eval_batch_size": 5,
        }
    )
    config.model_options.update({"depth": 8, "width": 4, "stem_width": 4})
    run_experiment(config, tmp_path)
    _, records = records_of(tmp_path)
    assert len(records) == 4
    for record in records:
        assert (record.active < record.prunable) == (record.rate == 0.5)
        assert (12 * record.continued) % 1 == 0  # of 12 images, in batches of 5


def test_cifar_arguments():
    config = plasticity_cifar.get_config("network=vgg19,classes=100")
    assert (config.model, config.dataset, config.pad_mode) == (
        "vgg19",
        "cifar100",
        "zero",
    )
    check_config(config)
    for argument in ("network=resnet50", "classes=7", "method=rigl"):
        with pytest.raises(ValueError, match="must be"):
            plasticity_cifar.get_config(argument)
