"""Command lines of experiments: flags are defined once, failures are one sentence."""

import importlib
import sys

import pytest
from absl import flags

pytest.importorskip("grain", reason="of the experiments extra")

from experiments import command_line

# Of ml_collections, which loads the configuration's file so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIG = "experiments/configs/digits.py"


def test_all_mains_can_be_imported_together():
    """Absl refuses a flag that two modules define."""
    for name in (
        "auto_s",
        "cifar",
        "digits",
        "edge_of_chaos",
        "freezing",
        "generalization",
        "imagenet",
        "lottery",
        "plasticity",
        "polarization",
        "reproduce",
        "evaluate",
    ):
        importlib.import_module(f"experiments.{name}")
    for flag in ("config", "workdir"):
        assert flags.FLAGS.find_module_defining_flag(flag) == "experiments.command_line"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs an experiment with a command line: (exit code, what it has printed)."""

    def run(*arguments, experiment=lambda config, workdir: None):
        monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.run(experiment)
        return ended.value.code or 0, capsys.readouterr().err

    yield run
    flags.FLAGS.unparse_flags()
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # the fields that were overridden


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=FILE and --workdir=DIR must be given"),
        ((f"--config={CONFIG}",), "--config=FILE and --workdir=DIR must be given"),
        (("--config=none.py", "--workdir=w"), "none.py"),
        ((f"--config={CONFIG}", "--config.epoch=1", "--workdir=w"), "mean 'epochs'"),
        ((f"--config={CONFIG}", "--config.epochs=a", "--workdir=w"), "epochs"),
        ((f"--config={CONFIG}", "--workdir=w", "--foo=1"), "foo"),
        ((f"--config={CONFIG}", "--workdir=w", "foo"), "only flags are understood"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(command, arguments, message):
    code, errors = command(*arguments)
    assert code == 2 and errors.count("\n") == 1
    assert errors.startswith("error: ") and message in errors


def test_a_broken_config_file_is_refused_in_one_sentence(command, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def get_config():\n    raise ValueError('a width is missing')\n")
    code, errors = command(f"--config={file}", "--workdir=w")
    assert code == 2 and errors == "error: a width is missing\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("epochs must be 1; got 0."), 2, "error: epochs must be 1; got 0."),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "the same command goes on from here"),
    ],
)
def test_an_experiment_that_fails_ends_with_a_sentence(command, error, code, message):
    def experiment(config, workdir):
        assert config.epochs == 3 and workdir == "w"
        raise error

    flags = (f"--config={CONFIG}", "--config.epochs=3", "--workdir=w")
    got, errors = command(*flags, experiment=experiment)
    assert got == code and message in errors and "Traceback" not in errors
