"""A study: parts that are run once, flat records, tables and figures made of them.

A study is one file, `experiments/NAME.py`, that ends in

    STUDY = Study("NAME", "What is studied", conditions, parts, report, {"plot": plot})

    if __name__ == "__main__":
        main(STUDY)

and a configuration, `experiments/configs/NAME.py`. A part is done once: what it
measured is on disk when it ends, and the same command goes on after the last part that
an earlier one has finished.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from ml_collections import ConfigDict

from experiments import command_line
from experiments.files import (
    differences,
    locked,
    writable_directory,
    write_atomically,
)
from experiments.record import Progress, describe_environment
from experiments.settings import is_in

Record = Mapping[str, Any]  # keys and numbers or text; a history may be a list
Condition = tuple[str, bool, str]  # field, whether it is fine, what is allowed
Part = Callable[[], Iterable[Record]]


class Study(NamedTuple):
    """What a study is.

    Attributes:
        name: Its folder in `results/`.
        title: What is studied.
        conditions: What must hold of its configuration, in the order of checks.
        parts: (config, workdir) -> by name what does a part, in their order; a part may
            read what an earlier one has saved in the workdir.
        report: (records, config) -> Markdown, without the title.
        plots: By the name of a PNG file what draws it: (path, records, config).
        operational: Fields that say how it is run, not what it computes.
    """

    name: str
    title: str
    conditions: Callable[[ConfigDict], Iterable[Condition]]
    parts: Callable[[ConfigDict, Path], Mapping[str, Part]]
    report: Callable[[pd.DataFrame, ConfigDict], str]
    plots: Mapping[str, Callable[[Path, pd.DataFrame, ConfigDict], None]] = {}
    operational: Collection[str] = ()


def run(study: Study, config: ConfigDict, workdir: Path) -> str:
    """Does what is missing of a study, writes all results, and returns the report."""
    check_config(study, config)
    with locked(workdir):
        _claim(workdir, config, study.operational)
        frame, seconds = _records(study, config, workdir)
        report = f"# {study.title}\n\n{study.report(frame, config).strip()}\n"
        _write_results(workdir, config, seconds, frame, report)
        for name, plot in study.plots.items():
            plot(workdir / f"{name}.png", frame, config)
    return report


def check_config(study: Study, config: ConfigDict) -> None:
    """Raises ValueError at the first condition that does not hold."""
    for field, is_fine, allowed in study.conditions(config):
        if not is_fine:
            value: Any = config
            for name in field.split("."):
                value = value[name]
            raise ValueError(f"config.{field} must be {allowed}; got {value!r}.")


def distinct(values: Sequence[Any]) -> bool:
    """Whether there are values, all different."""
    return len(set(values)) == len(values) > 0


def number_conditions(config: ConfigDict, **ranges: str) -> Iterator[Condition]:
    """Yields that fields are finite numbers in ranges, such as "[0, 1)"."""
    for field, interval in ranges.items():
        is_fine = is_in(config[field], interval)
        yield field, is_fine, f"a number in {interval}"


def numbers_conditions(config: ConfigDict, **ranges: str) -> Iterator[Condition]:
    """Yields that fields are different numbers in ranges, at least one."""
    for field, interval in ranges.items():
        values = config[field]
        is_fine = distinct(values) and all(is_in(v, interval) for v in values)
        yield field, is_fine, f"different numbers in {interval}"


def names_conditions(
    config: ConfigDict, **names: Collection[str]
) -> Iterator[Condition]:
    """Yields that fields are different names out of some, at least one."""
    for field, known in names.items():
        is_fine = distinct(config[field]) and set(config[field]) <= set(known)
        yield field, is_fine, f"different names out of {', '.join(known)}"


def count_conditions(config: ConfigDict, *fields: str) -> Iterator[Condition]:
    """Yields that fields are integers of at least 1."""
    for field in fields:
        value = config[field]
        is_fine = isinstance(value, int) and value >= 1 and value is not True
        yield field, is_fine, "an integer of at least 1"


def seeds_condition(config: ConfigDict) -> Condition:
    """Returns what the field "seeds" must be where means over seeds are shown."""
    is_fine = (
        distinct(config.seeds)
        and len(config.seeds) > 1
        and all(isinstance(s, int) and 0 <= s < 2**31 for s in config.seeds)
    )
    allowed = "two or more different integers in [0, 2^31), or there is no interval"
    return "seeds", is_fine, allowed


def _claim(workdir: Path, config: ConfigDict, operational: Collection[str]) -> None:
    """Writes the configuration, or raises if the folder holds another study."""
    saved, now = workdir / "config.json", config.to_dict()
    if not saved.exists():
        write_atomically(saved, json.dumps(now, indent=1, sort_keys=True) + "\n")
    elif found := differences(json.loads(saved.read_text()), now, operational):
        raise ValueError(
            f"workdir holds another study, {workdir}: {'; '.join(found)}; use another "
            "workdir, or the same config."
        )


def _records(
    study: Study, config: ConfigDict, workdir: Path
) -> tuple[pd.DataFrame, float]:
    """Does the parts that are missing; returns all records and their wall time."""
    folder = workdir / "parts"
    folder.mkdir(exist_ok=True)
    parts = study.parts(config, workdir)
    frames, seconds = [], 0.0
    with Progress(len(parts), description=f"{study.title}: part") as progress:
        for number, (name, do) in enumerate(parts.items(), start=1):
            file = folder / f"{name}.json"
            if not file.exists():
                started = time.perf_counter()
                frame = pd.DataFrame(list(do()))
                took = time.perf_counter() - started
                write_atomically(file, json.dumps(_table(took, frame)) + "\n")
            content = json.loads(file.read_text())
            frames.append(frame_of(content))
            seconds += content["wall_seconds"]
            progress.update(number)
    return pd.concat(frames, ignore_index=True), seconds


def _table(seconds: float, frame: pd.DataFrame) -> dict[str, Any]:
    # object: NumPy's scalars become Python's, and what is missing None.
    cells = frame.astype(object).where(frame.notna(), None)
    return {
        "wall_seconds": round(seconds, 1),
        "columns": list(frame.columns),
        "rows": cells.to_numpy().tolist(),
    }


def frame_of(content: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the records of a part's file, or of a study's results."""
    return pd.DataFrame(content["rows"], columns=content["columns"])


def _write_results(
    workdir: Path, config: ConfigDict, seconds: float, frame: pd.DataFrame, report: str
) -> None:
    """Writes results.json, a line for each record, and results.md."""
    head = {"config": config.to_dict(), "environment": describe_environment()}
    content = head | _table(seconds, frame)
    rows = content.pop("rows")
    lines = [f"{json.dumps(name)}: {json.dumps(v)}" for name, v in content.items()]
    lines.append('"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
    write_atomically(workdir / "results.json", "{\n" + ",\n".join(lines) + "\n}\n")
    write_atomically(workdir / "results.md", report)


def main(study: Study) -> None:
    """Runs a study from the command line."""

    def experiment(config: ConfigDict, workdir: str) -> None:
        print(f"\n{run(study, config, writable_directory(workdir))}")
        print(f"All results are in {workdir}.")

    command_line.run(experiment)
