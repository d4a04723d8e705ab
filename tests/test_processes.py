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

import jax
import numpy as np
import pytest
from image_sets import write_digits
from tiny import EPOCH

from experiments.parallel import join_processes

ROOT = Path(__file__).parents[1]
LAST = 2 * EPOCH
CONFIG = "tests/tiny.py:method=granet_st,sparsity=0.7"
SHARDED = ["--config.parallel=jit", "--config.shard_state=True"]


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
        "TINY_DATASET": f"npz:{cache / 'digits.npz'}",
    }
    port = free_port()
    started = []
    for process in range(processes):
        command = [sys.executable, "-m", "experiments.cifar", f"--config={CONFIG}"]
        command += [f"--workdir={workdir}", "--config.epochs=2", *overrides]
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
    folder = tmp_path_factory.mktemp("compiled")
    write_digits(folder / "digits.npz")
    return folder


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """One process by jit: batch norm sees the whole batch, as in all runs compared."""
    workdir = tmp_path_factory.mktemp("alone")
    train(workdir, cache, 1, "--config.parallel=jit")
    return workdir


@pytest.fixture(scope="module")
def sharded(cache, tmp_path_factory):
    """Two processes by jit, the state spread over both."""
    workdir = tmp_path_factory.mktemp("two")
    texts = train(workdir, cache, 2, *SHARDED)
    assert "2 processes, 2 devices, 8 images a device" in texts[0]
    return workdir


@pytest.fixture(scope="module")
def mapped(cache, tmp_path_factory):
    """Two processes by pmap."""
    workdir = tmp_path_factory.mktemp("mapped")
    settings = ["--config.parallel=pmap", "--config.sync_batch_norm=True"]
    train(workdir, cache, 2, *settings)
    return workdir


@pytest.mark.parametrize("together", ["sharded", "mapped"])
def test_metrics_are_those_of_one_process(alone, together, request):
    # Masks are compared between the processes after each update, by the loop itself.
    one, many = record(alone), record(request.getfixturevalue(together))
    described = [[(line["step"], line["kind"]) for line in run] for run in (one, many)]
    topology = [line for line in one if line["kind"] == "topology"]
    steps = [[x for x in run if x[1] != "test"] for run in described]
    assert steps[0] == steps[1] and len(topology) > 5
    for a, b in zip(*([x for x in run if x["kind"] != "test"] for run in (one, many))):
        for name in ("active", "updates", "skipped"):
            assert a.get(name) == b.get(name)
    # Sums in another order part the runs slowly: the first steps are close to rounding.
    first, other = (next(x for x in r if x["kind"] == "train") for r in (one, many))
    np.testing.assert_allclose(first["loss"], other["loss"], rtol=2e-2)


def test_a_checkpoint_of_two_processes_is_resumed_by_one(cache, sharded, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(sharded, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST))
    [before] = [p.name for p in (workdir / "checkpoints").iterdir()]
    # What is restored is held against the checksum that two processes computed.
    texts = train(workdir, cache, 1, "--config.parallel=jit")
    assert "damaged" not in texts[0]
    assert (workdir / "checkpoints" / str(LAST)).exists()
    lines, after = record(sharded), record(workdir)
    early = [line for line in lines if line["step"] <= int(before)]
    assert early and after[: len(early)] == early and after[-1]["step"] == LAST


def test_sigterm_to_one_process_stops_all_at_the_same_step(cache, tmp_path):
    settings = ["--config.parallel=jit", "--config.epochs=2000"]
    started = start(tmp_path, cache, 2, *settings)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and "loss" in metrics.read_text()):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)  # the process that does not write
    texts = finish(started, returncode=75)
    [step] = {re.search(r"stopped at step (\d+)", text).group(1) for text in texts}
    assert (tmp_path / "checkpoints" / step).exists()


# How processes find each other.


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with."""
    calls = []

    def initialize(*arguments):
        calls.append(arguments)
        if arguments == (None, None, None) and "SLURM_STEP_NODELIST" not in os.environ:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_jax_detects_the_processes_and_one_alone_needs_none(joined, monkeypatch):
    join_processes(False)
    join_processes(True, "host:1", 2, 0)
    for name, value in {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node"}.items():
        monkeypatch.setenv(name, value)
    join_processes(False)
    alone = (None, None, None)
    assert joined == [alone, ("host:1", 2, 0), alone]


@pytest.mark.parametrize(
    "arguments, tasks, message",
    [
        ((False, None, 2, None), "1", "must be given together; got .*processes=2"),
        ((True,), "1", "distributed must be False where no scheduler"),
        ((False,), "8", "SLURM_NTASKS must be 1 .* got 8: start it with `srun python"),
    ],
)
def test_processes_that_do_not_find_each_other_are_refused(
    joined, monkeypatch, arguments, tasks, message
):
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    with pytest.raises(ValueError, match=message):
        join_processes(*arguments)


def test_a_pod_that_jax_does_not_join_is_refused(joined, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="the 4 processes must be joined"):
        join_processes(False)
