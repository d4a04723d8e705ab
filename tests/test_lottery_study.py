"""The study of lottery tickets, end to end at toy size: its forms, and its resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.configs import lottery_digits
from experiments.lottery_study import study
from experiments.lottery_study.experiment import run_experiment
from experiments.lottery_study.results import summarise
from experiments.lottery_study.settings import check_config, epochs_of, plan_units
from experiments.lottery_study.store import Record, Store
from experiments.plasticity_study.problem import load_problem
from experiments.plasticity_study.replicas import make_programs
from sparsejax.trees import is_left_dense

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compilation")

TOY = {
    "seeds": (0, 3),
    "epochs": 2,
    "batch_size": 256,
    "rewind_epochs": (0, 1),
    "fine_tuning_epochs": 1,
    "fraction": 0.6,
    "sparsities": (0.5, 0.9),
}
SIZE = 27_408
COUNTS = sj.lottery_counts(SIZE, (0.5, 0.9), 0.6)
ROUNDS = len(COUNTS)
FORMS = ("rewind_0", "rewind_1", "learning_rate", "fine_tuning")
SINGLE = ("random_weights", "shuffled_masks", "one_shot")


def toy(**changes):
    config = lottery_digits.get_config()
    config.update(TOY | changes)
    return config


class Bench:
    """Programs that all studies of this module share, and the states they save."""

    def __init__(self, patch):
        self.problem = load_problem(toy())
        self.programs = make_programs(self.problem, toy())
        draw = study._make_draw(toy())
        patch.setattr(study, "load_problem", lambda config: self.problem)
        patch.setattr(study, "make_programs", lambda *args: self.programs)
        patch.setattr(study, "_make_draw", lambda config: draw)
        self.like = jax.eval_shape(self.programs.create, np.int32([0, 3]))
        self.saved = {}
        save = Store.save

        def record_too(store, form, number, states):
            self.saved[form, number] = jax.device_get(states)
            save(store, form, number, states)

        patch.setattr(Store, "save", record_too)


@pytest.fixture(scope="module")
def bench(quick_compilation):
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(patch)


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory):
    """A study that nothing has stopped, and the states it saved."""
    workdir = tmp_path_factory.mktemp("whole")
    bench.saved.clear()
    run_experiment(toy(), workdir)
    return workdir, dict(bench.saved)


def parts_of(workdir):
    files = sorted((workdir / "parts").glob("*.json"))
    return {file.name: json.loads(file.read_text())["rows"] for file in files}


def states_of(workdir):
    return {
        file.name: file.read_bytes() for file in (workdir / "states").glob("*.msgpack")
    }


def records_of(workdir):
    content = json.loads((workdir / "results.json").read_text())
    assert content["columns"] == list(Record._fields)
    return content, [Record(*row) for row in content["rows"]]


def test_a_stopped_study_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    """Stopped between the rounds, and once between a round's state and its part."""
    finish, calls = Store.finish, []

    def stop(store, unit, *args):
        calls.append(unit)
        if len(calls) == 4:
            raise KeyboardInterrupt  # the state is there, the part is not
        finish(store, unit, *args)
        if len(calls) in (1, 7):
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "finish", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_experiment(toy(), tmp_path)
        assert not (tmp_path / "results.json").exists()
    run_experiment(toy(), tmp_path)
    units = plan_units(toy(), SIZE)
    assert calls == [*units[:4], *units[3:]]  # one was done twice, all others once
    assert parts_of(tmp_path) == parts_of(finished[0])
    assert states_of(tmp_path) == states_of(finished[0])
    run_experiment(toy(), tmp_path)
    assert len(calls) == len(units) + 1


def command(workdir):
    return [
        sys.executable,
        "-m",
        "experiments.lottery",
        "--config=experiments/configs/lottery_digits.py",
        f"--workdir={workdir}",
        *(f"--config.{field}={value}" for field, value in TOY.items()),
    ]


ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def test_a_killed_command_is_gone_on_with_to_the_same_bits(finished, tmp_path):
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("parts/rewind_0_1.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    before = parts_of(tmp_path)
    assert 2 <= len(before) < len(parts_of(finished[0]))
    run_experiment(toy(), tmp_path)
    assert parts_of(tmp_path) == parts_of(finished[0])
    assert states_of(tmp_path) == states_of(finished[0])


def test_another_study_is_refused(finished):
    with pytest.raises(ValueError, match=r"weight_decay was 0\.002 and is 0\.5; use"):
        run_experiment(toy(weight_decay=0.5), finished[0])


def test_what_a_study_records(finished):
    content, records = records_of(finished[0])
    expected = [("dense", 0)]
    for number in range(1, ROUNDS + 1):
        expected += [(form, number) for form in FORMS]
        if number in (1, ROUNDS):
            expected += [(form, number) for form in SINGLE]
    assert [(r.form, r.round) for r in records[::2]] == expected
    assert [r.seed for r in records] == [0, 3] * len(expected)
    for record in records:
        assert record.active == ([SIZE, *COUNTS][record.round])
        assert record.prunable == SIZE and 0 <= record.accuracy <= 1
        asked = {0: 0.0, 1: 0.5, ROUNDS: 0.9}.get(record.round)
        assert record.sparsity == asked
    assert content["wall_seconds"] > 0 and content["config"]["fraction"] == 0.6
    epochs = {form: list(epochs_of(form, toy())) for form in (*FORMS, *SINGLE)}
    assert epochs["rewind_1"] == [1] and epochs["random_weights"] == [0, 1]
    assert epochs["fine_tuning"] == epochs["one_shot"] == [2]


def train(bench, states, epochs):
    rates = np.append(
        bench.problem.learning_rates,
        np.full(bench.problem.epoch_steps, bench.problem.learning_rates[-1]),
    )
    seeds, size = np.int32([0, 3]), bench.problem.epoch_steps
    for epoch in epochs:
        of_epoch = rates[epoch * size : (epoch + 1) * size]
        states = bench.programs.train_epoch(states, seeds, epoch, of_epoch)
    return jax.device_get(states)


def assert_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("form", "start", "epochs"),
    [
        ("rewind_0", ("dense", 0), [0, 1]),
        ("rewind_1", ("dense", 1), [1]),
        ("learning_rate", None, [0, 1]),
        ("fine_tuning", None, [2]),
    ],
)
def test_a_round_is_what_its_form_says(finished, bench, form, start, epochs):
    """The networks of the second round, made by hand with NumPy from the first's."""
    saved = finished[1]
    trained = saved[form, 1]
    source = trained if start is None else saved[start]
    magnitude = _prunable(trained.params, trained)
    keep = COUNTS[1]
    for seed in range(2):
        joined = np.concatenate([abs(leaf[seed]).ravel() for leaf in magnitude])
        threshold = np.sort(joined)[-keep]
        after = saved[form, 2]
        for leaf, mask in zip(magnitude, _masks(after)):
            np.testing.assert_array_equal(mask[seed], abs(leaf[seed]) >= threshold)
    masks = sj.get_masks(saved[form, 2].opt_state)
    begin = bench.programs.with_topology(source, masks, masks)
    assert_equal(train(bench, begin, epochs), saved[form, 2])


def _masks(states):
    return jax.tree.leaves(sj.get_masks(states.opt_state))


def _prunable(params, states):
    """The leaves of parameters that have a mask."""
    masks = sj.get_masks(states.opt_state)
    pairs = zip(jax.tree.leaves(masks, is_leaf=is_left_dense), jax.tree.leaves(params))
    return [leaf for mask, leaf in pairs if not is_left_dense(mask)]


def test_controls_have_new_weights_or_shuffled_masks(finished, bench, tmp_path):
    """They start from what the ticket rewound to epoch 0 has at the same sparsity."""
    saved = finished[1]
    store = Store(tmp_path, toy())
    store.save("rewind_0", 3, saved["rewind_0", 3])
    store.save("dense", 0, saved["dense", 0])
    seeds = np.int32(toy().seeds)
    tools = study._Bench(
        toy(), store, bench.problem, bench.programs, None, seeds, bench.like
    )
    ticket = saved["rewind_0", 3]
    units = {unit.form: unit for unit in plan_units(toy(), SIZE) if unit.round == 3}
    new = jax.device_get(study._start(tools, units["random_weights"]))
    shuffled = jax.device_get(study._start(tools, units["shuffled_masks"]))
    for mask, other in zip(_masks(ticket), _masks(shuffled)):
        axes = tuple(range(1, mask.ndim))
        np.testing.assert_array_equal(mask.sum(axes), other.sum(axes))
        assert all((mask[i] != other[i]).any() for i in range(2))
        assert (other[0] != other[1]).any()
    assert_equal(_masks(new), _masks(ticket))
    old = _prunable(saved["dense", 0].params, ticket)
    for first, again, fresh, mask, other in zip(
        old,
        _prunable(shuffled.params, ticket),
        _prunable(new.params, ticket),
        _masks(new),
        _masks(shuffled),
    ):
        np.testing.assert_array_equal(again, np.where(other, first, 0))
        assert (fresh[~mask] == 0).all() and (fresh[mask] != first[mask]).all()


def test_one_shot_prunes_the_dense_network_once(finished, bench):
    """Its accuracy is that of the dense network, cut and trained by hand."""
    dense = finished[1]["dense", 2]
    masks = sj.dense_masks(jax.tree.map(lambda leaf: leaf[0], dense.params))
    kept = jax.vmap(lambda p: sj.prune_magnitude(p, masks, keep=COUNTS[-1]))(
        dense.params
    )
    start = bench.programs.with_topology(dense, kept, kept)
    accuracies = bench.programs.accuracy(train(bench, start, [2]))
    _, records = records_of(finished[0])
    chosen = [r for r in records if (r.form, r.round) == ("one_shot", ROUNDS)]
    assert [r.accuracy for r in chosen] == accuracies.tolist()


def test_the_results_are_means_and_paired_differences(finished):
    content, records = records_of(finished[0])
    rows = {(row.form, row.sparsity): row for row in summarise(records)}
    assert len(content["summary"]) == len(rows) == 1 + 2 * len((*FORMS, *SINGLE))
    value = {(r.form, r.sparsity, r.seed): 100 * r.accuracy for r in records}
    for (form, sparsity), row in rows.items():
        values = [value[form, sparsity, seed] for seed in (0, 3)]
        np.testing.assert_allclose(row.accuracy, sj.mean_with_interval(values))
        if form in ("dense", "rewind_0"):
            assert row.difference is None
            continue
        base = [value["rewind_0", sparsity, seed] for seed in (0, 3)]
        expected = sj.mean_with_interval(np.subtract(values, base))
        np.testing.assert_allclose(row.difference, expected)
    # The dense run has 2 epochs, and round 3 comes after two others.
    total = {form: rows[form, 0.9].total_epochs for form in (*FORMS, *SINGLE)}
    assert total == {
        "rewind_0": 2 + 3 * 2,
        "rewind_1": 2 + 3 * 1,
        "learning_rate": 2 + 3 * 2,
        "fine_tuning": 2 + 3 * 1,
        "random_weights": 2 + 2 * 2 + 2,
        "shuffled_masks": 2 + 2 * 2 + 2,
        "one_shot": 2 + 1,
    }
    estimate = rows["one_shot", 0.9].difference
    text = (finished[0] / "results.md").read_text()
    assert f"{estimate.mean:+.1f} ± {estimate.half_width:.1f}" in text
    assert (finished[0] / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("seeds", (1, 1)),
        ("seeds", (1, 2**30)),
        ("fine_tuning_epochs", 0),
        ("rewind_epochs", (1, 6)),
        ("rewind_epochs", (0, 12)),
        ("rewind_epochs", (0, 0)),
        ("sparsities", ()),
        ("sparsities", (0.9, 0.8)),
        ("sparsities", (0.9, 1.0)),
        ("fraction", 0.0),
    ],
)
def test_config_is_checked(field, value):
    config = lottery_digits.get_config()
    check_config(config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        check_config(config)
