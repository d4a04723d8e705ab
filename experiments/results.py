"""Tables of flat records: grouped, with intervals over seeds, paired, pivoted.

What a study measures is a list of flat records, keys and numbers, here a DataFrame.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from sparsejax.analysis.plasticity import Estimate, mean_with_interval


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, aligned so that it reads as text too.

    Example:
        >>> print(markdown_table([["Method", "%"], ["GMP", "98"]]))
        | Method | %  |
        |--------|----|
        | GMP    | 98 |
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def percent(share: float) -> str:
    """Returns a share as text.

    Example:
        >>> percent(0.995), percent(0.9)
        ('99.5 %', '90 %')
    """
    return f"{100 * share:g} %"


def interval_text(estimate: Estimate, sign: str = "") -> str:
    """Returns "mean ± half width" to a tenth; sign "+" writes that of positive ones.

    Example:
        >>> interval_text(Estimate(mean=97.25, half_width=0.5, samples=5))
        '97.2 ± 0.5'
    """
    return f"{estimate.mean:{sign}.1f} ± {estimate.half_width:.1f}"


def gain_text(estimate: Estimate) -> str:
    """Returns the same of a difference, in bold where the interval does not hold 0.

    Example:
        >>> gain_text(Estimate(mean=1.5, half_width=0.5, samples=5))
        '**+1.5 ± 0.5**'
    """
    text = interval_text(estimate, "+")
    return f"**{text}**" if abs(estimate.mean) > estimate.half_width else text


def estimates(
    frame: pd.DataFrame, value: str, by: Sequence[str], *, scale: float = 100.0
) -> pd.Series:
    """Returns the mean of a column with its 95 % interval for each group, in order.

    Example:
        >>> frame = pd.DataFrame({"method": ["a", "a"], "accuracy": [0.1, 0.3]})
        >>> estimates(frame, "accuracy", ["method"])["a"].mean
        20.0
    """
    groups = frame.groupby(list(by), sort=False, dropna=False)[value]
    found = {key: mean_with_interval(scale * group) for key, group in groups}
    index = pd.MultiIndex.from_tuples(found, names=by)
    if len(by) == 1:
        index = index.get_level_values(0)
    # Of objects: pandas would make columns of named tuples.
    return pd.Series(pd.Series(list(found.values()), dtype=object).values, index)


def gains(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    *,
    to: Mapping[str, Any],
    pair: Sequence[str] = ("seed",),
    scale: float = 100.0,
) -> pd.Series:
    """Returns the same of a column minus that of the group `to`, paired.

    The group is that of equal other keys in `by`; rows that have none to be compared
    with are left out.

    Example:
        >>> frame = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1],
        ...                       "accuracy": [0.1, 0.2, 0.4, 0.7]})
        >>> gains(frame, "accuracy", ["method"], to={"method": "a"})["b"].mean
        40.0
    """
    keys = [name for name in by if name not in to] + list(pair)
    is_base = (frame[list(to)] == pd.Series(to)).all(axis=1)
    base = frame[is_base].set_index(keys)[value].rename("base")
    compared = frame[~is_base].join(base, on=keys, how="inner")
    compared[value] = compared[value] - compared["base"]
    return estimates(compared, value, by, scale=scale)


def pivot(
    values: pd.Series,
    columns: str,
    *,
    heading: str | Sequence[str],
    text: Callable[[Any], str] = interval_text,
    rows: Mapping[Any, str] | Callable[[Any], str] = str,
    column: Callable[[Any], str] = percent,
) -> str:
    """Returns a Markdown table of a series: one level as columns, the others as rows.

    Args:
        values: As `estimates` returns them, of at least two levels.
        columns: The level that goes into columns.
        heading: Heads the columns of the other levels.
        text: Writes a cell.
        rows: Names a row's keys, by a mapping or a function.
        column: Names a column's key.

    Example:
        >>> frame = pd.DataFrame({"method": ["a"], "sparsity": [0.9], "n": [1]})
        >>> values = frame.set_index(["method", "sparsity"])["n"]
        >>> print(pivot(values, "sparsity", heading="", text=str))
        |   | 90 % |
        |---|------|
        | a | 1    |
    """
    table = values.unstack(columns, sort=False)
    name = rows if callable(rows) else rows.__getitem__
    names = [heading] if isinstance(heading, str) else list(heading)
    lines = [[*names, *map(column, table.columns)]]
    for key, cells in zip(table.index, table.itertuples(index=False, name=None)):
        key = key if isinstance(key, tuple) else (key,)
        # NaN is no tuple: there is no such group.
        is_there = [isinstance(c, tuple) or not pd.isna(c) for c in cells]
        texts = [text(c) if there else "" for c, there in zip(cells, is_there)]
        lines.append([*map(name, key), *texts])
    return markdown_table(lines)
