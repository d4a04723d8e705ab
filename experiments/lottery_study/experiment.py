"""A whole experiment: the study, its results and its figure."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.lottery_study.figures import plot_accuracy
from experiments.lottery_study.results import (
    accuracy_table,
    report,
    summarise,
)
from experiments.lottery_study.settings import check_config
from experiments.lottery_study.store import Store
from experiments.lottery_study.study import run_study
from experiments.record.study import write_study


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Does what is missing of a study, then writes all results and the figure.

    Args:
        config: As in `experiments/configs/lottery_digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds another
            study.
        FileNotFoundError: If the data is not there.
    """
    check_config(config)
    records, seconds = run_study(config, Store(workdir, config))
    title = f"Lottery tickets of {config.model} on {config.dataset}"
    rows = summarise(records)
    write_study(workdir, config, seconds, records, rows, report(records, title))
    plot_accuracy(rows, workdir / "accuracy.png")
    print(f"\nTest accuracy in percent\n\n{accuracy_table(rows)}\n")
