"""Trains two-layer networks pruned at random, and asks when they still generalise.

    python -m experiments.generalization \
        --config=experiments/configs/generalization.py --workdir=DIR

The config file says what is studied, and what comes out.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.generalization_study.experiment import run_experiment
from experiments.record.files import writable_directory

_CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results and the figure.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    """Runs the study that the flags ask for.

    Args:
        argv: What is left of the command line when flags are parsed: its name.
    """
    if len(argv) > 1:
        raise app.UsageError(f"only flags are understood; got {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    try:
        workdir = writable_directory(str(_WORKDIR.value))
        run_experiment(_CONFIG.value, workdir)
    except ValueError as error:
        sys.exit(str(error))
    print(f"All results are in {workdir}.")


if __name__ == "__main__":
    app.run(main)
