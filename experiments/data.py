"""Data sets by name, the order of their examples, and the way to the devices.

cifar10, cifar100, imagenet2012   prepared by TFDS as array_record, in `data_dir`;
                                  `data_dir` may also name a CIFAR .npz file
digits                            scikit-learn's, 8 x 8 pixels
npz:FILE                          x_train, y_train, x_test, y_test
folder:DIR                        train/CLASS/*.jpg, and test/ or val/ alike, or
                                  val/val_annotations.txt as in Tiny-ImageNet

What a step sees is a pure function of the seed and the step, whatever the number of
processes or workers: a resumed run needs nothing but its step. A set in memory lives on
the devices, where only the order of examples and the numbers of their augmentation are
sent to; any other is read and augmented by Grain ahead of the steps. Both see the same
epochs, bit for bit.
"""

import functools
import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from experiments.augment import (
    PadMode,
    check_pad,
    normalize,
    pad_crop_flip,
    pad_crop_flip_on_device,
    random_resized_crop,
    resize_center_crop,
)

PyTree = Any
Example = dict[str, Any]
Batch = dict[str, np.ndarray]
Augment = Literal["cifar", "imagenet", "none"]

# Mean and standard deviation of each channel, as the papers' code has them. CIFAR-10's
# deviations are the customary ones: means over images of each image's own.
_MOMENTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_TEST_SPLIT = {"cifar10": "test", "cifar100": "test", "imagenet2012": "validation"}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# Images that a folder's mean and deviation are computed on, evenly spaced.
_MOMENTS_SAMPLE = 1000

# Data sets.


class Split(Protocol):
    """Examples with random access; example i has a uint8 `image` and an int `label`."""

    def __len__(self) -> int:
        """Counts the examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads one."""


@dataclass(frozen=True)
class ArraySplit:
    """Examples in memory: images uint8[n, h, w, c], labels int32[n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Returns one."""
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclass(frozen=True)
class ReadSplit:
    """Examples that are read and decoded one by one: those of some rows."""

    read: Callable[[int], Example]
    rows: np.ndarray

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Reads one."""
        return self.read(int(self.rows[index]))


class Dataset(NamedTuple):
    """A data set in three disjoint parts."""

    name: str  # as it was asked for
    train: Split  # what weights and masks are fitted to
    validation: Split  # held out of the training set; empty if nothing was asked for
    test: Split  # what is reported, and nothing else
    num_classes: int  # classes; labels are from 0
    # Height, width and channels. Where images differ in size, those of the first.
    image_shape: tuple[int, int, int]
    mean: np.ndarray  # float32[c] of pixels in [0, 1]
    std: np.ndarray  # float32[c], the same
    in_memory: bool  # whether all splits are `ArraySplit`


def load_dataset(
    name: str, data_dir: str | None, validation_examples: int, seed: int
) -> Dataset:
    """Opens a data set; those that fit in memory are decoded once, into arrays.

    Nothing is ever downloaded: a set that is missing is a FileNotFoundError with the
    command that prepares it. The same seed holds out the same examples.
    """
    kind, _, path = str(name).partition(":")
    if name == "digits":
        train, test, classes = _digits()
    elif kind == "npz" and path:
        train, test, classes = _npz(Path(path))
    elif kind == "folder" and path:
        train, test, classes = _folder(Path(path))
    elif name in ("cifar10", "cifar100") and (data_dir or "").endswith(".npz"):
        train, test, classes = _npz(Path(str(data_dir)))
    elif name in _TEST_SPLIT:
        train, test, classes = _tfds(name, data_dir)
    else:
        raise ValueError(
            f"dataset must be one of {(*_TEST_SPLIT, 'digits')}, 'npz:FILE' or "
            f"'folder:DIR'; got {name!r}."
        )
    if not 0 <= validation_examples < len(train):
        raise ValueError(
            f"validation_examples must be from 0 to {len(train) - 1}, which leaves "
            f"{name} one to train on; got {validation_examples}."
        )
    # RandomState and not Generator: NumPy keeps its numbers the same for good.
    shuffled = np.random.RandomState(seed).permutation(len(train))
    held_out, kept = (
        _subset(train, np.sort(rows))
        for rows in np.split(shuffled, [validation_examples])
    )
    shape = kept[0]["image"].shape
    mean, std = _MOMENTS[name] if name in _MOMENTS else _moments(kept)
    return Dataset(
        name=name,
        train=kept,
        validation=held_out,
        test=test,
        num_classes=classes,
        image_shape=(shape[0], shape[1], shape[2]),
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
        in_memory=isinstance(train, ArraySplit),
    )


_Parts = tuple[Split, Split, int]  # train, test, number of classes


def _decode(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _subset(split: Any, rows: np.ndarray) -> Split:
    if isinstance(split, ArraySplit):
        return ArraySplit(split.images[rows], split.labels[rows])
    return ReadSplit(split.read, split.rows[rows])


def _moments(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Computes each channel's mean and deviation over the pixels of a split."""
    if isinstance(split, ArraySplit):
        images: list[np.ndarray] = list(split.images)
    else:
        stride = -(-len(split) // _MOMENTS_SAMPLE)
        images = [split[i]["image"] for i in range(0, len(split), stride)]
    axes = (0, 1)
    pixels = sum(image[..., 0].size for image in images)
    total = sum(image.sum(axes, np.int64) for image in images)
    squares = sum(np.square(image, dtype=np.int64).sum(axes) for image in images)
    mean = np.asarray(total / pixels)
    variance = squares / pixels - mean**2
    # A channel of one value alone would be divided by zero.
    return mean / 255, np.sqrt(np.where(variance > 0, variance, 255**2)) / 255


def _digits() -> _Parts:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    # The set has no split of its own; this one is fixed, whatever the run's seed.
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    return (
        ArraySplit(images[train], labels[train]),
        ArraySplit(images[test], labels[test]),
        10,
    )


def _npz(path: Path) -> _Parts:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: write it with "
            f"`numpy.savez({str(path)!r}, {', '.join(f'{n}=...' for n in _NPZ_ARRAYS)})"
            "`, images as uint8[n, h, w, c]."
        )
    with np.load(path) as arrays:
        missing = [name for name in _NPZ_ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"{path} must hold {_NPZ_ARRAYS}; it lacks {missing}.")
        content = {name: arrays[name] for name in _NPZ_ARRAYS}
    splits = []
    for part in ("train", "test"):
        images, labels = content[f"x_{part}"], content[f"y_{part}"]
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"{path} must hold images as uint8[n, h, w, c]; got "
                f"{images.dtype}{list(images.shape)} as x_{part}."
            )
        is_whole = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
        if not is_whole or labels.min() < 0:
            raise ValueError(
                f"{path} must hold an integer label of at least 0 for each of the "
                f"{len(images)} images of x_{part}; got {labels.dtype}"
                f"{list(labels.shape)} as y_{part}"
                + (f", the lowest {labels.min()}." if is_whole else ".")
            )
        splits.append(ArraySplit(images, labels.astype(np.int32)))
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{path} must hold images of one shape; got "
            f"{list(train.images.shape[1:])} and {list(test.images.shape[1:])}."
        )
    return train, test, int(max(train.labels.max(), test.labels.max())) + 1


def _tfds(name: str, data_dir: str | None) -> _Parts:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    directory = Path(builder.data_path)
    tars = " --manual_dir=DIR_OF_THE_TAR_FILES" if name == "imagenet2012" else ""
    command = (
        f"pip install tensorflow-cpu && tfds build {name} "
        f"--data_dir={directory.parent.parent} --file_format=array_record{tars}"
    )
    # Looked at here, since TFDS itself would take a missing set for one of records
    # without random access, or try to download it for minutes.
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"{name} is not in {directory}: prepare it with `{command}`, or set "
            "data_dir to where it is."
        )
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise FileNotFoundError(
            f"{name} in {directory} is stored as {builder.info.file_format.value}, "
            f"which has no random access: prepare it in another data_dir with "
            f"`{command}`."
        )
    keep_encoded = {"image": tfds.decode.SkipDecoding()}
    splits = [
        _record_split(builder.as_data_source(split=split, decoders=keep_encoded))
        for split in ("train", _TEST_SPLIT[name])
    ]
    classes = builder.info.features["label"].num_classes
    train, test = splits if name == "imagenet2012" else map(_into_memory, splits)
    return train, test, classes


def _record_split(source: Sequence[Mapping[str, Any]]) -> ReadSplit:
    def read(row: int) -> Example:
        # PIL decodes, so that what else is installed does not change a pixel.
        record = source[row]
        return {"image": _decode(record["image"]), "label": int(record["label"])}

    return ReadSplit(read, np.arange(len(source)))


def _into_memory(split: Split) -> ArraySplit:
    examples = [split[i] for i in range(len(split))]
    return ArraySplit(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


_Files = list[tuple[Path, int]]


def _folder(root: Path) -> _Parts:
    train = root / "train"
    if not train.is_dir():
        raise FileNotFoundError(
            f"There is no {train}: `mkdir -p {train}/CLASS` for each class, put its "
            f"images there, and do the same in {root / 'val'}."
        )
    number = {name: i for i, name in enumerate(sorted(_subfolders(train)))}
    if not number:
        raise FileNotFoundError(f"{train} must hold CLASS/*.jpg or *.png.")
    # ImageNet's and Tiny-ImageNet's own test images have no labels: then val serves.
    test = (
        _labeled(root / "test", number)
        or _labeled(root / "val", number)
        or _annotated(root / "val", number)
    )
    if not test:
        raise FileNotFoundError(
            f"{root} must hold test/CLASS/*.jpg, val/CLASS/*.jpg or "
            "val/val_annotations.txt, with the classes of train."
        )
    return _file_split(_by_class(train, number)), _file_split(test), len(number)


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


def _labeled(folder: Path, number: Mapping[str, int]) -> _Files:
    """Lists a split by class; nothing where there is none, or it has no classes."""
    names = _subfolders(folder) if folder.is_dir() else []
    unknown = sorted(set(names) - number.keys())
    if len(unknown) == len(names):
        return []
    if unknown:
        raise ValueError(
            f"{folder} must hold the classes of train alone; got {unknown[0]!r}."
        )
    return _by_class(folder, {name: number[name] for name in sorted(names)})


def _annotated(folder: Path, number: Mapping[str, int]) -> _Files:
    """Lists Tiny-ImageNet's validation split."""
    annotations, files = folder / "val_annotations.txt", []
    if not annotations.is_file():
        return []
    for text in annotations.read_text().splitlines():
        name, label, *_ = (*text.split("\t"), "", "")
        if label not in number:
            raise ValueError(
                f"{annotations} must hold lines of a file and a class of train; got "
                f"{text!r}."
            )
        files.append((folder / "images" / name, number[label]))
    return files


def _by_class(folder: Path, number: Mapping[str, int]) -> _Files:
    """Lists images below the folder of each class, in an order of their names alone."""

    def fail(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} must be a folder that can be read; got: "
            f"{error.strerror}."
        ) from None

    found: _Files = []
    for name, label in number.items():
        images = sorted(
            Path(below) / file
            for below, _, files in os.walk(
                folder / name, onerror=fail, followlinks=True
            )
            for file in files
            if Path(file).suffix.lower() in _SUFFIXES
        )
        if not images:
            raise ValueError(
                f"{folder / name} must hold images, *.jpg or *.png; it has none."
            )
        found += [(path, label) for path in images]
    return found


def _file_split(examples: _Files) -> ReadSplit:
    # Text takes a fraction of what a `Path` does, in memory and on the way to a worker.
    files = [str(path) for path, _ in examples]
    labels = [label for _, label in examples]

    def read(row: int) -> Example:
        try:
            image = _decode(Path(files[row]).read_bytes())
        except OSError as error:  # PIL's errors are of this kind
            raise ValueError(
                f"{files[row]} cannot be read as an image: {error}."
            ) from None
        return {"image": image, "label": labels[row]}

    return ReadSplit(read, np.arange(len(files)))


# The order of examples and the numbers of their augmentation.

# Sets these keys apart from others that a run derives from the same seed.
_STREAM = 0x1A9E

_lock = threading.Lock()


class EpochPlan(NamedTuple):
    """An epoch; rows i of all fields belong together."""

    order: Any  # int32[n], the examples in the order they are seen
    crop: Any  # int32[n, 2] in [0, 2 * pad], where to cut the padded image: row, column
    flip: Any  # bool[n], whether to mirror it


def epoch_plan(
    seed: int | jax.Array, epoch: int | jax.Array, num_examples: int, pad: int
) -> EpochPlan:
    """Draws an epoch's order and augmentation, the same on every kind of device."""
    # Threefry by name: its numbers are the same everywhere, whatever the default is.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    order, crop, flip = jax.random.split(jax.random.fold_in(key, epoch), 3)
    rows = jnp.arange(num_examples, dtype=jnp.int32)
    return EpochPlan(
        order=jax.random.permutation(order, rows),
        crop=jax.random.randint(crop, (num_examples, 2), 0, 2 * pad + 1, jnp.int32),
        flip=jax.random.bernoulli(flip, shape=(num_examples,)),
    )


_jitted_plan = jax.jit(epoch_plan, static_argnums=(2, 3))


@functools.lru_cache(maxsize=4)
def _cached_plan(seed: int, epoch: int, num_examples: int, pad: int) -> EpochPlan:
    # On the CPU, so as not to wait for training steps queued on the accelerator.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use the accelerator alone
        device = jax.local_devices()[0]
    with jax.default_device(device):
        plan = _jitted_plan(seed, epoch, num_examples, pad)
    return EpochPlan(*(np.asarray(field) for field in plan))


def host_plan(seed: int, epoch: int, num_examples: int, pad: int) -> EpochPlan:
    """Returns `epoch_plan` as NumPy arrays, computed once for the threads that ask."""
    with _lock:
        return _cached_plan(seed, epoch, num_examples, pad)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Counts an epoch's whole batches; the examples left over are not seen in it."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be from 1 to the {num_examples} examples of the set; "
            f"got {batch_size}."
        )
    return num_examples // batch_size


# The host path. One Grain element is one step's batch: the start is a slice and needs
# no saved iterator, whose state depends on the number of workers, and each process
# computes its own rows of the global batch whatever the number of processes.

# Threads decode images in parallel, since PIL lets go of the interpreter; sets in
# memory are faster with one, which is enough to work ahead of the step.
_MOST_THREADS = 16
_BATCHES_AHEAD = 2


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    augment: Augment = "none",
    pad: int = 4,
    mode: PadMode = "reflect",
    image_size: int = 224,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Returns this process's part of the batch of each step, for ever.

    "cifar" pads, crops and flips; "imagenet" crops at random, resizes and flips; "none"
    takes images as they are. With `workers`, so many processes read instead of threads.
    Call the iterator's `close` when done.
    """
    _check(batch_size, process_count, augment)
    epoch_steps = steps_per_epoch(len(split), batch_size)
    if augment == "cifar":
        check_pad(split[0]["image"].shape[:2], pad, mode)
    local = batch_size // process_count

    def batch(step: int) -> Batch:
        epoch, position = divmod(step, epoch_steps)
        start = position * batch_size + process_index * local
        plan = host_plan(seed, epoch, len(split), pad if augment == "cifar" else 0)
        order, crop, flip = (field[start : start + local] for field in plan)

        def cut(row: int, image: np.ndarray) -> np.ndarray:
            draw = np.random.default_rng((seed, epoch, row))
            return random_resized_crop(image, image_size, draw)

        images, labels = _gather(split, order, cut if augment == "imagenet" else None)
        if augment == "imagenet":
            images[flip] = images[flip, :, ::-1]
        if augment == "cifar":
            images = pad_crop_flip(images, crop, flip, pad, mode)
        return {"image": images, "label": labels}

    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return _iterate(steps.map(batch), split, workers)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    augment: Augment = "none",
    image_size: int = 224,
    workers: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Returns this process's part of one pass, the same number of batches on each.

    The weight of an example is 1, or 0 where the last batch is filled up with copies of
    the last example.
    """
    _check(batch_size, process_count, augment)
    local = batch_size // process_count

    def cut(row: int, image: np.ndarray) -> np.ndarray:
        return resize_center_crop(image, image_size)

    def batch(index: int) -> Batch:
        rows = np.arange(local) + index * batch_size + process_index * local
        weight = (rows < len(split)).astype(np.float32)
        rows = np.minimum(rows, len(split) - 1)
        images, labels = _gather(split, rows, cut if augment == "imagenet" else None)
        return {"image": images, "label": labels, "weight": weight}

    batches = grain.MapDataset.range(-(-len(split) // batch_size))
    return _iterate(batches.map(batch), split, min(workers, len(batches)))


def _gather(
    split: Split, rows: np.ndarray, cut: Callable[[int, np.ndarray], np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads examples, each cut as it is decoded: one is held at full size."""
    if isinstance(split, ArraySplit) and cut is None:
        return split.images[rows], split.labels[rows]
    images: list[np.ndarray] = []
    labels: list[int] = []
    for row in map(int, rows):
        example = split[row]
        image = example["image"] if cut is None else cut(row, example["image"])
        if images and image.shape != images[0].shape:
            raise ValueError(
                'augment must be "imagenet" where images differ in shape; got '
                f"{list(images[0].shape)} and {list(image.shape)}."
            )
        images.append(image)
        labels.append(example["label"])
    return np.stack(images), np.array(labels, np.int32)


def _check(batch_size: int, process_count: int, augment: str) -> None:
    if augment not in get_args(Augment):
        raise ValueError(
            f"augment must be one of {get_args(Augment)}; got {augment!r}."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size must be a multiple of the {process_count} processes; got "
            f"{batch_size}."
        )


def _iterate(
    dataset: grain.MapDataset[Batch], split: Split, workers: int
) -> grain.DatasetIterator[Batch]:
    cores = (os.cpu_count() or 1) // max(1, workers)
    in_memory = isinstance(split, ArraySplit)
    threads = 1 if in_memory else min(_MOST_THREADS, max(1, cores))
    read = grain.ReadOptions(threads, prefetch_buffer_size=max(_BATCHES_AHEAD, threads))
    batches = dataset.to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads flags when it starts a worker
        options = grain.MultiprocessingOptions(workers, _BATCHES_AHEAD)
        batches = batches.mp_prefetch(options, worker_init_fn=_keep_to_the_cpu)
    return iter(batches)


def _keep_to_the_cpu(worker: int, workers: int) -> None:
    """Leaves the accelerator to the training process; workers compute plans alone."""
    del worker, workers
    jax.config.update("jax_platforms", "cpu")


def prefetch(
    iterator: Iterator[Any], put: Callable[[Any], Any], depth: int = 2
) -> Generator[Any, None, None]:
    """Places batches on the devices ahead of the one in use, in order."""
    placed: deque[Any] = deque()
    try:
        for batch in iterator:
            placed.append(put(batch))
            if len(placed) > depth:
                yield placed.popleft()
        while placed:
            yield placed.popleft()
    finally:
        getattr(iterator, "close", lambda: None)()


# The device path.


class DeviceData(NamedTuple):
    """A split on the devices: uint8 images, int32 labels, and the set's moments."""

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array


def device_data(
    split: Split, mean: np.ndarray, std: np.ndarray, sharding: Any = None
) -> DeviceData:
    """Puts a split that is in memory on a device, or by a sharding."""
    if not isinstance(split, ArraySplit):
        raise ValueError(
            "split must be one that is in memory, such as CIFAR's; got "
            f"{type(split).__name__}: use the host path."
        )
    return DeviceData(
        *jax.device_put((split.images, split.labels, mean, std), sharding)
    )


def augmented(
    data: DeviceData,
    order: jax.Array,
    crop: jax.Array,
    flip: jax.Array,
    pad: int,
    mode: PadMode,
) -> dict[str, jax.Array]:
    """Gathers, augments and normalizes the examples of rows of a plan."""
    images = pad_crop_flip_on_device(data.images[order], crop, flip, pad, mode)
    images = normalize(images, data.mean, data.std)
    return {"image": images, "label": data.labels[order]}


# A run's feed: either path, in chunks of some steps.


class Feed(NamedTuple):
    """Where a run's batches come from."""

    data: PyTree  # what the devices hold all the time; empty on the host path
    # (first step, sizes) -> chunks of batches, placed on the devices.
    chunks: Callable[[int, Iterable[int]], Generator[PyTree, None, None]]
    # (data, item) -> the batch of a step: normalized images, and labels.
    fetch: Callable[[PyTree, Mapping[str, Any]], dict[str, jax.Array]]
    normalize: Callable[[jax.Array], jax.Array]  # uint8 images -> what the model sees
    most: int  # the most steps that go in one chunk


def host_batches(
    config: ConfigDict, dataset: Dataset, start_step: int = 0, all_rows: bool = False
) -> grain.DatasetIterator[Batch]:
    """Reads and augments this process's part of a run's training batches, or all."""
    return train_batches(
        dataset.train,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start_step,
        process_index=0 if all_rows else jax.process_index(),
        process_count=1 if all_rows else jax.process_count(),
        augment=config.augment,
        pad=config.pad,
        mode=config.pad_mode,
        image_size=config.image_size or dataset.image_shape[0],
        workers=config.workers,
    )


def make_feed(
    config: ConfigDict, dataset: Dataset, epoch_steps: int, parallel: Any
) -> Feed:
    """Chooses the path for a data set; `device_resident` None leaves it to the set."""
    fits = dataset.in_memory and config.augment != "imagenet"
    resident = fits if config.device_resident is None else config.device_resident
    if resident and not fits:
        raise ValueError(
            "device_resident must be False where the data is not in memory or augment "
            f'is "imagenet"; got True for {dataset.name} with {config.augment!r}.'
        )

    def scale(images: jax.Array) -> jax.Array:
        return normalize(images, dataset.mean, dataset.std)

    def chunks_of(items: Callable[[int], Iterator[Any]]) -> Any:
        def chunks(step: int, sizes: Iterable[int]) -> Generator[PyTree, None, None]:
            return prefetch(_stack(items(step), sizes), parallel.put_chunk)

        return chunks

    def fetch_images(data: PyTree, item: Mapping[str, Any]) -> dict[str, jax.Array]:
        return {"image": scale(item["image"]), "label": item["label"]}

    def fetch_rows(data: DeviceData, item: Mapping[str, Any]) -> dict[str, jax.Array]:
        mode: Any = config.pad_mode if config.augment == "cifar" else "none"
        return augmented(data, **item, pad=config.pad, mode=mode)

    if not resident:
        from_host = functools.partial(host_batches, config, dataset)
        return Feed((), chunks_of(from_host), fetch_images, scale, most=1)
    if config.augment == "cifar":
        check_pad(dataset.image_shape[:2], config.pad, config.pad_mode)
    data = parallel.put_data(device_data(dataset.train, dataset.mean, dataset.std))
    rows = chunks_of(lambda step: _rows(config, len(dataset.train), epoch_steps, step))
    return Feed(data, rows, fetch_rows, scale, most=epoch_steps)


def _rows(
    config: ConfigDict, examples: int, epoch_steps: int, step: int
) -> Iterator[Mapping[str, Any]]:
    """Yields which examples a step takes and how: this process's part of the plan."""
    local = config.batch_size // jax.process_count()
    while True:
        epoch, within = divmod(step, epoch_steps)
        plan = host_plan(config.seed, epoch, examples, config.pad)
        start = within * config.batch_size + jax.process_index() * local
        yield {
            name: field[start : start + local] for name, field in plan._asdict().items()
        }
        step += 1


def _stack(items: Iterator[Any], sizes: Iterable[int]) -> Iterator[PyTree]:
    try:
        for size in sizes:
            chunk = [next(items) for _ in range(size)]
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *chunk)
    finally:
        getattr(items, "close", lambda: None)()


def evaluation_chunks(
    config: ConfigDict, split: Split, image_size: int, parallel: Any
) -> Iterator[PyTree]:
    """Yields one pass over a split in chunks of one batch, placed on the devices."""
    batches = eval_batches(
        split,
        batch_size=config.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        augment=config.augment,
        image_size=image_size,
        workers=config.workers,
    )
    total = -(-len(split) // config.batch_size)
    yield from prefetch(_stack(iter(batches), [1] * total), parallel.put_chunk)
