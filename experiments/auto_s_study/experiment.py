"""A whole experiment: the study, its results and its figure."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.auto_s_study.figures import plot_transfer
from experiments.auto_s_study.results import report, summarise
from experiments.auto_s_study.settings import check_config
from experiments.auto_s_study.study import run_study
from experiments.record.study import claim_folder, write_study

TITLE = "AutoS: a criterion learnt on one network and used on others"


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Learns criteria, tries them, then writes the study's results and its figure.

    Args:
        config: As in `experiments/configs/auto_s.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds another
            study.
    """
    check_config(config)
    claim_folder(workdir, config)
    records, seconds = run_study(config, workdir)
    rows, text = summarise(records), report(records, TITLE)
    write_study(workdir, config, seconds, records, rows, text)
    plot_transfer(rows, workdir / "transfer.png")
    print(text)
