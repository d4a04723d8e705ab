"""The study runner: what is done once, refused, locked, saved, and shown."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from experiments import edge_of_chaos, files, results, study
from experiments.configs.edge_of_chaos import get_config

PNG = b"\x89PNG"


def counting(done):
    """A study of two parts that writes down which part it does."""

    def parts(config, workdir):
        def part(name):
            done.append(name)
            for seed in config.seeds:
                accuracy = np.float32(config.level + seed)
                yield {"form": name, "seed": seed, "accuracy": accuracy}
            if config.get("breaks_in") == name:
                raise OSError("No space left on device")

        return {name: lambda name=name: part(name) for name in ("a", "b")}

    def report(frame, config):
        mean = results.estimates(frame, "accuracy", ["form"], scale=1)
        return f"{mean['a'].mean:g} {mean['b'].mean:g}"

    conditions = lambda config: [study.seeds_condition(config)]
    return study.Study("s", "Title", conditions, parts, report, {}, ("breaks_in",))


CONFIG = {"seeds": (0, 1), "level": 2.0, "breaks_in": ""}


def test_a_part_is_done_once_also_after_one_that_breaks(tmp_path):
    done, config = [], ConfigDict(CONFIG)
    config.breaks_in = "b"
    with pytest.raises(OSError, match="No space"):
        study.run(counting(done), config, tmp_path)
    config.breaks_in = ""
    report = study.run(counting(done), config, tmp_path)
    assert study.run(counting(done), config, tmp_path) == report
    assert done == ["a", "b", "b"]
    assert report == "# Title\n\n2.5 2.5\n" == (tmp_path / "results.md").read_text()
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"][2] == ["b", 0, 2.0] and content["config"]["level"] == 2.0
    assert {"jax", "git_commit", "device_kind"} <= content["environment"].keys()


def test_another_configuration_and_one_out_of_range_are_refused(tmp_path):
    study.run(counting([]), ConfigDict(CONFIG), tmp_path)
    with pytest.raises(ValueError, match=r"another study, .*: level was 2.0 and is 3"):
        study.run(counting([]), ConfigDict(CONFIG | {"level": 3.0}), tmp_path)
    with pytest.raises(ValueError, match=r"config\.seeds must be two or more"):
        study.run(counting([]), ConfigDict(CONFIG | {"seeds": (1,)}), tmp_path)


@pytest.mark.parametrize("value", [0, 1.5, True, "3", None])
def test_what_is_no_count_is_refused(value):
    config = ConfigDict({"width": value})
    ((field, fine, allowed),) = study.count_conditions(config, "width")
    assert (field, fine, allowed) == ("width", False, "an integer of at least 1")


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.0, True, "0.5", None])
def test_numbers_out_of_range_are_refused(value):
    config = ConfigDict({"sparsity": 0.5}, type_safe=False)
    assert all(fine for _, fine, _ in study.number_conditions(config, sparsity="[0,1)"))
    config.sparsity = value
    ((field, fine, allowed),) = study.number_conditions(config, sparsity="[0,1)")
    assert (field, fine, allowed) == ("sparsity", False, "a number in [0,1)")


def test_a_workdir_that_another_process_runs_in_is_refused(tmp_path):
    code = "import sys; from pathlib import Path; from experiments.files import locked"
    code += (
        f"\nwith locked(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    try:
        with pytest.raises(ValueError, match="not be in use by another process"):
            study.run(counting([]), ConfigDict(CONFIG), tmp_path)
    finally:
        other.kill()  # the lock goes with it
        other.communicate()
    study.run(counting([]), ConfigDict(CONFIG), tmp_path)


def test_a_state_is_read_back_and_one_with_a_flipped_bit_is_refused(tmp_path):
    state, path = {"w": np.arange(64.0), "n": np.int32(3)}, tmp_path / "states" / "s"
    files.save_state(path, state)
    loaded = files.load_state(path, state)
    np.testing.assert_array_equal(loaded["w"], state["w"])
    for place in (5, len(path.read_bytes()) - 9):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.with_name("flipped").write_bytes(content)
        with pytest.raises(ValueError, match="flipped must hold what was saved"):
            files.load_state(path.with_name("flipped"), state)


def test_gains_are_paired_and_leave_out_what_has_no_pair():
    rows = [("base", 0.9, 0, 0.5), ("base", 0.9, 1, 0.7), ("new", 0.9, 1, 0.9)]
    rows += [("new", 0.9, 0, 0.6), ("new", 0.5, 0, 0.6), ("new", 0.5, 1, 0.6)]
    columns = ["form", "sparsity", "seed", "accuracy"]
    frame = pd.DataFrame(rows, columns=columns)
    by = ["form", "sparsity"]
    gains = results.gains(frame, "accuracy", by, to={"form": "base"})
    assert list(gains.index) == [("new", 0.9)]
    assert gains.iloc[0].mean == pytest.approx(15)  # of 10 and 20
    table = results.pivot(
        results.estimates(frame, "accuracy", by), "sparsity", heading="Form"
    )
    assert table.split("\n")[2:] == [
        "| base | 60.0 ± 127.1 |            |",
        "| new  | 75.0 ± 190.6 | 60.0 ± 0.0 |",
    ]


def test_no_layer_is_pruned_away_on_the_edge_of_chaos(quick_compilation):
    config = get_config()
    count = lambda start, depth: edge_of_chaos.empty_layers(config, start, depth, 0)
    on, off = ([count(s, d) for d in (4, 12, 24)] for s in config.variances)
    assert on == [0, 0, 0]
    assert off[0] == 0 < off[1] < off[2]


def test_the_study_of_the_edge_writes_its_results(tmp_path, quick_compilation):
    config = get_config()
    config.update({"depths": (1, 12), "seeds": (0, 1)})
    text = study.run(edge_of_chaos.STUDY, config, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    rows = {tuple(row[:4]): row[4] for row in content["rows"]}
    assert len(rows) == 8 and rows[1.0, 0.25, 12, 0] > 0 == rows[2.0, 0.0, 12, 0]
    assert "0.0 ± 0.0 (0 of 2)" in text
    assert (tmp_path / "empty_by_depth.png").read_bytes().startswith(PNG)
    config.variances = ((0.0, 1.0),)
    with pytest.raises(ValueError, match=r"config\.variances must be different pairs"):
        study.run(edge_of_chaos.STUDY, config, tmp_path)
