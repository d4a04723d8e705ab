"""What a run was made with: its configuration, versions, devices and commit."""

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sparsejax
from experiments.record.files import write_atomically

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment() -> dict[str, Any]:
    """Describes what this process runs with; call it once JAX is initialised.

    Returns:
        Versions (None for a package that is missing), devices, processes, the commit
        (None outside of a repository), the time in UTC and the command.
    """
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sparsejax": sparsejax.__version__,
        **{name: _version(name) for name in _PACKAGES},
        "backend": devices[0].platform,
        "device_kind": ", ".join(sorted({device.device_kind for device in devices})),
        "device_count": len(devices),
        "process_count": jax.process_count(),
        **_commit(Path(__file__).parent),
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
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

    Args:
        workdir: The run's directory, made if it is missing.
        config: The run's configuration; tuples become lists, and what JSON has no word
            for (a dtype, infinity) its text.
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
