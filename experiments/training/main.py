"""The command line that `experiments.cifar` and `experiments.imagenet` share."""

import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from experiments.command_line import CONFIG, VERBOSE, WORKDIR
from experiments.training.distributed import join_processes

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one.")


def _refusal(message: str) -> int:
    """Says why in one sentence; returns the exit code for it."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parse(arguments: Sequence[str]) -> list[str]:
    """Parses flags; a mistake gives one sentence instead of a traceback."""
    try:
        return flags.FLAGS(list(arguments))
    except (AttributeError, KeyError) as error:  # of a locked ConfigDict
        raise SystemExit(_refusal(_unknown_key(str(error)))) from None
    except (ValueError, OSError, flags.Error) as error:
        # A config file that raises comes with its traceback, the reason on the last
        # line.
        lines = str(error).strip().split("\n")
        reason = lines[-1] if "Traceback" in str(error) else lines[0]
        raise SystemExit(_refusal(reason.removeprefix("ValueError: "))) from None


def _unknown_key(text: str) -> str:
    """Makes a sentence of what ml_collections says of a key that does not exist."""
    words = re.findall(r"\w+", text.replace(r"\n", " "))
    near = (
        f"; did you mean {words[4]!r}?" if words[1:4] == ["Did", "you", "mean"] else ""
    )
    return f"config has no key {words[0]!r}{near or '.'}"


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise SystemExit(_refusal(f"there are no arguments; got {arguments[1:]}."))
    config, workdir = CONFIG.value, WORKDIR.value
    if config is None or workdir is None:
        raise SystemExit(_refusal("--config=FILE and --workdir=DIR must be given."))
    try:
        config.lock()
    except OSError as error:  # the file that --config names is not there
        reason = str(error).strip().split("\n")[-1].strip()
        raise SystemExit(_refusal(f"config cannot be read: {reason}")) from None
    if VERBOSE.value == 0:  # Orbax tells of every file at level INFO
        logging.set_verbosity(logging.WARNING)
    join_processes(
        _DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
    # Imported late: JAX must not look for devices before the processes have joined.
    from experiments.training.loop import train_and_evaluate
    from experiments.training.preemption import EXIT_PREEMPTED, Preempted

    try:
        train_and_evaluate(config, workdir)
    except Preempted as preempted:
        logging.warning("%s", preempted)
        raise SystemExit(EXIT_PREEMPTED) from None
    except (ValueError, OSError) as error:
        if VERBOSE.value:
            raise
        raise SystemExit(_refusal(str(error))) from None


def run() -> None:
    """Runs the experiment that the command line names.

    Exits with 0 at the end of the run, 75 when it was asked to stop and has saved its
    state, 2 with one sentence when an argument or the configuration is refused.
    """
    app.run(_main, flags_parser=_parse)
