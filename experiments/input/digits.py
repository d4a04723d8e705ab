"""Scikit-learn's bundled digits: 1,797 scans of handwritten digits at 8 x 8 pixels."""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

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
