"""Metrics of a run as JSON lines, and as TensorBoard event files beside them.

`metrics.jsonl` is the record. It holds nothing that differs between two equal runs (no
clock times), so that a resumed run leaves the same lines as an uninterrupted one. The
event files are for watching.
"""

import json
import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from tensorboardX import SummaryWriter

from experiments.record.files import write_atomically

Kind = Literal["train", "validation", "test", "topology"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_METRICS = "metrics.jsonl"
_EVENTS = "tensorboard"


class MetricWriter:
    """Appends the metrics of a run to its record; a context manager."""

    def __init__(
        self, workdir: str | Path, tensorboard: bool = True, active: bool = True
    ) -> None:
        """Opens the record, without a last line that a kill left half written.

        Args:
            workdir: The run's directory, made if it is missing.
            tensorboard: Whether to write event files, to `workdir/tensorboard`.
            active: False on processes other than 0: nothing is read or written.
        """
        self._path = Path(workdir) / _METRICS
        self._events = Path(workdir) / _EVENTS
        self._tensorboard = tensorboard
        self._active = active
        self._purge_step: int | None = None
        self._summary: SummaryWriter | None = None
        if active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        # Unbuffered: a line is one write, which survives this process's being killed.
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(len(_whole_lines(self._path)))

    def write(self, step: int, metrics: Mapping[str, Any], kind: Kind) -> None:
        """Appends one line, {"step": ..., "kind": ..., **metrics}.

        Values that are not finite become null, as JSON has no word for them;
        `read_metrics` gives NaN for it. Event files hold them as they are.

        Args:
            step: The step that the metrics belong to.
            metrics: Numbers, or arrays of one number, by name.
            kind: What was measured, one of `KINDS`.

        Raises:
            ValueError: If a value is not one number, or a name or kind is not allowed.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {kind!r}.")
        for name in ("step", "kind"):
            if name in metrics:
                raise ValueError(
                    f"metrics must not be named {name!r}, a field of every line; "
                    "choose another name."
                )
        if not self._active:
            return
        step = operator.index(step)
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        line = {"step": step, "kind": kind} | {
            name: number if math.isfinite(number) else None
            for name, number in numbers.items()
        }
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        for name, number in numbers.items():
            self.watch(step, f"{kind}/{name}", number)

    def watch(self, step: int, name: str, value: float) -> None:
        """Writes a number to the event files alone, such as a speed.

        Args:
            step: The step that it belongs to.
            name: What TensorBoard calls it.
            value: The number.
        """
        if self._active and self._tensorboard:
            self._open_summary().add_scalar(name, value, step)

    def _open_summary(self) -> SummaryWriter:
        if self._summary is None:
            # Two files opened in the same second would else have the same name.
            number = len(list(self._events.glob("events*")))
            self._summary = SummaryWriter(
                str(self._events),
                purge_step=self._purge_step,
                filename_suffix=f".{number}",
            )
        return self._summary

    def truncate_after(self, step: int) -> None:
        """Drops what was recorded after a step, to resume from there.

        TensorBoard is told to hide it as soon as more is written.

        Args:
            step: The step of the checkpoint; -1 to start again from nothing.
        """
        if not self._active:
            return
        kept = [text for text, line in _parse(self._path) if line["step"] <= step]
        self.close()
        write_atomically(self._path, "".join(f"{text}\n" for text in kept))
        self._purge_step = step + 1
        self._open()

    def flush(self) -> None:
        """Brings all lines to disk; call it before a checkpoint is saved."""
        if self._active:
            os.fsync(self._file.fileno())
            if self._summary is not None:
                self._summary.flush()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        if self._active and not self._file.closed:
            self.flush()
            self._file.close()
            if self._summary is not None:
                self._summary.close()
                self._summary = None

    def __enter__(self) -> "MetricWriter":
        """Returns the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the files."""
        self.close()


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    is_integer = array.dtype.kind in "biu"
    if array.ndim or not (is_integer or np.can_cast(array.dtype, np.float64)):
        raise ValueError(
            f"metrics[{name!r}] must be one real number; got shape {array.shape} and "
            f"dtype {array.dtype}."
        )
    return int(array) if is_integer else float(array)


def _whole_lines(path: Path) -> bytes:
    """Reads a record up to its last line's end: what follows was never finished."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _parse(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = []
    for number, text in enumerate(_whole_lines(path).decode().split("\n")[:-1], 1):
        try:
            line = json.loads(text)
            line = {
                name: math.nan if value is None else value
                for name, value in line.items()
            }
            operator.index(line["step"])
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ValueError(
                f"{path} must hold a JSON object with a step on each line; got "
                f"{text[:80]!r} on line {number}; delete that line to go on without it."
            ) from None
        lines.append((text, line))
    return lines


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads the record of a run, finished or not.

    Args:
        workdir: The run's directory.

    Returns:
        The lines in order, {"step": int, "kind": str, name: number, ...}, with NaN
        where a value was not finite; none if nothing was recorded.

    Raises:
        ValueError: If a line is damaged. A half-written last line is left out instead.
    """
    return [line for _, line in _parse(Path(workdir) / _METRICS)]
