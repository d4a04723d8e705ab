"""The command line that `experiments.cifar` and `experiments.imagenet` share."""

import inspect
import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.command_line import CONFIG, WORKDIR

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one.")
_VERBOSE = flags.DEFINE_integer("verbose", 0, "1 logs what libraries do too.")

_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def _refusal(message: object) -> SystemExit:
    """Says why in one sentence; returns the exit for it."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return SystemExit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
    """Parses flags; a mistake gives one sentence instead of a traceback."""
    if any(re.fullmatch(r"--?(help\w*|h|\?)", argument) for argument in arguments):
        print(_help(arguments[0]))
        raise SystemExit(0)
    try:
        return flags.FLAGS(list(arguments))
    except (AttributeError, KeyError) as error:  # of a locked ConfigDict
        raise _refusal(_unknown_key(str(error))) from None
    except (ValueError, TypeError, OSError, flags.Error) as error:
        # A config file that raises comes with its traceback, the reason on the last
        # line.
        lines = str(error).strip().split("\n")
        reason = lines[-1] if "Traceback" in str(error) else lines[0]
        raise _refusal(reason.removeprefix("ValueError: ")) from None


def _help(program: str) -> str:
    """Describes the flags, and the fields of a configuration as they are written."""
    from experiments.configs.common import base_config, method_fields

    fields = [
        line.removeprefix("    ").replace("config.", "--config.").replace("fields.", "")
        for function in (base_config, method_fields)
        for line in inspect.getsource(function).split("\n")
        if re.match(r"    (# |config\.\w+[. ]|fields\.\w+ =)", line)
        and "config.update" not in line
    ]
    names = ("config", "workdir", "distributed", "coordinator", "processes", "process")
    lines = [f"--{name:<13}{flags.FLAGS[name].help}" for name in (*names, "verbose")]
    name = program.split("/")[-1].removesuffix(".py")
    return "\n".join(
        [
            f"python -m experiments.{name} --config=FILE.py[:name=value,...] "
            "--workdir=DIR [--config.FIELD=VALUE ...]\n",
            *lines,
            "\nFields and their defaults, which FILE.py may change:\n",
            *fields,
        ]
    )


def _unknown_key(text: str) -> str:
    """Makes a sentence of what ml_collections says of a key that does not exist."""
    words = re.findall(r"\w+", text.replace(r"\n", " "))
    near = (
        f"; did you mean {words[4]!r}?" if words[1:4] == ["Did", "you", "mean"] else ""
    )
    return f"config has no key {words[0]!r}{near or '; --help lists them all.'}"


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise _refusal(f"there are no arguments; got {arguments[1:]}.")
    config, workdir = CONFIG.value, WORKDIR.value
    if config is None or workdir is None:
        raise _refusal(
            "--config=FILE and --workdir=DIR must be given; --help lists all flags."
        )
    try:
        config.lock()
    except OSError as error:  # the file that --config names is not there
        reason = str(error).strip().split("\n")[-1].strip()
        raise _refusal(f"config cannot be read: {reason}") from None
    if _VERBOSE.value == 0:  # Orbax tells of every file at level INFO
        logging.set_verbosity(logging.WARNING)
    _train(config, workdir)


def _train(config: ConfigDict, workdir: str) -> None:
    import jax  # late, as all that follows: a mistake above is answered at once

    from experiments.parallel import EXIT_PREEMPTED, Preempted, join_processes

    try:
        join_processes(
            _DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
        )
        # Later still: JAX must not look for devices before the processes have joined.
        from experiments.train import describe_start, train_and_evaluate

        if jax.process_index() == 0:
            print(describe_start(config), file=sys.stderr)
        train_and_evaluate(config, workdir)
    except Preempted as preempted:
        logging.warning("%s", preempted)
        raise SystemExit(EXIT_PREEMPTED) from None
    except (ValueError, OSError) as error:
        if _VERBOSE.value:
            raise
        raise _refusal(error) from None


def run() -> None:
    """Runs the experiment that the command line names.

    Exits with 0 at the end of the run, 75 when it was asked to stop and has saved its
    state, 130 after Ctrl-C, 2 with one sentence when an argument or the configuration
    is refused.
    """
    try:
        app.run(_main, flags_parser=_parse)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on from the newest checkpoint.",
            file=sys.stderr,
        )
        raise SystemExit(_INTERRUPTED) from None
