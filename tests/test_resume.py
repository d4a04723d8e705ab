"""A run killed again and again ends where an uninterrupted one does, to the bit.

Real processes, real SIGKILLs: at random moments, while a checkpoint is being written,
and right after a topology update.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "experiments/configs/digits_resnet.py:method=granet,sparsity=0.9"
KILLS = 10
LAST = 38  # 19 steps an epoch


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",  # these runs mostly compile
        # Restarts read what the first run has compiled.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(workdir, *overrides):
    return [
        sys.executable,
        "-m",
        "experiments.cifar",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        "--config.epochs=2",
        "--config.checkpoint_every_steps=6",
        "--config.log_every_steps=3",
        *overrides,
    ]


def run(environment, workdir, *overrides):
    return subprocess.run(
        command(workdir, *overrides),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    return workdir


def final_arrays(workdir):
    """Parameters, statistics, optimizer state and masks of the last checkpoint."""
    path = (workdir / "checkpoints" / str(LAST) / "state").absolute()
    flat = ocp.tree.to_flat_dict(ocp.PyTreeCheckpointer().restore(path))
    return {name: np.asarray(leaf) for name, leaf in flat.items() if leaf is not None}


def assert_same_end(a, b):
    first, second = final_arrays(a), final_arrays(b)
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=str(name))
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()


def progress(workdir):
    """What is on disk of a run: topology updates, checkpoints, those being written."""
    record = workdir / "metrics.jsonl"
    lines = record.read_text().count("grown") if record.exists() else 0
    folder = workdir / "checkpoints"
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return lines, {n for n in names if "tmp" in n}, len(names)


def kill_at(moment, process, workdir, rng):
    """Kills the process at a moment of its run; False if it ended before."""
    before = progress(workdir)
    wait = None
    while process.poll() is None:
        lines, writing, count = progress(workdir)
        if moment == "update" and lines > before[0]:
            break
        if moment == "checkpoint" and writing - before[1]:
            break
        if moment == "any":
            if wait is None and (lines > before[0] or count > before[2]):
                wait = time.monotonic() + rng.uniform(0, 0.3)
            if wait is not None and time.monotonic() > wait:
                break
        time.sleep(0.001)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def test_killed_ten_times_ends_the_same(environment, uninterrupted, tmp_path):
    rng = random.Random(0)
    kills = 0
    while True:
        process = subprocess.Popen(
            command(tmp_path),
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if kills == KILLS:
            break
        moment = ("checkpoint", "update", "any")[kills % 3]
        if kill_at(moment, process, tmp_path, rng):
            kills += 1
        else:  # it came to its end before the kills were used up: start again
            assert process.returncode == 0
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    assert process.wait(300) == 0
    assert_same_end(uninterrupted, tmp_path)


def test_sigterm_saves_and_says_so(environment, uninterrupted, tmp_path):
    process = subprocess.Popen(
        command(tmp_path), env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "metrics.jsonl").exists() or not progress(tmp_path)[0]:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "stopped at step" in text
    assert run(environment, tmp_path).returncode == 0
    first, second = final_arrays(uninterrupted), final_arrays(tmp_path)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=str(name))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_falls_back(environment, uninterrupted, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    newest = workdir / "checkpoints" / str(LAST)
    files = [p for p in (newest / "state").rglob("*") if p.is_file() and "d" in p.parts]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    match damage:
        case "truncated":
            largest.write_bytes(content[: len(content) // 2])
        case "flipped":
            content[len(content) // 2] ^= 0xFF
            largest.write_bytes(content)
        case "missing":
            shutil.rmtree(newest / "state")
    older = {p.name for p in (workdir / "checkpoints").iterdir()} - {str(LAST)}
    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    assert f"Step {LAST}'s checkpoint is damaged" in finished.stderr
    kept = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert older <= kept
    assert_same_end(uninterrupted, workdir)


def test_a_full_disk_stops_training_and_the_last_checkpoint_stands(
    environment, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST))
    older = {p.name for p in (workdir / "checkpoints").iterdir()}

    # No file can grow beyond 30 KiB: a checkpoint's are larger.
    limited = ["bash", "-c", 'ulimit -f 30; exec "$@"', "bash", *command(workdir)]
    full = subprocess.run(
        limited, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert full.returncode == 2, full.stderr
    assert "error: a checkpoint could not be written to" in full.stderr
    newest = max(older, key=int)
    assert f"the one of step {newest} stands" in full.stderr
    assert older <= {p.name for p in (workdir / "checkpoints").iterdir()}
    finished = run(environment, workdir)  # there is room again
    assert finished.returncode == 0, finished.stderr
    assert_same_end(uninterrupted, workdir)


def test_an_unknown_key_is_refused_with_the_nearest(environment, tmp_path):
    for key, near in (("lerning_rate", "learning_rate"), ("prune_rate.rgl", "rigl")):
        finished = run(environment, tmp_path, f"--config.{key}=0.5")
        assert finished.returncode == 2
        expected = f"config has no key {key.split('.')[-1]!r}; did you mean {near!r}?"
        assert finished.stderr == f"error: {expected}\n"


def test_another_experiments_workdir_is_refused(environment, uninterrupted):
    finished = run(environment, uninterrupted, "--config.learning_rate=0.5")
    assert finished.returncode == 2
    assert "learning_rate was 0.05 and is 0.5" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_the_record_is_complete(uninterrupted):
    lines = [
        json.loads(line)
        for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()
    ]
    kinds = {line["kind"] for line in lines}
    assert kinds == {"train", "validation", "test", "topology"}
    updates = [line for line in lines if "grown" in line]
    assert [line["updates"] for line in updates] == list(range(1, len(updates) + 1))
    page = (uninterrupted / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
