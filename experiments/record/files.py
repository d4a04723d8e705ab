"""Files that are written whole or not at all, and where they go."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a kill at any moment leaves the old one or the new one.

    Args:
        path: The file; its directory must exist.
        text: What it is to hold, written as UTF-8.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Does the same with bytes.

    Args:
        path: The file; its directory must exist.
        content: What it is to hold.
    """
    # Beside its place, because a move between file systems is not atomic.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def writable_directory(workdir: str | Path) -> Path:
    """Makes a run's directory and tries to write to it.

    Args:
        workdir: The directory, made if there is none.

    Returns:
        The directory.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    path = Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"workdir must be a directory that can be written to; got '{workdir}': "
            f"{error.strerror or error}."
        ) from None
    return path
