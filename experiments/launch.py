"""The command line that `experiments.cifar` and `experiments.imagenet` share.

Exits with 0 at the end of the run, 75 when it was asked to stop and has saved its
state, 130 after Ctrl-C, 2 with one sentence when something is refused.
"""

import inspect
import re
import sys

from absl import flags, logging
from ml_collections import ConfigDict

from experiments import command_line
from experiments.configs.common import base_config, method_fields

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one.")


def _help() -> str:
    """Describes the flags, and the fields of a configuration as they are written."""
    fields = [
        line.removeprefix("    ").replace("config.", "--config.").replace("fields.", "")
        for function in (base_config, method_fields)
        for line in inspect.getsource(function).split("\n")
        if re.match(r"    (# |config\.\w+[. ]|fields\.\w+ =)", line)
    ]
    names = ("config", "workdir", "distributed", "coordinator", "processes", "process")
    lines = [f"--{name:<13}{flags.FLAGS[name].help}" for name in (*names, "verbose")]
    return "\n".join(
        [
            "--config=FILE.py[:name=value,...] --workdir=DIR [--config.FIELD=VALUE]...",
            "",
            *lines,
            "",
            "Fields and their defaults, which FILE.py may change:",
            "",
            *fields,
        ]
    )


def _train(config: ConfigDict, workdir: str) -> None:
    import jax  # late, as all that follows: a mistake in a flag is answered at once

    from experiments.parallel import Preempted, join_processes

    join_processes(
        _DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
    # Later still: JAX must not look for devices before the processes have joined.
    from experiments.train import describe_start, train_and_evaluate

    if jax.process_index() == 0:
        print(describe_start(config), file=sys.stderr)
    try:
        train_and_evaluate(config, workdir)
    except Preempted as preempted:
        logging.warning("%s", preempted)
        raise SystemExit(preempted.code) from None


def run() -> None:
    """Runs the experiment that the command line names."""
    if any(re.fullmatch(r"--?(help\w*|h|\?)", word) for word in sys.argv[1:]):
        print(_help())
    else:
        command_line.run(_train)
