"""Rebuilds a table: runs what is missing of it, and sets it beside published numbers.

    python -m experiments.reproduce --table=digits
    python -m experiments.reproduce --table=cifar10_vgg19 --data_dir=DIR_OR_NPZ

Each finished run leaves `RESULTS/TABLE/METHOD_SPARSITY_SEED.json`, and a run that has
one is not made again. A run of an image table that is stopped goes on from its newest
checkpoint. A table that is a study of its own leaves one file for each of its parts.
At the end `RESULTS/TABLE/README.md` shows the table.

Exits with 0 at the end, 75 when it was stopped by SIGTERM or --max_hours (run the same
command to go on), 130 on Ctrl-C, 2 with one sentence when an argument is refused.
"""

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import (
    auto_s,
    digits,
    edge_of_chaos,
    freezing,
    generalization,
    lottery,
    plasticity,
    polarization,
    study,
)
from experiments.configs import auto_s as auto_s_config
from experiments.configs import (
    digits_before_during_after,
    digits_deep_before_training,
    digits_force,
    freezing_digits,
    lottery_digits,
    plasticity_digits,
    polarization_digits,
)
from experiments.configs import edge_of_chaos as edge_of_chaos_config
from experiments.configs import generalization as generalization_config
from experiments.digits_data import load
from experiments.files import differences, writable_directory, write_atomically
from experiments.methods import RunFlops, changes, run_flops
from experiments.parallel import EXIT_PREEMPTED, Preempted
from experiments.tables import (
    TABLES,
    Cell,
    Table,
    choose,
    has_result,
    provenance,
    read_json,
    refusal,
    select,
    where_it_runs,
    write_page,
    write_result,
)

# --- Tables of cells ------------------------------------------------------------------


def run_missing(
    table: Table,
    cells: Sequence[Cell],
    results: Path,
    workdir: Path,
    *,
    data_dir: str | None = None,
    hours: float | None = None,
    rerun: bool = False,
) -> None:
    """Runs the cells that have no result, in their order.

    Image tables keep records and checkpoints in `workdir`, and are trained a run at a
    time; of the digits, all missing runs of a method train together. `rerun` replaces
    results of another configuration, which are refused else. Raises `Preempted` if
    SIGTERM came or the time is over; what is done is kept.
    """
    end = None if hours is None else time.monotonic() + 3600 * hours
    # All are looked at before any is run: a refusal must not come after hours.
    missing = [c for c in cells if not has_result(results, table, c, replace=rerun)]
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are finished.", flush=True)
    groups = [[cell] for cell in missing]
    if table.image_shape is None:
        methods = dict.fromkeys(cell.method for cell in missing)
        groups = [[cell for cell in missing if cell.method == m] for m in methods]
    with _stopped_by_sigterm():
        for number, group in enumerate(groups, 1):
            if end is not None and time.monotonic() >= end:
                raise Preempted(f"{hours:g} hours are over; run the command again.")
            names = ", ".join(cell.name for cell in group)
            print(f"[{number}/{len(groups)}] {names}", flush=True)
            if table.image_shape is None:
                for cell, result in run_digits(table, group):
                    write_result(results, table, cell, result)
                continue
            with _sigterm_at(end):
                result = run_image_cell(table, group[0], workdir, data_dir)
            write_result(results, table, group[0], result)
            jax.clear_caches()  # no other run uses what this one compiled


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Makes an exception of SIGTERM; the training loop has its own way meanwhile."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by SIGTERM; run the command again.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _sigterm_at(end: float | None) -> Iterator[None]:
    """Sends this process SIGTERM at a time of `time.monotonic`."""
    if end is None:
        yield
        return
    seconds = max(end - time.monotonic(), 0)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run_digits(
    table: Table, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Trains cells of one method of the digits, and yields what came of each."""
    environment, started = where_it_runs(), time.perf_counter()
    config = table.config(cells[0])
    data = load(config)
    pairs = [(cell.sparsity, cell.seed) for cell in cells]
    records = digits.train_method(cells[0].method, data, config, pairs)
    seconds = round(time.perf_counter() - started, 1)
    found = {(record["sparsity"], record["seed"]): record for record in records}
    steps_per_epoch = len(data.train.labels) // config.batch_size
    for cell in cells:
        result = _of_record(found[cell.sparsity, cell.seed], steps_per_epoch)
        time_of = {"wall_seconds": seconds, "runs_in_this_time": len(cells)}
        yield cell, result | time_of | {"environment": environment}


def _of_record(record: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    history, epoch = record["validation_history"], record["best_epoch"]
    best = {
        "step": steps_per_epoch * epoch,
        "validation_accuracy": history[epoch - 1],
        "test_accuracy": record["best_test_accuracy"],
    }
    kept = ("realized_sparsity", "prunable", "active", "empty_layers")
    flops = {name: record[f"{name}_flops"] for name in RunFlops._fields}
    return {
        "steps": steps_per_epoch * len(history),
        "test_accuracy": record["test_accuracy"],
        "best": best if epoch else None,
        "validation": [
            [steps_per_epoch * epoch, round(accuracy, 5)]
            for epoch, accuracy in enumerate(history, 1)
        ],
        **{name: record[name] for name in kept},
        "flops": flops,
    }


# --- Cells of image tables ------------------------------------------------------------


def run_image_cell(
    table: Table, cell: Cell, workdir: Path, data_dir: str | None
) -> dict[str, Any]:
    """Trains a cell to its end, from its newest checkpoint if there is one."""
    # Imported late: what trains images needs more than what trains digits.
    from experiments.record import read_metrics
    from experiments.train import train_and_evaluate

    config = table.config(cell)
    config.data_dir = data_dir
    folder = workdir / table.name / cell.name
    with _recorded_part(folder) as parts:
        outcome = train_and_evaluate(config, folder)
    lines = read_metrics(folder)
    validation = [
        [line["step"], round(line["accuracy"], 5)]
        for line in lines
        if line["kind"] == "validation"
    ]
    speed = outcome.examples_per_second
    return {
        "steps": int(outcome.state.step),
        "test_accuracy": outcome.test_accuracy,
        "best": outcome.best._asdict() if outcome.best.step >= 0 else None,
        "validation": validation,
        **_weights(outcome.state),
        "flops": _flops(table, config, outcome.state, lines),
        "examples_per_second": round(speed, 1) if math.isfinite(speed) else None,
        # A part that was killed has no time; it is missing in this sum.
        "wall_seconds": round(sum(part["seconds"] or 0 for part in parts), 1),
        "parts": [_brief(part) for part in parts],
        "environment": parts[-1]["environment"],
    }


def _brief(part: Mapping[str, Any]) -> dict[str, Any]:
    names = ("start_time", "git_commit", "git_dirty", "device_kind")
    about = {name: part["environment"][name] for name in names}
    return about | {"seconds": part["seconds"]}


@contextmanager
def _recorded_part(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Notes the parts of a run that is stopped and goes on: with what, and how long."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "parts.json"
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    parts.append({"environment": where_it_runs(), "seconds": None})
    write_atomically(path, json.dumps(parts, indent=1) + "\n")
    started = time.monotonic()
    try:
        yield parts
    finally:
        parts[-1]["seconds"] = round(time.monotonic() - started, 1)
        write_atomically(path, json.dumps(parts, indent=1) + "\n")


def _weights(state: Any) -> dict[str, Any]:
    """Counts what the trained network holds."""
    masks = sj.get_masks(state.opt_state)
    is_dense = lambda node: isinstance(node, optax.MaskedNode)
    nonzero = jax.tree.map(
        lambda mask, weights: mask if is_dense(mask) else np.asarray(weights) != 0,
        masks,
        state.params,
        is_leaf=is_dense,
    )
    prunable = sj.count_prunable(masks)
    return {
        "realized_sparsity": 1 - int(sj.count_active(nonzero)) / prunable,
        "prunable": prunable,
        "active": int(sj.count_active(masks)),
        "empty_layers": int(sj.empty_layers(masks)),
    }


def _flops(
    table: Table, config: ConfigDict, state: Any, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Adds up the FLOPs of a run from the densities in its record."""
    from experiments.models import create_model

    model = create_model(config.model, config.num_classes, **config.model_options)

    def apply(params: Any, images: Any) -> Any:
        variables = {"params": params, "batch_stats": state.batch_stats}
        return model.apply(variables, images, train=False)

    image = jax.ShapeDtypeStruct((1, *(table.image_shape or ())), np.float32)
    forward = sj.forward_flops(apply, state.params, image)
    laid_out = [(line["step"], _densities(line)) for line in lines if _densities(line)]
    # A line is written once the step is over.
    updates = [line["step"] - 1 for line in lines if "updates" in line]
    backward = None
    if config.method == "top_kast":
        backward = sj.layer_densities(sj.top_kast_masks(state.opt_state)[1])
    history, steps = changes(*zip(*laid_out)), int(state.step)
    flops = run_flops(config.method, forward, history, steps, updates, backward)
    return flops._asdict()


def _densities(line: Mapping[str, Any]) -> dict[str, float]:
    prefix = "density/"
    return {n.removeprefix(prefix): line[n] for n in line if n.startswith(prefix)}


# --- Tables that are studies ----------------------------------------------------------


class StudyTable(NamedTuple):
    """A study that is a table."""

    study: study.Study
    parts: Mapping[str, Callable[[], ConfigDict]]  # by the name of a result's file
    titles: Mapping[str, str] = {}  # of parts, where it is not the study's

    def title(self, part: str) -> str:
        """Returns the heading of a part."""
        return self.titles.get(part, self.study.title)


def _on_digits(config: Any, title: str) -> StudyTable:
    """Makes a table of the comparison of methods."""
    return StudyTable(
        digits.STUDY, {"digits": config.get_config}, {"digits": f"{title} digits"}
    )


STUDIES: Mapping[str, StudyTable] = {
    "auto_s": StudyTable(auto_s.STUDY, {"digits": auto_s_config.get_config}),
    "before_during_after": _on_digits(
        digits_before_during_after,
        "Pruning before, during and after training on scikit-learn's",
    ),
    "before_training_deep": _on_digits(
        digits_deep_before_training,
        "Pruning before training in a deep network, on scikit-learn's",
    ),
    "edge_of_chaos": StudyTable(
        edge_of_chaos.STUDY, {"snip": edge_of_chaos_config.get_config}
    ),
    "force": _on_digits(
        digits_force,
        "FORCE and Iterative SNIP where SNIP fails, on scikit-learn's",
    ),
    "freezing": StudyTable(freezing.STUDY, {"digits": freezing_digits.get_config}),
    "generalization": StudyTable(
        generalization.STUDY,
        {
            "axis": generalization_config.get_config,
            "spread": generalization_config.get_spread_config,
        },
        {"spread": "The control: each signal is spread over 100 coordinates"},
    ),
    "lottery": StudyTable(
        lottery.STUDY,
        {"digits": lottery_digits.get_config},
        {"digits": "Lottery tickets on scikit-learn's digits"},
    ),
    "plasticity": StudyTable(
        plasticity.STUDY,
        {"digits": plasticity_digits.get_config},
        {"digits": "Pruning plasticity on scikit-learn's digits"},
    ),
    "polarization": StudyTable(
        polarization.STUDY, {"digits": polarization_digits.get_config}
    ),
}
NAMES = (*TABLES, *STUDIES)


def run_study(
    name: str,
    results: Path,
    workdir: Path,
    *,
    hours: float | None = None,
    rerun: bool = False,
) -> None:
    """Runs what is missing of a study; see `run_missing`."""
    end = None if hours is None else time.monotonic() + 3600 * hours
    table = STUDIES[name]
    # All are looked at before any is run: a refusal must not come after minutes.
    missing = [part for part in table.parts if not _is_done(name, part, results, rerun)]
    with _stopped_by_sigterm(), _sigterm_at(end):
        for part in missing:
            folder = workdir / name / part
            folder.mkdir(parents=True, exist_ok=True)
            study.run(table.study, table.parts[part](), folder)
            target = results / name / f"{part}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, (folder / "results.json").read_text())


def _is_done(name: str, part: str, results: Path, replace: bool) -> bool:
    """Whether a part has a result with all methods that are compared today."""
    content = _read(name, part, results, replace)
    today = STUDIES[name].parts[part]()
    if content is None:
        return False
    return set(today.get("methods", ())) <= set(content["config"].get("methods", ()))


def _read(
    name: str, part: str, results: Path, replace: bool = False
) -> dict[str, Any] | None:
    """Reads the result of a part; None if there is none that stands."""
    path, table = results / name / f"{part}.json", STUDIES[name]
    if not path.exists():
        return None
    content = read_json(path, "study", "config")
    now = table.parts[part]().to_dict()
    found = "; ".join(differences(content["config"], now, table.study.operational))
    if found and not replace:
        raise refusal(path, found)
    return None if found else content


def write_study_page(name: str, results: Path) -> Path:
    """Writes the README of a study's folder, and returns its path."""
    table = STUDIES[name]
    found = {part: _read(name, part, results) for part in table.parts}
    texts = []
    for part, content in found.items():
        text = "Not run."
        if content:
            frame, config = study.frame_of(content), ConfigDict(content["config"])
            text = table.study.report(frame, config).strip()
        texts.append(f"# {table.title(part)}\n\n{text}\n")
    made = f"## How it was run\n\n    python -m experiments.reproduce --table={name}\n"
    if finished := [content for content in found.values() if content]:
        made += f"\n{provenance(finished)}\n"
    page = results / name / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, "\n".join([*texts, made]))
    return page


# --- The command ----------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--table", required=True, help=f"one of {', '.join(NAMES)}")
    add("--results", type=Path, default=Path("results"), help="results of all tables")
    add("--workdir", type=Path, default=Path("runs/reproduce"), help="checkpoints")
    add("--data_dir", help="TFDS's directory, or an .npz file")
    add("--methods", type=listed, help="some rows, as granet,gmp; all by default")
    add("--sparsities", type=listed, help="some columns, as 0.9,0.95")
    add("--seeds", type=listed, help="as 18,19,20; the table's by default")
    add("--max_hours", type=float, help="stop after this time; resume later")
    add("--render_only", action="store_true", help="run nothing, write the page")
    add("--rerun", action="store_true", help="replace results of other configurations")
    return parser.parse_args(arguments)


def _plan(
    flags: argparse.Namespace,
) -> tuple[Callable[[], None], Callable[[], Path]]:
    """Returns what runs the chosen table, and what writes its page."""
    name = choose("table", NAMES, flags.table)
    limits: dict[str, Any] = {"hours": flags.max_hours, "rerun": flags.rerun}
    if flags.max_hours is not None and not flags.max_hours > 0:
        raise ValueError(f"max_hours must be above 0; got {flags.max_hours:g}.")
    if name in TABLES:
        table = TABLES[name]
        cells = select(table, flags.methods, flags.sparsities, flags.seeds)
        limits["data_dir"] = flags.data_dir
        run = partial(run_missing, table, cells, flags.results, flags.workdir, **limits)
        return run, partial(write_page, flags.results, table)
    for field in ("data_dir", "methods", "sparsities", "seeds"):
        value = getattr(flags, field)
        if value is not None:
            raise ValueError(
                f"{field} must not be given for table {name}, a study that is made "
                f"whole by its configuration; got {value!r}."
            )
    run = partial(run_study, name, flags.results, flags.workdir, **limits)
    return run, partial(write_study_page, name, flags.results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuilds the table that the command line names; returns the exit code."""
    flags = _parse(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    try:
        run, write = _plan(flags)
        writable_directory(flags.results)
        code = 0
        if not flags.render_only:
            try:
                run()
            except Preempted as preempted:
                print(preempted, file=sys.stderr)
                code = EXIT_PREEMPTED
        print(f"The table is in {write()}.")
        return code
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
