"""The study of lottery tickets, end to end at toy size: its forms, and its resuming."""

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments import lottery, study
from experiments.configs import lottery_digits
from experiments.dense_runs import Runs
from experiments.files import save_state
from experiments.lottery import STUDY, all_rounds, epochs_of
from sparsejax.trees import is_left_dense

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE = 64 * 16 + 16 * 8 + 8 * 10
COUNTS = sj.lottery_counts(SIZE, (0.5, 0.9), 0.6)
ROUNDS = len(COUNTS)
FORMS = ("rewind_0", "rewind_1", "learning_rate", "fine_tuning")
SINGLE = ("random_weights", "shuffled_masks", "one_shot")


def toy(**changes):
    config = lottery_digits.get_config()
    fields = {
        "model": "digits_mlp",
        "model_options": {"widths": (16, 8)},
        "seeds": (0, 3),
        "epochs": 2,
        "batch_size": 128,
        "validation_examples": 1181,  # which leaves two batches
        "rewind_epochs": (0, 1),
        "fine_tuning_epochs": 1,
        "fraction": 0.6,
        "sparsities": (0.5, 0.9),
    }
    config.update(fields | changes)
    return config


@pytest.fixture(scope="module")
def runs(quick_compilation):
    """Networks of all studies of this module, which share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        made = Runs(toy())
        patch.setattr(lottery, "Runs", lambda config: made)
        yield made


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory):
    """A study that nothing has stopped, and the states it saved."""
    workdir, saved = tmp_path_factory.mktemp("whole"), {}

    def record_too(path, states):
        saved[path.name] = jax.device_get(states)
        save_state(path, states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lottery, "save_state", record_too)
        study.run(STUDY, toy(), workdir)
    return workdir, saved


def frame_of(workdir):
    return study.frame_of(json.loads((workdir / "results.json").read_text()))


def states_of(workdir):
    return {file.name: file.read_bytes() for file in (workdir / "states").iterdir()}


def test_a_stopped_study_goes_on_to_the_same_bits(
    finished, runs, tmp_path, monkeypatch
):
    """Stopped in a round, and once between a round's state and its part."""
    write, parts, steps = study.write_atomically, [], []

    def stop_before_a_part(path, content):
        if path.parent.name == "parts":
            parts.append(path.stem)
            if len(parts) == 4:
                raise KeyboardInterrupt  # the state is there, the part is not
        write(path, content)

    def train(*args):
        steps.append(args)
        if len(steps) in (4, 20):
            raise KeyboardInterrupt
        return Runs.train(runs, *args)

    monkeypatch.setattr(study, "write_atomically", stop_before_a_part)
    monkeypatch.setattr(runs, "train", train)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            study.run(STUDY, toy(), tmp_path)
        assert not (tmp_path / "results.json").exists()
    study.run(STUDY, toy(), tmp_path)
    names = [f"{unit.form}_{unit.number}" for unit in all_rounds(toy(), SIZE)]
    assert parts == [*names[:4], *names[3:]]  # one was done twice, all others once
    pd.testing.assert_frame_equal(frame_of(tmp_path), frame_of(finished[0]))
    assert states_of(tmp_path) == states_of(finished[0])
    study.run(STUDY, toy(), tmp_path)
    assert len(parts) == len(names) + 1


def test_states_are_kept_while_a_round_may_need_them(finished):
    kept = {f"dense_{epoch}" for epoch in (0, 1, 2)}
    kept |= {f"{form}_{n}" for form in FORMS for n in (ROUNDS - 1, ROUNDS)}
    assert states_of(finished[0]).keys() == kept


def test_another_study_is_refused(finished):
    with pytest.raises(ValueError, match=r"weight_decay was 0\.002 and is 0\.5; use"):
        study.run(STUDY, toy(weight_decay=0.5), finished[0])


def test_what_a_study_records(finished):
    frame = frame_of(finished[0])
    expected = [("dense", 0)]
    for number in range(1, ROUNDS + 1):
        expected += [(form, number) for form in FORMS]
        if number in (1, ROUNDS):
            expected += [(form, number) for form in SINGLE]
    assert list(zip(frame.form, frame["round"]))[::2] == expected
    assert list(frame.seed) == [0, 3] * len(expected)
    assert list(frame.active) == [[SIZE, *COUNTS][number] for number in frame["round"]]
    asked = frame["round"].map({0: 0.0, 1: 0.5, ROUNDS: 0.9})
    pd.testing.assert_series_equal(frame.sparsity, asked, check_names=False)
    assert set(frame.prunable) == {SIZE} and frame.accuracy.between(0, 1).all()
    epochs = {form: list(epochs_of(form, toy())) for form in (*FORMS, *SINGLE)}
    assert epochs["rewind_1"] == [1] and epochs["random_weights"] == [0, 1]
    assert epochs["fine_tuning"] == epochs["one_shot"] == [2]


def train(runs, states, epochs):
    for epoch in epochs:
        states = Runs.train(runs, states, epoch)
    return jax.device_get(states)


def assert_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def _masks(states):
    return jax.tree.leaves(sj.get_masks(states.opt_state))


def _prunable(states):
    """The parameters that have a mask."""
    masks = sj.get_masks(states.opt_state)
    pairs = zip(
        jax.tree.leaves(masks, is_leaf=is_left_dense), jax.tree.leaves(states.params)
    )
    return [leaf for mask, leaf in pairs if not is_left_dense(mask)]


def test_fine_tuning_is_at_the_last_learning_rate(runs):
    last = runs.learning_rates[-1]
    np.testing.assert_array_equal(runs.rates(2), np.full(runs.epoch_steps, last))


@pytest.mark.parametrize(
    ("form", "start", "epochs"),
    [
        ("rewind_0", "dense_0", [0, 1]),
        ("rewind_1", "dense_1", [1]),
        ("learning_rate", None, [0, 1]),
        ("fine_tuning", None, [2]),
    ],
)
def test_a_round_is_what_its_form_says(finished, runs, form, start, epochs):
    """The networks of the second round, made by hand with NumPy from the first's."""
    saved = finished[1]
    trained, after = saved[f"{form}_1"], saved[f"{form}_2"]
    for seed in range(2):
        magnitude = [abs(leaf[seed]) for leaf in _prunable(trained)]
        joined = np.concatenate([leaf.ravel() for leaf in magnitude])
        threshold = np.sort(joined)[-COUNTS[1]]
        for leaf, mask in zip(magnitude, _masks(after)):
            np.testing.assert_array_equal(mask[seed], leaf >= threshold)
    masks = sj.get_masks(after.opt_state)
    begin = runs.with_masks(saved[start] if start else trained, masks, masks)
    assert_equal(train(runs, begin, epochs), after)


def test_controls_have_new_weights_or_shuffled_masks(finished, runs, tmp_path):
    """They start from what the ticket rewound to epoch 0 has at the same sparsity."""
    saved = finished[1]
    bench = lottery._Bench(toy(), tmp_path)
    ticket = saved["rewind_0_3"]
    bench.save("rewind_0", 3, ticket)
    bench.save("dense", 0, saved["dense_0"])
    units = {unit.form: unit for unit in all_rounds(toy(), SIZE) if unit.number == 3}
    new = jax.device_get(bench.start(units["random_weights"]))
    shuffled = jax.device_get(bench.start(units["shuffled_masks"]))
    for mask, other in zip(_masks(ticket), _masks(shuffled)):
        axes = tuple(range(1, mask.ndim))
        np.testing.assert_array_equal(mask.sum(axes), other.sum(axes))
        assert all((mask[i] != other[i]).any() for i in range(2))
        assert (other[0] != other[1]).any()
    assert_equal(_masks(new), _masks(ticket))
    weights = map(_prunable, (saved["dense_0"], shuffled, new))
    for first, again, fresh, mask, other in zip(
        *weights, _masks(new), _masks(shuffled)
    ):
        np.testing.assert_array_equal(again, np.where(other, first, 0))
        assert (fresh[~mask] == 0).all() and (fresh[mask] != first[mask]).all()


def test_one_shot_prunes_the_dense_network_once(finished, runs):
    """Its accuracy is that of the dense network, cut and trained by hand."""
    dense = finished[1]["dense_2"]
    masks = sj.get_masks(dense.opt_state)
    prune = lambda params, masks: sj.prune_magnitude(params, masks, keep=COUNTS[-1])
    kept = jax.vmap(prune)(dense.params, masks)
    accuracies = runs.accuracy(train(runs, runs.with_masks(dense, kept, kept), [2]))
    frame = frame_of(finished[0])
    chosen = frame[(frame.form == "one_shot") & (frame["round"] == ROUNDS)]
    assert list(chosen.accuracy) == accuracies.tolist()


def test_tables_are_means_and_paired_differences(finished):
    frame = frame_of(finished[0])
    cells = frame.set_index(["form", "sparsity", "seed"])["accuracy"]
    text = (finished[0] / "results.md").read_text()
    for form in ("rewind_1", "one_shot"):
        percent = {
            name: [100 * cells[name, 0.9, seed] for seed in (0, 3)]
            for name in (form, "rewind_0")
        }
        mean = sj.mean_with_interval(percent[form])
        assert f"{mean.mean:.1f} ± {mean.half_width:.1f}" in text
        gain = sj.mean_with_interval(np.subtract(*percent.values()))
        assert f"{gain.mean:+.1f} ± {gain.half_width:.1f}" in text
    # The dense run has 2 epochs, and round 3 comes after two others.
    total = lottery.total_epochs(frame)
    assert total["dense", 0.0] == 2
    assert {form: total[form, 0.9] for form in (*FORMS, *SINGLE)} == {
        "rewind_0": 2 + 3 * 2,
        "rewind_1": 2 + 3 * 1,
        "learning_rate": 2 + 3 * 2,
        "fine_tuning": 2 + 3 * 1,
        "random_weights": 2 + 2 * 2 + 2,
        "shuffled_masks": 2 + 2 * 2 + 2,
        "one_shot": 2 + 1,
    }
    assert (finished[0] / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_committed_records_is_made_of_them():
    content = json.loads((ROOT / "results/lottery/digits.json").read_text())
    text = lottery.report(study.frame_of(content), ConfigDict(content["config"]))
    assert text.strip() in (ROOT / "results/lottery/README.md").read_text()


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
    study.check_config(STUDY, config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(STUDY, config)
