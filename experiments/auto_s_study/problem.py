"""Small data sets that scikit-learn brings along, and the networks that learn them.

Digits has 1,797 scans of 8 x 8 pixels in 10 classes; breast cancer 569 cell samples of
30 measurements in 2; wine 178 samples of 13 measurements in 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split

from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mlp import MLP


class Recipe(NamedTuple):
    """A data set and a network for it.

    Attributes:
        label: Its name in reports.
        load: Gives scikit-learn's bunch.
        shape: What an example is shaped into.
        model: Maps inputs to logits.
    """

    label: str
    load: Callable[[], Any]
    shape: Sequence[int]
    model: nn.Module


RECIPES = {
    "digits_mlp": Recipe("Digits, MLP", load_digits, (64,), MLP((64, 64), 10)),
    "digits_cnn": Recipe("Digits, CNN", load_digits, (8, 8, 1), DigitsCNN()),
    "breast_cancer_mlp": Recipe(
        "Breast cancer, deeper MLP", load_breast_cancer, (30,), MLP((100, 100, 100), 2)
    ),
    "wine_mlp": Recipe("Wine, deeper MLP", load_wine, (13,), MLP((60, 60, 60), 3)),
}


class Examples(NamedTuple):
    """Inputs and their classes, of one seed or stacked on the first axis.

    Attributes:
        inputs: float32[n, ...].
        labels: int32[n].
    """

    inputs: Any
    labels: Any


class Problem(NamedTuple):
    """A recipe with its data split once for each seed, stacked on the first axis.

    Attributes:
        model: Maps inputs to logits.
        train: What networks are trained on.
        test: What they are tested on.
        prune_set: The first training examples of each class, as one batch.
    """

    model: nn.Module
    train: Examples
    test: Examples
    prune_set: Examples


def load_problem(name: str, config: ConfigDict) -> Problem:
    """Loads a data set and splits it for each seed.

    Every measurement is brought to mean 0 and deviation 1 over the training part, but
    for the digits' pixels, which all go to [-1, 1] alike.

    Args:
        name: A key of `RECIPES`.
        config: As in `experiments/configs/auto_s.py`.

    Returns:
        The problem.
    """
    recipe = RECIPES[name]
    bunch = recipe.load()

    def of_seed(seed: int) -> list[Examples]:
        train_inputs, test_inputs, train_labels, test_labels = train_test_split(
            bunch.data,
            bunch.target.astype(np.int32),
            test_size=config.test_share,
            stratify=bunch.target,
            random_state=seed,
        )
        if recipe.load is load_digits:
            mean, deviation = 8.0, 8.0
        else:
            mean, deviation = train_inputs.mean(axis=0), train_inputs.std(axis=0)

        def examples(inputs: np.ndarray, labels: np.ndarray) -> Examples:
            scaled = ((inputs - mean) / deviation).astype(np.float32)
            return Examples(scaled.reshape(-1, *recipe.shape), labels)

        train = examples(train_inputs, train_labels)
        chosen = [
            np.flatnonzero(train.labels == c)[: config.prune_set_per_class]
            for c in np.unique(train.labels)
        ]
        prune_set = Examples(*(part[np.concatenate(chosen)] for part in train))
        return [train, examples(test_inputs, test_labels), prune_set]

    parts = zip(*map(of_seed, config.seeds))
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *part) for part in parts]
    return Problem(recipe.model, *stacked)
