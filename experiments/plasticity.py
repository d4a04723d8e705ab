"""Measures pruning plasticity along dense training runs, with and without regeneration.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on where
an earlier one stopped.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.plasticity_study.experiment import run_experiment
from experiments.record.files import writable_directory

_CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results and figures.")
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
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"All results are in {workdir}.")


if __name__ == "__main__":
    app.run(main)
