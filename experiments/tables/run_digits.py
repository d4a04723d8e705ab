"""Runs cells of the digits table: all missing ones of a method side by side."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.comparison.results import Run
from experiments.digits import load_data, train_method
from experiments.tables.results import where_it_runs
from experiments.tables.spec import Cell, Table


def batches(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Puts together what runs side by side.

    Args:
        cells: Cells in the order in which they are wanted.

    Returns:
        The cells of each method, the first method first.
    """
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, []).append(cell)
    return list(by_method.values())


def run_side_by_side(
    table: Table, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Trains the cells of one method.

    Args:
        table: The table.
        cells: Cells of one method.

    Yields:
        Each cell and what came out.
    """
    environment = where_it_runs()
    config = table.config(cells[0])
    steps_per_epoch = len(load_data(config).train.labels) // config.batch_size
    done = train_method(
        cells[0].method,
        load_data(config),
        config,
        [(cell.sparsity, cell.seed) for cell in cells],
    )
    run_of = {(run.sparsity, run.seed): run for run in done.runs}
    for cell in cells:
        run = run_of[cell.sparsity, cell.seed]
        yield (
            cell,
            _result(run, steps_per_epoch)
            | {
                "wall_seconds": round(done.wall_seconds, 1),
                "runs_in_this_time": len(cells),
                "environment": environment,
            },
        )


def _result(run: Run, steps_per_epoch: int) -> dict[str, Any]:
    return {
        "steps": steps_per_epoch * len(run.validation_history),
        "test_accuracy": run.test_accuracy,
        "best": None
        if not run.best_epoch
        else {
            "step": steps_per_epoch * run.best_epoch,
            "validation_accuracy": run.validation_history[run.best_epoch - 1],
            "test_accuracy": run.best_test_accuracy,
        },
        "validation": [
            [steps_per_epoch * epoch, round(accuracy, 5)]
            for epoch, accuracy in enumerate(run.validation_history, 1)
        ],
        "realised_sparsity": run.realised_sparsity,
        "prunable": run.prunable,
        "active": run.active,
        "empty_layers": run.empty_layers,
        "flops": {
            "dense_forward": run.dense_forward_flops,
            "inference": run.inference_flops,
            "training": run.training_flops,
        },
    }
