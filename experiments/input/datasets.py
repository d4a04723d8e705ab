"""Data sets by name, with random access and without TensorFlow.

cifar10, cifar100, imagenet2012   prepared by TFDS as array_record, in `data_dir`;
                                  `data_dir` may also name a CIFAR .npz file
digits                            scikit-learn's, 8 x 8 pixels
npz:FILE                          x_train, y_train, x_test, y_test
folder:DIR                        train/CLASS/*.jpg, and test/ or val/ alike, or
                                  val/val_annotations.txt as in Tiny-ImageNet
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

Example = dict[str, Any]

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


class Split(Protocol):
    """Examples with random access; example i has a uint8 `image` and an int `label`."""

    def __len__(self) -> int:
        """Counts the examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads one."""


@dataclass(frozen=True)
class ArraySplit:
    """Examples in memory.

    Attributes:
        images: uint8[n, h, w, c].
        labels: int32[n].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Gives one."""
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclass(frozen=True)
class FileSplit:
    """Examples in image files.

    Attributes:
        files: A file for each example. Text, which is a fraction of what a `Path` takes
            in memory and on the way to a worker.
        labels: Its class, by number.
    """

    files: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one."""
        image = _decode(Path(self.files[index]).read_bytes())
        return {"image": image, "label": self.labels[index]}


@dataclass(frozen=True)
class RecordSplit:
    """Examples in TFDS records.

    Attributes:
        source: A TFDS data source whose images are still encoded. PIL decodes them, so
            that what else is installed does not change a pixel.
    """

    source: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one."""
        record = self.source[index]
        return {"image": _decode(record["image"]), "label": int(record["label"])}


@dataclass(frozen=True)
class Subset:
    """Some examples of a split.

    Attributes:
        split: The split.
        rows: int64[m], which of its examples.
    """

    split: Split
    rows: np.ndarray

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Reads one."""
        return self.split[int(self.rows[index])]


class Dataset(NamedTuple):
    """A data set in three disjoint parts.

    Attributes:
        name: As it was asked for.
        train: What weights and masks are fitted to.
        validation: Held out of the training set; empty if nothing was asked for.
        test: What is reported, and nothing else.
        num_classes: Classes; labels are from 0.
        image_shape: Height, width and channels. Where images differ in size, those of
            the first.
        mean: float32[c] of pixels in [0, 1].
        std: float32[c], the same.
        in_memory: Whether all splits are `ArraySplit`.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    in_memory: bool


def load_dataset(
    name: str, data_dir: str | None, validation_examples: int, seed: int
) -> Dataset:
    """Opens a data set; those that fit in memory are decoded once, into arrays.

    Args:
        name: One of those above.
        data_dir: Where TFDS keeps its sets, or an .npz file with the images of cifar10
            or cifar100; None for TFDS's own default.
        validation_examples: How many training examples to hold out.
        seed: Seed of which; the same seed holds out the same.

    Returns:
        The data set.

    Raises:
        ValueError: If there is no such name, or not so many training examples.
        FileNotFoundError: If the set is not there. Nothing is ever downloaded.
    """
    kind, _, path = name.partition(":")
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
    kept, held_out = _hold_out(len(train), validation_examples, seed)
    validation, train = _subset(train, held_out), _subset(train, kept)
    shape = train[0]["image"].shape
    mean, std = _MOMENTS[name] if name in _MOMENTS else _moments(train)
    return Dataset(
        name=name,
        train=train,
        validation=validation,
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


def _hold_out(total: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # RandomState and not Generator: NumPy keeps its numbers the same for good.
    shuffled = np.random.RandomState(seed).permutation(total)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def _subset(split: Split, rows: np.ndarray) -> Split:
    if isinstance(split, ArraySplit):
        return ArraySplit(split.images[rows], split.labels[rows])
    return Subset(split, rows)


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
        x_train, y_train, x_test, y_test = (arrays[name] for name in _NPZ_ARRAYS)
    for images in (x_train, x_test):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"{path} must hold images as uint8[n, h, w, c]; got "
                f"{images.dtype}{list(images.shape)}."
            )
    classes = int(max(y_train.max(), y_test.max())) + 1
    return (
        ArraySplit(x_train, y_train.astype(np.int32)),
        ArraySplit(x_test, y_test.astype(np.int32)),
        classes,
    )


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
        RecordSplit(builder.as_data_source(split=split, decoders=keep_encoded))
        for split in ("train", _TEST_SPLIT[name])
    ]
    classes = builder.info.features["label"].num_classes
    train, test = splits if name == "imagenet2012" else map(_into_memory, splits)
    return train, test, classes


def _into_memory(split: Split) -> ArraySplit:
    examples = [split[i] for i in range(len(split))]
    return ArraySplit(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


def _folder(root: Path) -> _Parts:
    if not (root / "train").is_dir():
        raise FileNotFoundError(
            f"There is no {root / 'train'}: `mkdir -p {root / 'train'}/CLASS` for each "
            f"class, put its images there, and do the same in {root / 'val'}."
        )
    names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    number = {name: i for i, name in enumerate(names)}
    train = _by_class(root / "train", number)
    if not train:
        raise FileNotFoundError(f"{root / 'train'} must hold CLASS/*.jpg or *.png.")
    # ImageNet's and Tiny-ImageNet's own test images have no labels: then val serves.
    test = _by_class(root / "test", number) or _by_class(root / "val", number)
    annotations = root / "val" / "val_annotations.txt"
    if not test and annotations.is_file():
        lines = [line.split("\t") for line in annotations.read_text().splitlines()]
        images = root / "val" / "images"
        test = [(images / line[0], number[line[1]]) for line in lines if len(line) > 1]
    if not test:
        raise FileNotFoundError(
            f"{root} must hold test/CLASS/*.jpg, val/CLASS/*.jpg or "
            "val/val_annotations.txt, with the classes of train."
        )
    return _file_split(train), _file_split(test), len(names)


def _by_class(directory: Path, number: Mapping[str, int]) -> list[tuple[Path, int]]:
    """Lists images below the folder of each class, in an order of their names alone."""
    return [
        (path, label)
        for name, label in number.items()
        for path in sorted((directory / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]


def _file_split(examples: Sequence[tuple[Path, int]]) -> FileSplit:
    return FileSplit(
        files=tuple(str(path) for path, _ in examples),
        labels=tuple(label for _, label in examples),
    )
