"""The training loop as a whole: what it refuses, and runs on images of other shapes."""

import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_sets import write_tiny_imagenet

pytest.importorskip("grain", reason="of the experiments extra")

import sparsejax as sj
from experiments.configs import cifar_vgg19, digits_resnet, imagenet_resnet50
from experiments.input import host
from experiments.input.datasets import load_dataset
from experiments.models import create_model
from experiments.record.metrics import MetricWriter, read_metrics
from experiments.training import before_training, loop, run
from experiments.training import first_masks as first_masks_module
from experiments.training.checkpoint import Best
from experiments.training.first_masks import first_masks
from experiments.training.loop import train_and_evaluate
from experiments.training.preemption import PreemptionWatch
from experiments.training.state import first_variables
from sparsejax.checks import is_traced

pytestmark = pytest.mark.usefixtures("quick_compilation")


def digits(**changes):
    config = digits_resnet.get_config("method=granet,sparsity=0.9")
    config.update(changes)
    return config


@pytest.fixture
def nothing_compiled(monkeypatch):
    create = run.create_state

    def create_state(*args):
        # Its shapes may be looked at, in a trace.
        assert is_traced(jnp.zeros([])), "the state was made, which compiles"
        return create(*args)

    monkeypatch.setattr(run, "create_state", create_state)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 60}, "batch_size must be divisible by the 8 devices"),
        ({"batch_size": 64, "accumulation": 16}, "batch_size must be divisible"),
        ({"batch_size": 4096}, "batch_size must be"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"num_classes": 7}, "num_classes must be 10 for digits; got 7"),
        ({"validation_examples": 5000}, "validation_examples must be from 0"),
        ({"update_interval_steps": 76}, "update_interval must be below total_steps=76"),
        ({"pruning_share": 1.0}, "end_step must be below total_steps=76"),
        ({"sparsity": 1.0}, r"final_sparsity must be in \[0, 1\)"),
        ({"method": "granite"}, "method must be .*granet, .*snip, .*; got 'granite'"),
        ({"initialization_batches": 0}, "initialization_batches must be at least 1"),
        ({"initialization_rounds": 0}, "initialization_rounds must be at least 1"),
        ({"grasp_images_per_class": 0}, "grasp_images_per_class must be at least 1"),
        ({"drive_dense_epochs": 0}, "drive_dense_epochs must be at least 1"),
        ({"model": "resnet21"}, "name must be one of .*; got 'resnet21'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"parallel": "pjit"}, "parallel must be one of"),
        ({"shard_state": True}, 'shard_state must be False with parallel="pmap"'),
        ({"augment": "imagenet"}, "device_resident must be False"),
        ({"dataset": "mnist"}, "dataset must be one of"),
    ],
)
def test_refused_before_anything_is_compiled(
    nothing_compiled, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message) as refusal:
        train_and_evaluate(digits(**changes), tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_missing_data_set_is_refused_at_once(nothing_compiled, tmp_path):
    config = cifar_vgg19.get_config("method=granet")
    config.data_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="tfds build cifar10"):
        train_and_evaluate(config, tmp_path)


def test_an_unwritable_workdir_is_refused(nothing_compiled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="workdir must be a directory that can be"):
        train_and_evaluate(digits(), tmp_path / "file" / "run")


def test_sigterm_is_given_back_when_the_run_fails(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="as any"), PreemptionWatch():
        assert signal.getsignal(signal.SIGTERM) != before
        raise RuntimeError("as any")
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_best_evaluation_is_one_at_full_sparsity(monkeypatch, tmp_path):
    accuracies = iter([0.9, 0.8, 0.1, 0.7, 0.6, 0.5])
    monkeypatch.setattr(
        loop, "_accuracy", lambda *args: {"accuracy": next(accuracies), "loss": 1.0}
    )
    run = SimpleNamespace(
        config=digits(),
        dataset=SimpleNamespace(validation=[0], test=[0]),
        plan=SimpleNamespace(total_steps=4),
    )

    def evaluate(step, best, sparsity):
        state = SimpleNamespace(opt_state={"sparsity": jnp.float32(sparsity)})
        return loop._evaluate(run, state, best, writer, step)

    with MetricWriter(tmp_path, tensorboard=False) as writer:
        best, test = evaluate(1, Best(), 0.85)  # denser than it is to end
        assert best == Best() and test is None
        best, test = evaluate(2, best, 0.9)
        assert best == Best(2, 0.8, 0.1) and test == 0.1
        assert evaluate(3, best, 0.9) == (best, None)
        assert evaluate(4, best, 0.9) == (best, 0.5)


def masks_at_first(method, shape=(8, 8, 1), **changes):
    changes = {"initialization_rounds": 2, "drive_dense_epochs": 1, **changes}
    config = digits(method=method, **changes)
    data = load_dataset(config.dataset, None, config.validation_examples, config.seed)
    model = create_model(config.model, data.num_classes, **config.model_options)
    return first_masks(config, model, data, shape), config, data, model


@pytest.mark.parametrize("method", before_training.LABELS)
def test_masks_before_training_are_of_exact_sparsity(method):
    masks, config, _, _ = masks_at_first(method, sparsity=0.5)
    prunable = sj.count_prunable(masks)
    assert sj.count_active(masks) == sj.keep_count(config.sparsity, prunable)
    assert all(isinstance(mask, np.ndarray) for mask in jax.tree.leaves(masks))


def test_masks_before_training_are_of_the_first_batches():
    """Against SNIP on one device, on what the run would train on first."""
    masks, config, data, model = masks_at_first("snip", initialization_batches=2)
    variables = first_variables(model, (8, 8, 1), config.seed)
    read = host.train_batches(data.train, seed=config.seed, batch_size=64)
    first = [next(read) for _ in range(2)]

    def loss(params, batch):
        images = (batch["image"] / np.float32(255) - data.mean) / data.std
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        log_probabilities = jax.nn.log_softmax(logits)
        return -log_probabilities[np.arange(64), batch["label"]].mean()

    alone = sj.snip(loss, variables["params"], first, None, config.sparsity)
    same = jax.tree.map(lambda a, b: int((a == b).sum()), masks, alone)
    # Eight devices add up in another order: near ties may fall otherwise.
    assert sum(jax.tree.leaves(same)) >= 0.999 * sj.count_prunable(masks)


def test_what_grasp_and_drive_see_of_images(monkeypatch):
    """The next batches in each round; GraSP a balanced one, whole on every device."""
    seen = {}

    def look(name, *args, **options):
        if name == "grasp":
            seen[name] = list(options["balanced"]())
        else:
            seen["dense"] = list(options["dense_batches"]())
            seen["rounds"] = [list(options["batches"](number)) for number in (0, 1)]
        return {}

    monkeypatch.setattr(first_masks_module, "masks_before_training", look)
    changes = {"drive_dense_epochs": 1, "initialization_batches": 2}
    masks_at_first("grasp", **changes)
    _, _, data, _ = masks_at_first("drive", **changes)
    assert [len(batch["label"]) for batch in seen["grasp"]] == [50, 50]
    labels = np.concatenate([batch["label"] for batch in seen["grasp"]])
    assert np.bincount(labels).tolist() == [10] * 10
    assert seen["grasp"][0]["image"].sharding.is_fully_replicated  # 50 on 8 devices
    read = host.train_batches(data.train, seed=digits().seed, batch_size=64)
    steps = len(data.train) // 64
    expected = [next(read)["label"] for _ in range(steps + 4)]
    found = [*seen["dense"], *seen["rounds"][0], *seen["rounds"][1]]
    for batch, labels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["label"], labels)


@pytest.mark.parametrize("parallel", ["pmap", "jit"])
def test_pruned_before_training_from_end_to_end(monkeypatch, tmp_path, parallel):
    changes = {"total_steps": 3, "validation_examples": 2, "parallel": parallel}
    config = digits(method="iter_snip", initialization_rounds=2, **changes)
    outcome = train_and_evaluate(config, tmp_path)
    masks = sj.get_masks(outcome.state.opt_state)
    expected, *_ = masks_at_first("iter_snip", **changes)
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
    weights = sj.apply_masks(outcome.state.params, masks)
    jax.tree.map(np.testing.assert_array_equal, outcome.state.params, weights)

    def never(*args):
        raise AssertionError("masks of a run that goes on are made again")

    monkeypatch.setattr(run, "first_masks", never)
    again = train_and_evaluate(config, tmp_path)
    assert again.test_accuracy == outcome.test_accuracy


def small(config, **changes):
    """Few steps of a small network, on whatever data."""
    config.update(
        {
            "model": "resnet20",
            "validation_examples": 2,
            "batch_size": 8,
            "total_steps": 6,
            "update_interval_steps": 2,
            "pruning_share": 0.5,
            "checkpoint_every_steps": 3,
            "workers": 0,
            "sparsity": 0.8,
        }
        | changes
    )
    config.model_options.depth = 8
    return config


def assert_whole_record(workdir, outcome):
    lines = read_metrics(workdir)
    assert {line["kind"] for line in lines} == {
        "train",
        "validation",
        "test",
        "topology",
    }
    last = [line for line in lines if "sparsity" in line][-1]
    assert last["sparsity"] == pytest.approx(0.8, abs=1e-4)
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
    assert tests[-1]["accuracy"] == outcome.test_accuracy
    assert (workdir / "report.html").exists()


def test_imagenet_from_records_end_to_end(tfds_dir, tmp_path):
    config = small(imagenet_resnet50.get_config("method=granet"), image_size=32)
    config.data_dir = tfds_dir
    assert_whole_record(tmp_path, train_and_evaluate(config, tmp_path))


def test_a_folder_laid_out_as_tiny_imagenet_end_to_end(tmp_path):
    write_tiny_imagenet(tmp_path / "images", each=10, held=5)
    config = small(
        imagenet_resnet50.get_config("method=granet_st"),
        image_size=32,
        dataset=f"folder:{tmp_path / 'images'}",
    )
    outcome = train_and_evaluate(config, tmp_path / "run")
    assert_whole_record(tmp_path / "run", outcome)


def test_cifar_from_records_end_to_end(tfds_dir, tmp_path):
    config = small(cifar_vgg19.get_config("method=granet"), steps_per_call=2)
    config.data_dir = tfds_dir
    assert_whole_record(tmp_path, train_and_evaluate(config, tmp_path))
