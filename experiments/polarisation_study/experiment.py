"""A whole experiment: the study, its results and its figure."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.polarisation_study.figures import plot_study
from experiments.polarisation_study.results import report, summarise
from experiments.polarisation_study.settings import check_config, load_data
from experiments.polarisation_study.study import run_study
from experiments.record.study import write_study

TITLE = "Consensus sub-networks by polarisation"


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Trains all networks of a study, then writes its results and its figure.

    Args:
        config: As in `experiments/configs/polarisation_digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run.
    """
    check_config(config)
    records, seconds = run_study(config, load_data(config))
    rows, text = summarise(records), report(records, TITLE)
    write_study(workdir, config, seconds, records, rows, text)
    plot_study(rows, workdir / "accuracy.png")
    print(text)
