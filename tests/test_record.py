"""The record of a run: metrics, progress, environment and report."""

import io
import json
import math
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

pytest.importorskip("tensorboardX", reason="of the experiments extra")

from tensorboardX.proto.event_pb2 import Event

from experiments import record
from experiments.files import write_atomically
from experiments.record import (
    MetricWriter,
    Progress,
    describe_environment,
    read_metrics,
    read_speed,
    write_run_header,
)
from experiments.report import _layers, main, write_report


def write_steps(writer, steps):
    for step in steps:
        writer.write(step, {"loss": 1 / step, "accuracy": step / 10}, "train")


def read_events(workdir):
    """All events, in the order in which TensorBoard reads the files."""
    events = []
    for path in sorted((workdir / "tensorboard").glob("events*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


class TestMetrics:
    def test_reads_back_what_was_written(self, tmp_path):
        with MetricWriter(tmp_path / "new" / "run", tensorboard=False) as writer:
            writer.write(1, {"loss": 0.1, "grown": 3}, "train")
            writer.write(2, {"density/a/kernel": 0.25}, kind="topology")
            writer.write(2, {}, "test")
        assert read_metrics(tmp_path / "new" / "run") == [
            {"step": 1, "kind": "train", "loss": 0.1, "grown": 3},
            {"step": 2, "kind": "topology", "density/a/kernel": 0.25},
            {"step": 2, "kind": "test"},
        ]
        assert not (tmp_path / "new" / "run" / "tensorboard").exists()

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (np.float32(0.5), "0.5"),
            (np.int64(7), "7"),
            (np.bool_(True), "1"),
            (jnp.float32(0.5), "0.5"),
            (jnp.bfloat16(0.5), "0.5"),
            (jnp.int32(2**30), str(2**30)),
            (2**62, str(2**62)),
            (math.nan, "null"),
            (jnp.float32(-math.inf), "null"),
        ],
    )
    def test_numbers_become_valid_json(self, tmp_path, value, text):
        with MetricWriter(tmp_path) as writer:
            writer.write(np.int32(3), {"x": value}, "train")
        line = f'{{"step": 3, "kind": "train", "x": {text}}}\n'
        assert (tmp_path / "metrics.jsonl").read_text() == line
        if text == "null":
            assert math.isnan(read_metrics(tmp_path)[0]["x"])
            assert not math.isfinite(
                read_events(tmp_path)[-1].summary.value[0].simple_value
            )

    @pytest.mark.parametrize("value", ["a", None, 1j, np.ones(1), [1, 2], {}])
    def test_refuses_what_is_not_one_number(self, tmp_path, value):
        with (
            MetricWriter(tmp_path) as writer,
            pytest.raises(ValueError, match=r"metrics\['x'\] must be one real number"),
        ):
            writer.write(1, {"ok": 1, "x": value}, "train")
        assert read_metrics(tmp_path) == []

    def test_refuses_other_kinds_and_names_of_fields(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            with pytest.raises(ValueError, match="kind must be one of"):
                writer.write(1, {}, "eval")
            with pytest.raises(ValueError, match="must not be named 'step'"):
                writer.write(1, {"step": 1}, "train")

    def test_resumed_record_is_that_of_an_uninterrupted_run(self, tmp_path):
        for name, parts in {
            "whole": [(0, range(1, 11))],
            "resumed": [(0, range(1, 8)), (4, range(5, 9)), (8, range(9, 11))],
        }.items():
            for start, steps in parts:
                with MetricWriter(tmp_path / name) as writer:
                    writer.truncate_after(start)
                    write_steps(writer, steps)
        whole, resumed = (
            (tmp_path / name / "metrics.jsonl").read_bytes()
            for name in ("whole", "resumed")
        )
        assert resumed == whole

    def test_truncates_what_it_wrote_itself_and_goes_on(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            write_steps(writer, range(1, 6))
            writer.truncate_after(3)
            assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
            write_steps(writer, [4])
            writer.truncate_after(-1)
        assert read_metrics(tmp_path) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "metrics.jsonl",
            "tensorboard",
        ]

    @pytest.mark.parametrize("half", ['{"step": 3, "ki', '{"step": 3}', "\0\0", "é"])
    def test_drops_a_half_written_last_line(self, tmp_path, half):
        with MetricWriter(tmp_path) as writer:
            write_steps(writer, [1, 2])
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(half.encode()[:-1] if half == "é" else half.encode())
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        with MetricWriter(tmp_path) as writer:
            write_steps(writer, [3])
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]

    @pytest.mark.parametrize("line", ["nonsense", "[1]", '{"kind": "train"}', ""])
    def test_names_a_damaged_line(self, tmp_path, line):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(ValueError, match="on line 2"):
            read_metrics(tmp_path)

    def test_lines_survive_a_kill(self, tmp_path):
        program = (
            "import os, sys\n"
            "from experiments.record import MetricWriter\n"
            "writer = MetricWriter(sys.argv[1])\n"
            "writer.write(1, {'loss': 2.0}, 'train')\n"
            "os.kill(os.getpid(), 9)\n"
        )
        root = Path(__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], cwd=root, check=False
        )
        assert done.returncode == -9
        assert read_metrics(tmp_path) == [{"step": 1, "kind": "train", "loss": 2.0}]

    def test_writes_event_files(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            writer.write(5, {"loss": 0.5, "density/a/kernel": 0.25}, "topology")
            writer.watch(5, examples_per_second=10.0)
        scalars = [
            (event.step, value.tag, value.simple_value)
            for event in read_events(tmp_path)
            for value in event.summary.value
        ]
        assert scalars == [
            (5, "topology/loss", 0.5),
            (5, "topology/density/a/kernel", 0.25),
            (5, "speed/examples_per_second", 10.0),
        ]
        [speed] = read_speed(tmp_path)
        assert speed == {"step": 5, "kind": "train", "examples_per_second": 10.0}

    def test_tells_tensorboard_where_a_run_was_resumed(self, tmp_path):
        # All in one second, which must not make the files overwrite each other.
        with MetricWriter(tmp_path) as writer:
            write_steps(writer, range(1, 6))
        with MetricWriter(tmp_path) as writer:
            writer.truncate_after(3)
            write_steps(writer, [4])
        events = read_events(tmp_path)
        steps = [event.step for event in events if event.summary.value]
        assert steps == [1, 2, 3, 4, 5, 4]
        starts = [event.step for event in events if event.HasField("session_log")]
        assert starts == [4]

    def test_what_is_for_watching_stops_nothing(self, tmp_path, caplog):
        (tmp_path / "tensorboard").write_text("in the way")
        (tmp_path / "speed.jsonl").mkdir()
        with MetricWriter(tmp_path) as writer:
            write_steps(writer, [1, 2])
            writer.watch(2, examples_per_second=10.0)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
        assert caplog.text.count("No more event files are written") == 1

    def test_a_line_that_the_disk_took_half_of_is_an_error(self, tmp_path):
        """Under a limit of 100 bytes a file, as on a disk with 100 bytes left."""
        program = (
            "import resource, sys\n"
            "from experiments.record import MetricWriter, read_metrics\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
            "writer = MetricWriter(sys.argv[1], tensorboard=False)\n"
            "for step in range(9):\n"
            "    try:\n"
            "        writer.write(step, {'loss': 1.0}, 'train')\n"
            "    except OSError:\n"
            "        break\n"
            "assert step == len(read_metrics(sys.argv[1])) == 2\n"
        )
        root = Path(__file__).parents[1]
        command = [sys.executable, "-c", program, str(tmp_path)]
        subprocess.run(command, cwd=root, check=True)

    def test_inactive_writer_touches_nothing(self, tmp_path):
        with MetricWriter(tmp_path / "run", active=False) as writer:
            writer.write(1, {"loss": 1.0}, "train")
            writer.truncate_after(0)
            writer.flush()
        assert list(tmp_path.iterdir()) == []

    def test_closes_twice(self, tmp_path):
        writer = MetricWriter(tmp_path)
        write_steps(writer, [1])
        writer.close()
        writer.close()


class TestFiles:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.txt"
        write_atomically(path, "old")
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "new \ud800")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def show(updates, *, terminal=False, width=160, **options):
    """Draws (seconds, step, metrics) and returns what was drawn."""
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    options = {"examples_per_step": 8, "clock": clock, "console": console} | options
    with Progress(100, **options) as progress:
        for clock.now, step, metrics in updates:
            progress.update(step, metrics)
    return progress, file.getvalue()


class TestProgress:
    UPDATES = ((0.0, 1, None), (4.0, 21, {"loss": 0.98765}), (20.0, 100, None))

    def test_lines_without_a_terminal(self):
        progress, text = show(self.UPDATES, description="Training [red]")
        assert text.splitlines() == [
            "Training [red] 1/100 (1.0 %)",
            "Training [red] 100/100 (100.0 %)  "
            "40 examples/s  0:00:00 left  loss 0.9877",
        ]
        assert progress.examples_per_second == 8 * 99 / 20

    def test_a_line_at_each_call_if_asked(self):
        text = show(self.UPDATES, line_every_seconds=0, width=20)[1]
        assert len(text.splitlines()) == 3
        assert "40 examples/s  0:00:16 left  loss 0.9877" in text

    def test_bar_on_a_terminal(self):
        text = show(self.UPDATES, terminal=True, description="Training [red]")[1]
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert "Training [red]" in plain
        assert "100/100" in plain
        assert "40 examples/s  0:00:00 left  loss 0.9877" in plain

    def test_resumes_where_it_was(self):
        progress, text = show(
            [(0.0, 51, None), (1.0, 61, None)], initial_step=50, line_every_seconds=0
        )
        assert "61/100 (61.0 %)  80 examples/s  0:00:04 left" in text
        assert progress.examples_per_second == 80

    @pytest.mark.parametrize("terminal", [False, True])
    def test_inactive_draws_nothing_but_keeps_time(self, terminal):
        progress, text = show(self.UPDATES, terminal=terminal, active=False)
        assert text == ""
        assert progress.examples_per_second > 0

    def test_no_speed_yet(self):
        assert math.isnan(Progress(10, active=False).examples_per_second)
        assert show([(0.0, 1, None), (0.0, 100, None)])[1].count("\n") == 2


class TestEnvironment:
    def test_describes(self):
        found = describe_environment()
        assert re.match(r"\d+\.\d+", found["jax"])
        assert found["python"] == sys.version.split()[0]
        assert found["device_count"] == 8
        assert found["process_count"] == 1
        assert found["start_time"].endswith("+00:00")
        program, *rest = shlex.split(found["command"])
        assert rest == sys.orig_argv[1:] and program == Path(sys.orig_argv[0]).name

    def test_commit(self, tmp_path):
        nothing = {"git_commit": None, "git_dirty": None}
        assert record._commit(tmp_path / "missing") == nothing

        def git(*args):
            author = ["-c", "user.name=a", "-c", "user.email=a@b"]
            command = ["git", "-C", str(tmp_path), *author, *args]
            subprocess.run(command, check=True, capture_output=True)

        git("init")
        git("commit", "--allow-empty", "-m", "first")
        found = record._commit(tmp_path)
        assert re.fullmatch("[0-9a-f]{40}", found["git_commit"])
        assert found["git_dirty"] is False
        (tmp_path / "new.py").touch()
        assert record._commit(tmp_path)["git_dirty"] is True

    def test_header(self, tmp_path):
        config = ConfigDict({"b": (1, 2), "a": {"x": np.float32(0.5), "y": np.inf}})
        config.dtype = jnp.bfloat16.dtype
        write_run_header(tmp_path / "run", config.to_dict())
        text = (tmp_path / "run" / "config.json").read_text()
        expected = {
            "a": {"x": 0.5, "y": "inf"},
            "b": [1, 2],
            "dtype": "bfloat16",
        }
        assert text == json.dumps(expected, indent=2) + "\n"
        written = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert written.keys() == describe_environment().keys()


CONFIG = {
    "method": "granet <b>&",
    "model": "res$net$",
    "dataset": "cifar10",
    "sparsity": 0.95,
    "total_steps": 40,
}


def record_run(workdir):
    write_run_header(workdir, CONFIG)
    with MetricWriter(workdir, tensorboard=False) as writer:
        for step in range(1, 31):
            train = {"loss": 1 / step, "learning_rate": 0.1, "grad <norm>": math.nan}
            writer.write(step, train, "train")
            writer.watch(step, examples_per_second=10.0)
            if step % 10:
                continue
            topology = {"sparsity": step / 40, "churn": 0.1, "grown": 3, "dropped": 4}
            topology |= {"active": 5, "updates": step // 10}
            topology |= {"itop_rate": 0.5, "gradient_flow": 1 / step, "dead_units": 0.1}
            topology |= {"gradient_flow/a": 1 / step, "gradient_flow/b": math.nan}
            topology |= {"dead_units/a": 0.0, "dead_units/b": 0.2, "empty_layers": 2}
            topology |= {"dead_inputs": 0.0, "dead_inputs/a": 0.0}
            layers = {"density/conv_10/kernel": 0.0, "density/conv_$2/k$": 1 / step}
            writer.write(step, {**topology, "skipped": 1, **layers}, "topology")
            # The best validation is neither the last nor where the test is best.
            validation = {10: 0.5, 20: 0.8125, 30: 0.75}[step]
            writer.write(step, {"loss": 1.0, "accuracy": validation}, "validation")
            test = {10: 0.9375, 20: 0.6875, 30: 0.71875}[step]
            writer.write(step, {"loss": 1.0, "accuracy": test}, "test")
    layers = [
        {"path": "conv_10/kernel", "shape": [3, 4], "weights": 1200, "active": 60},
        {"path": "conv_2/<i>", "shape": [3, 4], "weights": 800, "active": 200},
        {"path": "bias", "shape": [], "weights": 1, "active": None},
    ]
    (workdir / "layers.json").write_text(json.dumps(layers))


def tiles(page):
    found = re.findall(r"<div><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span>", page)
    return {label: (value, note) for label, value, note in found}


class TestReport:
    def test_final_numbers(self, tmp_path):
        record_run(tmp_path)
        path = write_report(tmp_path)
        assert path == tmp_path / "report.html"
        assert tiles(path.read_text()) == {
            "Test accuracy, last step": ("71.88 %", "step 30"),
            "Test accuracy, best validation": ("68.75 %", "step 20"),
            "Best validation accuracy": ("81.25 %", "step 20"),
            "Sparsity, realized": ("75.00 %", "target 95.00 %"),
            "Last recorded step": ("30", "of 40, unfinished"),
            "Layers without an active weight": ("2", "nothing passes them"),
            "Topology updates skipped": ("1", "gradients or weights not finite"),
        }

    def test_page_escapes_and_needs_no_network(self, tmp_path):
        record_run(tmp_path)
        page = write_report(tmp_path).read_text()
        title = "granet &lt;b&gt;&amp; · res$net$ · cifar10 · 95 % sparse"
        assert f"<title>{title}</title>" in page
        assert f"<h1>{title}</h1>" in page
        assert "conv_2/&lt;i&gt;" in page
        assert 'alt="grad &lt;norm&gt;"' in page
        for absent in ("http://", "https://", "<script", "<link", "<b>&", "<i>"):
            assert absent not in page
        sources = re.findall(r'src="(.{26})', page)
        assert sources == ["data:image/svg+xml;base64,"] * 14
        for title in (
            "Active at least once: ITOP&#x27;s rate R_s",
            "Gradient flow (squared norm, active weights)",
            "Units without active weights",
            "Gradient flow by layer (logarithmic; gray where there is none)",
            "Share of output units without incoming weights",
        ):
            assert f'alt="{title}"' in page
        assert "Share of input units" not in page  # every input unit is read

    def test_layer_table(self, tmp_path):
        record_run(tmp_path)
        page = write_report(tmp_path).read_text()
        rows = [
            re.findall(r"<td>([^<]*)</td>", row)
            for row in re.findall(r"<tr.*?</tr>", page)
        ]
        assert rows[1:] == [
            ["bias", "scalar", "1", "1", "-"],
            ["conv_2/&lt;i&gt;", "3x4", "800", "200", "0.7500"],
            ["conv_10/kernel", "3x4", "1,200", "60", "0.9500"],
            ["prunable", "", "2,000", "260", "0.8700"],
            ["all", "", "2,001", "261", "0.8696"],
        ]

    def test_densities_may_be_recorded_apart_from_updates(self):
        lines = [
            {"step": 10, "kind": "topology", "churn": 0.5},
            {"step": 20, "kind": "topology", "density/a": 0.5, "density/b": 0.0},
            {"step": 20, "kind": "topology", "churn": 0.25},
            {"step": 30, "kind": "train", "loss": 1.0},
        ]
        mesh = _layers(lines, "density", "Density").axes[0].collections[0]
        np.testing.assert_array_equal(mesh.get_array().mask, [[False], [True]])
        np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [20, 30])

    def test_sparsity_of_masks_that_never_change(self, tmp_path):
        record_run(tmp_path)
        (tmp_path / "metrics.jsonl").unlink()
        found = tiles(write_report(tmp_path).read_text())
        assert found == {"Sparsity, realized": ("87.00 %", "target 95.00 %")}

    def test_equal_records_give_equal_pages(self, tmp_path):
        record_run(tmp_path)
        first = write_report(tmp_path).read_bytes()
        assert write_report(tmp_path).read_bytes() == first

    def test_test_set_not_evaluated_at_the_best_step(self, tmp_path):
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.write(1, {"accuracy": 0.5}, "validation")
            writer.write(2, {"accuracy": math.nan}, "validation")
            writer.write(2, {"accuracy": 0.25}, "test")
        found = tiles(write_report(tmp_path).read_text())
        assert found["Test accuracy, last step"] == ("25.00 %", "step 2")
        value, note = found["Test accuracy, best validation"]
        assert value == "-"
        assert "not evaluated" in note

    @pytest.mark.parametrize(
        "metrics",
        [
            None,
            {},
            {"sparsity": 0.0, "density/a": 1.0},
            {"density/a": 0.0, "churn": math.nan},
            {"gradient_flow/a": 0.0, "gradient_flow": 0.0, "dead_units/a": 0.0},
            {"gradient_flow/a": math.nan, "gradient_flow": math.nan},
        ],
    )
    def test_a_run_that_has_hardly_begun(self, tmp_path, metrics):
        if metrics is not None:
            with MetricWriter(tmp_path, tensorboard=False) as writer:
                writer.write(0, metrics, "topology")
        page = write_report(tmp_path).read_text()
        assert ("No metrics are recorded yet" in page) == (metrics is None)

    def test_command(self, tmp_path, capsys):
        main([str(tmp_path)])
        assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
        with pytest.raises(SystemExit):
            main([str(tmp_path / "missing")])
        assert "must be the directory of a run" in capsys.readouterr().err
