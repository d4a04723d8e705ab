"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a kill at any moment leaves the old one or the new one.

    Args:
        path: The file; its directory must exist.
        text: What it is to hold, written as UTF-8.
    """
    # Beside its place, because a move between file systems is not atomic.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
