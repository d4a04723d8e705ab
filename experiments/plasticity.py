"""Measures pruning plasticity along dense training runs, with and without regeneration.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on where
an earlier one stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.plasticity_study.figures import draw_figures
from experiments.plasticity_study.results import effect_table, summarise, write_results
from experiments.plasticity_study.settings import check_config
from experiments.plasticity_study.store import Store
from experiments.plasticity_study.study import run_study
from experiments.record.files import writable_directory

_CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results and figures.")
flags.mark_flags_as_required(["config", "workdir"])


def study(config: ConfigDict, workdir: Path) -> None:
    """Does what is missing of a study, then writes all results and figures.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds another
            study.
        FileNotFoundError: If the data is not there.
    """
    check_config(config)
    store = Store(workdir, config)
    records = run_study(config, store)
    seconds = sum(store.seconds(epoch) for epoch in config.prune_at_epochs)
    title = f"Pruning plasticity of {config.model} on {config.dataset}"
    write_results(workdir, title, config.to_dict(), records, seconds)
    draw_figures(summarise(records), workdir)
    print(f"\nWhat regeneration adds, in points\n\n{effect_table(records)}\n")


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
        study(_CONFIG.value, workdir)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"All results are in {workdir}.")


if __name__ == "__main__":
    app.run(main)
