"""What was measured, drawn: every sample a point, every median a bar."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from minigpt.bench.measure import Table
from minigpt.study.style import COLOURS, GREY, INK, Picture, drawing
from minigpt.support.errors import MinigptError

MARKS = {"limit": GREY, "transformers": COLOURS[1], "CTranslate2": COLOURS[2]}  # in a row's name


def draw_table(table: Table, path: str | Path | None = None) -> Picture:
    """A panel for each section with something to compare.

    Args:
        table: from `Bench.measure`; sections with one row are left out.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: when no section has two rows, or when the file cannot be written.
    """
    sections = [section for section in table.sections if len(section.rows) > 1]
    if not sections:
        raise MinigptError("nothing was measured that could be compared, needed two rows or more")
    rows = [len(section.rows) for section in sections]
    size = (7.5, 0.24 * sum(rows) + 1.0 * len(rows))
    told = []
    with drawing(path, len(rows), 1, size, height_ratios=[n + 1 for n in rows]) as figure:
        for axes, section in zip(figure.axes, sections, strict=True):
            names = [" ".join(row.name.split()) for row in section.rows]
            for n, row in enumerate(section.rows):
                middle, most = median(row.samples), max(row.samples)
                colour = next((c for mark, c in MARKS.items() if mark in row.name), COLOURS[0])
                axes.barh(n, middle, color=colour, alpha=0.6)
                axes.plot(row.samples, [n] * len(row.samples), ".", color=INK, markersize=4)
                axes.text(max(most, middle), n, f"  {middle:.3g}", va="center", fontsize=8)
                told.append(f"{section.name}, {names[n]}: {middle:.3g} {row.unit}")
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.invert_yaxis()  # the first on top
            axes.margins(x=0.12, y=0.02)
            axes.set_xlabel(" or ".join(sorted({row.unit for row in section.rows})))
            axes.set_title(f"{section.name}: {section.title}")
        figure.alt = f"Medians of what was measured. {'; '.join(told)}."
    return figure
