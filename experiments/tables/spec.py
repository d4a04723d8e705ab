"""What a table is: its rows, columns and seeds, and the configuration of each cell."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.configs import (
    cifar_resnet50,
    cifar_vgg19,
    cifar_vgg19_narrow,
    digits,
    imagenet_resnet50,
)
from experiments.training import before_training
from experiments.training.sparse import LABELS

# Methods by their names in reports, in the order of rows.
ROWS = LABELS | before_training.LABELS

_FIRST_SPARSITY = 0.95  # whose column is filled first


class Cell(NamedTuple):
    """One run of a table.

    Attributes:
        method: A key of `ROWS`.
        sparsity: The sparsity asked for; 0 for "dense".
        seed: The seed.
    """

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.method}_{self.sparsity:g}_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of runs.

    Attributes:
        name: Its name on the command line and the folder of its results.
        title: What it shows, for people.
        recipe: How its networks are trained, in a sentence or two.
        methods: Its rows, in the order of `ROWS`.
        sparsities: Its columns.
        seeds: Which runs a cell is the mean of.
        config: Gives the configuration of a cell.
        image_shape: Height, width and channels of what the network sees; None for the
            digits, which `experiments.digits` trains.
    """

    name: str
    title: str
    recipe: str
    methods: Sequence[str]
    sparsities: Sequence[float]
    seeds: Sequence[int]
    config: Callable[[Cell], ConfigDict]
    image_shape: tuple[int, int, int] | None = None


def cell_config(table: Table, cell: Cell) -> dict[str, Any]:
    """Gives the configuration of a cell as its result holds it.

    Args:
        table: The table.
        cell: One of its cells.

    Returns:
        The fields in the types of JSON, without the paths of a machine.
    """
    plain = json.loads(table.config(cell).to_json_best_effort())
    for name in ("methods", "sparsities", "seeds", "data_dir"):
        plain.pop(name, None)
    return plain | cell._asdict()


def order_cells(
    methods: Iterable[str], sparsities: Iterable[float], seeds: Iterable[int]
) -> list[Cell]:
    """Lists the cells in the order in which they are run.

    Args:
        methods: Rows.
        sparsities: Columns.
        seeds: Seeds, the most wanted first.

    Returns:
        GraNet at 95 % (or what is nearest) with the first seed, dense with that seed,
        all others with it, the same column first; then all again for each further seed.

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


def seeds_together(cells: Iterable[Cell], most: int) -> list[list[Cell]]:
    """Puts cells together that differ in their seeds alone.

    Args:
        cells: Cells in the order in which they are wanted.
        most: How many to put together, at least 1.

    Returns:
        Groups of at most so many, in the order of the first of each.

    Example:
        >>> cells = order_cells(["dense", "gmp"], [0.9], [18, 19, 20])
        >>> [[cell.name for cell in group] for group in seeds_together(cells, 2)]
        [['dense_0_18', 'dense_0_19'], ['gmp_0.9_18', 'gmp_0.9_19'], ['dense_0_20'], \
['gmp_0.9_20']]
    """
    groups: list[list[Cell]] = []
    filling: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        group = filling.get(cell[:2])
        if group is None or len(group) == most:
            group = filling[cell[:2]] = []
            groups.append(group)
        group.append(cell)
    return groups


def choose(name: str, choices: Iterable[str], wanted: str) -> str:
    """Refuses what is not there, and names the nearest.

    Args:
        name: What is chosen, for the message.
        choices: What there is.
        wanted: What was asked for.

    Returns:
        The same.

    Raises:
        ValueError: If it is not one of the choices.

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
    """Chooses cells of a table, as the command line does.

    Args:
        table: The table.
        methods: Some of its rows; None for all.
        sparsities: Some of its columns, as text; None for all.
        seeds: Any seeds, as text; None for the table's.

    Returns:
        The cells, in the order in which they are run.

    Raises:
        ValueError: If a method or a sparsity is not in the table, or a seed is no
            integer of at least 0.
    """
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
    arguments: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    methods: Sequence[str] = tuple(ROWS),
) -> Table:
    def config(cell: Cell) -> ConfigDict:
        chosen = f"method={cell.method},sparsity={cell.sparsity}{arguments}"
        fields = get_config(chosen)
        fields.seed, fields.num_classes = cell.seed, num_classes
        return fields

    return Table(name, title, recipe, methods, sparsities, seeds, config, image_shape)


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
        f",classes={classes}",
        classes,
        (32, 32, 3),
        (0.9, 0.95, 0.98),
        (18, 19, 20),
    )


_ALL = (
    Table(
        "digits",
        "Scikit-learn's digits, a small convolutional network",
        "`experiments/configs/digits.py`: 80 epochs of 899 images of 8 x 8 pixels, "
        "tested on 539 others; learning rate and weight decay were chosen for the "
        "dense network and serve all. No paper has numbers for this network. The seeds "
        "of a method, and where it can its sparsities, run side by side with "
        "`jax.vmap`.",
        tuple(LABELS),
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
        "",
        10,
        (32, 32, 3),
        (0.99, 0.995),
        (0, 1, 2),
        ("dense", "snip", "iter_snip", "force"),
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
        "",
        1000,
        (224, 224, 3),
        (0.8, 0.9),
        (17,),
    ),
)
TABLES = {table.name: table for table in _ALL}
