"""The command line that `experiments.cifar` and `experiments.imagenet` share.

Exits with 0 at the end of the run, 75 when it was asked to stop and has saved its
state, 130 after Ctrl-C, 2 with one sentence when something is refused.
"""

import inspect
import re
import sys
import threading
from collections.abc import Iterator
from logging import getLogger

from absl import flags, logging
from ml_collections import ConfigDict

from experiments import command_line
from experiments.configs.common import base_config, method_fields

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one.")


def _help() -> str:
    """Describes the flags, and the fields of a configuration by their comments."""
    source = inspect.getsource(base_config) + inspect.getsource(method_fields)
    comments = dict(re.findall(r"\.(\w+) = .*  # (.*)", source))

    def fields(config: ConfigDict, prefix: str) -> Iterator[str]:
        for name, value in config.items():
            if isinstance(value, ConfigDict) and len(value):
                yield from fields(value, f"{prefix}{name}.")
            else:
                text = f"{prefix}{name}={value!r}"
                yield f"{text:<44} {comments.get(name, '')}".rstrip()

    names = ("config", "workdir", "distributed", "coordinator", "processes", "process")
    lines = [f"--{name:<13}{flags.FLAGS[name].help}" for name in (*names, "verbose")]
    return "\n".join(
        [
            "--config=FILE.py[:name=value,...] --workdir=DIR [--config.FIELD=VALUE]...",
            *("", *lines, ""),
            "Fields and their defaults, which FILE.py may change:",
            *("", *fields(base_config(), "--config.")),
        ]
    )


def _train(config: ConfigDict, workdir: str) -> None:
    import jax  # late, as all that follows: a mistake in a flag is answered at once

    from experiments.parallel import Preempted, join_processes

    join_processes(
        _DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
    # Later still: JAX must not look for devices before the processes have joined.
    from experiments.methods import names
    from experiments.rounds import train_rounds
    from experiments.train import describe_start, train_and_evaluate

    is_in_rounds = config.method in names("after")

    if jax.process_index() == 0:
        print(describe_start(config), file=sys.stderr)
    if not command_line.VERBOSE.value:
        _hush_threads()
    try:
        (train_rounds if is_in_rounds else train_and_evaluate)(config, workdir)
    except Preempted as preempted:
        print(preempted, file=sys.stderr)
        raise SystemExit(preempted.code) from None


def _hush_threads() -> None:
    """Leaves it to the trainer to say in a sentence what fails in Orbax's threads."""
    logging.get_absl_logger().setLevel("CRITICAL")  # not the root: warnings stay
    # Of several arrays that fail at once, asyncio reports all but the first.
    getLogger("asyncio").setLevel("CRITICAL")
    threading.excepthook = lambda error: None
    sys.unraisablehook = lambda error: None


def run() -> None:
    """Runs the experiment that the command line names."""
    if any(re.fullmatch(r"--?(help\w*|h|\?)", word) for word in sys.argv[1:]):
        print(_help())
    else:
        command_line.run(_train)
