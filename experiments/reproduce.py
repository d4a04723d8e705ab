"""Rebuilds a table: runs what is missing of it, and sets it beside published numbers.

    python -m experiments.reproduce --table=digits
    python -m experiments.reproduce --table=cifar10_vgg19 --data_dir=DIR_OR_NPZ

Each finished run leaves `RESULTS/TABLE/METHOD_SPARSITY_SEED.json`, and a run that has
one is not made again. A run of an image table that is stopped goes on from its newest
checkpoint. A table that is a study of its own leaves one file for each of its parts.
At the end `RESULTS/TABLE/README.md` shows the table.

Exits with 0 at the end, 75 when it was stopped by SIGTERM or --max_hours (run the same
command to go on), 2 with one sentence when an argument is refused.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from absl import logging

from experiments.record.files import writable_directory
from experiments.tables.render import write_page
from experiments.tables.results import has_result, write_result
from experiments.tables.run_digits import batches, run_side_by_side
from experiments.tables.spec import (
    TABLES,
    Cell,
    Table,
    choose,
    seeds_together,
    select,
)
from experiments.tables.studies import STUDIES, run_missing_parts, write_study_page
from experiments.training.preemption import EXIT_PREEMPTED, Preempted

NAMES = (*TABLES, *STUDIES)


def run_missing(
    table: Table,
    cells: Sequence[Cell],
    results: Path,
    workdir: Path,
    *,
    data_dir: str | None = None,
    hours: float | None = None,
    rerun: bool = False,
    side_by_side: int = 1,
) -> None:
    """Runs the cells that have no result, in their order.

    Args:
        table: The table.
        cells: Its cells, in the order in which they are wanted.
        results: The folder of all tables' results.
        workdir: Where the runs of image tables keep their records and checkpoints.
        data_dir: Where the data of image tables is.
        hours: Stop after so many; None for no limit.
        rerun: Whether results of another configuration are replaced, not refused.
        side_by_side: How many seeds of a cell of an image table are trained at once.

    Raises:
        ValueError: If a result is of another configuration, or a run is refused.
        Preempted: If SIGTERM came or the time is over; what is done is kept.
    """
    end = None if hours is None else time.monotonic() + 3600 * hours
    # All are looked at before any is run: a refusal must not come after hours.
    missing = [c for c in cells if not has_result(results, table, c, replace=rerun)]
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are finished.", flush=True)
    groups = (
        seeds_together(missing, side_by_side) if table.image_shape else batches(missing)
    )
    with _stopped_by_sigterm():
        for number, group in enumerate(groups, 1):
            if end is not None and time.monotonic() >= end:
                raise Preempted(f"{hours:g} hours are over; run the command again.")
            names = ", ".join(cell.name for cell in group)
            print(f"[{number}/{len(groups)}] {names}", flush=True)
            if table.image_shape is None:
                for cell, result in run_side_by_side(table, group):
                    write_result(results, table, cell, result)
                continue
            # Imported late: what trains images needs more than what trains digits.
            from experiments.tables.run_images import run_image_cells

            with _sigterm_at(end):
                done = run_image_cells(table, group, workdir, data_dir)
            for cell, result in zip(group, done):
                write_result(results, table, cell, result)
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
    add("--max_hours", type=float, help="stop after this time, to be gone on with")
    add("--side_by_side", type=int, help="seeds of an image table trained at once")
    add("--render_only", action="store_true", help="run nothing, write the page")
    add("--rerun", action="store_true", help="replace results of other configurations")
    return parser.parse_args(arguments)


def run_study(
    name: str,
    results: Path,
    workdir: Path,
    *,
    hours: float | None = None,
    rerun: bool = False,
) -> None:
    """Runs what is missing of a table that is a study of its own.

    Args:
        name: A key of `STUDIES`.
        results: The folder of all tables' results.
        workdir: Where studies keep what is finished.
        hours: Stop after so many; None for no limit.
        rerun: Whether results of another configuration are replaced, not refused.

    Raises:
        ValueError: If a result is of another configuration, or the study is refused.
        Preempted: If SIGTERM came or the time is over; what is done is kept.
    """
    end = None if hours is None else time.monotonic() + 3600 * hours
    with _stopped_by_sigterm(), _sigterm_at(end):
        run_missing_parts(name, results, workdir, rerun)


def _refuse_choices(flags: argparse.Namespace) -> None:
    """Refuses what chooses among runs, for a table that is a study."""
    for name in ("data_dir", "methods", "sparsities", "seeds", "side_by_side"):
        value = getattr(flags, name)
        if value is not None:
            raise ValueError(
                f"{name} must not be given for table {flags.table}, a study that is "
                f"made whole by its configuration; got {value!r}."
            )


def _check_side_by_side(table: Table, seeds: int) -> None:
    if table.image_shape is None:
        raise ValueError(
            f"side_by_side must not be given for table {table.name}, whose seeds all "
            f"train at once; got {seeds}."
        )
    if seeds < 1:
        raise ValueError(f"side_by_side must be at least 1; got {seeds}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuilds the table that the command line names.

    Args:
        arguments: The command line's arguments; those of this process by default.

    Returns:
        The exit code.
    """
    flags = _parse(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    try:
        name = choose("table", NAMES, flags.table)
        limits: dict[str, Any] = {"hours": flags.max_hours, "rerun": flags.rerun}
        if name in STUDIES:
            _refuse_choices(flags)
            run = partial(run_study, name, flags.results, flags.workdir, **limits)
            write = partial(write_study_page, name, flags.results)
        else:
            table = TABLES[name]
            cells = select(table, flags.methods, flags.sparsities, flags.seeds)
            if flags.side_by_side is not None:
                _check_side_by_side(table, flags.side_by_side)
                limits["side_by_side"] = flags.side_by_side
            limits["data_dir"] = flags.data_dir
            run = partial(
                run_missing, table, cells, flags.results, flags.workdir, **limits
            )
            write = partial(write_page, flags.results, table)
        if flags.max_hours is not None and not flags.max_hours > 0:
            raise ValueError(f"max_hours must be above 0; got {flags.max_hours:g}.")
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
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
