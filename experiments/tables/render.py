"""Tables in Markdown: our runs beside the published numbers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.record.files import write_atomically
from experiments.record.markdown import markdown_table
from experiments.tables.published import OTHER_LABELS, PUBLISHED, Numbers, Published
from experiments.tables.results import Found, Result, read_table
from experiments.tables.spec import ROWS, Table

NOT_RUN = "not run"
TARGET = 0.3  # percentage points from a verified number

_LEGEND = """\
Ours is the test accuracy in % at the last step, a mean ± the standard deviation over
the runs in brackets; no run is chosen, and nothing is selected on the test set. Where
no run of a cell was finished it says so."""

_PUBLISHED_LEGEND = """\
Published numbers: **[V]** is verified, read in a public source that quotes the paper's
table. *[U: unverified]* is from memory, as no copy of the source could be opened: it is
no fact and no target. Where a number stands is listed below."""

_MASKS = """\
Realised sparsity is the share of the prunable weights that are exactly 0. FLOPs are
those of hardware that skips every zero, as fractions of the dense network's, those of
training by each method's own rule (`docs/flops.md`); masks simulate sparsity, and no
time was saved. "Best validation" is the test accuracy at the step of highest validation
accuracy, among the steps at which the masks were at the sparsity of the row. "Empty
layers" have no weight left in the end, a mean over runs; older results lack it."""


def write_page(results: Path, table: Table) -> Path:
    """Writes the README of a table's folder.

    Args:
        results: The folder of all tables.
        table: The table.

    Returns:
        The page's path.

    Raises:
        ValueError: If a file in the folder is no result of the table.
    """
    folder = results / table.name
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "README.md"
    write_atomically(page, render(table, read_table(results, table)))
    return page


def render(table: Table, found: Found) -> str:
    """Sets a table in Markdown.

    Args:
        table: The table.
        found: Its results.

    Returns:
        The page.
    """
    published = PUBLISHED[table.name]
    runs: dict[tuple[str, float], list[Result]] = {}
    for cell, result in found.runs.items():
        runs.setdefault((cell.method, cell.sparsity), []).append(result)
    wanted = len(table.seeds) * sum(len(_columns(table, m)) for m in table.methods)
    parts = [
        f"# {table.title}",
        table.recipe,
        f"{len(found.runs)} runs are finished; the whole table has {wanted}. Made, and "
        f"gone on with, by\n\n    python -m experiments.reproduce --table={table.name}",
        _LEGEND,
        _accuracies(table, runs, published),
    ]
    if published:
        parts += [_PUBLISHED_LEGEND, _against(table, runs, published)]
    if found.left_out:
        parts += ["## Left out, of another configuration", _left_out(found)]
    if runs:
        parts += ["## Sparsity and FLOPs", _MASKS, _figures(table, runs)]
        parts += ["## How they were run", provenance(found.runs.values())]
    if published:
        parts += ["## Where published numbers stand", _sources(published)]
    return "\n\n".join(parts) + "\n"


def percent(accuracies: Sequence[float]) -> str:
    """Sets accuracies in [0, 1] as text.

    Args:
        accuracies: One a run.

    Returns:
        Their mean and standard deviation in %, and how many they are.

    Example:
        >>> percent([0.9, 0.92]), percent([0.9]), percent([])
        ('91.00 ± 1.41 (2)', '90.00 (1)', 'not run')
    """
    if not accuracies:
        return NOT_RUN
    numbers = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{spread} ({len(numbers)})"


def published_text(number: Published | None) -> str:
    """Sets a published number as text.

    Args:
        number: The number; None for none known.

    Returns:
        The number, marked as verified or not.

    Example:
        >>> published_text(Published(93.8, 0.1, "a paper", True))
        '93.80 ± 0.10 **[V]**'
        >>> published_text(Published(93.8, None, "a paper", False))
        '*93.80 [U: unverified]*'
    """
    if number is None:
        return "-"
    spread = "" if number.deviation is None else f" ± {number.deviation:.2f}"
    note = f", {number.note}" if number.note else ""
    if number.verified:
        return f"{number.value:.2f}{spread}{note} **[V]**"
    return f"*{number.value:.2f}{spread}{note} [U: unverified]*"


def _columns(table: Table, method: str) -> Sequence[float]:
    return (0.0,) if method == "dense" else table.sparsities


_Runs = Mapping[tuple[str, float], Sequence[Result]]


def _accuracies(table: Table, runs: _Runs, published: Numbers) -> str:
    dense = [f"Dense: {_ours(runs, 'dense', 0.0)}"]
    if published:
        dense.append(f"published {published_text(published.get(('dense', 0.0)))}")
    names = {name: ROWS[name] for name in table.methods if name != "dense"}
    # What was published and is not one of the rows is there for comparison.
    names |= {m: OTHER_LABELS[m] for m, _ in published if m in OTHER_LABELS}
    head = ["Method"]
    for sparsity in table.sparsities:
        head.append(f"{100 * sparsity:g} %, ours")
        head += [f"{100 * sparsity:g} %, published"] * bool(published)
    rows = [head]
    for method, label in names.items():
        row = [label]
        for sparsity in table.sparsities:
            row.append(_ours(runs, method, sparsity))
            if published:
                row.append(published_text(published.get((method, sparsity))))
        rows.append(row)
    return f"{'; '.join(dense)}.\n\n{markdown_table(rows)}"


def _ours(runs: _Runs, method: str, sparsity: float) -> str:
    return percent([run["test_accuracy"] for run in runs.get((method, sparsity), ())])


def _against(table: Table, runs: _Runs, published: Numbers) -> str:
    """Compares with the verified numbers, the only ones that are targets."""
    rows = [["Method", "Sparsity", "Ours", "Published, verified", "Difference"]]
    for (method, sparsity), number in published.items():
        if method not in table.methods or not number.verified:
            continue
        found = runs.get((method, sparsity), ())
        difference = "-"
        if found:
            mean = statistics.mean(100 * run["test_accuracy"] for run in found)
            difference = f"{mean - number.value:+.2f}"
        rows.append(
            [
                ROWS[method],
                f"{100 * sparsity:g} %",
                _ours(runs, method, sparsity),
                published_text(number),
                difference,
            ]
        )
    return (
        f"## Against verified numbers\n\nThe target is to be within {TARGET} points of "
        f"each.\n\n{markdown_table(rows)}"
    )


def _figures(table: Table, runs: _Runs) -> str:
    rows = [
        [
            "Method",
            "Sparsity",
            "Realised",
            "Inference FLOPs",
            "Training FLOPs",
            "Best validation",
            "Empty layers",
        ]
    ]
    for method in table.methods:
        for sparsity in _columns(table, method):
            found = runs.get((method, sparsity), ())
            if not found:
                continue
            flops = [run["flops"] for run in found]
            best = [run["best"]["test_accuracy"] for run in found if run["best"]]
            empty = [run["empty_layers"] for run in found if "empty_layers" in run]
            rows.append(
                [
                    ROWS[method],
                    f"{100 * sparsity:g} %",
                    f"{100 * _mean(found, 'realised_sparsity'):.2f} %",
                    f"{_mean(flops, 'inference'):.3f}x",
                    f"{_mean(flops, 'training'):.3f}x",
                    percent(best) if best else "-",
                    f"{statistics.mean(empty):.1f}" if empty else "-",
                ]
            )
    return markdown_table(rows)


def _mean(results: Iterable[Result], name: str) -> float:
    return statistics.mean(result[name] for result in results)


def _left_out(found: Found) -> str:
    return "\n".join(f"- {name}: {why}." for name, why in found.left_out.items())


def provenance(results: Iterable[Result]) -> str:
    """Lists what runs were made with, each combination once.

    Args:
        results: With an "environment" each.

    Returns:
        Markdown.
    """
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


def _sources(published: Numbers) -> str:
    lines: dict[str, list[str]] = {}
    for (method, sparsity), number in published.items():
        mark = "[V]" if number.verified else "[U: unverified]"
        label = OTHER_LABELS.get(method) or ROWS[method]
        at = f" {100 * sparsity:g} %" if sparsity else ""
        lines.setdefault(f"{mark} {number.source}", []).append(label + at)
    return "\n".join(
        f"- {source}: {', '.join(cells)}." for source, cells in lines.items()
    )
