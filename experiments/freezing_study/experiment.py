"""A whole experiment: the study, its results and its figure."""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from experiments.freezing_study.figures import plot_accuracy
from experiments.freezing_study.results import Record, report, summarise
from experiments.freezing_study.settings import check_config
from experiments.freezing_study.train import train_method
from experiments.input.digits import load_split
from experiments.record.progress import Progress
from experiments.record.study import claim_folder, do_once, write_study

TITLE = "Freezing against pruning on scikit-learn's digits"


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Trains what is missing of a study, then writes its results and its figure.

    Args:
        config: As in `experiments/configs/freezing_digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds another
            study.
    """
    check_config(config)
    claim_folder(workdir, config)
    data = load_split(config.validation_share, config.test_share, config.split_seed)
    records: list[Record] = []
    seconds = 0.0
    with Progress(len(config.methods), description="Methods") as progress:
        for done, method in enumerate(config.methods, start=1):
            do = partial(train_method, method, data, config)
            found, took = do_once(workdir / "parts" / f"{method}.json", Record, do)
            records += found
            seconds += took
            progress.update(done)
    rows, text = summarise(records), report(records, TITLE)
    write_study(workdir, config, seconds, records, rows, text)
    plot_accuracy(rows, workdir / "accuracy.png")
    print(text)
