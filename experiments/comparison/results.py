"""What runs gave, as text and as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.input.digits import CLASSES
from experiments.record.environment import describe_environment
from experiments.record.files import write_atomically
from experiments.record.markdown import gain_text, markdown_table
from sparsejax.analysis.plasticity import mean_with_interval


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained network.

    Attributes:
        sparsity: The sparsity asked for.
        seed: The seed.
        validation_accuracy: In [0, 1].
        test_accuracy: In [0, 1].
        prunable: Prunable weights.
        active: Those that the masks let train at the end.
        nonzero: Those that are not exactly 0 at the end: the active ones but for any
            that have grown and had no gradient since.
        realised_sparsity: The share of the prunable weights that are exactly 0.
        validation_history: Validation accuracy after each epoch.
        best_epoch: The first epoch of highest validation accuracy among those after
            which the masks were at the sparsity asked for, counted from 1; 0 for none.
        best_test_accuracy: After that epoch; NaN for none.
        dense_forward_flops: FLOPs of the dense network for one image.
        inference_flops: Those of the trained network, as a fraction of that.
        training_flops: Those of all its training, as a fraction of dense training's;
            what it takes to find masks before training is not counted.
        training_epochs: Epochs of all training that led to the network: for methods
            that prune after training those of the dense network and of all rounds too.
        empty_layers: Layers without any active weight at the end.
    """

    sparsity: float
    seed: int
    validation_accuracy: float
    test_accuracy: float
    prunable: int
    active: int
    nonzero: int
    realised_sparsity: float
    validation_history: Sequence[float]
    best_epoch: int
    best_test_accuracy: float
    dense_forward_flops: int
    inference_flops: float
    training_flops: float
    training_epochs: int
    empty_layers: int


@dataclasses.dataclass(frozen=True)
class DensityHistory:
    """The density of the masks over training, a mean over seeds.

    Attributes:
        sparsity: The sparsity asked for.
        epochs: After how many epochs of training.
        overall: The density of all prunable weights together.
        layers: The density of each layer, by its path.
    """

    sparsity: float
    epochs: Sequence[int]
    overall: Sequence[float]
    layers: Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """What a method gave.

    Attributes:
        method: Its short name.
        label: Its name in reports.
        wall_seconds: The time of all its runs, compilation included.
        runs: The runs.
        density: One history for each sparsity.
    """

    method: str
    label: str
    wall_seconds: float
    runs: Sequence[Run]
    density: Sequence[DensityHistory]

    def runs_at(self, sparsity: float) -> list[Run]:
        """Selects the runs of one sparsity.

        Args:
            sparsity: The sparsity asked for.

        Returns:
            The runs, none if the method was not run at this sparsity.
        """
        return [run for run in self.runs if run.sparsity == sparsity]


def mean_and_deviation(runs: Sequence[Run]) -> tuple[float, float]:
    """Summarises test accuracy over seeds.

    Args:
        runs: At least two runs.

    Returns:
        (mean, standard deviation of the sample), in percent.
    """
    percent = [100 * run.test_accuracy for run in runs]
    return statistics.mean(percent), statistics.stdev(percent)


def epochs_text(runs: Sequence[Run]) -> str:
    """Says how long networks were trained.

    Args:
        runs: At least one.

    Returns:
        Epochs of all training that led to them, as "20" or "160 to 480".
    """
    epochs = [run.training_epochs for run in runs]
    least, most = min(epochs), max(epochs)
    return f"{least}" if least == most else f"{least} to {most}"


def _sparsities(results: Sequence[MethodResult]) -> list[float]:
    return sorted({run.sparsity for result in results for run in result.runs})


def table(results: Sequence[MethodResult]) -> str:
    """Sets the results as a Markdown table, aligned so that it reads as text too.

    Args:
        results: One a method.

    Returns:
        A row for each method and a column for each sparsity; and one of the epochs of
        training, where methods differ in them.
    """

    def cell(runs: Sequence[Run]) -> str:
        if not runs:
            return ""
        mean, deviation = mean_and_deviation(runs)
        zeros = statistics.mean(100 * run.realised_sparsity for run in runs)
        return f"{mean:.1f} ± {deviation:.1f} ({zeros:.2f})"

    sparsities = _sparsities(results)
    epochs = [epochs_text(result.runs) for result in results]
    rows = [["Method", "Epochs", *(f"{100 * s:g} % sparse" for s in sparsities)]]
    for result, length in zip(results, epochs):
        cells = (cell(result.runs_at(s)) for s in sparsities)
        rows.append([result.label, length, *cells])
    if len(set(epochs)) == 1:
        rows = [[label, *cells] for label, _, *cells in rows]
    return markdown_table(rows)


def epochs_table(results: Sequence[MethodResult]) -> str:
    """Sets the epochs of training at each sparsity as a Markdown table.

    Args:
        results: One a method.

    Returns:
        A row for each method that takes longer than the shortest; "" where none does.
    """
    sparsities = [sparsity for sparsity in _sparsities(results) if sparsity]
    shortest = min(run.training_epochs for result in results for run in result.runs)
    rows = [["Method", *(f"{100 * s:g} %" for s in sparsities)]]
    for result in results:
        if epochs_text(result.runs) != str(shortest):
            cells = (epochs_text(result.runs_at(s)) for s in sparsities)
            rows.append([result.label, *cells])
    return markdown_table(rows) if len(rows) > 1 else ""


def difference_table(results: Sequence[MethodResult], reference: str) -> str:
    """Sets test accuracy minus that of one method, in points, as a Markdown table.

    Args:
        results: One a method.
        reference: The short name of that method.

    Returns:
        A row for each other method, but for the dense network, with 95 % confidence
        intervals of the differences, paired by seed.
    """
    to = next(result for result in results if result.method == reference)
    sparsities = _sparsities([to])

    def cell(result: MethodResult, sparsity: float) -> str:
        theirs = {run.seed: run.test_accuracy for run in to.runs_at(sparsity)}
        runs = result.runs_at(sparsity)
        gains = [100 * (run.test_accuracy - theirs[run.seed]) for run in runs]
        return gain_text(mean_with_interval(gains))

    others = [result for result in results if result.method not in ("dense", reference)]
    rows = [[f"Minus {to.label}", *(f"{100 * s:g} %" for s in sparsities)]]
    rows += [[r.label, *(cell(r, s) for s in sparsities)] for r in others]
    return markdown_table(rows)


def failures_table(results: Sequence[MethodResult]) -> str:
    """Counts the runs that came to nothing, as a Markdown table.

    Args:
        results: One a method.

    Returns:
        A row for each method and sparsity with runs that end near chance or have empty
        layers; "" where there are none.
    """
    least = 1.5 / CLASSES
    heading = ["Method", "Sparsity", f"Runs below {100 * least:g} %"]
    rows = [[*heading, "With empty layers", "Empty layers, a mean"]]
    for result in results:
        for sparsity in _sparsities([result]):
            runs = result.runs_at(sparsity)
            lost = sum(run.test_accuracy < least for run in runs)
            empty = [run.empty_layers for run in runs]
            if lost or any(empty):
                counts = (f"{n} of {len(runs)}" for n in (lost, sum(map(bool, empty))))
                mean = f"{statistics.mean(empty):.1f}"
                rows.append([result.label, f"{100 * sparsity:g} %", *counts, mean])
    return markdown_table(rows) if len(rows) > 1 else ""


def report(results: Sequence[MethodResult], compared_with: Sequence[str] = ()) -> str:
    """Writes all tables, each under a sentence that says what it shows.

    Args:
        results: One a method.
        compared_with: Short names of methods to set the others beside.

    Returns:
        Markdown.
    """
    seeds = len({run.seed for run in results[0].runs})
    parts = [
        f"Test accuracy in %, mean ± standard deviation over {seeds} seeds "
        "(realised sparsity in %)",
        table(results),
    ]
    if longer := epochs_table(results):
        sentence = "Epochs of all training that leads to a network, by sparsity"
        parts += [sentence, longer]
    for reference in compared_with:
        parts += [
            "Difference in points, paired by seed, ± half of the 95 % confidence "
            "interval (Student's t), bold where the interval does not hold 0",
            difference_table(results, reference),
        ]
    if failures := failures_table(results):
        chance = f"{100 / CLASSES:g} %"
        parts += [f"Runs that failed; guessing gives {chance}", failures]
    return "\n\n".join(parts) + "\n"


def to_json(result: MethodResult) -> str:
    """Writes what a method gave.

    Args:
        result: It.

    Returns:
        JSON.
    """
    return json.dumps(dataclasses.asdict(result))


def from_json(content: Mapping[str, Any]) -> MethodResult:
    """Reads what a method gave.

    Args:
        content: As JSON holds it.

    Returns:
        What it gave.
    """
    lists = {
        "runs": [Run(**run) for run in content["runs"]],
        "density": [DensityHistory(**history) for history in content["density"]],
    }
    return MethodResult(**{**content, **lists})


def write_results(
    workdir: Path, config: Mapping[str, Any], results: Sequence[MethodResult]
) -> None:
    """Writes `results.json` and `results.md`.

    Args:
        workdir: The folder to write to.
        config: The configuration.
        results: One a method.
    """
    head = {"config": config, "environment": describe_environment()}
    entries = [f"{json.dumps(name)}: {json.dumps(head[name])}" for name in head]
    methods = ",\n".join(to_json(result) for result in results)
    entries.append(f'"methods": [\n{methods}\n]')
    write_atomically(workdir / "results.json", "{\n" + ",\n".join(entries) + "\n}\n")
    text = report(results, config["compared_with"])
    write_atomically(workdir / "results.md", text)
