"""Rebuilding tables: what is run, what is skipped, what is refused, what is shown."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("grain", reason="of the experiments extra")

from experiments import digits, reproduce
from experiments import train as loop
from experiments.configs import digits as digits_config
from experiments.configs import digits_resnet
from experiments.methods import METHODS
from experiments.parallel import EXIT_PREEMPTED, Preempted
from experiments.record import read_metrics
from experiments.reproduce import STUDIES
from experiments.tables import (
    TABLES,
    Cell,
    Found,
    label,
    published,
    read_table,
    render,
    result_path,
    select,
    write_page,
)

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("quick_compilation")


def toy_digits(**changes):
    def config(cell):
        fields = digits_config.get_config()
        fields.epochs, fields.update_interval_steps = 2, 5
        fields.model, fields.model_options.widths = "digits_mlp", (24,)
        fields.update(changes)
        return fields

    return dataclasses.replace(
        TABLES["digits"],
        methods=("dense", "rigl"),
        sparsities=(0.9, 0.95),
        seeds=(0, 1),
        config=config,
    )


def toy_images(**changes):
    def config(cell):
        chosen = f"method={cell.method},sparsity={cell.sparsity}"
        fields = digits_resnet.get_config(chosen)
        fields.seed, fields.num_classes, fields.total_steps = cell.seed, 10, 8
        fields.update_interval_steps, fields.checkpoint_every_steps = 2, 3
        fields.update(changes)
        return fields

    return dataclasses.replace(
        TABLES["cifar10_vgg19"], config=config, image_shape=(8, 8, 1)
    )


# --- Digits ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_results(tmp_path_factory):
    """The first seed of the toy table, stopped between its methods and gone on with."""
    results = tmp_path_factory.mktemp("results")
    table, work = toy_digits(), results / "work"
    cells = select(table, seeds=["0"])
    train = digits.train_method

    def fails(name, *rest):
        if name == "rigl":
            raise RuntimeError("the power is off")
        return train(name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "train_method", fails)
        with pytest.raises(RuntimeError, match="power"):
            reproduce.run_missing(table, cells, results, work)
    assert [p.name for p in (results / "digits").iterdir()] == ["dense_0_0.json"]
    before = {p: p.read_text() for p in (results / "digits").iterdir()}
    reproduce.run_missing(table, cells, results, work)
    assert {p: p.read_text() for p in before} == before
    return results


@pytest.fixture
def nothing_runs(monkeypatch):
    def run(*args):
        raise AssertionError("something is run")

    monkeypatch.setattr(digits, "train_method", run)
    monkeypatch.setattr(loop, "train_and_evaluate", run)


def test_a_result_has_all_that_it_should(digits_results):
    dense, rigl = (
        json.loads((digits_results / "digits" / f"{name}.json").read_text())
        for name in ("dense_0_0", "rigl_0.95_0")
    )
    for result in (dense, rigl):
        assert result["table"] == "digits" and result["seed"] == 0
        assert result["config"]["epochs"] == 2 and result["steps"] == 28
        assert [step for step, _ in result["validation"]] == [14, 28]
        assert result["wall_seconds"] > 0
        environment = result["environment"]
        assert environment["git_commit"] and environment["jax"]
        assert environment["device_kind"] and environment["device_count"]
        best = max(result["validation"], key=lambda pair: pair[1])
        assert result["best"]["step"] == best[0]
        assert result["best"]["validation_accuracy"] == pytest.approx(best[1], abs=1e-4)
        assert 0 < result["best"]["test_accuracy"] <= 1
        assert str(digits_results) not in json.dumps(result)
    assert dense["flops"]["training"] == dense["flops"]["inference"] == 1
    assert rigl["realized_sparsity"] == pytest.approx(0.95, abs=1e-3)
    # Four of RigL's 28 steps, those up to 75 % of the run, take dense gradients.
    sparse = rigl["flops"]["inference"]
    assert rigl["flops"]["training"] == pytest.approx(
        sparse + 4 / 28 * (1 - sparse) / 3
    )


def test_what_has_a_result_is_not_run_again(digits_results, nothing_runs):
    table = toy_digits()
    reproduce.run_missing(table, select(table, seeds=["0"]), digits_results, None)


def test_another_configuration_is_refused_before_anything_runs(
    digits_results, nothing_runs
):
    table = toy_digits(learning_rate=0.5)
    with pytest.raises(ValueError, match=r"learning_rate was 0.1 and is 0.5.*--rerun"):
        reproduce.run_missing(table, select(table), digits_results, None)
    page = render(table, read_table(digits_results, table))
    assert "dense_0_0.json: learning_rate was 0.1 and is 0.5." in page
    assert page.startswith("# ") and "0 runs are finished" in page


def test_rerun_replaces_what_differs(digits_results, monkeypatch):
    table, ran = toy_digits(learning_rate=0.5), []
    monkeypatch.setattr(
        reproduce, "run_digits", lambda _, cells: ran.extend(cells) or ()
    )
    cells = select(table, methods=["rigl"], seeds=["0"])
    reproduce.run_missing(table, cells, digits_results, None, rerun=True)
    assert ran == cells
    # A field that came later is no difference.
    table = toy_digits()
    path = result_path(digits_results, table, cells[0])
    result = json.loads(path.read_text())
    del result["config"]["distribution"]
    before = path.read_text()
    path.write_text(json.dumps(result))
    ran.clear()
    reproduce.run_missing(table, cells, digits_results, None)
    assert not ran
    path.write_text(before)


def test_the_page_shows_what_was_run(digits_results):
    page = write_page(digits_results, toy_digits()).read_text()
    result = json.loads((digits_results / "digits" / "rigl_0.9_0.json").read_text())
    assert f"| RigL   | {100 * result['test_accuracy']:.2f} (1)" in page
    assert "3 runs are finished; the whole table has 6" in page
    assert result["environment"]["git_commit"][:12] in page


# --- Images ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_results(tmp_path_factory):
    """A run that is stopped after its first checkpoint and gone on with."""
    results = tmp_path_factory.mktemp("results")
    table, cell = toy_images(), Cell("granet", 0.95, 18)
    before = signal.getsignal(signal.SIGTERM)

    def fails(*args):
        raise RuntimeError("the power is off")

    with pytest.MonkeyPatch.context() as patch:
        # Compiled once for both parts, which is no part of what is tested.
        prepared = loop.prepare_run(table.config(cell))
        patch.setattr(loop, "prepare_run", lambda config: prepared)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(loop, "_evaluate", fails)
            with pytest.raises(RuntimeError, match="power"):
                reproduce.run_missing(table, [cell], results, results / "work")
        assert not (results / table.name).exists()
        reproduce.run_missing(table, [cell], results, results / "work")
    assert signal.getsignal(signal.SIGTERM) == before
    return results


def test_a_stopped_run_goes_on_and_its_result_is_whole(image_results):
    result = json.loads(
        (image_results / "cifar10_vgg19" / "granet_0.95_18.json").read_text()
    )
    assert [part["seconds"] > 0 for part in result["parts"]] == [True, True]
    total = sum(part["seconds"] for part in result["parts"])
    assert result["wall_seconds"] == pytest.approx(total, abs=0.2)
    assert result["steps"] == 8
    assert result["realized_sparsity"] == pytest.approx(0.95, abs=1e-3)
    assert [step for step, _ in result["validation"]] == [8]
    assert "data_dir" not in result["config"]
    # The record that FLOPs are added up from: densities from the first step on, after
    # each update (at 2, 4 and 6), and at the end.
    folder = image_results / "work" / "cifar10_vgg19" / "granet_0.95_18"
    lines = read_metrics(folder)
    laid_out = [line["step"] for line in lines if "density/head/kernel" in line]
    assert laid_out == [0, 3, 5, 7, 8]
    flops = result["flops"]
    assert flops["inference"] < 0.5 < flops["training"] < 1


def test_time_that_is_over_stops_a_run(tmp_path):
    table, cell = toy_images(), Cell("rigl", 0.9, 18)
    # While the data is being read, before the training loop listens to SIGTERM.
    with pytest.raises(Preempted, match="run the command again"):
        reproduce.run_missing(table, [cell], tmp_path, tmp_path / "w", hours=1e-5)
    assert not (tmp_path / table.name).exists()


# --- Choice, order, refusals ----------------------------------------------------------


def test_granet_comes_first_then_dense_then_the_rest_seed_by_seed():
    cells = select(TABLES["cifar10_vgg19"])
    assert [c.name for c in cells[:2]] == ["granet_0.95_18", "dense_0_18"]
    assert len(cells) == len(set(cells)) == 3 * (3 * 21 + 1)
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)
    first = select(TABLES["imagenet_resnet50"])[0]
    assert first == Cell("granet", 0.9, 17)


def test_some_cells_can_be_chosen():
    cells = select(TABLES["digits"], ["set", "set"], ["0.98"], ["7"])
    assert cells == [Cell("set", 0.98, 7)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--table=cifar_vgg19"], "table must be one of .* mean 'cifar10_vgg19'"),
        (["--table=digits", "--methods=granit"], "methods must be .* mean 'granet'"),
        (["--table=digits", "--sparsities=0.96"], "sparsities must be one of 0.9, "),
        (["--table=digits", "--seeds=1,-2"], r"seeds must be integers .* got '-2'"),
        (["--table=digits", "--max_hours=0"], "max_hours must be above 0; got 0"),
        (["--table=lottery", "--seeds=1"], "seeds must not be given for table lottery"),
    ],
)
def test_refused_in_one_sentence(arguments, message, capsys, tmp_path, nothing_runs):
    assert reproduce.main([*arguments, f"--results={tmp_path}"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(errors)


def test_a_damaged_result_is_refused(capsys, tmp_path, nothing_runs):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "dense_0_0.json").write_text('{"method": "dense"')
    flags = ["--table=digits", f"--results={tmp_path}"]
    for arguments in (flags, [*flags, "--render_only"]):
        assert reproduce.main(arguments) == 2
        assert "must hold the result of a run" in capsys.readouterr().err


# --- Published numbers and the page ---------------------------------------------------


def test_every_published_number_has_a_source_and_a_mark():
    numbers = {name: published(name) for name in TABLES}
    assert {name for name in numbers if numbers[name]} == set(TABLES) - {
        "digits",
        "cifar10_vgg19_narrow",
    }
    for name, each in numbers.items():
        for (method, sparsity), number in each.items():
            assert method in METHODS or label(method) == "STR"
            assert sparsity in (0.0, *TABLES[name].sparsities)
            assert number.source and isinstance(number.verified, bool)
            assert number.verified == ("from memory" not in number.source)
            assert 50 < number.value < 100


def test_numbers_of_rigl_stand_beside_both_of_its_forms():
    """GraNet's repository has RigL-ITOP alone, its paper a row "RigL"."""
    for name in TABLES:
        numbers, page = published(name), render(TABLES[name], Found({}, {}))
        is_granets = name.startswith("cifar") and bool(numbers)
        assert is_granets == ("Both rows are compared" in page)
        for (method, sparsity), number in numbers.items():
            if method == "rigl" and is_granets:
                other = numbers["rigl_itop", sparsity]
                assert other == number._replace(note="as RigL")


@pytest.mark.parametrize(
    "table, method, sparsity, value",
    [
        ("cifar10_vgg19", "dense", 0.0, 93.85),
        ("cifar10_vgg19", "gmp", 0.9, 93.59),
        ("cifar10_vgg19", "rigl", 0.9, 93.38),
        ("cifar10_vgg19", "granet", 0.9, 93.80),
        ("cifar10_resnet50", "rigl", 0.95, 93.86),
        ("cifar10_resnet50", "gmp", 0.95, 94.52),
        ("cifar10_resnet50", "granet", 0.95, 94.44),
    ],
)
def test_verified_numbers(table, method, sparsity, value):
    number = published(table)[method, sparsity]
    assert number.value == value and number.verified


def test_a_page_without_runs_and_with_some():
    table = TABLES["cifar10_vgg19"]
    page = render(table, Found({}, {}))
    rows = {
        line.split("|")[1].strip(): line
        for line in page.splitlines()[::-1]
        if "|" in line
    }
    assert "| not run    | 92.46 **[V]**" in rows["SET"]
    assert "*91.73 [U: unverified]*" in rows["SET"]
    assert "0 runs are finished" in page
    unverified = [line for line in page.splitlines() if "[U" in line]
    targets = page[page.index("## Against") : page.index("## Where")]
    assert len(unverified) > 5 and "[U" not in targets

    def result(accuracy):
        return {
            "test_accuracy": accuracy,
            "best": {"test_accuracy": accuracy},
            "realized_sparsity": 0.9,
            "flops": {"inference": 0.1, "training": 0.25},
            "environment": {
                "device_count": 1,
                "device_kind": "a device",
                "jax": "0.10",
                "sparsejax": "0.1",
                "git_commit": None,
                "git_dirty": True,
            },
        }

    runs = {
        Cell("granet", 0.9, seed): result(0.93 + 0.01 * i)
        for i, seed in enumerate((18, 19))
    }
    page = render(table, Found(runs, {}))
    assert "| 93.50 ± 0.71 (2) | 93.80 ± 0.10 **[V]**" in page
    assert "| -0.30 " in page
    assert "| GraNet (s_i=0) | 90 %     | 90.00 %  | 0.100x          | 0.250x" in page
    assert (
        "2 runs: 1 x a device, jax 0.10, sparsejax 0.1 at commit unknown, with" in page
    )
    rows = [line for line in page.splitlines() if line.startswith("| GMP  ")]
    assert rows[0].count("not run") == 3


# --- Studies --------------------------------------------------------------------------


def replaced(monkeypatch, name):
    """Puts what was measured in the place of running; gives the parts that are run."""
    runs = []

    def run(config, workdir):
        runs.append(workdir.name)
        measured = ROOT / "results" / name / f"{workdir.name}.json"
        content = json.loads(measured.read_text())
        content["config"] = config.to_dict()  # also where it has changed since
        (workdir / "results.json").write_text(json.dumps(content))

    put_in_place(monkeypatch, run)
    return runs


def put_in_place(monkeypatch, run):
    """Runs a function of (config, workdir) where a study would be run."""
    monkeypatch.setattr(reproduce.study, "run", lambda study, *args: run(*args))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_run_once_and_shown(name, tmp_path, monkeypatch):
    runs, parts = replaced(monkeypatch, name), list(STUDIES[name].parts)
    command = [f"--table={name}", f"--results={tmp_path}", f"--workdir={tmp_path}/runs"]
    page = tmp_path / name / "README.md"
    assert reproduce.main([*command, "--render_only"]) == 0
    assert page.read_text().count("Not run.") == len(parts) and not runs
    assert reproduce.main(command) == 0
    assert page.read_text() == (ROOT / "results" / name / "README.md").read_text()
    reproduce.run_study(name, tmp_path, tmp_path / "runs")
    assert runs == parts


def test_a_study_of_another_configuration_is_refused_or_replaced(
    tmp_path, monkeypatch, capsys
):
    runs = replaced(monkeypatch, "generalization")
    command = ["--table=generalization", f"--results={tmp_path}"]
    command.append(f"--workdir={tmp_path}/runs")
    assert reproduce.main(command) == 0
    result = tmp_path / "generalization" / "spread.json"
    content = json.loads(result.read_text())
    content["config"]["seeds"] = [7]
    result.write_text(json.dumps(content))
    for arguments in (command, [*command, "--render_only"]):
        assert reproduce.main(arguments) == 2
        assert "seeds was [7] and is [0, 1, 2, 3, 4]" in capsys.readouterr().err
    assert reproduce.main([*command, "--rerun"]) == 0
    assert runs == ["axis", "spread", "spread"]
    result.write_text("{}")
    assert reproduce.main(command) == 2
    assert "must hold the result of a study" in capsys.readouterr().err


def test_a_study_that_is_stopped_has_no_result(tmp_path, monkeypatch, capsys):
    def run(config, workdir):
        time.sleep(5)

    put_in_place(monkeypatch, run)
    flags = [f"--results={tmp_path}", f"--workdir={tmp_path}/w", "--max_hours=1e-5"]
    assert reproduce.main(["--table=lottery", *flags]) == EXIT_PREEMPTED
    assert "run the command again" in capsys.readouterr().err
    assert "Not run." in (tmp_path / "lottery" / "README.md").read_text()


def test_a_comparison_that_has_more_methods_by_now_is_run(tmp_path, monkeypatch):
    runs = replaced(monkeypatch, "force")
    command = ["--table=force", f"--results={tmp_path}", f"--workdir={tmp_path}/runs"]
    assert reproduce.main(command) == reproduce.main(command) == 0
    assert runs == ["digits"]
    result = tmp_path / "force" / "digits.json"
    content = json.loads(result.read_text())
    content["config"]["methods"].remove("force")
    result.write_text(json.dumps(content))
    assert reproduce.main([*command, "--render_only"]) == 0
    assert runs == ["digits"]
    assert reproduce.main(command) == 0
    assert runs == ["digits", "digits"]


def test_ctrl_c_ends_with_a_sentence(tmp_path, monkeypatch, capsys):
    def run(config, workdir):
        raise KeyboardInterrupt

    put_in_place(monkeypatch, run)
    flags = [f"--results={tmp_path}", f"--workdir={tmp_path}/w"]
    assert reproduce.main(["--table=force", *flags]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
