"""The input side: the two paths see the same epochs, whatever the processes or workers.

Data sets are made small here: TFDS records, image files and arrays of noise, in which
no two images are alike.
"""

import itertools
import multiprocessing
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_sets import noise, write_folder, write_tiny_imagenet
from PIL import Image

from experiments import augment
from experiments import data as inputs
from experiments.data import (
    ArraySplit,
    ReadSplit,
    epoch_plan,
    host_plan,
    load_dataset,
    steps_per_epoch,
)

EXAMPLES = 37
BATCH = 8
STEPS = 4  # an epoch: 37 // 8
PAD = 2
SEED = 3


@pytest.fixture(scope="module")
def arrays() -> ArraySplit:
    return ArraySplit(noise(EXAMPLES, 10, 8, 3), np.arange(EXAMPLES, dtype=np.int32))


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folder(tmp_path)
    return tmp_path


def first(batches: Iterator, count: int) -> list[dict[str, np.ndarray]]:
    """Takes copies, as a worker's arrays live in memory that it uses again."""
    taken = [
        {name: np.array(array) for name, array in batch.items()}
        for batch in itertools.islice(batches, count)
    ]
    batches.close()
    return taken


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def train(split, count: int, **changed) -> list[dict[str, np.ndarray]]:
    settings = {"seed": SEED, "batch_size": BATCH, "augment": "cifar", "pad": PAD}
    return first(inputs.train_batches(split, **{**settings, **changed}), count)


def joined(parts: list[list[dict]]) -> list[dict]:
    """Puts the parts of several processes together, batch by batch."""
    return [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts)
    ]


# The plan.


def test_plan_is_pinned():
    """A change of these numbers, in a new JAX say, breaks resuming older runs."""
    plan = epoch_plan(0, 0, 10, 4)
    assert plan.order.tolist() == ORDER
    assert plan.crop.tolist() == CROP
    assert plan.flip.tolist() == FLIP
    assert plan.order.dtype == plan.crop.dtype == jnp.int32


ORDER = [6, 8, 4, 2, 0, 3, 5, 9, 7, 1]
CROP = [[4, 1], [4, 5], [0, 1], [6, 6], [8, 8], [7, 8], [0, 5], [0, 4], [5, 7], [5, 5]]
FLIP = [False, False, True, True, True, True, True, True, False, False]


def test_plan_with_a_traced_seed_and_epoch_is_the_same():
    jitted = jax.jit(epoch_plan, static_argnums=(2, 3))
    for seed, epoch in ((0, 0), (1, 0), (0, 7)):
        traced = jitted(jnp.int32(seed), jnp.int32(epoch), 10, 4)
        for plan in (traced, epoch_plan(seed, epoch, 10, 4)):
            expected = host_plan(seed, epoch, 10, 4)
            jax.tree.map(np.testing.assert_array_equal, tuple(plan), tuple(expected))


def test_plan_draws_every_shift_and_both_sides_alike():
    plan = host_plan(0, 0, 30_000, 1)
    assert sorted(plan.order) == list(range(30_000))
    assert np.abs(np.mean(plan.flip) - 0.5) < 0.02
    shifts = np.bincount(3 * plan.crop[:, 0] + plan.crop[:, 1], minlength=9)
    np.testing.assert_allclose(shifts / 30_000, 1 / 9, atol=0.01)


def test_plans_of_other_epochs_and_seeds_differ():
    orders = {tuple(host_plan(s, e, 30, 0).order) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_steps_per_epoch():
    assert steps_per_epoch(37, 8) == 4
    assert steps_per_epoch(8, 8) == 1
    for batch_size in (0, 38):
        with pytest.raises(ValueError, match="batch_size must be from 1 to the 37"):
            steps_per_epoch(37, batch_size)


# Augmentation.


@pytest.mark.parametrize("mode", ["reflect", "zero", "none"])
@pytest.mark.parametrize("pad", [0, 1, 6])
def test_pad_crop_flip_is_the_same_on_host_and_device(mode, pad):
    images = noise(40, 9, 7, 2)
    rng = np.random.default_rng(1)
    crop = rng.integers(0, 2 * pad + 1, (40, 2), np.int32)
    flip = rng.integers(0, 2, 40).astype(bool)
    on_host = augment.pad_crop_flip(images, crop, flip, pad, mode)
    on_device = jax.jit(augment.pad_crop_flip_on_device, static_argnums=(3, 4))
    result = on_device(images, crop, flip, pad, mode)
    assert result.dtype == on_host.dtype == np.uint8
    np.testing.assert_array_equal(on_host, result)


def test_pad_crop_flip_does_what_it_says():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1) + 1

    def shifted(row, column, flip, mode):
        at, mirror = np.array([[row, column]]), np.array([flip])
        return augment.pad_crop_flip(image, at, mirror, 1, mode)[0, :, :, 0].tolist()

    assert shifted(1, 1, False, "zero") == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert shifted(1, 1, True, "zero") == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert shifted(0, 0, False, "zero") == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert shifted(0, 0, False, "reflect") == [[5, 4, 5], [2, 1, 2], [5, 4, 5]]
    assert shifted(2, 1, True, "zero") == [[6, 5, 4], [9, 8, 7], [0, 0, 0]]


def test_normalize():
    images, mean, std = noise(2, 3, 3, 2), np.float32([0.4, 0.5]), np.float32([0.2, 1])
    result = jax.jit(augment.normalize)(images, mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=1e-5)


def test_random_resized_crop_cuts_areas_and_shapes_of_the_given_ranges(monkeypatch):
    cuts = []
    monkeypatch.setattr(
        augment, "_resize", lambda image, h, w: cuts.append(image.shape) or image
    )
    for seed in range(300):
        image = np.zeros((250, 250, 3), np.uint8)
        augment.random_resized_crop(image, 16, np.random.default_rng(seed))
    height, width = np.array(cuts).T[:2]
    area, ratio = height * width / 250**2, width / height
    assert 0.07 < area.min() < 0.12 and 0.85 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.36


def test_random_resized_crop_of_a_strip_takes_its_middle():
    image = noise(10, 1000, 3)
    result = augment.random_resized_crop(image, 16, np.random.default_rng(0))
    middle = Image.fromarray(image[:, 493:506]).resize((16, 16), Image.BILINEAR)
    np.testing.assert_array_equal(result, middle)


def test_resize_center_crop():
    image = noise(8, 12, 3)
    np.testing.assert_array_equal(augment.resize_center_crop(image, 7), image[:7, 2:9])
    assert augment.resize_center_crop(noise(50, 31, 3), 224).shape == (224, 224, 3)


# The host path.


def test_a_run_started_at_any_step_sees_what_an_uninterrupted_one_sees(arrays):
    whole = train(arrays, 11)
    for start in (1, STEPS, 9):
        assert_same(train(arrays, 11 - start, start_step=start), whole[start:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_same_batches(arrays, count):
    parts = [
        train(arrays, 6, process_index=i, process_count=count) for i in range(count)
    ]
    assert parts[0][0]["image"].shape == (BATCH // count, 10, 8, 3)
    assert_same(joined(parts), train(arrays, 6))


def test_every_example_is_seen_once_an_epoch_but_for_the_remainder(arrays):
    labels = np.array([batch["label"] for batch in train(arrays, 3 * STEPS)])
    epochs = labels.reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch)) == STEPS * BATCH
    assert len(set(map(tuple, epochs))) == 3
    assert len(set(epochs.ravel())) == EXAMPLES  # what is left over is not the same


def test_without_augmentation_images_are_as_they_are(arrays):
    for batch in train(arrays, 5, augment="none"):
        np.testing.assert_array_equal(batch["image"], arrays.images[batch["label"]])


def test_augmentation_does_not_change_the_order(arrays):
    labels = [[b["label"].tolist() for b in train(arrays, 5)]]
    labels += [[b["label"].tolist() for b in train(arrays, 5, augment="none")]]
    assert labels[0] == labels[1]


def test_workers_give_the_same_batches(arrays):
    plain = train(arrays, 6, start_step=3)
    assert_same(train(arrays, 6, start_step=3, workers=2), plain)
    assert not multiprocessing.active_children()


def test_workers_give_the_same_imagenet_batches(tfds_dir):
    data = load_dataset("imagenet2012", tfds_dir, 4, seed=0)
    settings = {"augment": "imagenet", "image_size": 16}
    plain = train(data.train, 4, **settings)
    assert plain[0]["image"].shape == (BATCH, 16, 16, 3)
    assert_same(train(data.train, 4, **settings, workers=2), plain)
    assert_same(train(data.train, 2, **settings, start_step=2), plain[2:])
    parts = [
        train(data.train, 4, **settings, process_index=i, process_count=2)
        for i in range(2)
    ]
    assert_same(joined(parts), plain)


def test_a_closed_iterator_refuses_to_go_on(arrays):
    batches = inputs.train_batches(arrays, seed=0, batch_size=4)
    next(batches)
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_every_example_once(arrays, count):
    parts = [
        first(
            inputs.eval_batches(
                arrays, batch_size=BATCH, process_index=i, process_count=count
            ),
            100,
        )
        for i in range(count)
    ]
    assert [len(part) for part in parts] == [5] * count
    batches = joined(parts)
    weight = np.concatenate([batch["weight"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    image = np.concatenate([batch["image"] for batch in batches])
    assert weight.dtype == np.float32 and set(weight) == {0.0, 1.0}
    assert label[weight == 1].tolist() == list(range(EXAMPLES))
    np.testing.assert_array_equal(image[weight == 1], arrays.images)


def test_evaluation_of_nothing_gives_nothing(arrays):
    empty = ArraySplit(arrays.images[:0], arrays.labels[:0])
    assert first(inputs.eval_batches(empty, batch_size=4, workers=2), 10) == []


def test_evaluation_with_imagenet_cuts_the_middle(tfds_dir):
    data = load_dataset("imagenet2012", tfds_dir, 0, seed=0)
    settings = {"batch_size": 4, "augment": "imagenet", "image_size": 16}
    batches = first(inputs.eval_batches(data.test, **settings), 10)
    assert [batch["image"].shape for batch in batches] == [(4, 16, 16, 3)] * 3
    assert [batch["weight"].sum() for batch in batches] == [4, 4, 1]
    expected = augment.resize_center_crop(data.test[5]["image"], 16)
    np.testing.assert_array_equal(batches[1]["image"][1], expected)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"augment": "flip"}, "augment must be one of"),
        ({"augment": "cifar", "mode": "edge"}, "mode must be one of"),
        (
            {"augment": "cifar", "pad": 8},
            "pad must be from 0 to 7 for images of 10 x 8",
        ),
        ({"process_count": 3}, "batch_size must be a multiple of the 3 processes"),
        ({"batch_size": 40}, "batch_size must be from 1 to the 37 examples"),
    ],
)
def test_train_batches_refuses_at_once(arrays, changed, message):
    with pytest.raises(ValueError, match=message):
        inputs.train_batches(arrays, **{"seed": 0, "batch_size": 8, **changed})


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_prefetch_places_ahead_and_keeps_the_order(depth):
    placed, closed = [], []

    class Batches:
        def __init__(self):
            self.items = iter(range(6))

        def __iter__(self):
            return self.items

        def close(self):
            closed.append(True)

    def put(item):
        placed.append(item)
        return item

    ahead = inputs.prefetch(Batches(), put, depth)
    seen = []
    for item in ahead:
        seen.append(item)
        assert len(placed) - len(seen) == min(depth, 6 - len(seen))
    assert seen == list(range(6)) and closed == [True]


def test_prefetch_that_is_closed_closes_what_it_reads(arrays):
    batches = inputs.train_batches(arrays, seed=0, batch_size=4)
    ahead = inputs.prefetch(batches, jax.device_put)
    assert isinstance(next(ahead)["image"], jax.Array)
    ahead.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


# The device path.


def as_uint8(image: jax.Array) -> np.ndarray:
    """Undoes `normalize` with mean 0 and deviation 1."""
    return np.round(np.asarray(image) * 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["reflect", "zero", "none"])
def test_device_path_is_the_host_path_bit_for_bit(arrays, mode):
    data = inputs.device_data(arrays, np.zeros(3, np.float32), np.ones(3, np.float32))

    @jax.jit
    def run(data, plan):
        def step(carry, rows):
            return carry, inputs.augmented(data, *rows, pad=PAD, mode=mode)

        return jax.lax.scan(step, None, plan)[1]

    # Two epochs and some, in batches; a rest of the set is left out of each epoch.
    plans = [epoch_plan(SEED, epoch, EXAMPLES, PAD) for epoch in range(3)]
    batches = [
        jnp.concatenate(
            [f[: STEPS * BATCH].reshape(STEPS, BATCH, *f.shape[1:]) for f in fields]
        )[:10]
        for fields in zip(*plans)
    ]
    on_device = run(data, batches)
    choice = {"augment": "none"} if mode == "none" else {"mode": mode}
    on_host = train(arrays, 10, **choice)
    labels = np.array([batch["label"] for batch in on_host])
    images = np.array([batch["image"] for batch in on_host])
    np.testing.assert_array_equal(on_device["label"], labels)
    np.testing.assert_array_equal(as_uint8(on_device["image"]), images)
    assert on_device["image"].dtype == jnp.float32


def test_device_data_refuses_a_split_on_disk():
    with pytest.raises(ValueError, match="use the host path"):
        inputs.device_data(ReadSplit(len, np.arange(0)), np.zeros(3), np.ones(3))


# Data sets.


def label_and_bytes(split) -> set[tuple[int, bytes]]:
    examples = [split[i] for i in range(len(split))]
    return {(e["label"], e["image"].tobytes()) for e in examples}


def test_digits():
    data = load_dataset("digits", None, 300, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (1137, 300, 360)
    assert data.image_shape == (8, 8, 1) and data.num_classes == 10 and data.in_memory
    assert data.train.images.dtype == np.uint8 and data.train.images.max() == 255
    pixels = data.train.images / 255
    np.testing.assert_allclose(data.mean, [pixels.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.std, [pixels.std()], rtol=1e-6)
    other = load_dataset("digits", None, 100, seed=5)
    np.testing.assert_array_equal(data.test.images, other.test.images)


def test_cifar10_from_records(tfds_dir):
    data = load_dataset("cifar10", tfds_dir, 10, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 12)
    assert data.in_memory and data.image_shape == (32, 32, 3)
    assert data.num_classes == 10
    made = {(i % 10, noise(32, 32, 3, seed=i).tobytes()) for i in range(40)}
    assert label_and_bytes(data.train) | label_and_bytes(data.validation) == made
    assert not label_and_bytes(data.train) & label_and_bytes(data.validation)
    np.testing.assert_allclose(data.mean, [0.4914, 0.4822, 0.4465])


def test_imagenet_from_records(tfds_dir):
    data = load_dataset("imagenet2012", tfds_dir, 5, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 9)
    assert not data.in_memory and data.num_classes == 1000
    made = {(i, noise(40 + i, 32, 3, seed=i).tobytes()) for i in range(20)}
    assert label_and_bytes(data.train) | label_and_bytes(data.validation) == made


def test_held_out_examples_depend_on_the_seed_alone(tfds_dir):
    held_out = [
        label_and_bytes(load_dataset("cifar10", tfds_dir, 10, seed).validation)
        for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1] != held_out[2]
    assert len(load_dataset("cifar10", tfds_dir, 0, seed=0).validation) == 0


def test_npz(tmp_path):
    path = tmp_path / "set.npz"
    arrays = {
        "x_train": noise(20, 6, 6, 3),
        "y_train": np.arange(20, dtype=np.uint8) % 4,
        "x_test": noise(5, 6, 6, 3, seed=1),
        "y_test": np.arange(5, dtype=np.uint8) % 4,
    }
    np.savez(path, **arrays)
    data = load_dataset(f"npz:{path}", None, 4, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 5)
    assert data.num_classes == 4 and data.in_memory
    assert data.train.labels.dtype == np.int32
    pixels = data.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std(0), rtol=1e-6)
    named = load_dataset("cifar10", str(path), 4, seed=0)
    np.testing.assert_array_equal(named.train.images, data.train.images)
    np.testing.assert_allclose(named.mean, [0.4914, 0.4822, 0.4465])

    np.savez(path, x_train=arrays["x_train"])
    with pytest.raises(ValueError, match=r"lacks \['y_train', 'x_test', 'y_test'\]"):
        load_dataset(f"npz:{path}", None, 0, seed=0)
    np.savez(path, **{**arrays, "x_test": arrays["x_test"] / 255})
    with pytest.raises(ValueError, match="must hold images as uint8"):
        load_dataset(f"npz:{path}", None, 0, seed=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_train": np.arange(5)}, r"for each of the 20 images of x_train; got int64"),
        ({"y_test": np.arange(6)}, r"each of the 5 images of x_test; got int64\[6\]"),
        ({"y_train": np.zeros(20)}, "an integer label .* got float64"),
        ({"y_train": np.zeros((20, 1), int)}, r"got int64\[20, 1\] as y_train"),
        ({"y_test": np.arange(5) - 1}, "y_test, the lowest -1"),
        ({"x_test": noise(5, 7, 6, 3)}, "images of one shape"),
        ({"x_train": noise(0, 6, 6, 3), "y_train": np.zeros(0, int)}, r"uint8\[0, 6"),
    ],
)
def test_labels_that_do_not_fit_their_images_are_refused(tmp_path, changes, message):
    arrays = {"x_train": noise(20, 6, 6, 3), "y_train": np.arange(20) % 4}
    arrays |= {"x_test": noise(5, 6, 6, 3), "y_test": np.arange(5) % 4}
    np.savez(tmp_path / "set.npz", **(arrays | changes))
    with pytest.raises(ValueError, match=message):
        load_dataset(f"npz:{tmp_path / 'set.npz'}", None, 0, seed=0)


def test_a_folder_with_a_mistake_in_it_is_refused(folder, monkeypatch):
    def refusal(message):
        with pytest.raises(ValueError, match=message):
            load_dataset(f"folder:{folder}", None, 0, seed=0)

    bird = folder / "val" / "bird"
    bird.mkdir()
    refusal("val must hold the classes of train alone; got 'bird'")
    bird.rmdir()
    for part in ("train", "val"):
        empty = folder / part / "cat"
        hidden = empty.rename(folder / "cat")
        empty.mkdir()
        refusal(f"{part}/cat must hold images, .*; it has none")
        empty.rmdir()
        hidden.rename(empty)
    scandir = os.scandir

    def unreadable(path):
        if str(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", unreadable)
        refusal("train/dog must be a folder that can be read; got: Permission denied")
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    refusal("train/cat/3.png cannot be read as an image")


def test_an_annotation_of_an_unknown_class_is_named(tmp_path):
    write_tiny_imagenet(tmp_path, 3, 2)
    with (tmp_path / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\tn09\t0\t0\t7\t7\n")
    with pytest.raises(ValueError, match="a class of train; got 'val_9"):
        load_dataset(f"folder:{tmp_path}", None, 0, seed=0)


def test_images_of_many_sizes_need_a_crop(folder):
    image = Image.fromarray(noise(9, 9, 3))
    image.save(folder / "train" / "cat" / "0.png")
    data = load_dataset(f"folder:{folder}", None, 0, seed=0)
    with pytest.raises(ValueError, match='augment must be "imagenet" where images'):
        train(data.train, 2)


def test_an_image_is_cut_as_it_is_decoded(monkeypatch):
    """The next is read before the last is let go of, but never three are there."""
    alive = []

    class Images:
        def __len__(self):
            return 16

        def __getitem__(self, index):
            full = noise(300, 300, 3, seed=index)
            alive.append(weakref.ref(full))
            assert sum(image() is not None for image in alive) <= 2
            return {"image": full, "label": index}

    monkeypatch.setattr(inputs, "_MOST_THREADS", 1)
    monkeypatch.setattr(inputs, "_BATCHES_AHEAD", 1)
    batch = next(iter(train(Images(), 1, augment="imagenet", image_size=8)))
    assert batch["image"].shape == (BATCH, 8, 8, 3) and len(alive) >= BATCH


def test_folder(folder):
    data = load_dataset(f"folder:{folder}", None, 3, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 4)
    assert data.num_classes == 2 and data.image_shape == (12, 12, 3)
    assert not data.in_memory
    made = {
        (number, noise(12, 12, 3, seed=100 * number + i).tobytes())
        for number in (0, 1)
        for i in range(6)
    }
    assert label_and_bytes(data.train) | label_and_bytes(data.validation) == made
    pixels = np.array([data.train[i]["image"] for i in range(9)]) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert train(data.train, 2)[0]["image"].shape == (BATCH, 12, 12, 3)


def test_folder_laid_out_as_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path, 3, 2)
    data = load_dataset(f"folder:{tmp_path}", None, 0, seed=0)
    assert (len(data.train), len(data.test), data.num_classes) == (6, 2, 2)
    assert [data.test[i]["label"] for i in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifar10", r"cifar10 is not in .*tfds build cifar10 .*=array_record`"),
        ("cifar100", "tfds build cifar100"),
        ("imagenet2012", "--manual_dir=DIR_OF_THE_TAR_FILES"),
        ("npz:/nowhere/set.npz", "There is no /nowhere/set.npz: write it with"),
        ("folder:/nowhere", "mkdir -p /nowhere/train/CLASS"),
    ],
)
def test_a_missing_data_set_is_refused_with_the_command(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message) as refusal:
        load_dataset(name, str(tmp_path), 0, seed=0)
    assert "\n" not in str(refusal.value)


def test_records_without_random_access_are_refused(tmp_path, tfds_dir):
    target = tmp_path / "cifar10" / "3.0.2"
    target.mkdir(parents=True)
    for file in (Path(tfds_dir) / "cifar10" / "3.0.2").iterdir():
        text = file.name.endswith(".json")
        data = file.read_bytes()
        data = data.replace(b"array_record", b"tfrecord") if text else data
        (target / file.name.replace("array_record", "tfrecord")).write_bytes(data)
    with pytest.raises(FileNotFoundError, match="stored as tfrecord, which has no"):
        load_dataset("cifar10", str(tmp_path), 0, seed=0)


def test_other_errors_of_load_dataset(folder):
    with pytest.raises(ValueError, match=r"dataset must be one of .* got 'mnist'"):
        load_dataset("mnist", None, 0, seed=0)
    for count in (-1, 1437):
        with pytest.raises(ValueError, match="validation_examples must be from 0 to"):
            load_dataset("digits", None, count, seed=0)
    shutil.rmtree(folder / "val")
    with pytest.raises(FileNotFoundError, match="must hold test/CLASS"):
        load_dataset(f"folder:{folder}", None, 0, seed=0)
