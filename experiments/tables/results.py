"""Results of finished runs, one JSON file a run."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.record.configuration import differences
from experiments.record.environment import describe_environment
from experiments.record.files import write_atomically
from experiments.tables.spec import Cell, Table, cell_config
from experiments.training.checkpoint import OPERATIONAL

Result = Mapping[str, Any]


def result_path(results: Path, table: Table, cell: Cell) -> Path:
    """Says where the result of a cell is.

    Args:
        results: The folder of all tables.
        table: The table.
        cell: The cell.

    Returns:
        The file, which exists once the run is finished.
    """
    return results / table.name / f"{cell.name}.json"


def where_it_runs() -> dict[str, Any]:
    """Describes what runs are made with, without the paths of a machine.

    Returns:
        Versions, device, commit and time.
    """
    described = describe_environment()
    for name in ("command", "platform", "process_count"):
        del described[name]
    return described


def read_result(path: Path) -> Result:
    """Reads the result of a finished run.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If it is not one that `write_result` wrote.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for name in (*Cell._fields, "config", "test_accuracy", "best", "flops"):
            result[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold the result of a run; got {error}; delete it and the run "
            "is made again."
        ) from None
    return result


def other_configuration(table: Table, cell: Cell, result: Result) -> str:
    """Tells in what a result's configuration is not the table's of today.

    Args:
        table: The table.
        cell: The cell.
        result: The cell's result.

    Returns:
        "FIELD was ... and is ...; ...", empty if nothing differs. A field that only one
        of the two has is no difference: it was not there yet, or no longer is.
    """
    both = _same_fields(result["config"], cell_config(table, cell))
    return "; ".join(differences(*both, OPERATIONAL))


def has_result(results: Path, table: Table, cell: Cell, replace: bool = False) -> bool:
    """Tells whether a cell's run is finished, with the configuration of today.

    Args:
        results: The folder of all tables.
        table: The table.
        cell: The cell.
        replace: Whether a result of another configuration counts as none.

    Returns:
        True for a result that stands.

    Raises:
        ValueError: If there is a result of another configuration; says what differs.
    """
    path = result_path(results, table, cell)
    if not path.exists():
        return False
    found = other_configuration(table, cell, read_result(path))
    if found and not replace:
        raise ValueError(
            f"{path} is of another configuration: {found}; move it away to keep it, or "
            "give --rerun to replace it."
        )
    return not found


def _same_fields(saved: Any, now: Any) -> tuple[Any, Any]:
    """Leaves out the fields that only one of two configurations has."""
    if not (isinstance(saved, Mapping) and isinstance(now, Mapping)):
        return saved, now
    pairs = {
        name: _same_fields(saved[name], now[name]) for name in saved if name in now
    }
    return (
        {name: pair[0] for name, pair in pairs.items()},
        {name: pair[1] for name, pair in pairs.items()},
    )


def write_result(
    results: Path, table: Table, cell: Cell, result: Mapping[str, Any]
) -> None:
    """Writes the result of a finished run, whole or not at all.

    Args:
        results: The folder of all tables.
        table: The table.
        cell: The cell.
        result: What came out.
    """
    content = {
        "table": table.name,
        **cell._asdict(),
        **result,
        "config": cell_config(table, cell),
        "end_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = result_path(results, table, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, allow_nan=False) + "\n")


class Found(NamedTuple):
    """The results in a table's folder.

    Attributes:
        runs: Those of finished runs by cell, of seeds that are not the table's too.
        left_out: By file name, why a result is not one of them.
    """

    runs: dict[Cell, Result]
    left_out: dict[str, str]


def read_table(results: Path, table: Table) -> Found:
    """Reads all results of a table.

    Args:
        results: The folder of all tables.
        table: The table.

    Returns:
        The results.

    Raises:
        ValueError: If a file is no result, or of a cell that the table does not have.
    """
    found = Found({}, {})
    for path in sorted((results / table.name).glob("*.json")):
        result = read_result(path)
        cell = Cell(result["method"], result["sparsity"], result["seed"])
        columns = (0.0,) if cell.method == "dense" else tuple(table.sparsities)
        fits = cell.method in table.methods and cell.sparsity in columns
        if not fits or path.stem != cell.name:
            raise ValueError(
                f"{path} must be the result of a cell of table {table.name}, and named "
                f"for its method, sparsity and seed; got {tuple(cell)}; move it away."
            )
        differs = other_configuration(table, cell, result)
        if differs:
            found.left_out[path.name] = differs
        else:
            found.runs[cell] = result
    return found
