"""Tables in Markdown, and the estimates in their cells."""

from collections.abc import Sequence

from sparsejax.analysis.plasticity import Estimate


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Sets a Markdown table, aligned so that it reads as text too.

    Args:
        rows: The heading and the rows, of the same number of cells.

    Returns:
        The table, a line for each row and one below the heading.

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


def interval_text(estimate: Estimate, sign: str = "") -> str:
    """Writes an estimate with its interval, to a tenth.

    Args:
        estimate: The estimate.
        sign: "+" to write the sign of what is positive too.

    Returns:
        "mean ± half width".

    Example:
        >>> interval_text(Estimate(mean=97.25, half_width=0.5, samples=5))
        '97.2 ± 0.5'
    """
    return f"{estimate.mean:{sign}.1f} ± {estimate.half_width:.1f}"


def gain_text(estimate: Estimate) -> str:
    """Writes a difference with its interval, so that one sees whether it is one.

    Args:
        estimate: The estimate.

    Returns:
        "mean ± half width" to a tenth, in bold where the interval does not hold 0.

    Example:
        >>> gain_text(Estimate(mean=1.5, half_width=0.5, samples=5))
        '**+1.5 ± 0.5**'
    """
    text = interval_text(estimate, "+")
    return f"**{text}**" if abs(estimate.mean) > estimate.half_width else text
