"""Runs side by side: where their recipes differ, and beneath it what came out.

A run is read from its directory, whether it has ended, is going on or was killed: the log tells
what happened, a checkpoint or `train.toml` what was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, median
from typing import Any

from minigpt.checkpoint.weights import read_config
from minigpt.config import GPTConfig
from minigpt.support.checks import path_of
from minigpt.support.errors import MinigptError
from minigpt.support.tables import table
from minigpt.training.curves import LOG, Rows, of_rewards, read
from minigpt.training.places import CHECKPOINTS, RECIPE
from minigpt.training.recipes import TrainConfig, configure, read_toml
from minigpt.training.state import newest_checkpoint, read_state

WATCHING = (  # fields that change nothing of what is learned
    "evaluate_every", "sample_every", "sample_tokens", "save_every", "keep", "tensorboard",
)  # fmt: skip
LAST = 20  # steps whose mean is called the training loss
LONGEST = 40  # characters of a value


@dataclass(frozen=True)
class Told:
    """What a run's directory tells."""

    name: str
    rows: Rows  # of its log
    recipe: TrainConfig | None  # None: nothing was saved yet
    shape: GPTConfig | None  # of its model; likewise

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    @property
    def best(self) -> dict[str, Any]:
        """The evaluation with the lowest held-out loss, or of learning from rewards the one that
        solved the most; empty before the first."""
        if of_rewards(self.rows):
            evaluations = [row for row in self.rows if "solved" in row]
            return dict(max(evaluations, key=lambda row: row["solved"], default={}))
        evaluations = [row for row in self.rows if math.isfinite(row.get("held_out", math.nan))]
        return dict(min(evaluations, key=lambda row: row["held_out"], default={}))


def read_run(directory: str | Path) -> Told:
    """The run in a directory.

    Raises:
        MinigptError: when there is none, or its files are damaged.
    """
    place = path_of(directory)
    try:
        there = place.joinpath(LOG).is_file()
    except OSError:  # a name that is too long
        there = False
    rows = read(place) if there else []
    if not rows:
        raise MinigptError(
            f"{directory} holds no run with a {LOG}, needed the directory of one that has begun: "
            f"name what `minigpt train` was given as --out"
        )
    found, recipe = newest_checkpoint(place / CHECKPOINTS), None
    if found:
        recipe = read_state(found)[1]
    elif (place / RECIPE).is_file():
        recipe = configure(TrainConfig(), read_toml(place / RECIPE), str(place / RECIPE))
    shape = read_config(place)[0] if (place / "config.json").is_file() else None
    return Told(str(directory), rows, recipe, shape)


def titles(runs: Sequence[Told]) -> list[str]:
    """Of each run's path the end, as much of it as it takes to tell the runs apart."""
    parts = [path_of(run.name).absolute().parts for run in runs]
    for count in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(each[-count:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [run.name for run in runs]  # one of them twice


def compare_runs(runs: Sequence[Told], width: int | None = None) -> str:
    """Each run a column: fields of the recipe in which they differ, then results.

    Args:
        width: of a line, as `table` takes it.
    """
    recipe = [
        [f"  {f.name.replace('_', ' ')}", *values]
        for f in fields(TrainConfig)
        if f.name not in WATCHING and len(set(values := [_field(run, f.name) for run in runs])) > 1
    ]
    result = [[f"  {name}", *map(cell, runs)] for name, cell in RESULTS.items()]
    result = [row for row in result if any(row[1:])]
    rows = [*([["recipe"], *recipe] if recipe else []), ["result"], *result]
    return table(["", *titles(runs)], rows, width=width)


def _field(run: Told, name: str) -> str:
    if run.recipe is None:
        return "?"
    value = getattr(run.recipe, name)
    text = f"{value:,}" if type(value) is int else str(value).replace("\n", " ")
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _number(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _parameters(run: Told) -> str:
    return f"{sum(map(math.prod, run.shape.tensors().values())):,}" if run.shape else ""


def _lately(run: Told, name: str) -> str:
    last = run.values(name)[-LAST:]
    return f"{mean(last):.4f}" if last else ""


def _training_loss(run: Told) -> str:
    return "" if of_rewards(run.rows) else _lately(run, "loss")


def _ratio_error(run: Told) -> str:
    return _number("{:.2g}", max(run.values("ratio_error"), default=None))


def _speed(run: Told) -> str:
    speeds = run.values("tokens_per_second")
    return f"{median(speeds):,.0f}" if speeds else ""


RESULTS: dict[str, Callable[[Told], str]] = {
    "parameters": _parameters,
    "steps taken": lambda run: f"{run.rows[-1]['step']:,}",
    "held-out loss, first": lambda run: _number("{:.4f}", next(iter(run.values("held_out")), None)),
    "held-out loss, lowest": lambda run: _number("{:.4f}", run.best.get("held_out")),
    "… at step": lambda run: _number("{:,}", run.best.get("step")),
    "bits per byte there": lambda run: _number("{:.4f}", run.best.get("bits_per_byte")),
    "solved exactly, first": lambda run: _number("{:.1%}", next(iter(run.values("solved")), None)),
    "solved exactly there": lambda run: _number("{:.1%}", run.best.get("solved")),
    f"training loss, last {LAST} steps": _training_loss,
    f"reward, last {LAST} steps": lambda run: _lately(run, "reward"),
    "ratio off by, at most": _ratio_error,
    "tokens/s, median": _speed,
}
