"""Pruning after training on images, in rounds that are runs of their own."""

import jax
import numpy as np
import pytest
from image_sets import write_digits

pytest.importorskip("grain", reason="of the experiments extra")

import tiny

import sparsejax as sj
from experiments import rounds, train
from experiments.record import read_metrics
from experiments.rounds import train_rounds

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    dataset = write_digits(tmp_path_factory.mktemp("digits") / "digits.npz")

    def make(method, sparsity=0.5, **changes):
        config = tiny.get_config(f"method={method},sparsity={sparsity}")
        config.update({"dataset": dataset, "epochs": 2, "parallel": "jit"} | changes)
        config.update({"round_fraction": 0.3, "log_every_steps": 10})
        return config

    return make


@pytest.fixture
def ends(monkeypatch):
    """The first and the last state of each round, without a report."""
    states = []

    def train_one(config, workdir, *, start=None, **options):
        def recorded(run):
            states.append(jax.device_get(start(run)))
            return states[-1]

        wrapped = {"start": recorded} if start else {}
        outcome = train.train_and_evaluate(config, workdir, **wrapped, **options)
        states.append(jax.device_get(outcome.state))
        return outcome

    monkeypatch.setattr(rounds, "train_and_evaluate", train_one)
    monkeypatch.setattr("experiments.report.write_report", lambda workdir: None)
    return states


def masks_of(state):
    return sj.get_masks(state.opt_state)


def test_a_lottery_ticket_goes_back_to_the_weights_of_an_early_epoch(
    configured, ends, tmp_path
):
    config = configured("lottery")
    outcome = train_rounds(config, tmp_path)
    dense, first, trained, second, last = ends
    assert [int(s.step) for s in (first, second, last)] == [10, 10, 20]
    prunable = sj.count_prunable(masks_of(first))
    counts = sj.lottery_counts(prunable, [0.5], 0.3)
    assert [sj.count_active(masks_of(s)) for s in (first, second)] == counts
    # The same early weights in both rounds, and not the trained ones.
    early, again, end = (s.params["conv_1"]["kernel"] for s in (first, second, trained))
    kept = again != 0
    np.testing.assert_array_equal(early[kept], again[kept])
    assert not np.allclose(end[kept], again[kept])
    # What the first round took away is the smallest of the dense network.
    for path in ("stem", "conv_1"):
        weights, mask = dense.params[path]["kernel"], masks_of(first)[path]["kernel"]
        assert np.abs(weights[~mask]).max() <= np.abs(weights[mask]).min()
    weights = sj.apply_masks(last.params, masks_of(last))
    jax.tree.map(np.testing.assert_array_equal, last.params, weights)
    lines = read_metrics(tmp_path / "round_2")
    assert lines[0]["step"] == 0 and lines[1]["step"] > 10
    assert lines[-1]["accuracy"] == outcome.test_accuracy
    again = train_rounds(config, tmp_path)  # all is done
    assert again.test_accuracy == outcome.test_accuracy


def test_fine_tuning_trains_on_at_the_end_of_the_schedule(configured, ends, tmp_path):
    train_rounds(configured("one_shot"), tmp_path)
    dense, start, last = ends
    assert int(start.step) == 15 and int(last.step) == 20
    weights = sj.apply_masks(dense.params, masks_of(start))
    jax.tree.map(np.testing.assert_array_equal, start.params, weights)
    lines = read_metrics(tmp_path / "round_1")
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert max(rates) == pytest.approx(0.05 * 0.01)


def test_what_does_not_fit_is_refused(configured, tmp_path):
    config = configured("lottery", evaluate_every_epochs=2)
    with pytest.raises(ValueError, match="rewind_epochs must be a multiple of evalu"):
        train_rounds(config, tmp_path)
    with pytest.raises(ValueError, match="got 'lottery', which is trained in rounds"):
        train.train_and_evaluate(config, tmp_path)
