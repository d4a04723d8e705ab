"""Runs cells of an image table, or goes on with them where they were stopped."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.models import create_model
from experiments.record.files import write_atomically
from experiments.record.flops import changes, run_flops
from experiments.record.metrics import read_metrics
from experiments.tables.results import where_it_runs
from experiments.tables.spec import Cell, Table
from experiments.training.before_training import trained_as
from experiments.training.loop import Outcome, train_side_by_side
from experiments.training.state import TrainState

_DENSITY = "density/"


def run_image_cells(
    table: Table, cells: Sequence[Cell], workdir: Path, data_dir: str | None
) -> list[dict[str, Any]]:
    """Trains cells to their end, from their newest checkpoints if there are some.

    Args:
        table: An image table.
        cells: One cell, or several that differ in their seeds alone: they are trained
            side by side, in halves where the device has not the memory for it.
        workdir: Where the runs of all tables keep their records and checkpoints.
        data_dir: Where the data is; None for the default of TFDS.

    Returns:
        What came out of each.

    Raises:
        ValueError: If something does not fit, in one sentence.
        Preempted: If they were asked to stop; their states are saved.
    """
    try:
        return _run(table, cells, workdir, data_dir)
    except jax.errors.JaxRuntimeError as error:
        if len(cells) == 1 or "RESOURCE_EXHAUSTED" not in str(error):
            raise
    # Not in the handler: the error holds on to what takes up the memory.
    print(f"{len(cells)} runs side by side do not fit in memory.", flush=True)
    jax.clear_caches()
    half = len(cells) // 2
    return [
        result
        for part in (cells[:half], cells[half:])
        for result in run_image_cells(table, part, workdir, data_dir)
    ]


def _run(
    table: Table, cells: Sequence[Cell], workdir: Path, data_dir: str | None
) -> list[dict[str, Any]]:
    configs = [table.config(cell) for cell in cells]
    for config in configs:
        config.data_dir = data_dir
    folders = [workdir / table.name / cell.name for cell in cells]
    with ExitStack() as stack:
        each = [
            stack.enter_context(_recorded_part(folder, len(cells)))
            for folder in folders
        ]
        outcomes = train_side_by_side(configs, folders)
    return [
        _result(table, cell, config, outcome, parts, read_metrics(folder))
        for cell, config, outcome, parts, folder in zip(
            cells, configs, outcomes, each, folders
        )
    ]


def _result(
    table: Table,
    cell: Cell,
    config: ConfigDict,
    outcome: Outcome,
    parts: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    validation = [
        [line["step"], round(line["accuracy"], 5)]
        for line in lines
        if line["kind"] == "validation"
    ]
    steps = int(outcome.state.step)
    speed = outcome.examples_per_second
    return {
        "steps": steps,
        "test_accuracy": outcome.test_accuracy,
        "best": outcome.best._asdict() if outcome.best.step >= 0 else None,
        "validation": validation,
        **_weights(outcome.state),
        "flops": _flops(cell.method, config, table.image_shape, outcome, lines),
        "examples_per_second": round(speed, 1) if math.isfinite(speed) else None,
        # A part that was killed has no time; it is missing in this sum.
        "wall_seconds": round(sum(part["seconds"] or 0 for part in parts), 1),
        "parts": [_brief(part) for part in parts],
        "environment": parts[-1]["environment"],
    }


def _brief(part: Mapping[str, Any]) -> dict[str, Any]:
    names = ("start_time", "git_commit", "git_dirty", "device_kind")
    about = {name: part["environment"][name] for name in names}
    together = part.get("runs_in_this_time", 1)
    return about | {"seconds": part["seconds"], "runs_in_this_time": together}


@contextmanager
def _recorded_part(folder: Path, together: int) -> Iterator[list[dict[str, Any]]]:
    """Notes the parts of a run that is stopped and goes on: with what, and how long."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "parts.json"
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    about = {"environment": where_it_runs(), "runs_in_this_time": together}
    parts.append(about | {"seconds": None})
    write_atomically(path, json.dumps(parts, indent=1) + "\n")
    started = time.monotonic()
    try:
        yield parts
    finally:
        parts[-1]["seconds"] = round(time.monotonic() - started, 1)
        write_atomically(path, json.dumps(parts, indent=1) + "\n")


def _weights(state: TrainState) -> dict[str, Any]:
    """Counts what the trained network holds."""
    masks = sj.get_masks(state.opt_state)

    def count(mask: Any, weights: Any) -> int:
        is_dense = isinstance(mask, optax.MaskedNode)
        return 0 if is_dense else int(np.count_nonzero(np.asarray(weights)))

    counts = jax.tree.map(
        count,
        masks,
        state.params,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    prunable = sj.count_prunable(masks)
    nonzero = sum(jax.tree.leaves(counts))
    return {
        "realised_sparsity": 1 - nonzero / prunable,
        "prunable": prunable,
        "active": int(sj.count_active(masks)),
        "empty_layers": int(sj.empty_layers(masks)),
    }


def _flops(
    method: str,
    config: ConfigDict,
    image_shape: Any,
    outcome: Outcome,
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Adds up the FLOPs of a run from the densities in its record."""
    model = create_model(config.model, config.num_classes, **config.model_options)
    state = outcome.state

    def apply(params: Any, images: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        return model.apply(variables, images, train=False)

    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    forward = sj.forward_flops(apply, state.params, image)
    laid_out = [(line["step"], _densities(line)) for line in lines if _densities(line)]
    # A line is written once the step is over.
    updates = [line["step"] - 1 for line in lines if "updates" in line]
    trained = None
    if method == "top_kast":
        trained = sj.layer_densities(sj.top_kast_masks(state.opt_state)[1])
    flops = run_flops(
        trained_as(method),
        forward,
        changes(*zip(*laid_out)),
        int(state.step),
        updates,
        trained,
    )
    return flops._asdict()


def _densities(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removeprefix(_DENSITY): value
        for name, value in line.items()
        if name.startswith(_DENSITY)
    }
