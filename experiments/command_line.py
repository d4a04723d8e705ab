"""The flags that all experiments have, defined once, and the mains of studies.

Absl keeps flags in one table for the whole process: with one definition here, any of
the mains can be imported beside any other.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.files import writable_directory

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment, and what follows a colon chooses among its forms: "
    "FILE.py:method=granet,sparsity=0.95",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results and the record go.")


def run_study(study: Callable[[ConfigDict, Path], None]) -> None:
    """Runs a study that `--config` describes in the folder that `--workdir` names.

    Exits with 1 and one sentence when the configuration, the folder or the data is
    refused.

    Args:
        study: A function of the configuration and a folder that can be written to.
    """

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"only flags are understood; got {argv[1:]}.")
        logging.set_verbosity(logging.WARNING)
        try:
            workdir = writable_directory(str(WORKDIR.value))
            study(CONFIG.value, workdir)
        except (ValueError, FileNotFoundError) as error:
            sys.exit(str(error))
        print(f"All results are in {workdir}.")

    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
