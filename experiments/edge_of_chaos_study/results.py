"""What a study of the edge of chaos shows: means with confidence intervals, a table."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.record.markdown import interval_text, markdown_table
from sparsejax.analysis.plasticity import Estimate, mean_with_interval


class Record(NamedTuple):
    """One network.

    Attributes:
        weight_variance: s_w^2.
        bias_variance: s_b^2.
        depth: Its layers.
        seed: Its seed.
        empty: Layers that SNIP left without any active weight.
    """

    weight_variance: float
    bias_variance: float
    depth: int
    seed: int
    empty: int


class Row(NamedTuple):
    """Networks of one start and depth.

    Attributes:
        variances: (s_w^2, s_b^2).
        depth: Their layers.
        empty: Layers left empty, over seeds.
        networks: Networks.
        with_any: Networks with an empty layer.
    """

    variances: tuple[float, float]
    depth: int
    empty: Estimate
    networks: int
    with_any: int


def summarise(records: Sequence[Record]) -> list[Row]:
    """Takes means over seeds.

    Args:
        records: All records of a study.

    Returns:
        A row for each start and depth, in the order of the records.
    """
    groups: dict[tuple[float, float, int], list[int]] = {}
    for record in records:
        groups.setdefault(record[:3], []).append(record.empty)
    return [
        Row((weight, bias), depth, mean_with_interval(c), len(c), sum(map(bool, c)))
        for (weight, bias, depth), c in groups.items()
    ]


def name_of(variances: tuple[float, float]) -> str:
    """Names a start.

    Args:
        variances: (s_w^2, s_b^2).

    Returns:
        Text for tables and figures.
    """
    weight, bias = variances
    place = "on" if variances == (2.0, 0.0) else "off"
    return f"{place} the edge of chaos: variances {weight:g} and {bias:g}"


def report(records: Sequence[Record], title: str) -> str:
    """Writes the table.

    Args:
        records: All records of a study.
        title: What was studied.

    Returns:
        Markdown.
    """
    rows = summarise(records)
    depths = list(dict.fromkeys(row.depth for row in rows))
    cells = [["Layers", *map(str, depths)]]
    for start in dict.fromkeys(row.variances for row in rows):
        chosen = [row for row in rows if row.variances == start]
        cells.append(
            [name_of(start)]
            + [
                f"{interval_text(row.empty)} ({row.with_any} of {row.networks})"
                for row in chosen
            ]
        )
    parts = [
        f"# {title}",
        "Layers that SNIP leaves empty: mean over seeds ± half of the 95 % confidence "
        "interval (Student's t), and in brackets the networks with any. Variances are "
        "those of weights, times fan-in, and of biases.",
        markdown_table(cells),
    ]
    return "\n\n".join(parts) + "\n"
