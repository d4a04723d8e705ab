"""Files that are written whole or not at all, and folders that one process owns."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax

PyTree = Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces a file: after a kill at any moment it is the old one or the new one."""
    content = content.encode() if isinstance(content, str) else content
    # In the same folder, because a move between file systems is not atomic.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def writable_directory(workdir: str | Path) -> Path:
    """Makes a run's directory if there is none, and tries to write to it."""
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


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock on a workdir; the system lets go of it when a process dies."""
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"workdir must not be in use by another process; got {workdir}, which "
                "one is running in; wait for it to end, or use another workdir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], operational: Collection[str] = ()
) -> list[str]:
    """Lists the fields in which two configurations are of different experiments.

    `operational` names fields that say how a run is run, not what it computes; dots
    lead to nested ones.

    Example:
        >>> saved = {"seed": 1, "workers": 2}
        >>> differences(saved, {"seed": 3, "workers": 4}, operational=["workers"])
        ['seed was 1 and is 3']
    """
    old, new = _flat(saved), _flat(json.loads(json.dumps(now)))
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in operational
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: not isinstance(node, dict)
    )
    return {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in leaves}


_DIGEST = hashlib.sha256


def save_state(path: Path, state: PyTree) -> None:
    """Saves arrays, and a checksum of them, for a later part of a study."""
    path.parent.mkdir(exist_ok=True)
    content = flax.serialization.to_bytes(jax.device_get(state))
    write_atomically(path, _DIGEST(content).digest() + content)


def load_state(path: Path, like: PyTree) -> PyTree:
    """Loads what `save_state` saved, as NumPy arrays in a tree like another."""
    saved = path.read_bytes()
    digest, content = saved[: _DIGEST().digest_size], saved[_DIGEST().digest_size :]
    if _DIGEST(content).digest() != digest:
        raise ValueError(
            f"{path} must hold what was saved; got other bytes: it is damaged; delete "
            "the workdir and run the study again."
        )
    return flax.serialization.from_bytes(like, content)
