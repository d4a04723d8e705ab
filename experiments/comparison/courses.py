"""What runs of training gave, and the report of the network that comes of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.comparison.results import DensityHistory, Run
from experiments.record.flops import RunFlops


class Course(NamedTuple):
    """One run of training. A network that is pruned after training has had several.

    Attributes:
        validation: Validation accuracy after each epoch.
        test: Test accuracy at the end.
        best_epoch: The first epoch of highest validation accuracy among those after
            which the masks were at the sparsity asked for, counted from 1; 0 for none.
        best_test: Test accuracy after it; NaN for none.
        active: The active weights of each layer before training and after each step,
            int[steps + 1], by path.
        sizes: The prunable weights of each layer.
        nonzero: The prunable weights that are not exactly 0 at the end.
        flops: Those of the run.
    """

    validation: Sequence[float]
    test: float
    best_epoch: int
    best_test: float
    active: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    nonzero: int
    flops: RunFlops

    @property
    def epochs(self) -> int:
        """How many it has trained for."""
        return len(self.validation)


def run_of(sparsity: float, seed: int, courses: Sequence[Course]) -> Run:
    """Reports a network.

    Args:
        sparsity: The sparsity asked for.
        seed: The seed.
        courses: All training that led to it, of equal length; accuracies, masks and
            weights are those of the last.

    Returns:
        The report.
    """
    last = courses[-1]
    prunable = sum(last.sizes.values())
    final = {path: int(counts[-1]) for path, counts in last.active.items()}
    return Run(
        sparsity=sparsity,
        seed=seed,
        validation_accuracy=last.validation[-1],
        test_accuracy=last.test,
        prunable=prunable,
        active=sum(final.values()),
        nonzero=last.nonzero,
        realised_sparsity=1 - last.nonzero / prunable,
        validation_history=last.validation,
        best_epoch=last.best_epoch,
        best_test_accuracy=last.best_test,
        dense_forward_flops=last.flops.dense_forward,
        inference_flops=last.flops.inference,
        training_flops=sum(course.flops.training for course in courses),
        training_epochs=sum(course.epochs for course in courses),
        empty_layers=sum(count == 0 for count in final.values()),
    )


def density_history(
    sparsity: float, networks: Sequence[Sequence[Course]]
) -> DensityHistory:
    """Averages the densities that networks have had.

    Args:
        sparsity: The sparsity asked for.
        networks: The courses of each, one or more for all alike.

    Returns:
        The densities at the start and after each epoch; where there are several
        courses, which each have masks of their own, at the start and end of each.
    """
    epochs: list[int] = []
    layers: dict[str, list[float]] = {path: [] for path in networks[0][0].sizes}
    before = 0
    for alike in zip(*networks):
        first = alike[0]
        points = range(first.epochs + 1)
        if len(networks[0]) > 1:
            points = range(0, first.epochs + 1, first.epochs)
        epochs += [before + point for point in points]
        before += first.epochs
        for path, counts in first.active.items():
            steps = (len(counts) - 1) // first.epochs * np.array(points)
            mean = np.mean([course.active[path][steps] for course in alike], axis=0)
            layers[path] += np.round(mean / first.sizes[path], 6).tolist()
    sizes = networks[0][0].sizes
    weighted = [sizes[path] * np.array(layers[path]) for path in sizes]
    return DensityHistory(
        sparsity=sparsity,
        epochs=epochs,
        overall=np.round(np.sum(weighted, 0) / sum(sizes.values()), 6).tolist(),
        layers=layers,
    )
