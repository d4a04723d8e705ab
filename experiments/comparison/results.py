"""What runs gave, as text and as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        training_flops: Those of the run, as a fraction of dense training's; what it
            takes to find masks before training is not counted.
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
    empty_layers: int


@dataclasses.dataclass(frozen=True)
class DensityHistory:
    """The density of the masks at the start and after each epoch, a mean over seeds.

    Attributes:
        sparsity: The sparsity asked for.
        overall: The density of all prunable weights together.
        layers: The density of each layer, by its path.
    """

    sparsity: float
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


def table(results: Sequence[MethodResult]) -> str:
    """Sets the results as a Markdown table, aligned so that it reads as text too.

    Args:
        results: One a method.

    Returns:
        A row for each method and a column for each sparsity.
    """
    sparsities = sorted({run.sparsity for result in results for run in result.runs})

    def cell(runs: Sequence[Run]) -> str:
        if not runs:
            return ""
        mean, deviation = mean_and_deviation(runs)
        zeros = statistics.mean(100 * run.realised_sparsity for run in runs)
        return f"{mean:.1f} ± {deviation:.1f} ({zeros:.2f})"

    rows = [["Method", *(f"{100 * s:g} % sparse" for s in sparsities)]]
    rows += [[r.label, *(cell(r.runs_at(s)) for s in sparsities)] for r in results]
    return markdown_table(rows)


def empty_layers_table(results: Sequence[MethodResult]) -> str:
    """Sets the mean numbers of empty layers as a Markdown table.

    Args:
        results: One a method.

    Returns:
        A row for each method and sparsity that left any; "" where none did.
    """
    rows = [["Method", "Sparsity", "Empty layers, a mean", "Runs with any"]]
    for result in results:
        for sparsity in sorted({run.sparsity for run in result.runs}):
            counts = [run.empty_layers for run in result.runs_at(sparsity)]
            if any(counts):
                mean = f"{statistics.mean(counts):.1f}"
                share = f"{sum(map(bool, counts))} of {len(counts)}"
                rows.append([result.label, f"{100 * sparsity:g} %", mean, share])
    return markdown_table(rows) if len(rows) > 1 else ""


def paired_table(results: Sequence[MethodResult], baseline: str = "snip") -> str:
    """Sets how much better each method is than one of them, as a Markdown table.

    Args:
        results: One a method.
        baseline: The name of the method that the others are compared with.

    Returns:
        A row for each other method that was run at sparsities of the baseline, with
        mean differences of test accuracy in points, paired by seed, and half of the
        95 % confidence interval, in bold where it does not hold 0; "" where there is
        none.
    """
    runs = [
        run for result in results if result.method == baseline for run in result.runs
    ]
    accuracy = {(run.sparsity, run.seed): run.test_accuracy for run in runs}
    sparsities = sorted({run.sparsity for run in runs})

    def cell(result: MethodResult, sparsity: float) -> str:
        gains = [
            100 * (run.test_accuracy - accuracy[sparsity, run.seed])
            for run in result.runs_at(sparsity)
            if (sparsity, run.seed) in accuracy
        ]
        return gain_text(mean_with_interval(gains)) if len(gains) > 1 else ""

    rows = [["Method", *(f"{100 * s:g} % sparse" for s in sparsities)]]
    for result in results:
        cells = [cell(result, sparsity) for sparsity in sparsities]
        if result.method != baseline and any(cells):
            rows.append([result.label, *cells])
    return markdown_table(rows) if len(rows) > 1 else ""


def report(title: str, results: Sequence[MethodResult]) -> str:
    """Sets the tables under their title.

    Args:
        title: What the first table shows, a sentence.
        results: One a method.

    Returns:
        Markdown.
    """
    parts = [title, table(results), empty_layers_table(results)]
    gains = paired_table(results)
    if gains:
        parts += [
            "Test accuracy minus SNIP's in points, paired by seed: mean ± half of the "
            "95 % confidence interval (Student's t), bold where that does not hold 0",
            gains,
        ]
    return "\n\n".join(filter(None, parts)) + "\n"


def save_method(workdir: Path, result: MethodResult) -> None:
    """Keeps what a method gave, so that the comparison can go on after it.

    Args:
        workdir: The folder of the comparison.
        result: What the method gave.
    """
    folder = workdir / "methods"
    folder.mkdir(exist_ok=True)
    text = json.dumps(dataclasses.asdict(result)) + "\n"
    write_atomically(folder / f"{result.method}.json", text)


def saved_method(workdir: Path, name: str) -> MethodResult | None:
    """Reads what `save_method` kept.

    Args:
        workdir: The folder of the comparison.
        name: The method's short name.

    Returns:
        What the method gave; None where it has not been run in this folder.
    """
    path = workdir / "methods" / f"{name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    content["runs"] = [Run(**run) for run in content["runs"]]
    content["density"] = [DensityHistory(**each) for each in content["density"]]
    return MethodResult(**content)


def write_results(
    workdir: Path,
    title: str,
    config: Mapping[str, Any],
    results: Sequence[MethodResult],
) -> None:
    """Writes `results.json` and `results.md`.

    Args:
        workdir: The folder to write to.
        title: What the table shows, a sentence.
        config: The configuration.
        results: One a method.
    """
    everything = {
        "config": config,
        "environment": describe_environment(),
        "methods": [dataclasses.asdict(result) for result in results],
    }
    write_atomically(workdir / "results.json", json.dumps(everything, indent=1) + "\n")
    write_atomically(workdir / "results.md", report(title, results))
