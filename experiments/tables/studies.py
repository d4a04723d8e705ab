"""Tables that are studies of their own: each is made whole, by a configuration file.

A new one is an entry of `STUDIES`.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import auto_s as auto_s_study
from experiments import (
    digits,
    edge_of_chaos,
    freezing,
    lottery,
    plasticity,
    polarization,
    study,
)
from experiments import generalization as generalization_study
from experiments.comparison.results import from_json
from experiments.comparison.results import report as comparison_report
from experiments.configs import (
    auto_s,
    digits_before_during_after,
    digits_deep_before_training,
    digits_force,
    freezing_digits,
    generalization,
    lottery_digits,
    plasticity_digits,
    polarization_digits,
)
from experiments.configs import edge_of_chaos as edge_of_chaos_config
from experiments.dense_runs import OPERATIONAL
from experiments.record.configuration import differences
from experiments.record.files import write_atomically
from experiments.tables.render import provenance

Content = Mapping[str, Any]


class Study(NamedTuple):
    """A study that is a table.

    Attributes:
        run: Does what is missing in a folder, and leaves its `results.json` there.
        report: Sets the content of that file under a title, in Markdown.
        parts: By the name of a result's file its title and what gives its
            configuration.
    """

    run: Callable[[ConfigDict, Path], Any]
    report: Callable[[Content, str], str]
    parts: Mapping[str, tuple[str, Callable[[], ConfigDict]]]


def _of_records(
    record: Callable[..., Any], report: Callable[[Any, str], str]
) -> Callable[[Content, str], str]:
    """Reports a result that `experiments.record.study.write_study` wrote."""

    def text(content: Content, title: str) -> str:
        return report([record(*row) for row in content["rows"]], title)

    return text


def _of_study(
    what: study.Study,
    configs: Mapping[str, Callable[[], ConfigDict]],
    **titles: str,
) -> Study:
    """Makes a table of a study of one file, its parts by their configurations.

    The title of a part is the study's, unless it has one in `titles`.
    """

    def report(content: Content, title: str) -> str:
        frame, config = study.frame_of(content), ConfigDict(content["config"])
        return f"# {title}\n\n{what.report(frame, config).strip()}\n"

    return Study(
        partial(study.run, what),
        report,
        {p: (titles.get(p, what.title), config) for p, config in configs.items()},
    )


def _of_methods(content: Content, title: str) -> str:
    """Reports a result of `experiments.digits`."""
    results = [from_json(method) for method in content["methods"]]
    tables = comparison_report(results, content["config"]["compared_with"])
    return f"# {title}\n\n{tables}"


STUDIES: Mapping[str, Study] = {
    "auto_s": _of_study(auto_s_study.STUDY, {"digits": auto_s.get_config}),
    "before_during_after": Study(
        digits.compare,
        _of_methods,
        {
            "digits": (
                "Pruning before, during and after training on scikit-learn's digits",
                digits_before_during_after.get_config,
            )
        },
    ),
    "before_training_deep": Study(
        digits.compare,
        _of_methods,
        {
            "digits": (
                "Pruning before training in a deep network, on scikit-learn's digits",
                digits_deep_before_training.get_config,
            )
        },
    ),
    "edge_of_chaos": _of_study(
        edge_of_chaos.STUDY, {"snip": edge_of_chaos_config.get_config}
    ),
    "force": Study(
        digits.compare,
        _of_methods,
        {
            "digits": (
                "FORCE and Iterative SNIP where SNIP fails, on scikit-learn's digits",
                digits_force.get_config,
            )
        },
    ),
    "freezing": _of_study(freezing.STUDY, {"digits": freezing_digits.get_config}),
    "generalization": _of_study(
        generalization_study.STUDY,
        {
            "axis": generalization.get_config,
            "spread": generalization.get_spread_config,
        },
        spread="The control: each signal is spread over 100 coordinates",
    ),
    "lottery": _of_study(
        lottery.STUDY,
        {"digits": lottery_digits.get_config},
        digits="Lottery tickets on scikit-learn's digits",
    ),
    "plasticity": _of_study(
        plasticity.STUDY,
        {"digits": plasticity_digits.get_config},
        digits="Pruning plasticity on scikit-learn's digits",
    ),
    "polarization": _of_study(
        polarization.STUDY, {"digits": polarization_digits.get_config}
    ),
}


def run_missing_parts(name: str, results: Path, workdir: Path, rerun: bool) -> None:
    """Runs the parts of a study that have no result.

    Args:
        name: A key of `STUDIES`.
        results: The folder of all tables' results.
        workdir: Where studies keep what is finished of a part, to go on from.
        rerun: Whether results of another configuration are replaced, not refused.

    Raises:
        ValueError: If a result is of another configuration, or a part is refused.
    """
    study = STUDIES[name]
    # All are looked at before any is run: a refusal must not come after minutes.
    missing = [
        part for part in study.parts if _read(name, part, results, rerun) is None
    ]
    for part in missing:
        folder = workdir / name / part
        folder.mkdir(parents=True, exist_ok=True)
        study.run(study.parts[part][1](), folder)
        target = _result_path(name, part, results)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, (folder / "results.json").read_text())


def write_study_page(name: str, results: Path) -> Path:
    """Writes the README of a study's folder.

    Args:
        name: A key of `STUDIES`.
        results: The folder of all tables' results.

    Returns:
        The page's path.

    Raises:
        ValueError: If a result is of another configuration.
    """
    study = STUDIES[name]
    found = {part: _read(name, part, results) for part in study.parts}
    texts = []
    for part, (title, _) in study.parts.items():
        content = found[part]
        text = study.report(content, title) if content else f"# {title}\n\nNot run.\n"
        texts.append(text)
    made = f"## How it was run\n\n    python -m experiments.reproduce --table={name}\n"
    finished = [content for content in found.values() if content]
    if finished:
        made += f"\n{provenance(finished)}\n"
    page = results / name / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, "\n".join([*texts, made]))
    return page


def _result_path(name: str, part: str, results: Path) -> Path:
    return results / name / f"{part}.json"


def _read(
    name: str, part: str, results: Path, replace: bool = False
) -> dict[str, Any] | None:
    """Reads a result; None if there is none that stands."""
    path = _result_path(name, part, results)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = content["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold the result of a study; got {error}; delete it and the "
            "study is made again."
        ) from None
    found = differences(saved, STUDIES[name].parts[part][1]().to_dict(), OPERATIONAL)
    if found and not replace:
        raise ValueError(
            f"{path} is of another configuration: {'; '.join(found)}; move it away to "
            "keep it, or give --rerun to replace it."
        )
    return None if found else dict(content)
