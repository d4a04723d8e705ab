"""Tables of runs: what they hold, their results, and their pages.

`experiments.reproduce` makes them. `experiments/published.json` has the published
numbers that stand beside ours.
"""

import dataclasses
import difflib
import functools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import methods
from experiments.checkpoint import OPERATIONAL
from experiments.configs import (
    cifar_resnet50,
    cifar_vgg19,
    cifar_vgg19_narrow,
    digits,
    imagenet_resnet50,
)
from experiments.files import differences, write_atomically
from experiments.methods import METHODS
from experiments.record import describe_environment
from experiments.results import markdown_table

Result = Mapping[str, Any]

_FIRST_SPARSITY = 0.95  # whose column is filled first


# --- What a table is ------------------------------------------------------------------


class Cell(NamedTuple):
    """One run of a table; the sparsity of "dense" is 0."""

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.method}_{self.sparsity:g}_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of runs."""

    name: str  # on the command line, and of the folder of its results
    title: str
    recipe: str  # how its networks are trained, in a sentence or two
    methods: Sequence[str]  # its rows, keys of `METHODS`
    sparsities: Sequence[float]  # its columns
    seeds: Sequence[int]  # which runs a cell is the mean of
    config: Callable[[Cell], ConfigDict]
    # Of what the network sees; None for the digits, which `experiments.digits` trains.
    image_shape: tuple[int, int, int] | None = None

    def columns(self, method: str) -> Sequence[float]:
        """Returns the sparsities of a row."""
        return (0.0,) if method == "dense" else self.sparsities


def cell_config(table: Table, cell: Cell) -> dict[str, Any]:
    """Returns a cell's configuration as JSON has it, without the paths of a machine."""
    plain = json.loads(table.config(cell).to_json_best_effort())
    for name in ("methods", "sparsities", "seeds", "data_dir"):
        plain.pop(name, None)
    return plain | cell._asdict()


def order_cells(
    methods: Iterable[str], sparsities: Iterable[float], seeds: Iterable[int]
) -> list[Cell]:
    """Lists cells in the order in which they are run.

    GraNet at 95 % (or what is nearest) with the first seed, dense with that seed, all
    others with it, the same column first; then all again for each further seed.

    Example:
        >>> [cell.name for cell in order_cells(["dense", "gmp", "granet"],
        ...                                    [0.9, 0.95], [18])]
        ['granet_0.95_18', 'dense_0_18', 'gmp_0.95_18', 'gmp_0.9_18', 'granet_0.9_18']
    """
    methods, seeds = list(methods), list(seeds)
    columns = sorted(sparsities, key=lambda s: (abs(s - _FIRST_SPARSITY), s))
    cells = []
    for seed in seeds:
        each = [Cell(m, s, seed) for s in columns for m in methods if m != "dense"]
        first = [cell for cell in each[: len(methods)] if cell.method == "granet"]
        dense = [Cell("dense", 0.0, seed)] * ("dense" in methods)
        cells += [*first, *dense, *(cell for cell in each if cell not in first)]
    return cells


def choose(name: str, choices: Iterable[str], wanted: str) -> str:
    """Returns what is wanted, or raises ValueError, which names the nearest choice.

    Example:
        >>> choose("table", ["digits", "plasticity"], "digts")
        Traceback (most recent call last):
        ...
        ValueError: table must be one of digits, plasticity; got 'digts'; did you mean \
'digits'?
    """
    choices = list(choices)
    if wanted in choices:
        return wanted
    near = difflib.get_close_matches(wanted, choices, n=1, cutoff=0)
    raise ValueError(
        f"{name} must be one of {', '.join(choices)}; got {wanted!r}; did you mean "
        f"{near[0]!r}?"
    )


def select(
    table: Table,
    methods: Sequence[str] | None = None,
    sparsities: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
) -> list[Cell]:
    """Selects cells as the command line does, by text; None for all of a table."""
    rows = [choose("methods", table.methods, name) for name in methods or table.methods]
    columns = list(table.sparsities)
    if sparsities:
        names = {f"{s:g}": s for s in table.sparsities}
        columns = [names[choose("sparsities", names, text)] for text in sparsities]
    for text in seeds or ():
        if not (text.isascii() and text.isdigit() and int(text) < 2**31):
            raise ValueError(f"seeds must be integers in [0, 2^31); got {text!r}.")
    numbers = [int(text) for text in seeds] if seeds else list(table.seeds)
    return order_cells(
        dict.fromkeys(rows), dict.fromkeys(columns), dict.fromkeys(numbers)
    )


def _images(
    name: str,
    title: str,
    recipe: str,
    get_config: Callable[[str], ConfigDict],
    num_classes: int,
    image_shape: tuple[int, int, int],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    *,
    arguments: str = "",
    rows: Sequence[str] = tuple(methods.names("before", "during")),
) -> Table:
    def config(cell: Cell) -> ConfigDict:
        chosen = f"method={cell.method},sparsity={cell.sparsity}{arguments}"
        fields = get_config(chosen)
        fields.seed, fields.num_classes = cell.seed, num_classes
        return fields

    return Table(name, title, recipe, rows, sparsities, seeds, config, image_shape)


_CIFAR_RECIPE = (
    "GraNet's recipe: 160 epochs, batch 128, SGD with Nesterov momentum 0.9, learning "
    "rate 0.1 divided by 10 at half and at three quarters, weight decay 5e-4, a "
    "topology update every 1000 steps, gradual pruning over the first half. 5,000 "
    "training images are held out for validation and none are put back. The official "
    "code chooses its best epoch on the test set; here nothing is."
)


def _cifar(classes: int, network: str, label: str, get_config: Any) -> Table:
    return _images(
        f"cifar{classes}_{network}",
        f"CIFAR-{classes}, {label}",
        _CIFAR_RECIPE,
        get_config,
        classes,
        (32, 32, 3),
        (0.9, 0.95, 0.98),
        (18, 19, 20),
        arguments=f",classes={classes}",
    )


_ALL = (
    Table(
        "digits",
        "Scikit-learn's digits, a small convolutional network",
        "`experiments/configs/digits.py`: 80 epochs of 899 images of 8 x 8 pixels, "
        "tested on 539 others; learning rate and weight decay were chosen for the "
        "dense network and serve all. No paper has numbers for this network. The seeds "
        "of a method, and where it can its sparsities, train on one `jax.vmap` axis.",
        [
            name
            for name in METHODS
            if METHODS[name].when == "during" or name == "static"
        ],
        (0.9, 0.95, 0.98),
        (0, 1, 2, 3, 4),
        lambda cell: digits.get_config(),
    ),
    _cifar(10, "vgg19", "VGG-19", cifar_vgg19.get_config),
    _cifar(10, "resnet50", "ResNet-50", cifar_resnet50.get_config),
    _cifar(100, "vgg19", "VGG-19", cifar_vgg19.get_config),
    _cifar(100, "resnet50", "ResNet-50", cifar_resnet50.get_config),
    _images(
        "cifar10_vgg19_narrow",
        "CIFAR-10, VGG-19 at a quarter of its width, pruned before training",
        "`experiments/configs/cifar_vgg19_narrow.py`: 150 steps, so "
        "that a CPU can run it; the rest is GraNet's recipe. It shows which networks "
        "can be trained at all, not how well. SNIP sees one batch, Iter-SNIP and FORCE "
        "one in each of 60 rounds.",
        cifar_vgg19_narrow.get_config,
        10,
        (32, 32, 3),
        (0.99, 0.995),
        (0, 1, 2),
        rows=("dense", "snip", "iter_snip", "force"),
    ),
    _images(
        "imagenet_resnet50",
        "ImageNet, ResNet-50",
        "GraNet's recipe: 100 epochs, batch 128, SGD with momentum 0.9, learning rate "
        "0.1 after 5 epochs of warm-up, divided by 10 at 30, 60 and 90 %, weight decay "
        "1e-4, label smoothing 0.1, a topology update every 4000 steps, gradual "
        "pruning over the first 30 %. The test images are ImageNet's validation set; "
        "10,000 training images are held out.",
        imagenet_resnet50.get_config,
        1000,
        (224, 224, 3),
        (0.8, 0.9),
        (17,),
    ),
)
TABLES = {table.name: table for table in _ALL}


# --- Published numbers ----------------------------------------------------------------


class Published(NamedTuple):
    """A published test accuracy in %, the mean where there were several runs.

    Verified: read in a public source that quotes the paper's own table. Unverified:
    from memory, no copy of the source could be opened; it agrees with every verified
    number, but is no fact and no target, and is shown as unverified or not at all.
    """

    value: float
    deviation: float | None  # over runs
    source: str
    verified: bool
    note: str = ""  # what is different about it, such as another sparsity

    def __str__(self) -> str:
        """Returns it as text, marked as verified or not."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        note = f", {self.note}" if self.note else ""
        text = f"{self.value:.2f}{spread}{note}"
        return f"{text} **[V]**" if self.verified else f"*{text} [U: unverified]*"


Numbers = Mapping[tuple[str, float], Published]  # by method and sparsity
_CONTENT = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


@functools.cache
def published(table: str) -> Numbers:
    """Returns the published numbers of a table."""
    numbers = {}
    for method, sparsity, value, deviation, source, note in _CONTENT["tables"].get(
        table, ()
    ):
        text, verified = _CONTENT["sources"][source].values()
        number = Published(value, deviation, text, verified, note)
        numbers[method, sparsity] = number
    return numbers


def label(method: str) -> str:
    """Returns a method's name in reports, also of those that are published alone."""
    return METHODS[method].label if method in METHODS else _CONTENT["labels"][method]


# --- Results of finished runs, a JSON file each ---------------------------------------


def result_path(results: Path, table: Table, cell: Cell) -> Path:
    """Returns the file of a cell's result, which exists once the run is finished."""
    return results / table.name / f"{cell.name}.json"


def where_it_runs() -> dict[str, Any]:
    """Describes what runs are made with, without the paths of a machine."""
    described = describe_environment()
    for name in ("command", "platform", "process_count"):
        del described[name]
    return described


def read_json(path: Path, what: str, *fields: str) -> dict[str, Any]:
    """Reads a result; raises ValueError unless it has all fields."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in fields:
            content[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold the result of a {what}; got {error}; delete it and the "
            f"{what} is made again."
        ) from None
    return content


def read_result(path: Path) -> Result:
    """Reads the result of a finished run."""
    fields = (*Cell._fields, "config", "test_accuracy", "best", "flops")
    return read_json(path, "run", *fields)


def refusal(path: Path, found: str) -> ValueError:
    """Returns what to raise at a result of another configuration."""
    return ValueError(
        f"{path} is of another configuration: {found}; move it away to keep it, or "
        "give --rerun to replace it."
    )


def other_configuration(table: Table, cell: Cell, result: Result) -> str:
    """Returns "FIELD was ... and is ..." for what differs from the table's of today.

    A field that only one of the two has is no difference: it was not there yet, or no
    longer is.
    """
    both = _same_fields(result["config"], cell_config(table, cell))
    return "; ".join(differences(*both, OPERATIONAL))


def _same_fields(saved: Any, now: Any) -> tuple[Any, Any]:
    """Leaves out the fields that only one of two configurations has."""
    if not (isinstance(saved, Mapping) and isinstance(now, Mapping)):
        return saved, now
    pairs = {
        name: _same_fields(saved[name], now[name]) for name in saved if name in now
    }
    return (
        {name: pair[0] for name, pair in pairs.items()},
        {name: pair[1] for name, pair in pairs.items()},
    )


def has_result(results: Path, table: Table, cell: Cell, replace: bool = False) -> bool:
    """Whether a cell's run is finished, with the configuration of today.

    A result of another configuration raises ValueError, or counts as none where it is
    to be replaced.
    """
    path = result_path(results, table, cell)
    if not path.exists():
        return False
    found = other_configuration(table, cell, read_result(path))
    if found and not replace:
        raise refusal(path, found)
    return not found


def write_result(results: Path, table: Table, cell: Cell, result: Result) -> None:
    """Writes the result of a finished run, whole or not at all."""
    content = {
        "table": table.name,
        **cell._asdict(),
        **result,
        "config": cell_config(table, cell),
        "end_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = result_path(results, table, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, allow_nan=False) + "\n")


class Found(NamedTuple):
    """The results in a table's folder, also of seeds that are not the table's."""

    runs: dict[Cell, Result]
    left_out: dict[str, str]  # by file name, why a result is not one of them


def read_table(results: Path, table: Table) -> Found:
    """Reads all results of a table; raises ValueError at a file that is none."""
    found = Found({}, {})
    for path in sorted((results / table.name).glob("*.json")):
        result = read_result(path)
        cell = Cell(result["method"], result["sparsity"], result["seed"])
        fits = cell.method in table.methods
        fits = fits and cell.sparsity in table.columns(cell.method)
        if not fits or path.stem != cell.name:
            raise ValueError(
                f"{path} must be the result of a cell of table {table.name}, and named "
                f"for its method, sparsity and seed; got {tuple(cell)}; move it away."
            )
        differs = other_configuration(table, cell, result)
        if differs:
            found.left_out[path.name] = differs
        else:
            found.runs[cell] = result
    return found


# --- Pages ----------------------------------------------------------------------------

_TARGET = 0.3  # percentage points from a verified number

_LEGEND = """\
Ours is the test accuracy in % at the last step, a mean ± the standard deviation over
the runs in brackets; no run is chosen, and nothing is selected on the test set. Where
no run of a cell was finished it says so."""

_PUBLISHED_LEGEND = """\
Published numbers: **[V]** is verified, read in a public source that quotes the paper's
table. *[U: unverified]* is from memory, as no copy of the source could be opened: it is
no fact and no target. Where a number stands is listed below."""

_AS_RIGL = "as RigL"
_AS_RIGL_LEGEND = """\
GraNet's paper has a row "RigL", and its repository RigL-ITOP alone (an update every
1000 steps, prune rate 0.5, during the whole run). Both rows are compared with its
numbers here; ours of "RigL" are of RigL's own rule."""

_MASKS = """\
Realized sparsity is the share of the prunable weights that are exactly 0. FLOPs are
those of hardware that skips every zero, as fractions of the dense network's, those of
training by each method's own rule (`docs/flops.md`); masks simulate sparsity, and no
time was saved. "Best validation" is the test accuracy at the step of highest validation
accuracy, among the steps at which the masks were at the sparsity of the row. "Empty
layers" have no weight left in the end, a mean over runs; older results lack it."""


def write_page(results: Path, table: Table) -> Path:
    """Writes the README of a table's folder, and returns its path."""
    page = results / table.name / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render(table, read_table(results, table)))
    return page


_Runs = Mapping[tuple[str, float], Sequence[Result]]


def render(table: Table, found: Found) -> str:
    """Lays a table out in Markdown."""
    numbers = published(table.name)
    runs: dict[tuple[str, float], list[Result]] = {}
    for cell, result in found.runs.items():
        runs.setdefault((cell.method, cell.sparsity), []).append(result)
    wanted = len(table.seeds) * sum(len(table.columns(m)) for m in table.methods)
    parts = [
        f"# {table.title}",
        table.recipe,
        f"{len(found.runs)} runs are finished; the whole table has {wanted}. Made, and "
        f"resumed, by\n\n    python -m experiments.reproduce --table={table.name}",
        _LEGEND,
        _accuracies(table, runs, numbers),
    ]
    if numbers:
        parts += [_PUBLISHED_LEGEND, _against(table, runs, numbers)]
    if any(number.note == _AS_RIGL for number in numbers.values()):
        parts.insert(-1, _AS_RIGL_LEGEND)
    if found.left_out:
        lines = [f"- {name}: {why}." for name, why in found.left_out.items()]
        parts += ["## Left out, of another configuration", "\n".join(lines)]
    if runs:
        parts += ["## Sparsity and FLOPs", _MASKS, _metrics(table, runs)]
        parts += ["## How they were run", provenance(found.runs.values())]
    if numbers:
        parts += ["## Where published numbers stand", _sources(numbers)]
    return "\n\n".join(parts) + "\n"


def percent(accuracies: Sequence[float]) -> str:
    """Returns the mean and standard deviation of accuracies in %, and their number.

    Example:
        >>> percent([0.9, 0.92]), percent([0.9]), percent([])
        ('91.00 ± 1.41 (2)', '90.00 (1)', 'not run')
    """
    if not accuracies:
        return "not run"
    numbers = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread} ({len(numbers)})"


def _accuracies(table: Table, runs: _Runs, numbers: Numbers) -> str:
    dense = [f"Dense: {_ours(runs, 'dense', 0.0)}"]
    if numbers:
        dense.append(f"published {numbers.get(('dense', 0.0), '-')}")
    names = [name for name in table.methods if name != "dense"]
    # What was published and is not one of the rows is there for comparison.
    names += dict.fromkeys(name for name, _ in numbers if name not in METHODS)
    head = ["Method"]
    for sparsity in table.sparsities:
        head.append(f"{100 * sparsity:g} %, ours")
        head += [f"{100 * sparsity:g} %, published"] * bool(numbers)
    rows = [head]
    for name in names:
        row = [label(name)]
        for sparsity in table.sparsities:
            row.append(_ours(runs, name, sparsity))
            row += [str(numbers.get((name, sparsity), "-"))] * bool(numbers)
        rows.append(row)
    return f"{'; '.join(dense)}.\n\n{markdown_table(rows)}"


def _ours(runs: _Runs, method: str, sparsity: float) -> str:
    return percent([run["test_accuracy"] for run in runs.get((method, sparsity), ())])


def _against(table: Table, runs: _Runs, numbers: Numbers) -> str:
    """Compares with the verified numbers, the only ones that are targets."""
    rows = [["Method", "Sparsity", "Ours", "Published, verified", "Difference"]]
    for (name, sparsity), number in numbers.items():
        if name not in table.methods or not number.verified:
            continue
        found, difference = runs.get((name, sparsity), ()), "-"
        if found:
            mean = statistics.mean(100 * run["test_accuracy"] for run in found)
            difference = f"{mean - number.value:+.2f}"
        ours = _ours(runs, name, sparsity)
        share = f"{100 * sparsity:g} %"
        rows.append([label(name), share, ours, str(number), difference])
    return (
        f"## Against verified numbers\n\nThe target is to be within {_TARGET} points "
        f"of each.\n\n{markdown_table(rows)}"
    )


def _metrics(table: Table, runs: _Runs) -> str:
    head = ["Method", "Sparsity", "Realized", "Inference FLOPs", "Training FLOPs"]
    rows = [[*head, "Best validation", "Empty layers"]]
    mean = statistics.mean
    for name in table.methods:
        for sparsity in table.columns(name):
            found = runs.get((name, sparsity), ())
            if not found:
                continue
            best = [run["best"]["test_accuracy"] for run in found if run["best"]]
            empty = [run["empty_layers"] for run in found if "empty_layers" in run]
            rows.append(
                [
                    label(name),
                    f"{100 * sparsity:g} %",
                    f"{100 * mean(run['realized_sparsity'] for run in found):.2f} %",
                    f"{mean(run['flops']['inference'] for run in found):.3f}x",
                    f"{mean(run['flops']['training'] for run in found):.3f}x",
                    percent(best) if best else "-",
                    f"{mean(empty):.1f}" if empty else "-",
                ]
            )
    return markdown_table(rows)


def provenance(results: Iterable[Result]) -> str:
    """Lists what runs were made with, each combination once."""
    lines: dict[str, int] = {}
    for result in results:
        made = result["environment"]
        state = ", with changes" if made["git_dirty"] else ""
        text = (
            f"{made['device_count']} x {made['device_kind']}, jax {made['jax']}, "
            f"sparsejax {made['sparsejax']} at commit "
            f"{(made['git_commit'] or 'unknown')[:12]}{state}"
        )
        lines[text] = lines.get(text, 0) + 1
    return "\n".join(
        f"- {count} {'run' if count == 1 else 'runs'}: {text}"
        for text, count in lines.items()
    )


def _sources(numbers: Numbers) -> str:
    lines: dict[str, list[str]] = {}
    for (name, sparsity), number in numbers.items():
        if number.note == _AS_RIGL:  # stands there as RigL's
            continue
        mark = "[V]" if number.verified else "[U: unverified]"
        at = f" {100 * sparsity:g} %" if sparsity else ""
        lines.setdefault(f"{mark} {number.source}", []).append(label(name) + at)
    return "\n".join(
        f"- {source}: {', '.join(cells)}." for source, cells in lines.items()
    )
