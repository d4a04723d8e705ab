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
import pytest
from ml_collections import ConfigDict
from optax import MaskedNode

import sparsejax as sj
from experiments import digits
from experiments.comparison import after_training
from experiments.comparison import first_masks as first_masks_module
from experiments.comparison import replicas as rep
from experiments.comparison.after_training import FORMS, train_and_prune
from experiments.comparison.figures import (
    LOOKS,
    _panels,
    plot_accuracy,
    plot_density,
)
from experiments.comparison.first_masks import masks_of_runs
from experiments.comparison.methods import first_sparsity, make_transform
from experiments.comparison.networks import make_network
from experiments.comparison.results import (
    DensityHistory,
    MethodResult,
    Run,
    difference_table,
    epochs_table,
    failures_table,
    table,
)
from experiments.comparison.training import Trained
from experiments.configs import digits_before_during_after, digits_deep_before_training
from experiments.configs.digits import get_config
from experiments.digits import LABELS, check_config, load_data, train_method
from experiments.input.digits import load_split
from experiments.methods import class_balanced_batch
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.layers import matmul_conv
from experiments.record.files import writable_directory
from experiments.training.before_training import LABELS as BEFORE_TRAINING
from experiments.training.sparse import LABELS as TRAINING_LABELS

ROOT = Path(__file__).parent.parent
SPARSITIES, SEEDS = (0.9, 0.98), (0, 3)
PRUNABLE = 27_408


def start(workdir, *flags):
    command = [
        sys.executable,
        "-m",
        "experiments.digits",
        "--config=experiments/configs/digits.py",
        f"--workdir={workdir}",
        "--config.epochs=3",
        f"--config.sparsities={SPARSITIES}",
        f"--config.seeds={SEEDS}",
        "--config.update_interval_steps=8",
        *flags,
    ]
    # What compiles faster here trains slower, which a few steps do not mind.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | quick,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The whole comparison, and beside it a part of it once more."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("all", "part"))
    processes = [
        start(first),
        start(second, "--config.methods=('set',)"),
    ]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors
    return first, second, outputs[0][0]


def load(workdir):
    content = json.loads((workdir / "results.json").read_text())
    return content, {method["method"]: method for method in content["methods"]}


def test_writes_every_result(two_runs):
    workdir, _, printed = two_runs
    content, methods = load(workdir)
    assert list(methods) == list(get_config().methods)
    assert content["config"]["seeds"] == list(SEEDS)
    assert content["environment"]["jax"] == jax.__version__
    for name in ("accuracy.png", "density.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    written = (workdir / "results.md").read_text()
    assert written in printed
    for method in methods.values():
        assert method["wall_seconds"] > 0
        row = re.search(rf"^\| {re.escape(method['label'])} .*", written, re.MULTILINE)
        mean = 100 * np.mean([run["test_accuracy"] for run in method["runs"][:2]])
        assert f"| {mean:.1f} ± " in row[0]


def test_sparsity_is_exact_for_every_method(two_runs):
    _, methods = load(two_runs[0])
    for name, method in methods.items():
        wanted = [(s, i) for s in SPARSITIES for i in SEEDS]
        if name == "dense":
            wanted = [(0.0, i) for i in SEEDS]
        assert [(run["sparsity"], run["seed"]) for run in method["runs"]] == wanted
        for run in method["runs"]:
            assert run["prunable"] == PRUNABLE
            assert run["active"] == round((1 - run["sparsity"]) * PRUNABLE)
            # Weights that have grown and had no gradient since are 0 as well.
            assert 0.5 * run["active"] < run["nonzero"] <= run["active"]
            if name in ("dense", "static", "gmp"):
                assert run["nonzero"] == run["active"]
            assert run["realised_sparsity"] == 1 - run["nonzero"] / PRUNABLE


def test_density_history_starts_and_ends_where_the_method_does(two_runs):
    _, methods = load(two_runs[0])
    config = get_config()
    for name, method in methods.items():
        for history in method["density"]:
            first = first_sparsity(name, history["sparsity"], config)
            assert len(history["overall"]) == 4
            assert history["overall"][0] == pytest.approx(1 - first, abs=1e-4)
            assert history["overall"][-1] == pytest.approx(
                1 - history["sparsity"], abs=1e-4
            )
            assert len(history["layers"]) == 5


def test_dense_learns(two_runs):
    _, methods = load(two_runs[0])
    for run in methods["dense"]["runs"]:
        assert run["test_accuracy"] > 0.8 and run["validation_accuracy"] > 0.8


def test_same_seed_same_result(two_runs):
    (_, whole), (_, part) = load(two_runs[0]), load(two_runs[1])
    assert list(part) == ["set"]
    for key in ("runs", "density"):
        assert part["set"][key] == whole["set"][key]
    first, second = part["set"]["runs"][:2]
    assert first | {"seed": None} != second | {"seed": None}


def test_topology_updates_stay_behind_a_branch():
    """A batched step counter would make the transform compute them at every step."""
    config, data, model = get_config(), load_split(0.2, 0.3, 0), DigitsCNN()
    transform = make_transform("rigl", optax.sgd(0.1), config, 1000)
    runs = []
    for seed in (0, 1):
        params = model.init(jax.random.key(seed), data.train.images[:1])
        masks = sj.dense_masks(params)
        runs.append((rep.Replica(jnp.int32(seed), jnp.float32(0.9), masks), params))
    replicas, params = rep.stack(runs)
    state = rep.compile_start(transform)(replicas, params)
    assert state.opt_state.step.shape == ()
    order = rep.batch_order((0, 1), 0, 128, 64)
    train_epoch = rep.compile_epoch(model, transform)
    jaxpr = str(jax.make_jaxpr(train_epoch)(replicas, state, order, *data.train))
    # The update, and the look at weights outside the masks.
    assert jaxpr.count("cond[") == 2


def test_order_visits_an_example_once_and_differs_by_seed_and_epoch():
    order = rep.batch_order((0, 1), 0, 10, 3)
    assert order.shape == (2, 3, 3)
    assert all(len(set(each.ravel())) == 9 for each in order)
    assert (order[0] != order[1]).any()
    assert (order != rep.batch_order((0, 1), 1, 10, 3)).any()
    np.testing.assert_array_equal(order[1:], rep.batch_order((1,), 0, 10, 3))


def test_the_best_epoch_is_one_at_full_sparsity():
    best = rep.Best(3)
    for validation, counts, test in (
        ([0.9, 0.5, 0.7], [False, True, False], [0.1, 0.2, 0.3]),
        ([0.8, 0.5, 0.6], [True, True, False], [0.4, 0.5, 0.6]),
    ):
        assert best.observe(np.array(validation), np.array(counts))
        best.note(np.array(test))
    assert not best.observe(np.array([0.7, 0.5, 0.9]), np.array([True, True, False]))
    assert best.epoch.tolist() == [1, 0, -1]
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
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 1))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("window", [(3, 3), (2, 2), (1, 2)])
def test_matmul_conv_equals_the_convolution(padding, strides, window):
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (2, 7, 8, 3))
    kernel = jax.random.normal(keys[1], (*window, 3, 4))

    def by_convolution(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def by_matmul(images, kernel):
        return matmul_conv(images, kernel, strides, padding)

    expected, back = jax.vjp(by_convolution, images, kernel)
    got, back_too = jax.vjp(by_matmul, images, kernel)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(got, expected, **close)
    cotangent = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)
    for mine, theirs in zip(back_too(cotangent), back(cotangent)):
        np.testing.assert_allclose(mine, theirs, **close)


def test_matmul_conv_refuses_what_it_does_not_do():
    images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 1, 2))
    with pytest.raises(ValueError, match="feature_group_count=2"):
        matmul_conv(images, kernel, (1, 1), "SAME", feature_group_count=2)


def some_results(*names, epochs=20):
    """The dense network, and other methods with more empty layers from seed to seed."""

    def run(sparsity, seed, test, length, empty=0):
        counts = (100, 100, 100, sparsity)
        flops = (1000, 0.1, 0.2)
        return Run(
            sparsity, seed, 0.5, test, *counts, [0.5], 1, test, *flops, length, empty
        )

    def result(name, *runs):
        history = [
            DensityHistory(s, [0, 1], [1, 0.2], {"a": [1, 0.1]}) for s in (0.9, 0.95)
        ]
        return MethodResult(name, LABELS[name], 1.0, runs, history)

    return [
        # No error at all, where its logarithm has no value.
        result("dense", run(0.0, 0, 1.0, 20), run(0.0, 1, 1.0, 20)),
        *(
            result(
                name,
                *(
                    run(s, i, s - 0.1 * i - 0.05 * (i + place) * place, length, 3 * i)
                    for s, length in ((0.9, 20), (0.95, epochs))
                    for i in (0, 1)
                ),
            )
            for place, name in enumerate(names)
        ),
    ]


def test_table():
    assert table(some_results("set")) == (
        "| Method | 0 % sparse         | 90 % sparse        | 95 % sparse        |\n"
        "|--------|--------------------|--------------------|--------------------|\n"
        "| Dense  | 100.0 ± 0.0 (0.00) |                    |                    |\n"
        "| SET    |                    | 85.0 ± 7.1 (90.00) | 90.0 ± 7.1 (95.00) |"
    )
    assert epochs_table(some_results("set")) == ""


def test_table_of_methods_that_take_longer():
    results = some_results("lottery", epochs=60)
    assert [
        line.split(" | ")[1].strip() for line in table(results).splitlines()[2:]
    ] == [
        "20",
        "20 to 60",
    ]
    assert epochs_table(results).splitlines()[2:] == [
        "| Lottery ticket | 20   | 60   |"
    ]


def test_table_of_differences():
    text = difference_table(some_results("set", "rigl"), "set")
    # Seed by seed 5 and 10 points below, with t = 12.7 for two of them.
    assert text.splitlines()[2:] == ["| RigL      | -7.5 ± 31.8 | -7.5 ± 31.8 |"]


def test_table_of_failures():
    text = failures_table(some_results("set"))
    assert [line.split() for line in text.replace("|", "").splitlines()[2:]] == [
        ["SET", f"{s}", *["%", "0", "of", "2", "1", "of", "2", "1.5"]] for s in (90, 95)
    ]
    assert failures_table(some_results()) == ""


def test_figures_of_any_results(tmp_path):
    assert LOOKS.keys() == LABELS.keys()
    of_all_kinds = some_results("static", "snip", "set", "lottery", epochs=40)
    panels = _panels(of_all_kinds[1:])
    assert {title: [r.method for r in panels[title]] for title in panels} == {
        "Before training: 20 to 40 epochs": ["static", "snip"],
        "During training: 20 to 40 epochs": ["set"],
        "After training: 20 to 40 epochs": ["lottery"],
    }
    some = some_results("set")
    plot_accuracy(of_all_kinds, tmp_path / "panels.png")
    assert (tmp_path / "panels.png").stat().st_size > 1000
    for results in (some, some[:1], some[1:]):
        for plot in (plot_accuracy, plot_density):
            plot(results, tmp_path / "figure.png")
            assert (tmp_path / "figure.png").stat().st_size > 1000
            (tmp_path / "figure.png").unlink()


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
        ("split_seed", -1),
        ("test_share", 0.0),
        ("epochs", 0),
        ("batch_size", 2000),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("update_interval_steps", 10_000),
        ("initialization_rounds", 0),
        ("grasp_images_per_class", 0),
        ("drive_dense_epochs", 0),
        ("pruning_share", 1.0),
        ("distribution", "random"),
        ("granet_st_initial_sparsity", 0.95),
    ],
)
def test_config_is_checked(field, value):
    config = get_config()
    check_config(config)
    config[field] = value
    with pytest.raises(ValueError, match=rf"config\.{field} must be .*; got "):
        check_config(config)


def test_config_of_before_during_and_after_can_be_run():
    check_config(digits_before_during_after.get_config())


def test_config_of_a_deep_network_can_be_run():
    config = digits_deep_before_training.get_config()
    check_config(config)
    network, images = make_network(config), jnp.zeros((3, 8, 8, 1))
    logits, params = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (3, 10)
    assert sj.count_prunable(jax.eval_shape(sj.dense_masks, params)) == 386_304
    for widths in ((), (64, 0), [64]):
        config.model_options = ConfigDict({"widths": widths})
        with pytest.raises(ValueError, match=r"model_options\.widths must be a tuple"):
            check_config(config)
    config = get_config()
    config.model_options = ConfigDict({"widths": (64,)})
    with pytest.raises(ValueError, match=r"widths must be a tuple of 4 integers"):
        check_config(config)


@pytest.fixture(scope="module")
def few_steps(quick_compilation):
    """A short configuration, and two runs of it: one of few weights, one of hardly any.

    Returns:
        (configuration, (sparsity, seed) pairs).
    """
    config = get_config()
    config.epochs, config.batch_size, config.update_interval_steps = 2, 449, 2
    config.initialization_rounds, config.round_fraction = 2, 0.9
    config.drive_dense_epochs = 2
    return config, [(0.9, SEEDS[0]), (0.999, SEEDS[1])]


@pytest.fixture(scope="module")
def first_masks(few_steps, quick_compilation):
    """The masks of the two runs, for each method that prunes before training."""
    config, pairs = few_steps
    model, train = DigitsCNN(), load_data(config).train
    params = [rep.first_params(model, seed, train.images) for _, seed in pairs]
    return {
        name: masks_of_runs(name, model, params, pairs, train, config)
        for name in BEFORE_TRAINING
    }


def test_masks_before_training_are_of_exact_sparsity_and_differ(first_masks):
    assert not BEFORE_TRAINING.keys() & TRAINING_LABELS.keys()
    for masks in first_masks.values():
        counts = [int(sj.count_active(each)) for each in masks]
        assert counts == [round(0.1 * PRUNABLE), round(0.001 * PRUNABLE)]
    flat = {
        name: np.concatenate([mask.ravel() for mask in jax.tree.leaves(masks)])
        for name, masks in first_masks.items()
    }
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


def test_batches_of_pruning_before_training(few_steps, monkeypatch):
    """Each round another epoch's, some epochs for DRIVE, balanced ones for GraSP."""
    config, pairs = few_steps
    calls = []
    monkeypatch.setattr(
        first_masks_module,
        "masks_before_training",
        lambda name, *args, **options: calls.append(options),
    )
    train = load_data(config).train
    masks_of_runs("drive", DigitsCNN(), [None, None], pairs, train, config)
    (options, _), seed = calls, pairs[0][1]
    for epoch in (0, 3):
        order = rep.batch_order([seed], epoch, len(train.labels), config.batch_size)[0]
        for (_, labels), rows in zip(options["batches"](epoch), order, strict=True):
            np.testing.assert_array_equal(labels, train.labels[rows])
    dense = [labels for _, labels in options["dense_batches"]()]
    assert len(dense) == config.drive_dense_epochs * 2
    assert (dense[0] != dense[2]).any()
    ((_, labels),) = options["balanced"]()
    assert np.bincount(labels).tolist() == [config.grasp_images_per_class] * 10


def test_pruned_before_training_is_trained_under_its_masks(few_steps, first_masks):
    config, pairs = few_steps
    result = train_method("snip", load_data(config), config, pairs)
    for masks, (sparsity, _), run, history in zip(
        first_masks["snip"], pairs, result.runs, result.density
    ):
        densities = sj.layer_densities(masks)
        assert run.empty_layers == sum(each == 0 for each in densities.values())
        assert run.nonzero == run.active == round((1 - sparsity) * PRUNABLE)
        assert history.layers.keys() == densities.keys()
        for path, density in densities.items():
            np.testing.assert_allclose(history.layers[path], float(density), atol=1e-6)
    assert result.runs[0].empty_layers == 0 < result.runs[1].empty_layers


def _row(stacked, row):
    return jax.tree.map(lambda leaf: leaf[row], stacked)


@pytest.mark.parametrize("name", FORMS)
def test_what_each_form_of_pruning_after_training_starts_from(
    name, few_steps, monkeypatch
):
    """With training that adds 1 to the weights, and is written down."""
    config, pairs = few_steps
    form, calls = FORMS[name], []

    def make_program(method, model, data, config, learning_rate=None):
        return learning_rate or config.learning_rate

    def train(rate, replicas, params, data, description):
        calls.append((rate, replicas, params))
        trained = jax.tree.map(lambda leaf: leaf + 1, params)
        rows = range(len(replicas.seed))
        return Trained(trained, replicas.masks, [f"{len(calls)}:{i}" for i in rows])

    monkeypatch.setattr(after_training, "make_program", make_program)
    monkeypatch.setattr(after_training, "train", train)
    courses = train_and_prune(name, DigitsCNN(), pairs, load_data(config), config)

    rates, replicas, params = zip(*calls)
    rate = config.learning_rate
    again = rate if form.rewinds_rate else 0.1 * rate
    assert rates == (rate, *[pytest.approx(again)] * (len(calls) - 1))
    if form.in_rounds:  # 10 %, then about 1 %, then 0.1 %
        assert courses == [["1:0", "2:0"], ["1:1", "2:1", "3:1", "4:1"]]
    else:
        assert courses == [["1:0", "2:0"], ["1:1", "2:1"]]
    for number, (before, now) in enumerate(itertools.pairwise(replicas), 1):
        assert now.seed.tolist() == [seed for _, seed in pairs]
        for row in (0, 1):
            masks, old = (_row(each.masks, row) for each in (now, before))
            assert sj.count_active(masks) == round((1 - now.sparsity[row]) * PRUNABLE)
            assert sj.count_active(sj.difference(masks, old)) == 0
        # Weights that survive: of the last round, or those that it all began with.
        added = 0 if form.rewinds_weights else number
        for first, weights, mask in zip(
            jax.tree.leaves(params[0]),
            jax.tree.leaves(params[number]),
            jax.tree.leaves(now.masks, is_leaf=lambda m: not isinstance(m, dict)),
        ):
            kept = np.ones(first.shape, bool) if isinstance(mask, MaskedNode) else mask
            expected = np.where(kept, first + added, 0)
            np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert [1 - s for s in replicas[-1].sparsity[-1:]] == [
        pytest.approx(0.001, rel=0.02)
    ]


def test_pruned_after_training_costs_all_its_epochs(few_steps):
    config, pairs = few_steps
    result = train_method("lottery", load_data(config), config, pairs)
    assert [run.training_epochs for run in result.runs] == [4, 8]
    for run, (sparsity, seed), history in zip(result.runs, pairs, result.density):
        assert (run.sparsity, run.seed) == (sparsity, seed)
        assert run.active == run.nonzero == round((1 - sparsity) * PRUNABLE)
        assert len(run.validation_history) == config.epochs
        # The dense run costs 1, and each round what its density does.
        assert 1 < run.training_flops < 1.6
        assert (
            history.epochs == [0, 2, 2, 4, 4, 6, 6, 8][: 2 * run.training_epochs // 2]
        )
        assert history.overall[:2] == [1, 1]
        assert history.overall[-1] == pytest.approx(1 - sparsity, abs=1e-4)
    first, second = result.runs
    assert first.inference_flops > second.inference_flops


def test_comparison_goes_on_where_it_stopped(two_runs, monkeypatch):
    workdir, config = two_runs[1], get_config()
    before = load(workdir)[1]
    config.update({"epochs": 3, "sparsities": SPARSITIES, "seeds": SEEDS})
    config.update({"update_interval_steps": 8, "methods": ("set",)})
    monkeypatch.setattr(digits, "train_method", None)  # so that it cannot be called
    digits.compare(config, workdir)
    assert load(workdir)[1] == before
    config.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"learning_rate was 0.1 and is 0.5"):
        digits.compare(config, workdir)


def test_prune_rates_are_checked():
    config = get_config()
    config.prune_rate.rigl = 0.0
    with pytest.raises(ValueError, match=r"prune_rate\.rigl must be in \(0, 1\)"):
        check_config(config)


def test_workdir_that_cannot_be_written_to_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir must be a directory .*; got "):
        writable_directory(tmp_path / "file" / "inside")
    process = start(tmp_path / "file")
    printed, errors = process.communicate()
    assert process.returncode == 1
    assert printed == "" and len(errors.splitlines()) == 1
