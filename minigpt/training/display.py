"""What a run shows while it goes on: a chart on wide terminals, a bar on narrow ones.

Where nobody watches, in a file or a pipe, there is nothing but the lines that are reported.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from minigpt.training.chart import chart_lines

WIDE, HIGH = 100, 20  # columns and lines of a terminal from which on there is room for a chart
LEAST = 0.5  # seconds between two drawings ...
SHARE = 0.02  # ... which may take this part of the time
Report = Callable[[str], object]


class Display(Protocol):
    """How a run is watched."""

    def step(self, row: Mapping[str, Any], average: float) -> None:
        """One more was taken; `row` is what the log says of it, `average` the loss lately."""

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """The held-out loss was measured."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def close(self) -> None: ...


class Bar:
    """One line that fills, on terminals only.

    Args:
        first, steps: of the run, taken and to be taken.
        report: given the lines that stay, above the bar.
        shown: whether there is a bar at all.
        average: what the number told at each step is called.
    """

    # What matters most comes first, for a narrow terminal cuts the rest.
    FORM = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(
        self, first: int, steps: int, report: Report, shown: bool = True, average: str = "loss"
    ) -> None:
        self._report, self._average = report, average
        self._bar = tqdm(
            initial=first, total=steps, desc="training", unit="step", bar_format=self.FORM,
            disable=None if shown else True, dynamic_ncols=True,  # None: on terminals only
        )  # fmt: skip

    def step(self, row: Mapping[str, Any], average: float) -> None:
        speed = f"{row['tokens_per_second']:,.0f} tokens/s"
        self._bar.set_description_str(f"{self._average} {average:.3f}", refresh=False)
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update()

    def evaluated(self, row: Mapping[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        self._report(line)

    def close(self) -> None:
        self._bar.close()


class Chart:
    """The curves so far, drawn again and again in the last lines of a terminal.

    Args:
        first, steps: of the run, taken and to be taken.
        rows: of the log up to here.
        report: given the lines that stay, above the chart.
    """

    def __init__(
        self, first: int, steps: int, rows: Sequence[Mapping[str, Any]], report: Report
    ) -> None:
        self._rows, self._first, self._done, self._steps = list(rows), first, first, steps
        self._report, self._began = report, time.monotonic()
        self._height, self._next = 0, 0.0

    def step(self, row: Mapping[str, Any], average: float) -> None:
        self._rows.append(row)
        self._done = row["step"]
        if time.monotonic() >= self._next:
            self.draw()

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self.draw()

    def say(self, line: str) -> None:
        self._erase()
        self._report(line)
        self.draw()

    def draw(self) -> None:
        """Put the chart in the place of the last one."""
        began = time.monotonic()
        columns = max(WIDE, shutil.get_terminal_size().columns) - 1
        lines = [*chart_lines(self._rows, self._steps, columns), self._progress()]
        self._erase()
        _write("\n".join(line[:columns] for line in lines))
        self._height = len(lines)
        took = time.monotonic() - began
        self._next = began + max(LEAST, took / SHARE)

    def close(self) -> None:
        """The last chart stays."""
        if self._done > self._first:
            self.draw()
        if self._height:
            _write("\n")
            self._height = 0

    def _progress(self) -> str:
        gone = time.monotonic() - self._began
        taken, left = self._done - self._first, self._steps - self._done
        line = f"training {self._done / self._steps:4.0%}  {self._done:,} of {self._steps:,} steps"
        if taken:
            line += f", {_clock(gone)} gone, {_clock(gone / taken * left)} to go"
        return line

    def _erase(self) -> None:
        if self._height:
            up = f"\033[{self._height - 1}A" if self._height > 1 else ""
            _write(f"\r{up}\033[J")
            self._height = 0


def display_for(
    first: int, steps: int, rows: Sequence[Mapping[str, Any]], report: Report, shown: bool
) -> Display:
    """What suits the terminal, if there is one; without `shown`, nothing but lines."""
    if shown and has_room():
        return Chart(first, steps, rows, report)
    return Bar(first, steps, report, shown)


def has_room() -> bool:
    """Whether what we say goes to a terminal that is large enough for a chart, and can show it."""
    size = shutil.get_terminal_size()
    try:
        "⠒▁│".encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    large = size.columns >= WIDE and size.lines >= HIGH
    return sys.stderr.isatty() and large and os.environ.get("TERM") != "dumb"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
