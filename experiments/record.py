"""The record of a run: metrics, where they are kept, environment and progress.

`metrics.jsonl` is the record. It holds nothing that differs between two equal runs (no
clock times), so that a resumed run leaves the same lines as an uninterrupted one. What
is for watching alone, TensorBoard's event files and `speed.jsonl`, never stops a run.
"""

import contextlib
import errno
import json
import logging
import math
import operator
import os
import platform
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import rich.progress
from etils import epath
from rich.console import Console
from rich.table import Column

import sparsejax
from experiments.files import locked, writable_directory, write_atomically

Kind = Literal["train", "validation", "test", "topology"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CHECKPOINTS = "checkpoints"
BEST = "best"  # checkpoint
REWIND = "rewind"  # the state that rounds of pruning go back to
_METRICS = "metrics.jsonl"
_SPEED = "speed.jsonl"
_EVENTS = "tensorboard"

# Metrics.


class MetricWriter:
    """Appends the metrics of a run to its record; a context manager."""

    def __init__(
        self, workdir: str | Path, tensorboard: bool = True, active: bool = True
    ) -> None:
        """Opens the record, without a last line that a kill left half written.

        `active` is False on processes other than 0: nothing is read or written.
        """
        self._folder = Path(workdir)
        self._path = self._folder / _METRICS
        self._active = active
        self._watched: _EventFile | None = None
        if active:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open()
            if tensorboard:
                self._watched = _EventFile(self._folder / _EVENTS)

    def _open(self) -> None:
        # Unbuffered: a line is one write, which survives this process's being killed.
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(len(_whole_lines(self._path)))

    def write(self, step: int, metrics: Mapping[str, Any], kind: Kind) -> None:
        """Appends one line, {"step": ..., "kind": ..., **metrics}, of real numbers.

        Values that are not finite become null, as JSON has no word for them;
        `read_metrics` returns NaN for it. Event files hold them as they are.
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
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        if self._file.write(text) != len(text):  # only a part: the disk is full
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        self._add_events(step, kind, numbers)

    def watch(self, step: int, **numbers: float) -> None:
        """Writes clock times and speeds to what is for watching alone."""
        if not self._active:
            return
        line = json.dumps({"step": step} | numbers)
        with contextlib.suppress(OSError), (self._folder / _SPEED).open("a") as file:
            file.write(f"{line}\n")
        self._add_events(step, "speed", numbers)

    def _add_events(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        if self._watched is not None:
            self._watched.add(step, {f"{kind}/{n}": v for n, v in numbers.items()})

    def truncate_after(self, step: int) -> None:
        """Drops what was recorded after a step, to resume from there; -1 for all.

        TensorBoard is told to hide it as soon as more is written.
        """
        if not self._active:
            return
        kept = [text for text, line in _parse(self._path) if line["step"] <= step]
        self.close()
        write_atomically(self._path, "".join(f"{text}\n" for text in kept))
        if self._watched is not None:
            self._watched.purge_step = step + 1
        self._open()

    def flush(self) -> None:
        """Brings all lines to disk; call it before a checkpoint is saved."""
        if self._active:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        if self._active and not self._file.closed:
            self.flush()
            self._file.close()
            if self._watched is not None:
                self._watched.close()

    def __enter__(self) -> "MetricWriter":
        """Returns the writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the files."""
        self.close()


class _EventFile:
    """TensorBoard's events, for watching: what cannot be written is left out.

    By hand, and at once: the thread of tensorboardX's writer dies of a full disk, and
    its queue then blocks the run for ever.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._failed = False
        self.purge_step: int | None = None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds an event of some numbers."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=n, simple_value=v) for n, v in numbers.items()]
        if values and not self._failed:
            try:
                if self._file is None:
                    self._open()
                self._write(step=step, summary=Summary(value=values))
            except OSError as error:
                self._failed = True
                logging.warning("No more event files are written: %s.", error)

    def _open(self) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # A number: two files opened in the same second would else have the same name.
        number = len(list(self._folder.glob("events*")))
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{number}"
        self._file = (self._folder / name).open("ab", buffering=0)
        self._write(file_version="brain.Event:2")
        if self.purge_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._write(step=self.purge_step, session_log=log)

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        content = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(b"".join((length, sums[0], content, sums[1])))

    def close(self) -> None:
        """Closes the file; the next event opens another."""
        if self._file is not None:
            self._file.close()
            self._file = None


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
    """Reads the record of a run, finished or not; NaN where a value was not finite.

    A half-written last line is left out; any other that is damaged is a ValueError.
    """
    return [line for _, line in _parse(Path(workdir) / _METRICS)]


def read_speed(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads the whole lines that `MetricWriter.watch` has written."""
    lines = []
    for text in _whole_lines(Path(workdir) / _SPEED).decode().split("\n"):
        with contextlib.suppress(ValueError):  # of a full disk, or a kill
            lines.append(json.loads(text) | {"kind": "train"})
    return lines


# Storage. Metrics are appended to, which object stores cannot do: the record of a run
# in a bucket is written to a local directory and brought there as whole files.


class Storage(NamedTuple):
    """A run's directories."""

    record: Path  # the local directory that the record is written to
    checkpoints: epath.Path  # where checkpoints go, local or in a bucket
    best: epath.Path  # where the best one goes
    # Brings the record to the workdir; does nothing where it is there.
    publish: Callable[[], None]


@contextlib.contextmanager
def open_storage(workdir: str | Path, active: bool = True) -> Iterator[Storage]:
    """Opens the workdir of a run, a directory or an address with "://" in it.

    The record is published at the end. A directory is locked: a second run in it is
    refused. `active` is False on processes other than 0, which have no record.
    """
    if "://" not in str(workdir):
        local = writable_directory(workdir)
        root = epath.Path(local.absolute())
        with locked(local) if active else contextlib.nullcontext():
            yield Storage(local, root / CHECKPOINTS, root / BEST, lambda: None)
        return
    remote = epath.Path(workdir)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        try:
            published = _download(remote, local) if active else {}
        except Exception as error:  # whatever the bucket's library raises
            raise ValueError(
                f"workdir must be a bucket that can be written to; got '{workdir}': "
                f"{error}."
            ) from error

        def publish() -> None:
            if active:
                _upload(local, remote, published)

        try:
            yield Storage(local, remote / CHECKPOINTS, remote / BEST, publish)
        finally:
            publish()


_Versions = dict[Path, tuple[int, int]]


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _download(remote: epath.Path, local: Path) -> _Versions:
    """Copies what there is of a record, and tries to write."""
    remote.mkdir(parents=True, exist_ok=True)
    probe = remote / ".writable"
    probe.write_text("")
    probe.unlink()
    versions: _Versions = {}
    for file in _files(remote):
        target = local / file.relative_to(remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        versions[target] = _version(target)
    return versions


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path.name not in (CHECKPOINTS, BEST, REWIND):
            yield from _files(path)


def _upload(local: Path, remote: epath.Path, published: _Versions) -> None:
    """Copies the files that have changed since the last time."""
    for file in local.rglob("*"):
        if file.is_dir() or published.get(file) == _version(file):
            continue
        version = _version(file)
        target = remote / file.relative_to(local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        published[file] = version


# Environment.

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment() -> dict[str, Any]:
    """Describes what this process runs with; call it once JAX is initialized.

    Versions are None for a package that is missing, the commit outside a repository.
    """
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sparsejax": sparsejax.__version__,
        **{name: _package(name) for name in _PACKAGES},
        "backend": devices[0].platform,
        "device_kind": ", ".join(sorted({device.device_kind for device in devices})),
        "device_count": len(devices),
        "process_count": jax.process_count(),
        **_commit(Path(__file__).parent),
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
    }


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> dict[str, Any]:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args],
                capture_output=True,
                check=True,
                text=True,
                timeout=30,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    # A new file can change what runs as much as a changed one: both count, but for
    # the results that runs leave.
    paths = (":(top)", ":(top,exclude)results")
    changes = git("status", "--porcelain", "--", *paths) if commit else None
    return {
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
    }


def write_run_header(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` and `environment.json`, sorted by name; on process 0 only.

    Tuples become lists, and what JSON has no word for (a dtype, infinity) its text.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", config),
        ("environment.json", describe_environment()),
    ):
        text = json.dumps(_plain(content), indent=2, sort_keys=True)
        write_atomically(workdir / name, f"{text}\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


# Progress.


class Progress:
    """Shows steps, examples a second, time left and metrics; a context manager.

    A bar of Rich on a terminal; anywhere else a line now and then, which Rich has not:
    every `line_every_seconds` at most, and for the last step.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        examples_per_step: int = 1,
        initial_step: int = 0,
        description: str = "Training",
        active: bool = True,
        line_every_seconds: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count; `active` is False on processes other than 0."""
        self._examples_per_step = examples_per_step
        self._line_every, self._next_line = line_every_seconds, -math.inf
        self._console = console or Console(stderr=True)
        self._has_lines = active and not self._console.is_terminal
        self._clock, self._metrics = clock, ""
        # On a narrow terminal it is the metrics that are cut short.
        counts = Column(min_width=2 * len(str(total_steps)) + 1)
        cut_short = Column(no_wrap=True, overflow="ellipsis")
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(table_column=counts),
            rich.progress.TextColumn(
                "{task.fields[text]}", markup=False, table_column=cut_short
            ),
            console=self._console,
            get_time=clock,
            disable=not active or self._has_lines,
        )
        self._bar.add_task(
            description, total=total_steps, completed=initial_step, text=""
        )
        [self._task] = self._bar.tasks

    @property
    def examples_per_second(self) -> float:
        """The speed of late; NaN until it is known."""
        return (self._task.speed or math.nan) * self._examples_per_step

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows that steps are done, and metrics until others are given.

        Reading an array waits for its device: give metrics when you log, not at every
        step.
        """
        if metrics is not None:
            self._metrics = "  ".join(
                f"{name} {float(value):.4g}" for name, value in metrics.items()
            )
        self._bar.update(self._task.id, completed=step)
        parts = [self._metrics] if self._metrics else []
        if (speed := self.examples_per_second) > 0:
            left = timedelta(seconds=self._task.time_remaining or 0)
            parts = [f"{speed:,.0f} examples/s", f"{left} left", *parts]
        self._bar.update(self._task.id, text="  ".join(parts))
        done = self._task.finished or self._clock() >= self._next_line
        if self._has_lines and done:
            self._next_line = self._clock() + self._line_every
            share = f"{step:,}/{self._task.total:,.0f} ({self._task.percentage:.1f} %)"
            text = f"{self._task.description} {share}  {self._task.fields['text']}"
            self._console.print(
                text.rstrip(),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def __enter__(self) -> "Progress":
        """Starts to draw."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was, below the bar."""
        self._bar.stop()
