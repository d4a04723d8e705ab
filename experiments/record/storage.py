"""Where a run's record is kept: a directory, or a bucket such as gs://name/folder.

Metrics are appended to, which object stores cannot do. So the record of a run in a
bucket is written to a local directory and brought there as whole files, now and then.
Checkpoints go to the bucket directly.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

from experiments.record.files import writable_directory

CHECKPOINTS = "checkpoints"


class Storage(NamedTuple):
    """A run's directories.

    Attributes:
        record: The local directory that the record is written to.
        checkpoints: Where checkpoints go, local or in a bucket.
        publish: Brings the record to the workdir; does nothing where it is there.
    """

    record: Path
    checkpoints: epath.Path
    publish: Callable[[], None]


@contextlib.contextmanager
def open_storage(workdir: str | Path, active: bool = True) -> Iterator[Storage]:
    """Opens the workdir of a run, and publishes its record at the end.

    Args:
        workdir: A directory, or a bucket's address with "://" in it.
        active: False on processes other than 0, which have no record.

    Yields:
        The run's directories.

    Raises:
        ValueError: If the workdir cannot be written to.
    """
    if "://" not in str(workdir):
        local = writable_directory(workdir)
        yield Storage(local, epath.Path(local.absolute()) / CHECKPOINTS, lambda: None)
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
            yield Storage(local, remote / CHECKPOINTS, publish)
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
        elif path.name != CHECKPOINTS:
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
