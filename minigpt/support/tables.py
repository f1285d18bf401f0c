"""Tables as text, for terminals of any width."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

WIDTH = 100  # characters of a line, where there is no terminal to ask
GAP = "  "


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, width: int | None = None
) -> str:
    """Rows as aligned columns: the first `left`, which name the row, to the left, numbers right.

    Where a line cannot hold all columns, the table is cut into several below one another, each
    with the naming columns; and where it cannot even hold those and one more, every row becomes a
    short list of its own.

    Args:
        headings: one for each column; a row may have fewer cells, and ends early then.
        width: characters of a line; None: the terminal's, or `WIDTH` where there is none.
    """
    width = shutil.get_terminal_size((WIDTH, 0)).columns if width is None else width
    every = [[*row, *[""] * (len(headings) - len(row))] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    named = sum(widths[:left]) + len(GAP) * (left - 1)
    if named + max((len(GAP) + other for other in widths[left:]), default=0) > width:
        return "\n\n".join(_as_list(headings, row, left, width) for row in rows)
    blocks: list[list[int]] = [[]]
    taken = named
    for column in range(left, len(headings)):
        if taken + len(GAP) + widths[column] > width:
            blocks.append([])
            taken = named
        blocks[-1].append(column)
        taken += len(GAP) + widths[column]
    return "\n\n".join(
        "\n".join(
            GAP.join(
                [row[n].ljust(widths[n]) for n in range(left)]
                + [row[n].rjust(widths[n]) for n in block]
            ).rstrip()
            for row in every
        )
        for block in blocks
    )


def _as_list(headings: Sequence[str], row: Sequence[str], left: int, width: int) -> str:
    """A row on several lines: its name, then each heading and its cell."""
    lines = [" ".join(row[:left])]
    for heading, cell in zip(headings[left:], row[left:], strict=False):
        if cell:
            gap = max(1, width - len(GAP) - len(heading) - len(cell))
            lines.append(f"{GAP}{heading}{' ' * gap}{cell}")
    return "\n".join(lines)
