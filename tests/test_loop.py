"""The image trainer as a whole: what it refuses, and runs on images of other shapes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_sets import write_digits, write_tiny_imagenet

pytest.importorskip("grain", reason="of the experiments extra")

import tiny

import sparsejax as sj
from experiments import data as inputs
from experiments import evaluate, launch, methods, run, train
from experiments.checkpoint import Best
from experiments.configs import cifar_vgg19, imagenet_resnet50, imagenet_vit_s16
from experiments.configs.common import base_config
from experiments.optimizer import learning_rate, make_optimizer
from experiments.parallel import PreemptionWatch
from experiments.record import MetricWriter, open_storage, read_metrics, read_speed
from experiments.run import first_masks
from experiments.settings import following_batch
from experiments.step import create_state, first_variables
from experiments.train import train_and_evaluate
from sparsejax.checks import is_traced

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(changes) -> the configuration of a tiny network on a few digits."""
    name = write_digits(tmp_path_factory.mktemp("digits") / "digits.npz")

    def make(**changes):
        config = tiny.get_config("method=granet,sparsity=0.5")
        config.dataset = name
        config.update(changes)
        return config

    return make


@pytest.fixture
def nothing_compiled(monkeypatch):
    def create(*args):
        # Its shapes may be looked at, in a trace.
        assert is_traced(jnp.zeros([])), "the state was made, which compiles"
        return create_state(*args)

    monkeypatch.setattr(run, "create_state", create)


@pytest.fixture
def no_report(monkeypatch):
    """Figures take longer to draw than these runs to train."""
    monkeypatch.setattr("experiments.report.write_report", lambda workdir: None)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 20}, "batch_size must be divisible by the 8 devices"),
        ({"batch_size": 16, "accumulation": 4}, "batch_size must be divisible"),
        ({"batch_size": 4096}, "batch_size must be"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"num_classes": 7}, "num_classes must be 10 for npz.*; got 7"),
        ({"validation_examples": 500}, "validation_examples must be from 0"),
        ({"validation_examples": -1}, "validation_examples must be at least 0"),
        ({"update_interval_steps": 40}, "update_interval must be below total_steps=40"),
        ({"pruning_share": 1.0}, "end_step must be below total_steps=40"),
        ({"pruning_share": 0.0}, r"pruning_share must be in \(0, 1\]; got 0.0"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\); got 1.0"),
        ({"sparsity": float("nan")}, r"sparsity must be in \[0, 1\); got nan"),
        ({"learning_rate": float("nan")}, r"learning_rate must be in .*; got nan"),
        ({"learning_rate": float("inf")}, r"learning_rate must be in .*; got inf"),
        ({"learning_rate": -0.1}, r"learning_rate must be in \[0, inf\); got -0.1"),
        ({"weight_decay": -1.0}, r"weight_decay must be in \[0, inf\); got -1.0"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\); got 1.5"),
        ({"momentum": float("nan")}, "momentum must be in"),
        ({"clip_norm": 0.0}, r"clip_norm must be in \(0, inf\); got 0.0"),
        ({"drop_at": (0.5, float("nan"))}, r"drop_at must be in \[0, 1\]; got nan"),
        ({"prune_rate": {"rigl": 2.0}}, r"prune_rate must be in \[0, 1\]; got 2.0"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0; got -1"),
        ({"seed": -1}, r"seed must be in \[0, 2\^32\); got -1"),
        ({"dtype": "foo"}, "dtype must be one of .*; got 'foo'"),
        ({"pad_mode": "edge"}, "pad_mode must be one of .*; got 'edge'"),
        ({"model_options": {"widths": (0,)}}, r"model_options must be in \[1, inf\)"),
        ({"model": "resnet20", "model_options": {"width": 0}}, "model_options must be"),
        (
            {"model": "resnet20"},
            "model must fit .*'resnet20', which fails: TypeError: .*widths",
        ),
        ({"method": "granite"}, "method must be .*granet, .*snip, .*; got 'granite'"),
        ({"initialization_batches": 0}, "initialization_batches must be at least 1"),
        ({"initialization_rounds": 0}, "initialization_rounds must be at least 1"),
        ({"grasp_images_per_class": 0}, "grasp_images_per_class must be at least 1"),
        ({"drive_dense_epochs": 0}, "drive_dense_epochs must be at least 1"),
        ({"model": "resnet21"}, "name must be one of .*; got 'resnet21'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"optimizer": "adam"}, "optimizer must be one of .*; got 'adam'"),
        ({"parallel": "pjit"}, "parallel must be one of"),
        ({"shard_state": True}, 'shard_state must be False with parallel="pmap"'),
        ({"augment": "imagenet", "device_resident": True}, "device_resident must be F"),
        ({"augment": "flip"}, "augment must be one of"),
        ({"image_size": 16}, 'image_size must be None unless augment is "imagenet"'),
        ({"dataset": "mnist"}, "dataset must be one of"),
    ],
)
def test_refused_before_anything_is_compiled(
    nothing_compiled, digits, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message) as refusal:
        train_and_evaluate(digits(**changes), tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_missing_data_set_is_refused_at_once(nothing_compiled, tmp_path):
    config = cifar_vgg19.get_config("method=granet")
    config.data_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
        train_and_evaluate(config, tmp_path)


def test_a_workdir_that_is_unwritable_or_in_use_is_refused(digits, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="workdir must be a directory that can be"):
        train_and_evaluate(digits(), tmp_path / "file" / "run")
    with (
        open_storage(tmp_path),
        pytest.raises(ValueError, match="workdir must not be in use by another"),
    ):
        train_and_evaluate(digits(), tmp_path)


def test_help_lists_all_fields_of_a_configuration():
    text = launch._help()
    for field in base_config():
        assert f"--config.{field}" in text, field
    assert "--config.learning_rate=0.1" in text and "host:port of process 0" in text


def test_sigterm_is_given_back_when_the_run_fails():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="as any"), PreemptionWatch():
        assert signal.getsignal(signal.SIGTERM) != before
        raise RuntimeError("as any")
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_before_the_first_step_is_answered_at_once():
    """In a sleep, which goes on after a signal as compiling does."""
    program = (
        "import os, signal, time\n"
        "from experiments.parallel import PreemptionWatch\n"
        "with PreemptionWatch():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=50)
    assert done.returncode == 75 and "stopped before a step" in done.stderr


def test_rate_and_intervals_follow_the_batch():
    config = imagenet_resnet50.get_config("method=granet")
    assert following_batch(config) is config
    config.batch_size = 4096
    followed = following_batch(config)
    assert followed.learning_rate == pytest.approx(3.2) and followed.epochs == 100
    assert followed.update_interval_steps == 125 and followed.log_every_steps == 3
    assert followed.checkpoint_every_steps == 156
    assert config.learning_rate == 0.1
    config.reference_batch_size = None
    assert following_batch(config).learning_rate == 0.1


def test_schedules_drop_and_warm_up_where_they_should():
    config = tiny.get_config()
    config.update({"learning_rate": 1.0, "drop_at": (0.5, 0.75), "warmup_epochs": 1})
    rates = [float(learning_rate(config, 40, 10)(step)) for step in (0, 10, 19, 20, 30)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 0.1, 0.01], rtol=1e-5)
    config.schedule = "cosine"
    rates = [float(learning_rate(config, 40, 10)(step)) for step in (20, 40)]
    np.testing.assert_allclose(rates, [0.5, 0], atol=1e-6)


def test_adamw_decouples_decay_and_clips_all_gradients_together():
    config = imagenet_vit_s16.get_config()
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda x: 3e3 * x, params)
    tx = make_optimizer(config, lambda step: 0.5, "granet")
    updates, _ = tx.update(grads, tx.init(params), params)
    # Adam's first step has size 1; weights decay by rate times weight_decay.
    np.testing.assert_allclose(updates["b"], -0.5, rtol=1e-3)
    np.testing.assert_allclose(updates["w"], -0.5 - 0.05, rtol=1e-3)
    config.update({"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    tx = make_optimizer(config, lambda step: 1.0, "granet")
    updates, _ = tx.update(grads, tx.init(params), params)
    flat = np.concatenate([x.ravel() for x in jax.tree.leaves(updates)])
    assert np.linalg.norm(flat) == pytest.approx(1.0, rel=1e-3)


def test_the_best_evaluation_is_one_at_full_sparsity(monkeypatch, digits, tmp_path):
    accuracies = iter([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])
    monkeypatch.setattr(
        train, "accuracy", lambda *args: {"accuracy": next(accuracies), "loss": 1.0}
    )
    saved = []
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        job = train.Job(
            run=SimpleNamespace(
                config=digits(),
                dataset=SimpleNamespace(validation=[0], test=[0]),
                plan=SimpleNamespace(total_steps=4),
            ),
            storage=None,
            checkpoints=None,
            best_checkpoint=SimpleNamespace(save=lambda s, **n: saved.append(n)),
            recorder=SimpleNamespace(writer=writer),
            best=Best(),
        )

        def evaluate(step, sparsity):
            state = SimpleNamespace(opt_state={"sparsity": jnp.float32(sparsity)})
            train._evaluate(job, state, step)
            return job.best, job.test_accuracy

        assert evaluate(1, 0.45) == (Best(), None)  # denser than it is to end
        assert evaluate(2, 0.5) == (Best(2, 0.8, 0.1), None)
        assert evaluate(3, 0.5) == (Best(2, 0.8, 0.1), None)
        assert evaluate(4, 0.5) == (Best(2, 0.8, 0.1), 0.5)
    assert saved == [{"best": Best(2, 0.8, 0.1)._asdict()}]


def test_other_shares_of_a_batch_under_batch_norm_are_warned_of(digits, caplog):
    def shares_of(**changes):
        made = SimpleNamespace(config=digits(**changes))
        state = SimpleNamespace(batch_stats={"bn": 1})
        train._warn_of_other_shares(made, state, {"batch_norm_shares": 2})
        return train._batch_norm_shares(made, state)

    assert shares_of() == 8
    assert "saw a batch in 2 parts and now sees it in 8" in caplog.text
    assert shares_of(sync_batch_norm=True) == shares_of(parallel="jit") == 1
    assert "now sees it in 1" in caplog.text


FEW = {"initialization_rounds": 2, "drive_dense_epochs": 1}


def masks_at_first(digits, method, **changes):
    config = digits(method=method, **FEW | changes)
    data = inputs.load_dataset(config.dataset, None, 40, config.seed)
    return first_masks(config, run._model(config, data, None), data, (8, 8, 1)), data


@pytest.mark.parametrize("method", [*filter(methods.finds_masks, methods.METHODS)])
def test_masks_before_training_are_of_exact_sparsity(digits, method):
    masks, _ = masks_at_first(digits, method)
    prunable = sj.count_prunable(masks)
    assert sj.count_active(masks) == sj.keep_count(0.5, prunable)
    assert all(isinstance(mask, np.ndarray) for mask in jax.tree.leaves(masks))


def test_masks_before_training_are_of_the_first_batches(digits):
    """Against SNIP on one device, on what the run would train on first."""
    masks, data = masks_at_first(digits, "snip", initialization_batches=2)
    config = digits()
    model = run._model(config, data, None)
    variables = first_variables(model, (8, 8, 1), config.seed)
    read = inputs.train_batches(data.train, seed=config.seed, batch_size=16)
    first = [next(read) for _ in range(2)]

    def loss(params, batch):
        images = (batch["image"] / np.float32(255) - data.mean) / data.std
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        log_probabilities = jax.nn.log_softmax(logits)
        return -log_probabilities[np.arange(16), batch["label"]].mean()

    alone = sj.snip(loss, variables["params"], first, None, config.sparsity)
    same = jax.tree.map(lambda a, b: int((a == b).sum()), masks, alone)
    # Eight devices add up in another order: near ties may fall otherwise.
    assert sum(jax.tree.leaves(same)) >= 0.99 * sj.count_prunable(masks)


def test_what_grasp_and_drive_see_of_images(digits, monkeypatch):
    """The next batches in each round; GraSP balanced ones, the same on every device."""
    seen = {}

    def look(name, *args, **options):
        if name == "grasp":
            seen[name] = list(options["balanced"]())
        else:
            seen["dense"] = list(options["dense_batches"]())
            seen["rounds"] = [list(options["batches"](number)) for number in (0, 1)]
        return {}

    monkeypatch.setattr(run, "masks_before_training", look)
    changes = {"initialization_batches": 2, "grasp_images_per_class": 3}
    masks_at_first(digits, "grasp", **changes)
    _, data = masks_at_first(digits, "drive", **changes)
    labels = [np.asarray(batch["label"]) for batch in seen["grasp"]]
    assert np.bincount(np.concatenate(labels)).tolist() == [3] * 10
    assert seen["grasp"][0]["image"].sharding.is_fully_replicated  # 15 on 8 devices
    config = digits()
    read = inputs.host_batches(config, data)
    steps = len(data.train) // config.batch_size
    expected = [next(read)["label"] for _ in range(steps + 4)]
    found = [*seen["dense"], *seen["rounds"][0], *seen["rounds"][1]]
    for batch, labels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["label"], labels)


def test_first_weights_are_rescaled_to_the_edge_of_chaos(digits):
    plain, rescaled = (
        run.prepare_run(digits(method="static", rescale_to_edge_of_chaos=x))
        for x in (False, True)
    )
    state, found = plain.first_state(), rescaled.first_state().params
    masks = sj.get_masks(state.opt_state)
    expected = sj.rescale_to_edge_of_chaos(state.params, masks)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.array_equal(found["stem"]["kernel"], state.params["stem"]["kernel"])


def test_pruned_before_training_from_end_to_end(
    monkeypatch, no_report, digits, tmp_path
):
    changes = {"total_steps": 3, "parallel": "jit"}
    config = digits(method="iter_snip", initialization_rounds=2, **changes)
    outcome = train_and_evaluate(config, tmp_path)
    masks = sj.get_masks(outcome.state.opt_state)
    expected, _ = masks_at_first(digits, "iter_snip", **changes)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
    weights = sj.apply_masks(outcome.state.params, masks)
    jax.tree.map(np.testing.assert_array_equal, outcome.state.params, weights)

    def never(*args):
        raise AssertionError("masks of a run that goes on are made again")

    monkeypatch.setattr(run, "first_masks", never)
    again = train_and_evaluate(config, tmp_path)
    assert again.test_accuracy == outcome.test_accuracy


def assert_whole_record(workdir, outcome):
    lines = read_metrics(workdir)
    assert {line["kind"] for line in lines} == {
        "train",
        "validation",
        "test",
        "topology",
    }
    last = [line for line in lines if "sparsity" in line][-1]
    assert last["sparsity"] == pytest.approx(0.8, abs=1e-3)
    topology = [line for line in lines if line["kind"] == "topology"]
    first, *measured = topology  # before the first step there is no gradient
    assert first["step"] == 0 and "gradient_flow" not in first
    assert all(line["gradient_flow"] > 0 for line in measured)
    rates = [line["itop_rate"] for line in measured]
    assert rates == sorted(rates)
    explored = sj.itop_rate([outcome.state.explored]).item()
    assert rates[-1] == pytest.approx(explored)
    assert explored > 1 - last["sparsity"]
    tests = [line for line in lines if line["kind"] == "test"]
    steps = [line["step"] for line in tests]
    assert steps == sorted(set(steps)) and steps[-1] == 6  # one evaluation a step
    assert tests[-1]["accuracy"] == outcome.test_accuracy <= tests[-1]["top5_accuracy"]


def small(config, **changes):
    """Six steps of a tiny network, on whatever data."""
    config.update(
        {
            "model": "vgg16",
            "model_options": {"widths": (8,)},
            "validation_examples": 2,
            "batch_size": 8,
            "reference_batch_size": None,
            "total_steps": 6,
            "update_interval_steps": 2,
            "pruning_share": 0.5,
            "checkpoint_every_steps": 3,
            "log_every_steps": 2,
            "workers": 0,
            "sparsity": 0.8,
        }
        | changes
    )
    return config


def test_imagenet_from_records_end_to_end(no_report, tfds_dir, tmp_path):
    config = small(imagenet_resnet50.get_config("method=granet"), image_size=32)
    config.data_dir = tfds_dir
    assert_whole_record(tmp_path, train_and_evaluate(config, tmp_path))


def test_cifar_from_records_end_to_end(no_report, tfds_dir, tmp_path):
    """In chunks of two steps, with a trace of the profiler."""
    changes = {"steps_per_call": 2, "profile_step": 2, "profile_steps": 2}
    config = small(cifar_vgg19.get_config("method=granet_uniform"), **changes)
    config.data_dir = tfds_dir
    assert_whole_record(tmp_path, train_and_evaluate(config, tmp_path))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A vision transformer on a folder that nothing says is not on the device."""
    root = tmp_path_factory.mktemp("folder")
    write_tiny_imagenet(root / "images", each=10, held=6)
    config = small(
        imagenet_vit_s16.get_config("method=granet_st"),
        image_size=16,
        dataset=f"folder:{root / 'images'}",
        model="vit_ti16",
        model_options={"patch": 8, "depth": 1, "width": 16, "heads": 2},
    )
    return root / "run", train_and_evaluate(config, root / "run")


def test_a_folder_laid_out_as_tiny_imagenet_end_to_end(folder_run):
    workdir, outcome = folder_run
    lines = read_metrics(workdir)
    assert lines[-1]["accuracy"] == outcome.test_accuracy
    assert (workdir / "report.html").exists() and (workdir / "layers.json").exists()
    speeds = read_speed(workdir)
    assert speeds and all(line["examples_per_second"] > 0 for line in speeds)
    assert all(0 <= line["data_wait"] <= 1 for line in speeds)


def test_a_checkpoint_is_evaluated_and_exported(folder_run, capsys, tmp_path):
    workdir, outcome = folder_run
    file = tmp_path / "weights.npz"
    evaluate.main([f"--workdir={workdir}", "--checkpoint=last", f"--export={file}"])
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 6
    assert found["test_accuracy"] == outcome.test_accuracy
    with np.load(file) as arrays:
        weights = {n: a for n, a in arrays.items() if n.startswith("params/")}
        masks = [name for name in arrays if name.startswith("masks/")]
        assert len(weights) == len(jax.tree.leaves(outcome.state.params))
        for name in masks:
            weight = arrays[name.replace("masks/", "params/")]
            assert not weight[~arrays[name]].any()
    evaluate.main([f"--workdir={workdir}"])
    best = json.loads(capsys.readouterr().out)
    assert (best["step"], best["validation_accuracy"], best["test_accuracy"]) == (
        tuple(outcome.best)
    )
    with pytest.raises(SystemExit, match="must hold a best checkpoint"):
        evaluate.main([f"--workdir={tmp_path}"])


def test_a_loss_that_is_not_finite_ends_the_run(digits, tmp_path):
    config = digits(learning_rate=1e30, total_steps=8)
    with pytest.raises(ValueError, match=r"loss must be finite; got nan .* step 4"):
        train_and_evaluate(config, tmp_path)
    assert read_metrics(tmp_path)[-1]["kind"] == "train"
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
