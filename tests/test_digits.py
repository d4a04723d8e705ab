"""The digits comparison, end to end and piece by piece."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import digits, fit, study
from experiments.configs import digits_before_during_after, digits_deep_before_training
from experiments.configs.digits import get_config
from experiments.digits import FORMS, STUDY, Best, better
from experiments.digits_data import load, load_split
from experiments.methods import (
    METHODS,
    class_balanced_batch,
    finds_masks,
    first_sparsity,
    names,
    sparse_optimizer,
)
from experiments.models.layers import matmul_conv

ROOT = Path(__file__).parent.parent
SPARSITIES, SEEDS = (0.8, 0.9), (0, 3)
SMALL = {
    "model": "digits_mlp",
    "epochs": 2,
    "batch_size": 128,
    "update_interval_steps": 3,
    "initialization_rounds": 2,
    "drive_dense_epochs": 2,
    "round_fraction": 0.5,
    "sparsities": SPARSITIES,
    "seeds": SEEDS,
    "methods": ("dense", "static", "snip", "set", "srigl", "gmp", "lottery"),
    "compared_with": ("static",),
}
PRUNABLE, WIDTHS = 64 * 24 + 24 * 10, (24,)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def small_config(**changes):
    config = get_config()
    config.update(SMALL | changes)
    config.model_options.widths = WIDTHS
    return config


def frame_in(workdir):
    content = json.loads((workdir / "results.json").read_text())
    return study.frame_of(content), content


@pytest.fixture(scope="module")
def compared(tmp_path_factory, quick_compilation):
    """A small comparison of methods of each kind: its folder, records and report."""
    workdir = tmp_path_factory.mktemp("compared")
    text = study.run(STUDY, small_config(), workdir)
    return workdir, frame_in(workdir)[0], text


def test_writes_every_result(compared):
    workdir, frame, text = compared
    _, content = frame_in(workdir)
    assert tuple(frame["method"].unique()) == SMALL["methods"]
    assert content["config"]["seeds"] == list(SEEDS)
    assert content["environment"]["jax"] == jax.__version__
    for name in ("accuracy.png", "density.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert (workdir / "results.md").read_text() == text
    for name, own in frame.groupby("method"):
        row = re.search(rf"^\| {re.escape(METHODS[name].label)} .*", text, re.MULTILINE)
        mean = 100 * own["test_accuracy"].iloc[:2].mean()
        assert f"| {mean:.1f} ± " in row[0]


def test_sparsity_is_exact_for_every_method(compared):
    for name, own in compared[1].groupby("method"):
        wanted = [(s, i) for s in SPARSITIES for i in SEEDS]
        if name == "dense":
            wanted = [(0.0, i) for i in SEEDS]
        assert list(zip(own["sparsity"], own["seed"])) == wanted
        kept = [round((1 - s) * PRUNABLE) for s, _ in wanted]
        assert (own["prunable"] == PRUNABLE).all()
        if name == "srigl":  # whole neurons may be gone
            assert (own["active"] <= kept).all() and (own["active"] > 0).all()
        else:
            assert own["active"].tolist() == kept
        # Weights that have grown and had no gradient since are 0 as well.
        assert (0.5 * own["active"] < own["nonzero"]).all()
        assert (own["nonzero"] <= own["active"]).all()
        if name not in ("set", "srigl"):
            assert own["nonzero"].tolist() == own["active"].tolist()
        np.testing.assert_array_equal(
            own["realized_sparsity"], 1 - own["nonzero"] / PRUNABLE
        )


def test_density_history_starts_and_ends_where_the_method_does(compared):
    frame = compared[1]
    for _, first in frame[frame["seed"] == SEEDS[0]].iterrows():
        name, sparsity = first["method"], first["sparsity"]
        start = first_sparsity(name, sparsity, get_config())
        start = sparsity if start is None else 0.0 if name == "lottery" else start
        density, layers = first["density"], first["layer_densities"]
        if name != "srigl":
            assert density[0] == pytest.approx(1 - start, abs=1e-3)
            assert density[-1] == pytest.approx(1 - sparsity, abs=1e-3)
        assert len(layers) == 2
        assert {len(each) for each in layers.values()} == {len(density)}
        assert len(density) == len(first["density_epochs"])
    assert frame[frame["seed"] == SEEDS[1]]["density"].isna().all()


def test_accuracies_and_flops_of_a_comparison(compared):
    frame = compared[1].set_index(["method", "sparsity", "seed"])
    dense = frame.loc["dense"]
    assert (dense["test_accuracy"] > 0.6).all()
    assert (dense[["training_flops", "inference_flops"]] == 1).all(axis=None)
    static, gmp = (frame.loc[name] for name in ("static", "gmp"))
    np.testing.assert_allclose(static["training_flops"], static["inference_flops"])
    assert (gmp["training_flops"] > gmp["inference_flops"]).all()
    for _, own in frame.iterrows():
        assert own["validation_accuracy"] == own["validation_history"][-1]
        assert own["best_epoch"] in (0, 1, 2)
    # At the end of the first epoch GMP is not yet at its sparsity.
    assert set(gmp["best_epoch"]) == {2}


@pytest.mark.parametrize("name", sorted(set(names("during")) - set(SMALL["methods"])))
def test_other_methods_reach_their_sparsity_on_one_axis(name):
    """With the sparsity traced, but for Top-KAST."""
    config, pairs = small_config(), list(zip(SPARSITIES, SEEDS))
    for record in digits.train_method(name, load(config), config, pairs):
        kept = round((1 - record["sparsity"]) * PRUNABLE)
        by_layer = name in ("gmp_layer", "granet_uniform")
        assert abs(record["active"] - kept) <= by_layer
        assert 0.5 * kept < record["nonzero"] <= record["active"]
        start = first_sparsity(name, record["sparsity"], config)
        start = record["sparsity"] if start is None else start
        assert record["density"][0] == pytest.approx(1 - start, abs=1e-3)


def test_a_method_can_have_an_interval_of_its_own():
    config = get_config()
    config.update_intervals.update({"rigl": 3, "granet": 5})

    def interval(name):
        options = {"sparsity": 0.9, "seed": 0}
        tx = sparse_optimizer(name, optax.sgd(0.1), config, 1000, **options)
        first, second = np.flatnonzero(tx.is_update_step(np.arange(1000)))[:2]
        return second - first

    found = {name: interval(name) for name in ("set", "rigl", "granet", "granet_st")}
    assert found == {"set": 28, "rigl": 3, "granet": 5, "granet_st": 5}


def test_pruned_after_training_costs_all_its_epochs(compared):
    frame = compared[1]
    lottery = frame[frame["method"] == "lottery"]
    assert lottery["training_epochs"].tolist() == [6, 6, 8, 8]
    # The dense run costs 1, and each round what its density does.
    assert lottery["training_flops"].between(1, 2).all()
    histories = lottery[lottery["density"].notna()]
    assert histories["density_epochs"].tolist() == [
        [0, 2, 2, 4, 4, 6],
        [0, 2, 2, 4, 4, 6, 6, 8],
    ]
    assert histories["density"].map(lambda each: each[:2]).tolist() == [[1, 1]] * 2


def test_pruned_before_training_is_trained_under_its_masks(compared):
    own = compared[1].set_index("method").loc["snip"].iloc[0]
    config, pair = small_config(), (SPARSITIES[0], SEEDS[0])
    data, model = load(config), digits.make_network(config)
    params = fit.first_params(model, pair[1], data.train.images)
    other = fit.first_params(model, SEEDS[1], data.train.images)
    pairs = [pair, (pair[0], SEEDS[1])]
    masks = digits.find_masks("snip", model, [params, other], pairs, data.train, config)
    for path in own["layer_densities"]:
        mean = np.mean([float(sj.layer_densities(each)[path]) for each in masks])
        np.testing.assert_allclose(own["layer_densities"][path], mean, atol=1e-6)


def test_the_command_repeats_a_method_and_refuses_a_folder(compared, tmp_path):
    def start(workdir):
        fields = SMALL | {"methods": ("static",), "learning_rate": 0.1}
        fields["model_options.widths"] = WIDTHS
        command = [sys.executable, "-m", "experiments.digits", f"--workdir={workdir}"]
        command += ["--config=experiments/configs/digits_deep_before_training.py"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        environment = os.environ | quick
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    (tmp_path / "file").write_text("")
    printed, errors = (process := start(tmp_path / "file")).communicate()
    assert process.returncode == 2 and printed == "" and errors.count("\n") == 1
    printed, errors = (process := start(tmp_path / "run")).communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "results.md").read_text() in printed
    again, before = frame_in(tmp_path / "run")[0], compared[1]
    before = before[before["method"] == "static"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, before)


def test_a_comparison_goes_on_where_it_stopped(compared, monkeypatch):
    workdir, _, text = compared
    monkeypatch.setattr(digits, "train_method", lambda *_: pytest.fail("is trained"))
    assert study.run(STUDY, small_config(), workdir) == text
    fewer = small_config(methods=("set", "static"))
    assert "| SNIP" not in study.run(STUDY, fewer, workdir)
    with pytest.raises(ValueError, match=r"learning_rate was 0.1 and is 0.5"):
        study.run(STUDY, small_config(learning_rate=0.5), workdir)


def test_topology_updates_stay_behind_a_branch():
    """A batched step counter would make the transform compute them at every step."""
    config = small_config()
    data = load(config)
    trainer = digits.Trainer("rigl", data, config)
    each = []
    for seed in SEEDS:
        params = fit.first_params(trainer.model, seed, data.train.images)
        masks = sj.dense_masks(params)
        each.append((digits.Own(jnp.int32(seed), jnp.float32(0.9), masks), params))
    own, params = fit.stack(each)
    state = trainer.start(own, params)
    assert state.opt_state.step.shape == ()
    order = fit.batch_order(SEEDS, 0, 128, 64)
    jaxpr = str(jax.make_jaxpr(trainer.steps)(own, state, order, tuple(data.train)))
    # One for the update and the look at weights outside the masks.
    assert jaxpr.count("cond[") == 1


def test_order_visits_an_example_once_and_differs_by_seed_and_epoch():
    order = fit.batch_order((0, 1), 0, 10, 3)
    assert order.shape == (2, 3, 3)
    assert all(len(set(each.ravel())) == 9 for each in order)
    assert (order[0] != order[1]).any()
    assert (order != fit.batch_order((0, 1), 1, 10, 3)).any()
    np.testing.assert_array_equal(order[1:], fit.batch_order((1,), 0, 10, 3))


def test_the_best_epoch_is_one_at_full_sparsity():
    best = Best(np.full(3, -1.0), np.zeros(3, int), np.full(3, np.nan))
    for epoch, (validation, counts, test) in enumerate(
        [
            ([0.9, 0.5, 0.7], [False, True, False], [0.1, 0.2, 0.3]),
            ([0.8, 0.5, 0.6], [True, True, False], [0.4, 0.5, 0.6]),
        ],
        start=1,
    ):
        best = better(
            best, epoch, np.array(validation), np.array(counts), lambda t=test: t
        )
    counts = np.array([True, True, False])
    # Nobody is better: the test set is not even looked at.
    assert better(best, 3, np.array([0.7, 0.5, 0.9]), counts, None) is best
    assert best.epoch.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(best.test, [0.4, 0.2, np.nan])


def test_split_is_disjoint_stratified_and_repeatable():
    split = load_split(0.2, 0.3, 7)
    assert [len(part.labels) for part in split] == [899, 359, 539]
    everything = np.concatenate([part.images for part in split]).reshape(1797, -1)
    assert len(np.unique(everything, axis=0)) == 1797
    for part in split:
        share = np.bincount(part.labels) / len(part.labels)
        assert np.ptp(share) < 0.02
    for part, again in zip(split, load_split(0.2, 0.3, 7)):
        np.testing.assert_array_equal(part.images, again.images)
    assert (split.test.images != load_split(0.2, 0.3, 8).test.images).any()


# No padding wider than the window: there XLA's gradient on CPUs holds garbage.
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((3, 3), (1, 1), "SAME"),
        ((3, 3), (2, 2), "VALID"),
        ((3, 3), (1, 3), ((1, 0), (0, 1))),
        ((2, 2), (2, 2), "SAME"),
        ((2, 2), (1, 1), ((1, 0), (0, 1))),
        ((2, 2), (1, 3), "VALID"),
        ((1, 2), (1, 3), "SAME"),
        ((1, 2), (1, 1), "VALID"),
        ((1, 2), (2, 2), ((1, 0), (0, 1))),
    ],
)
def test_matmul_conv_equals_the_convolution(window, strides, padding):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, 7, 8, 3))
    kernel = jax.random.normal(keys[1], (*window, 3, 4))
    layout = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def both(images, kernel):
        expected, back = jax.vjp(
            lambda *args: jax.lax.conv_general_dilated(
                *args, strides, padding, dimension_numbers=layout
            ),
            images,
            kernel,
        )
        got, back_too = jax.vjp(
            lambda *args: matmul_conv(*args, strides, padding), images, kernel
        )
        cotangent = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)
        return (got, *back_too(cotangent)), (expected, *back(cotangent))

    for mine, theirs in zip(*both(images, kernel)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_matmul_conv_refuses_what_it_does_not_do():
    images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 1, 2))
    with pytest.raises(ValueError, match="feature_group_count=2"):
        matmul_conv(images, kernel, (1, 1), "SAME", feature_group_count=2)


# --- Tables and figures ---------------------------------------------------------------


def some_records(*names, epochs=20):
    """The dense network, and other methods with more empty layers from seed to seed."""

    def record(name, sparsity, seed, test, length, empty=0):
        histories = {
            "density_epochs": [0, 1],
            "density": [1, 0.2],
            "layer_densities": {"a": [1, 0.1]},
        }
        return {
            "method": name,
            "sparsity": sparsity,
            "seed": seed,
            "test_accuracy": test,
            "realized_sparsity": sparsity,
            "training_epochs": length,
            "empty_layers": empty,
            **(histories if seed == 0 else dict.fromkeys(histories)),
        }

    # No error at all, where its logarithm has no value.
    rows = [record("dense", 0.0, seed, 1.0, 20) for seed in (0, 1)]
    for place, name in enumerate(names):
        for (s, length), i in itertools.product(((0.9, 20), (0.95, epochs)), (0, 1)):
            test = s - 0.1 * i - 0.05 * (i + place) * place
            rows.append(record(name, s, i, test, length, 3 * i))
    return pd.DataFrame(rows)


def test_table():
    # Of two seeds Student's t is 12.7.
    assert digits.accuracy_table(some_records("set")) == (
        "| Method | 0 % sparse         | 90 % sparse         | 95 % sparse         |\n"
        "|--------|--------------------|---------------------|---------------------|\n"
        "| Dense  | 100.0 ± 0.0 (0.00) |                     |                     |\n"
        "| SET    |                    | 85.0 ± 63.5 (90.00) | 90.0 ± 63.5 (95.00) |"
    )
    assert digits.epochs_table(some_records("set")) == ""


def test_table_of_methods_that_take_longer():
    frame = some_records("lottery", epochs=60)
    lines = digits.accuracy_table(frame).splitlines()[2:]
    assert [line.split(" | ")[1].strip() for line in lines] == ["20", "20 to 60"]
    assert digits.epochs_table(frame).splitlines()[2:] == [
        "| Lottery ticket | 20   | 60   |"
    ]


def test_table_of_differences():
    text = digits.difference_table(some_records("set", "rigl"), "set")
    # Seed by seed 5 and 10 points below.
    assert text.splitlines()[2:] == ["| RigL      | -7.5 ± 31.8 | -7.5 ± 31.8 |"]


def test_table_of_failures():
    text = digits.failures_table(some_records("set"))
    assert [line.split() for line in text.replace("|", "").splitlines()[2:]] == [
        ["SET", f"{s}", *["%", "0", "of", "2", "1", "of", "2", "1.5"]] for s in (90, 95)
    ]
    assert digits.failures_table(some_records()) == ""


def test_figures_of_any_results(tmp_path):
    of_all_kinds = some_records("static", "snip", "set", "lottery", epochs=40)
    assert digits.panels(of_all_kinds) == {
        "Before training: 20 to 40 epochs": ["static", "snip"],
        "During training: 20 to 40 epochs": ["set"],
        "After training: 20 to 40 epochs": ["lottery"],
    }
    sets = some_records("set")
    file, config = tmp_path / "figure.png", get_config()
    for frame, plot in (
        (of_all_kinds, digits.plot_accuracy),
        (sets, digits.plot_accuracy),
        (sets[sets["method"] == "set"], digits.plot_accuracy),
        (sets[sets["method"] == "dense"], digits.plot_accuracy),
        (sets, digits.plot_density),
    ):
        plot(file, frame, config)
        assert file.read_bytes().startswith(b"\x89PNG")
        file.unlink()


# --- Configurations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("methods", ("dense", "unknown")),
        ("methods", ()),
        ("sparsities", (0.9, 1.0)),
        ("sparsities", (0.9, 0.900001)),
        ("compared_with", ("snip",)),
        ("round_fraction", 1.0),
        ("fine_tuning_factor", 0.0),
        ("seeds", (1,)),
        ("seeds", (1, 1)),
        ("model", "unknown"),
        ("model_options", {"depth": 3}),
        ("model_options.widths", (64,)),
        ("split_seed", -1),
        ("test_share", 0.0),
        ("epochs", 0),
        ("batch_size", 2000),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("update_interval_steps", 10_000),
        ("update_intervals.rigl", 0),
        ("initialization_rounds", 0),
        ("grasp_images_per_class", 0),
        ("drive_dense_epochs", 0),
        ("pruning_share", 1.0),
        ("distribution", "random"),
        ("granet_st_initial_sparsity", 0.95),
        ("prune_rate.rigl", 0.0),
    ],
)
def test_config_is_checked(field, value):
    config = get_config()
    study.check_config(STUDY, config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        study.check_config(STUDY, config)


def test_config_of_before_during_and_after_can_be_run():
    study.check_config(STUDY, digits_before_during_after.get_config())


def test_config_of_a_deep_network_can_be_run():
    config = digits_deep_before_training.get_config()
    study.check_config(STUDY, config)
    network, images = digits.make_network(config), jnp.zeros((3, 8, 8, 1))
    logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (3, 10)
    assert sum(digits.layer_sizes(network).values()) == 386_304
    for widths in ((), (64, 0), [64]):
        config.model_options = ConfigDict({"widths": widths})
        with pytest.raises(ValueError, match=r"model_options\.widths must be a tuple"):
            study.check_config(STUDY, config)


# --- Pruning before and after training ------------------------------------------------


def test_masks_before_training_are_of_exact_sparsity_and_differ():
    config, pairs = small_config(), [(0.9, SEEDS[0]), (0.99, SEEDS[1])]
    train, model = load(config).train, digits.make_network(config)
    params = [fit.first_params(model, seed, train.images) for _, seed in pairs]
    flat = {}
    for name in filter(finds_masks, METHODS):
        masks = digits.find_masks(name, model, params, pairs, train, config)
        counts = [int(sj.count_active(each)) for each in masks]
        assert counts == [round((1 - s) * PRUNABLE) for s, _ in pairs]
        flat[name] = np.concatenate([m.ravel() for m in jax.tree.leaves(masks)])
    assert len(flat) == 6
    for name, other in itertools.combinations(flat, 2):
        assert (flat[name] != flat[other]).any()


def test_grasp_sees_as_many_images_of_each_class():
    labels = np.array([0] * 9 + [1] * 4 + [3] * 2)
    images = np.arange(15.0)
    drawn, classes = class_balanced_batch(images, labels, 4, seed=0)
    np.testing.assert_array_equal(labels[drawn.astype(int)], classes)
    assert np.bincount(classes).tolist() == [4, 4, 0, 2]  # all there are of the last
    assert len(set(drawn)) == 10 and (np.diff(classes) < 0).any()  # shuffled
    again, _ = class_balanced_batch(images, labels, 4, seed=0)
    other, _ = class_balanced_batch(images, labels, 4, seed=1)
    assert (drawn == again).all() and (drawn != other).any()


def test_batches_of_pruning_before_training(monkeypatch):
    """Each round another epoch's, some epochs for DRIVE, balanced ones for GraSP."""
    config, calls = small_config(), []
    monkeypatch.setattr(
        digits.methods,
        "masks_before_training",
        lambda name, *args, **options: calls.append(options),
    )
    train, seed = load(config).train, SEEDS[1]
    network = digits.make_network(config)
    digits.find_masks("drive", network, [None], [(0.9, seed)], train, config)
    (options,) = calls
    for epoch in (0, 3):
        order = fit.batch_order([seed], epoch, len(train.labels), config.batch_size)[0]
        for (_, labels), rows in zip(options["batches"](epoch), order, strict=True):
            np.testing.assert_array_equal(labels, train.labels[rows])
    dense = [labels for _, labels in options["dense_batches"]()]
    assert len(dense) == config.drive_dense_epochs * len(order)
    assert (dense[0] != dense[len(order)]).any()
    ((_, labels),) = options["balanced"]()
    assert np.bincount(labels).tolist() == [config.grasp_images_per_class] * 10


@pytest.mark.parametrize("name", FORMS)
def test_what_each_form_of_pruning_after_training_starts_from(name, monkeypatch):
    """With training that adds 1 to the weights, and is written down."""
    config, form, calls = small_config(round_fraction=0.9), FORMS[name], []
    pairs = [(0.9, SEEDS[0]), (0.999, SEEDS[1])]

    class Trainer:
        def __init__(self, method, data, config, learning_rate=None):
            self.rate = learning_rate or config.learning_rate

        def train(self, own, params, description):
            calls.append((self.rate, own, params))
            trained = jax.tree.map(lambda leaf: leaf + 1, params)
            return trained, [f"{len(calls)}:{i}" for i in range(len(own.seed))]

    monkeypatch.setattr(digits, "Trainer", Trainer)
    trainings = digits.train_and_prune(name, pairs, load(config), config)

    rates, own, params = zip(*calls)
    rate = config.learning_rate
    again = rate if form.rewinds_rate else 0.1 * rate
    assert rates == (rate, *[pytest.approx(again)] * (len(calls) - 1))
    if form.in_rounds:  # 10 %, then about 1 %, then 0.1 %
        assert trainings == [["1:0", "2:0"], ["1:1", "2:1", "3:1", "4:1"]]
        before = [0, 1, 2]
    else:
        assert trainings == [["1:0", "2:0"], ["1:1", "3:1"]]
        before = [0, 0]
    for number, origin in enumerate(before, 1):
        assert own[number].seed.tolist() == list(SEEDS)
        for row in (0, 1):
            masks, old = fit.take((own[number].masks, own[origin].masks), row)
            kept = round((1 - own[number].sparsity[row]) * PRUNABLE)
            assert sj.count_active(masks) == kept
            assert sj.count_active(sj.difference(masks, old)) == 0
        # Weights that survive: of the last round, or those that it all began with.
        added = 0 if form.rewinds_weights else origin + 1
        for first, weights, mask in zip(
            jax.tree.leaves(params[0]),
            jax.tree.leaves(params[number]),
            jax.tree.leaves(
                own[number].masks, is_leaf=lambda m: not isinstance(m, dict)
            ),
        ):
            kept = (
                np.ones(first.shape, bool)
                if isinstance(mask, optax.MaskedNode)
                else mask
            )
            expected = np.where(kept, first + added, 0)
            np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert 1 - own[-1].sparsity[0] == pytest.approx(0.001, rel=0.2)
