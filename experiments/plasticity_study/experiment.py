"""A whole experiment: the study, its results and its figures."""

from pathlib import Path

from ml_collections import ConfigDict

from experiments.plasticity_study.figures import draw_figures
from experiments.plasticity_study.results import effect_table, report, summarise
from experiments.plasticity_study.settings import check_config
from experiments.plasticity_study.store import Store
from experiments.plasticity_study.study import run_study
from experiments.record.study import write_study


def run_experiment(config: ConfigDict, workdir: Path) -> None:
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
    rows = summarise(records)
    write_study(workdir, config, seconds, records, rows, report(records, title))
    draw_figures(rows, workdir)
    print(f"\nWhat regeneration adds, in points\n\n{effect_table(records)}\n")
