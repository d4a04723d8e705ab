"""The plasticity table: the study of `experiments.plasticity` on the digits."""

import json
from pathlib import Path

from experiments.configs.plasticity_digits import get_config
from experiments.plasticity_study.experiment import run_experiment
from experiments.plasticity_study.results import report
from experiments.plasticity_study.store import Record
from experiments.record.files import write_atomically

_TITLE = "Pruning plasticity on scikit-learn's digits"


def rebuild_plasticity(results: Path, workdir: Path, render_only: bool) -> Path:
    """Runs the study where it has no result, and writes its page.

    Args:
        results: The folder of all tables' results.
        workdir: Where the study keeps its finished parts, to go on from.
        render_only: Whether nothing is run.

    Returns:
        The page.

    Raises:
        ValueError: If the result is of another configuration.
    """
    folder = results / "plasticity"
    folder.mkdir(parents=True, exist_ok=True)
    result, page = folder / "digits.json", folder / "README.md"
    config = get_config()
    if not result.exists():
        if render_only:
            write_atomically(page, f"# {_TITLE}\n\nNot run.\n")
            return page
        run_experiment(config, workdir / "plasticity")
        write_atomically(result, (workdir / "plasticity" / "results.json").read_text())
    content = json.loads(result.read_text())
    expected = json.loads(json.dumps(config.to_dict()))
    differing = [k for k in expected if content["config"].get(k) != expected[k]]
    if differing:
        raise ValueError(
            f"{result} must be of the configuration plasticity_digits; it differs in "
            f"{', '.join(differing)}: remove it to run the study again."
        )
    write_atomically(page, report([Record(*row) for row in content["rows"]], _TITLE))
    return page
