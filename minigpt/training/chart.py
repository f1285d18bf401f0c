"""Curves as text: losses in dots of Braille, and beside them what else is measured, in small bars.

Nothing here knows of terminals: numbers go in, lines come out. When they are shown, and where, is
in `display.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BARS = "▁▂▃▄▅▆▇█"
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # in U+2800, by place
HELD_OUT = "o"
ROWS = 8  # lines of the canvas
BESIDE = 52  # characters for what stands on its right
TREND = 16  # characters of a small bar chart
SHOWN = {  # by name in the log: what it is called, how it is written
    "held_out": ("held-out loss", "{:.4f}"),
    "loss": ("training loss", "{:.4f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "solved": ("solved exactly", "{:.1%}"),
    "norm": ("gradient norm", "{:.3g}"),
    "learning_rate": ("learning rate", "{:.2e}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
}

Numbers = npt.NDArray[np.float64]


def chart_lines(rows: Sequence[Mapping[str, Any]], steps: int, columns: int) -> list[str]:
    """Lines of at most `columns` characters: the losses so far over all `steps`, and the rest.

    Args:
        rows: of a run's log, in its order.
        steps: of the whole run, the right end of the axis.
        columns: at least 80.
    """
    width = columns - BESIDE - 10  # of the canvas, in characters
    beside = _beside(rows)
    canvas, low, high = _canvas(rows, steps, width)
    labels = [f"{high:7.4g} ┌", *["        │"] * (ROWS - 2), f"{low:7.4g} ┤"]
    lines = [
        f"{label}{line}  {text}".rstrip()
        for label, line, text in zip(labels, canvas, [*beside, *[""] * ROWS][:ROWS], strict=True)
    ]
    end = f"{steps:,} steps"
    lines.append(f"        └{'─' * width}")
    lines.append(f"         0{'o held out, ⠒ training'.center(width - 1 - len(end))}{end}")
    return lines


def told(row: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return ", ".join(
        f"{called} {form.format(row[name])}"
        for name, (called, form) in SHOWN.items()
        if name in row
    )


def trend(values: Sequence[float], width: int = TREND) -> str:
    """The course of some numbers as bars, from their least to their greatest."""
    parts = np.array_split(np.array(values, float), max(1, min(width, len(values))))
    means = np.array([part.mean() for part in parts if len(part)])
    if not len(means):
        return ""
    low, high = means.min(), means.max()
    share = (means - low) / (high - low) if high > low else np.full(len(means), 0.5)
    return "".join(BARS[round(part)] for part in share * (len(BARS) - 1))


def _beside(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each thing measured: its name, its last value and its course."""
    lines = []
    for name, (called, form) in SHOWN.items():
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if values:
            lines.append(f"{called:<15}{form.format(values[-1]):>10}  {trend(values)}")
    return lines


def _canvas(
    rows: Sequence[Mapping[str, Any]], steps: int, width: int
) -> tuple[list[str], float, float]:
    """The lines of the drawing, and the losses at its lower and its upper edge."""
    dots = np.zeros((ROWS * len(DOTS), width * 2), bool)
    x, loss = _curve(rows, "loss")
    means = _binned(x / max(steps, 1) * dots.shape[1], loss, dots.shape[1])
    at, held_out = _curve(rows, "held_out")
    every = np.concatenate((means, held_out))
    every = every[np.isfinite(every)]
    low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
    bottom = len(dots) - 1

    def height(value: float) -> int:
        return round((high - value) / (high - low) * bottom) if high > low else bottom // 2

    known = np.flatnonzero(np.isfinite(means))
    before = None  # where the line was in the last column: it goes on from there
    for column in range(known[0], known[-1] + 1) if len(known) else ():
        here = height(float(np.interp(column, known, means[known])))
        first, last = sorted((here, here if before is None else before))
        dots[first + (here > first) : last + (here == last), column] = True
        dots[here, column] = True
        before = here
    cells = dots.reshape(ROWS, len(DOTS), width, 2).transpose(0, 2, 1, 3)  # (rows, width, 4, 2)
    codes = (cells * DOTS).sum((2, 3))
    lines = [[chr(0x2800 + code) if code else " " for code in line] for line in codes]
    for step, value in zip(at, held_out, strict=True):
        if math.isfinite(value):
            column = min(width - 1, int(step / max(steps, 1) * width))
            lines[height(value) // len(DOTS)][column] = HELD_OUT
    return ["".join(line) for line in lines], float(low), float(high)


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Numbers, Numbers]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    found = np.array(points, float).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _binned(x: Numbers, y: Numbers, bins: int) -> Numbers:
    """The mean of y in each of `bins` parts of the way, for x in 0 ... bins; NaN where none is."""
    where = np.minimum(x.astype(int), bins - 1)
    counts = np.bincount(where, minlength=bins)
    return np.bincount(where, y, minlength=bins) / np.where(counts, counts, np.nan)
