"""Tables in Markdown."""

from collections.abc import Sequence


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
