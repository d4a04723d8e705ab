"""Scikit-learn's bundled digits: 1,797 scans of handwritten digits at 8 x 8 pixels."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.study import Condition, count_conditions, number_conditions

IMAGE_SHAPE = (8, 8, 1)
CLASSES = 10


class Examples(NamedTuple):
    """Images and what they show.

    Attributes:
        images: float32[n, 8, 8, 1] in [-1, 1].
        labels: int32[n] in [0, 10).
    """

    images: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """Three disjoint parts of a data set.

    Attributes:
        train: What weights and masks are fitted to.
        validation: What settings are chosen on.
        test: What is reported, and nothing else.
    """

    train: Examples
    validation: Examples
    test: Examples


def load_split(validation_share: float, test_share: float, seed: int) -> Split:
    """Splits the digits into three parts with the same share of each class.

    Args:
        validation_share: The part of all examples that goes to validation, in (0, 1).
        test_share: The part that goes to the test set, in (0, 1).
        seed: Seed of the split; the same seed gives the same split.

    Returns:
        The split.
    """
    digits = load_digits()
    images = (digits.images / 8 - 1).astype(np.float32).reshape(-1, *IMAGE_SHAPE)
    labels = digits.target.astype(np.int32)

    def set_apart(of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        rest, part = train_test_split(
            of, test_size=count, stratify=labels[of], random_state=seed
        )
        return rest, part

    everything = np.arange(len(labels))
    rest, test = set_apart(everything, round(test_share * len(labels)))
    train, validation = set_apart(rest, round(validation_share * len(labels)))
    return Split(*(Examples(images[i], labels[i]) for i in (train, validation, test)))


def load(config: ConfigDict) -> Split:
    """Loads the digits, split as a configuration says."""
    return load_split(config.validation_share, config.test_share, config.split_seed)


def recipe_conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what the fields of the split and of training must be."""
    seed = config.split_seed
    yield "split_seed", type(seed) is int and 0 <= seed < 2**32, "in [0, 2^32)"
    shares = "[0.02, 0.45]"
    yield from number_conditions(config, validation_share=shares, test_share=shares)
    yield from count_conditions(config, "epochs", "batch_size")
    most = len(load(config).train.labels)
    yield "batch_size", config.batch_size <= most, f"in [1, {most}]"
    ranges = {"learning_rate": "(0, inf)"}
    optional = {"momentum": "[0, 1)", "weight_decay": "[0, inf)"}  # SGD's
    ranges |= {name: of for name, of in optional.items() if name in config}
    yield from number_conditions(config, **ranges)
