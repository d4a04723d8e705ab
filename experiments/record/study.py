"""The folder of a study: whose it is, and what came of it."""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.record.configuration import differences
from experiments.record.environment import describe_environment
from experiments.record.files import write_atomically


def claim_folder(
    workdir: Path, config: ConfigDict, operational: Collection[str] = ()
) -> None:
    """Writes down what is studied in a folder, or checks that it is the same.

    Args:
        workdir: A folder that can be written to.
        config: The study's configuration.
        operational: Fields that may change between the parts of one study.

    Raises:
        ValueError: If the folder holds another study; says what differs.
    """
    saved = workdir / "config.json"
    if not saved.exists():
        text = json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"
        write_atomically(saved, text)
        return
    found = differences(json.loads(saved.read_text()), config.to_dict(), operational)
    if found:
        raise ValueError(
            f"workdir holds another study, {workdir}: {'; '.join(found)}"
            "; use another workdir, or the same config."
        )


def write_study(
    workdir: Path,
    config: ConfigDict,
    wall_seconds: float,
    records: Sequence[NamedTuple],
    summary: Iterable[NamedTuple],
    report: str,
) -> None:
    """Writes `results.json` and `results.md`.

    Args:
        workdir: The folder to write to.
        config: The study's configuration.
        wall_seconds: What its records took, in all commands together.
        records: What was measured, at least one, flat.
        summary: What is shown of it.
        report: That in Markdown.
    """
    content = {
        "config": config.to_dict(),
        "environment": describe_environment(),
        "wall_seconds": round(wall_seconds, 1),
        "columns": records[0]._fields,
    }
    entries = [f"{json.dumps(name)}: {json.dumps(v)}" for name, v in content.items()]
    lists = {
        "summary": [_plain(row) for row in summary],
        "rows": [list(record) for record in records],
    }
    for name, values in lists.items():  # a line for each entry, to be read and compared
        lines = ",\n".join(map(json.dumps, values))
        entries.append(f"{json.dumps(name)}: [\n{lines}\n]")
    write_atomically(workdir / "results.json", "{\n" + ",\n".join(entries) + "\n}\n")
    write_atomically(workdir / "results.md", report)


def _plain(value: Any) -> Any:
    """Dictionaries of named tuples, and six digits, as many as float32 has."""
    if hasattr(value, "_asdict"):
        return {name: _plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
