"""Measuring in turns, and tables of what was measured: the tools of all sections.

Machines drift, so whatever is compared runs in turns (A B A B ...) after a warm-up, and a ratio is
the median of the ratios within a turn.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tqdm import tqdm

from minigpt.support.tables import table

Samples = dict[str, list[float]]  # by name, one measurement per turn
Prepare = Callable[[], Callable[[], object]]  # sets the stage, untimed; returns what is timed
SETTLED = 0.01  # seconds; after a parallel loop OpenMP's threads wait actively for some 5 ms

# --- measuring ------------------------------------------------------------------------------------


def turns(names: Iterable[str], rounds: int, label: str = "") -> Iterator[str]:
    """A B A B ...: every name once per round, with a progress bar on stderr."""
    yield from tqdm(list(names) * rounds, desc=label, leave=False, disable=None)


class Elsewhere(list[Any]):
    """What a run in another process gave, and the seconds that it took there."""

    def __init__(self, found: Iterable[Any], seconds: float) -> None:
        super().__init__(found)
        self.seconds = seconds


def interleave(contenders: Mapping[str, Prepare], rounds: int, label: str = "") -> Samples:
    """Seconds of each contender in each round, after one round of warm-up.

    Before a turn there is a pause, until the threads of whoever was before are asleep.
    """
    samples: Samples = {name: [] for name in contenders}
    for name in turns(contenders, rounds + 1, label):
        time.sleep(SETTLED)
        run = contenders[name]()
        began = time.perf_counter()
        found = run()
        took = time.perf_counter() - began
        samples[name].append(found.seconds if isinstance(found, Elsewhere) else took)
    return {name: seconds[1:] for name, seconds in samples.items()}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below within each turn, so that what slowed the whole turn cancels."""
    return [a / b for a, b in zip(above, below, strict=True)]


# --- reporting ------------------------------------------------------------------------------------

_COLUMNS = {  # what may stand beside a median and its spread, and how
    "tokens/s": "{:,.1f}",
    "speed-up": "{:.2f} x",
    "of limit": "{:.0%}",
    "less work": "{:.0f} x",
    "of static": "{:.2f} x",
    "cache bytes": "{:,.0f}",
}


@dataclass
class Row:
    """One thing measured: all samples, and figures that belong beside them."""

    name: str
    samples: list[float]
    unit: str
    extra: dict[str, float] = field(default_factory=dict)

    def cells(self, columns: Sequence[str]) -> list[str]:
        values = [median(self.samples), min(self.samples), max(self.samples)]
        middle, low, high = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in values)
        extra = [
            _COLUMNS[key].format(self.extra[key]) if key in self.extra else "" for key in columns
        ]
        return [self.name, f"{middle} {self.unit:<4}", f"{low} .. {high}", *extra]


@dataclass
class Section:
    """Rows that answer one question."""

    name: str
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        """The table, its headings first."""
        columns = [key for key in _COLUMNS if any(key in row.extra for row in self.rows)]
        headings = ["", "median     ", "min .. max", *columns]
        return [headings, *(row.cells(columns) for row in self.rows)]

    def to_markdown(self) -> str:
        headings, *rows = ([cell.strip() for cell in row] for row in self.cells())
        rule = ["---"] + ["---:"] * (len(headings) - 1)
        lines = [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
        notes = "".join(f"\n- {note}" for note in self.notes)
        return "\n".join([f"**{self.name}**: {self.title}\n", *lines]) + "\n" * bool(notes) + notes

    def __str__(self) -> str:
        headings, *rows = self.cells()
        notes = (
            textwrap.fill(f"({note})", 98, initial_indent="  ", subsequent_indent="   ")
            for note in self.notes
        )
        lines = textwrap.indent(table(headings, rows, width=98), "  ")
        return "\n".join([f"{self.name}: {self.title}", lines, *notes])


@dataclass
class Table:
    """All that one run measured, and what the figures depend on."""

    about: dict[str, str]
    rounds: int
    sections: list[Section]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with every sample."""
        return asdict(self)

    def to_markdown(self) -> str:
        """For a README: the same tables, as GitHub draws them."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        how = f"Measured in turns, {self.rounds} rounds after a warm-up, unless said otherwise: "
        return "\n\n".join([f"{how}{about}.", *(part.to_markdown() for part in self.sections)])

    def __str__(self) -> str:
        about = textwrap.fill(", ".join(f"{key} {value}" for key, value in self.about.items()), 98)
        how = f"measured in turns, {self.rounds} rounds after a warm-up, unless said otherwise"
        return "\n\n".join([f"{about}\n{how}", *map(str, self.sections)])
