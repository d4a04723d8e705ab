"""A whole experiment: the study, its results and its figure."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.generalization_study.figures import plot_by_density
from experiments.generalization_study.results import (
    records_of,
    report,
    summarise,
)
from experiments.generalization_study.settings import check_config
from experiments.generalization_study.train import train_all
from experiments.record.study import write_study

TITLE = "Pruning before training and generalisation"


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Trains all networks of a study, then writes its results and its figure.

    Args:
        config: As in `experiments/configs/generalization.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run.
    """
    check_config(config)
    outcomes, seconds = train_all(config)
    records = records_of(outcomes, config)
    rows, text = summarise(records), report(records, TITLE)
    write_study(workdir, config, seconds, records, rows, text)
    plot_by_density(rows, config.classes, workdir / "by_density.png")
    print(text)
