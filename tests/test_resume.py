"""A run killed again and again ends where an uninterrupted one does, to the bit.

Real processes, real SIGKILLs: at random moments, while a checkpoint is being written,
and right after a topology update. Damage to checkpoints is tested on small states.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from image_sets import write_digits
from tiny import LAST

from experiments.checkpoint import Best, Checkpointer
from experiments.step import TrainState, checksum

ROOT = Path(__file__).parents[1]
CONFIG = "tests/tiny.py:method=granet,sparsity=0.5"
KILLS = 10
METRICS = "metrics.jsonl"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True",  # these runs mostly compile
        # Restarts read what the first run has compiled.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TINY_DATASET": write_digits(cache / "digits.npz"),
    }


def command(workdir, *overrides):
    return [
        sys.executable,
        "-m",
        "experiments.cifar",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *overrides,
    ]


def start(environment, workdir, *overrides):
    return subprocess.Popen(
        command(workdir, *overrides),
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environment, workdir, *overrides, before=()):
    return subprocess.run(
        [*before, *command(workdir, *overrides)],
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
    assert "1 process, 1 device, 16 images a device" in finished.stderr
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
    assert (a / METRICS).read_text() == (b / METRICS).read_text()


def progress(workdir):
    """What is on disk of a run: topology updates, checkpoints, those being written."""
    record = workdir / METRICS
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
                wait = time.monotonic() + rng.uniform(0, 0.1)
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
        with start(environment, tmp_path) as process:
            if kills == KILLS:
                text = process.communicate(timeout=300)[1]
                break
            moment = ("checkpoint", "update", "any")[kills % 3]
            if kill_at(moment, process, tmp_path, rng):
                kills += 1
            else:  # it came to its end before the kills were used up: start again
                assert process.returncode == 0
                shutil.rmtree(tmp_path)
                tmp_path.mkdir()
    assert process.returncode == 0, text
    assert_same_end(uninterrupted, tmp_path)


def wait_for_steps(process, workdir):
    while not (workdir / METRICS).exists() or not progress(workdir)[0]:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def test_sigterm_saves_and_leaves_the_record_of_a_run_that_was_not_stopped(
    environment, uninterrupted, tmp_path
):
    with start(environment, tmp_path) as process:
        wait_for_steps(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=120)[1]
    assert process.returncode == 75, text
    [step] = re.findall(r"stopped at step (\d+); run the command again", text)
    assert (tmp_path / "checkpoints" / step).exists()
    finished = run(environment, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert_same_end(uninterrupted, tmp_path)


def test_a_workdir_has_one_run_and_ctrl_c_ends_it_in_a_sentence(environment, tmp_path):
    long = ["--config.epochs=1000"]
    with start(environment, tmp_path, *long) as process:
        wait_for_steps(process, tmp_path)
        second = run(environment, tmp_path, *long)
        assert second.returncode == 2
        lines = second.stderr.strip().splitlines()
        assert "error: workdir must not be in use by another process" in lines[-1]
        assert "Traceback" not in second.stderr
        process.send_signal(signal.SIGINT)
        text = process.communicate(timeout=120)[1]
    assert process.returncode == 130, text
    assert "Traceback" not in text and "stopped at step" in text


def test_a_damaged_checkpoint_falls_back_and_other_devices_are_warned_of(
    environment, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST) / "state")
    older = {p.name for p in (workdir / "checkpoints").iterdir()} - {str(LAST)}
    finished = run(environment, workdir)
    assert finished.returncode == 0, finished.stderr
    assert f"Step {LAST}'s checkpoint is damaged" in finished.stderr
    kept = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert older <= kept and f"damaged-{LAST}-0" in kept
    assert_same_end(uninterrupted, workdir)
    two = run(environment | {"JAX_NUM_CPU_DEVICES": "2"}, workdir)
    assert two.returncode == 0, two.stderr
    assert "saw a batch in 1 parts and now sees it in 2" in two.stderr


def limited(kilobytes):
    """No file may grow beyond a size: a full disk that needs no mount."""
    return ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash"]


def assert_one_sentence(full, beginning):
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert full.stderr.strip().splitlines()[-1].startswith(f"error: {beginning}")


def test_a_full_disk_ends_a_run_in_a_sentence_and_it_goes_on_later(
    environment, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(LAST))
    older = {p.name for p in (workdir / "checkpoints").iterdir()}
    uncached = environment | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    full = run(uncached, workdir, before=limited(0))
    assert_one_sentence(full, "workdir must have room for the record")
    assert older <= {p.name for p in (workdir / "checkpoints").iterdir()}
    finished = run(environment, workdir)  # there is room again
    assert finished.returncode == 0, finished.stderr
    assert_same_end(uninterrupted, workdir)


def test_a_checkpoint_that_cannot_be_written_is_a_sentence(environment, tmp_path):
    wide = "--config.model_options.widths=(32,)"  # arrays larger than the record
    uncached = environment | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    full = run(uncached, tmp_path, wide, before=limited(20))
    assert_one_sentence(full, "a checkpoint could not be written to")
    assert full.stderr.strip().endswith("none stands.")


def test_a_mistake_on_the_command_line_is_one_sentence(environment, uninterrupted):
    def refusal(*flags):
        finished = run(environment, uninterrupted, *flags)
        assert finished.returncode == 2
        assert finished.stderr.startswith("error: ")
        [line] = finished.stderr.strip().splitlines()[-1:]
        return line

    expected = "config has no key 'rgl'; did you mean 'rigl'?"
    assert refusal("--config.prune_rate.rgl=0.5") == f"error: {expected}"
    assert "must be given together" in refusal("--processes=2")
    finished = run(environment, uninterrupted, "--config.learning_rate=0.5")
    assert finished.returncode == 2
    assert "learning_rate was 0.05 and is 0.5" in finished.stderr


def test_the_record_is_complete(uninterrupted):
    text = (uninterrupted / METRICS).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    kinds = {line["kind"] for line in lines}
    assert kinds == {"train", "validation", "test", "topology"}
    updates = [line for line in lines if "grown" in line]
    assert [line["updates"] for line in updates] == list(range(1, len(updates) + 1))
    page = (uninterrupted / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert len(list((uninterrupted / "best").iterdir())) >= 1


# Damage, on small states.

LIKE = TrainState(
    np.zeros([], np.int32),
    {"w": np.zeros((300, 300), np.float32)},
    {},
    {"m": np.zeros(3)},
    (),
)


def state_at(step):
    draw = np.random.default_rng(step)
    weights = {"w": draw.normal(size=(300, 300)).astype(np.float32)}
    return LIKE._replace(step=np.asarray(step, np.int32), params=weights)


@contextlib.contextmanager
def opened(folder, config=None):
    checkpoints = Checkpointer(
        epath.Path(folder), config or {"seed": 1}, 2, lambda s: s, lambda s: s
    )
    yield checkpoints
    checkpoints.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with opened(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_at(step), best=Best(step)._asdict(), window={})
    return folder


def restored(folder):
    with opened(folder) as checkpoints:
        found = checkpoints.restore(LIKE)
    expected = state_at(int(found.state.step))
    jax.tree.map(np.testing.assert_array_equal, found.state, expected)
    assert found.best == Best(int(found.state.step))
    return int(found.state.step)


def largest(step):
    files = [p for p in (step / "state").rglob("*") if p.is_file() and "d" in p.parts]
    return max(files, key=lambda path: path.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


DAMAGE = {
    "truncated": lambda step: os.truncate(largest(step), 1000),
    "flipped": lambda step: flip(largest(step)),
    "missing": lambda step: shutil.rmtree(step / "state"),
    "no manifest": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b"x"),
    "no metadata": lambda step: (step / "state" / "_METADATA").write_text("{"),
    "notes": lambda step: (step / "notes" / "metadata").write_text('{"best'),
}


# Orbax's threads may still have something to say when their loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_any_kind_is_set_aside(two_steps, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)
    assert restored(folder) == 2
    DAMAGE[damage](folder / "2")
    reader = Checkpointer(epath.Path(folder), None, None, lambda s: s, lambda s: s)
    assert reader.restore(LIKE).state.step == 1 and (folder / "2").exists()
    reader.close()
    assert restored(folder) == 1
    assert {p.name for p in folder.iterdir()} == {"1", "damaged-2-0"}


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        ValueError("UNAVAILABLE: the bucket does not answer"),
        RuntimeError("as any"),
    ],
)
def test_what_cannot_be_read_for_a_moment_is_left_where_it_is(
    two_steps, tmp_path, monkeypatch, error
):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)

    def fails(*args, **options):
        raise error

    with monkeypatch.context() as patch, opened(folder) as checkpoints:
        patch.setattr(ocp.CheckpointManager, "restore", fails)
        with pytest.raises(ValueError, match=r"2's checkpoint .* cannot be read now"):
            checkpoints.restore(LIKE)
    assert restored(folder) == 2


def test_another_experiments_checkpoints_are_refused(two_steps):
    with (
        pytest.raises(ValueError, match=r"another experiment.*seed was 1 and is 2"),
        opened(two_steps, {"seed": 2}),
    ):
        pass
    with opened(two_steps, {"seed": 1, "workers": 4}):  # operational
        pass


def test_any_bit_of_a_state_changes_its_checksum():
    tree = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5, bool), "c": jnp.int32(1)}
    sums = [
        tuple(checksum(changed).tolist())
        for changed in (
            tree,
            tree | {"a": tree["a"].at[1, 2].set(-0.0)},
            tree | {"a": tree["a"].at[2, 1].set(1e-45)},
            tree | {"b": tree["b"].at[4].set(True)},
            tree | {"c": jnp.int32(2)},
        )
    ]
    assert len(set(sums)) == len(sums)
