"""Several real processes on one machine train one network, by pmap and by jit."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "experiments/configs/digits_resnet.py:method=granet_st,sparsity=0.9"
LAST = 19  # one epoch
SHARDED = [
    "--config.parallel=jit",
    "--config.shard_state=True",
    "--config.checkpoint_every_steps=10",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, cache, processes, *overrides):
    """Starts the main in so many processes."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",  # these runs mostly compile
        "NPROC": "8",  # XLA's thread pool; see docs/scaling.md
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    port = free_port()
    started = []
    for process in range(processes):
        command = [sys.executable, "-m", "experiments.cifar", f"--config={CONFIG}"]
        command += [f"--workdir={workdir}", "--config.epochs=1", *overrides]
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--process={process}"]
            command += [f"--processes={processes}"]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def finish(started, returncode=0):
    """Waits for processes; returns what each wrote to stderr."""
    try:
        texts = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, text in zip(started, texts):
        assert process.returncode == returncode, text
    return texts


def train(workdir, cache, processes, *overrides):
    return finish(start(workdir, cache, processes, *overrides))


def record(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """One process by jit: batch norm sees the whole batch, as in all runs compared."""
    workdir = tmp_path_factory.mktemp("alone")
    train(workdir, cache, 1, "--config.parallel=jit")
    return workdir


@pytest.fixture(scope="module")
def two(cache, tmp_path_factory):
    """Two processes by jit, the state spread over both; a checkpoint on the way."""
    workdir = tmp_path_factory.mktemp("two")
    train(workdir, cache, 2, *SHARDED)
    return workdir


@pytest.fixture(scope="module")
def four(cache, tmp_path_factory):
    """Four processes by pmap."""
    workdir = tmp_path_factory.mktemp("four")
    settings = ["--config.parallel=pmap", "--config.sync_batch_norm=True"]
    train(workdir, cache, 4, *settings)
    return workdir


@pytest.mark.parametrize("together", ["two", "four"])
def test_metrics_are_those_of_one_process(alone, together, request):
    # Masks are compared between the processes after each update, by the loop itself.
    one, many = record(alone), record(request.getfixturevalue(together))
    assert [(a["step"], a["kind"]) for a in one] == [
        (a["step"], a["kind"]) for a in many
    ]
    for a, b in zip(one, many):
        for name in ("active", "updates", "skipped"):
            assert a.get(name) == b.get(name)
    # Sums in another order part the runs slowly: the first steps are close to rounding.
    first, other = (next(x for x in r if x["kind"] == "train") for r in (one, many))
    np.testing.assert_allclose(first["loss"], other["loss"], rtol=2e-2)


def test_a_checkpoint_of_two_processes_is_resumed_by_one(cache, two, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(two, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST))
    # What is restored is held against the checksum that two processes computed.
    alone = [flag for flag in SHARDED if "shard_state" not in flag]
    texts = train(workdir, cache, 1, *alone)
    assert "damaged" not in texts[0]
    assert (workdir / "checkpoints" / str(LAST)).exists()
    before, after = record(two), record(workdir)
    early = [line for line in before if line["step"] <= 10]
    assert early and after[: len(early)] == early
    assert [line["step"] for line in after] == [line["step"] for line in before]


def test_sigterm_to_one_process_stops_all_at_the_same_step(cache, tmp_path):
    settings = ["--config.parallel=jit", "--config.epochs=200"]
    started = start(tmp_path, cache, 2, *settings)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and "loss" in metrics.read_text()):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)  # the process that does not write
    texts = finish(started, returncode=75)
    [step] = {re.search(r"stopped at step (\d+)", text).group(1) for text in texts}
    assert (tmp_path / "checkpoints" / step).exists()


def test_processes_given_in_part_are_refused(tmp_path):
    command = [sys.executable, "-m", "experiments.cifar", f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path}", "--processes=2"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "must be given together" in finished.stderr
