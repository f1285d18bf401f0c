"""The curves of a training run: numbers as JSON lines while it runs, and pictures of them.

Each line says the step and what was measured there. A run that is resumed forgets the lines after
its checkpoint and writes them again. TensorBoard and matplotlib are needed only where asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.support.checks import is_number, is_whole
from minigpt.support.errors import MinigptError
from minigpt.support.files import aside, move, write_text

LOG = "log.jsonl"
PICTURES = ("curves.png", "curves.svg")
POINTS = 500  # of a curve, at most: more is no picture, but a large file
SMALL_PANELS = {
    "solved": "solved exactly", "reward": "reward", "norm": "gradient norm",
    "learning_rate": "learning rate", "tokens_per_second": "tokens/s",
}  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


class Log:
    """Rows of numbers, appended to `directory`/log.jsonl.

    Args:
        step: where the run starts; rows of later steps are dropped, all of them at step 0.
        tensorboard: write events for TensorBoard too, beside the log.

    Raises:
        MinigptError: when the file cannot be written, or TensorBoard is not installed.
    """

    def __init__(self, directory: Path, step: int = 0, tensorboard: bool = False) -> None:
        self._board = _board(directory) if tensorboard else None
        self.path = directory / LOG
        rows = [row for row in read(directory) if row["step"] <= step] if step else []
        try:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise MinigptError(f"cannot write {self.path} ({error}): make room there") from error

    def append(self, step: int, **values: float) -> None:
        """One row, on the disk's side of this process when the call returns."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise MinigptError(f"cannot write {self.path} ({error}): make room there") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the row that had no room, tried again
            self._file.close()
        if self._board is not None:
            self._board.close()


def read(directory: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that a killed process did not finish is left out.

    Raises:
        MinigptError: when another line is no row, or the file cannot be read.
    """
    path = directory / LOG
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise MinigptError(f"{path} cannot be read ({error}): it is no log of a run") from error
    rows = []
    for number, line in enumerate(text.splitlines(True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            if not is_whole(row["step"]) or not all(map(is_number, row.values())):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise MinigptError(
                f"line {number} of {path} is {line.strip()[:80]!r}, needed an object of numbers "
                f'with a "step": remove that line'
            ) from None
        rows.append(row)
    return rows


def draw(directory: Path) -> Path | None:
    """Pictures of a run's log, beside it: a PNG, which is returned, and an SVG.

    Each appears in one step, so that whoever looks sees a whole one. None: no matplotlib here.

    Raises:
        MinigptError: when they cannot be written.
    """
    rows, files = read(directory), [directory / name for name in PICTURES]
    return (
        draw_rewards(rows, files) if of_rewards(rows) else draw_runs({directory.name: rows}, files)
    )


def of_rewards(rows: Rows) -> bool:
    """Whether a run learned from rewards: its loss does not say how good it is."""
    logged = {name for row in rows for name in row}
    return "solved" in logged and "held_out" not in logged


class Artist:
    """Draws a run's picture whenever it is asked to, but never for long: a run has better to do."""

    SHARE = 0.05  # of the time that may go into drawing
    OFTEN = 2.0  # seconds between two, at least

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._clock, self._next = directory, clock, clock() + self.OFTEN
        self.began = False  # whether there is anything to draw

    def __call__(self) -> None:
        began, self.began = self._clock(), True
        if began >= self._next:
            draw(self._directory)
            took = self._clock() - began
            self._next = began + max(self.OFTEN, took / self.SHARE)


def draw_runs(runs: Mapping[str, Rows], files: Sequence[Path]) -> Path | None:
    """One picture of several runs, saved as each of the files (*.png or *.svg).

    Above, the losses: training as a line, held-out with dots; of runs that all learned from
    rewards, the reward and what is solved. Below, the rest of what is logged.

    Returns:
        the first file; None where matplotlib is not installed.

    Raises:
        MinigptError: when they cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    logged = {name for rows in runs.values() for row in rows for name in row}
    rewards = all(map(of_rewards, runs.values()))
    line, dots = ("reward", "solved") if rewards else ("loss", "held_out")
    below = [name for name in SMALL_PANELS if name in logged and name not in (line, dots)]
    figure = Figure(figsize=(8, 6 if below else 4), layout="constrained")
    grid = figure.add_gridspec(
        2 if below else 1, max(1, len(below)), height_ratios=[2, 1][: 1 + bool(below)]
    )
    top = figure.add_subplot(grid[0, :])
    panels = {name: figure.add_subplot(grid[1, n]) for n, name in enumerate(below)}
    for number, (run, rows) in enumerate(runs.items()):
        colour, prefix = f"C{number % 10}", f"{run}: " if len(runs) > 1 else ""
        if of_rewards(rows) and not rewards:  # beside other losses its own has no place
            top.plot([], [], color=colour, label=run)
        else:
            first, second = ("reward", "solved") if rewards else ("training", "held out")
            drawn = _curve(rows, line)
            top.plot(*drawn, color=colour, linewidth=1, alpha=0.8, label=f"{prefix}{first}")
            top.plot(
                *_curve(rows, dots), "--o",
                color=colour, markersize=4, linewidth=1, label=f"{prefix}{second}",
            )  # fmt: skip
        for name, axes in panels.items():
            axes.plot(
                *_curve(rows, name),
                color=colour,
                linewidth=1,
                marker="." if name == "solved" else "",
            )
    what = "reward, and part of unseen problems solved" if rewards else "loss, nats per token"
    top.set(xlabel="step", ylabel=what)
    top.grid(alpha=0.3)
    top.legend(frameon=False, fontsize="small", ncols=1 + len(runs) // 6)
    for name, axes in panels.items():
        axes.set_title(SMALL_PANELS[name], fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.grid(alpha=0.3)
    return _save(figure, files)


def _save(figure: Any, files: Sequence[Path]) -> Path:
    """A figure as each of the files, each there in one step; the first of them."""
    from matplotlib import rc_context

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what fits in one file fits in the other
    try:
        with rc_context({"svg.hashsalt": "minigpt", "text.parse_math": False}):
            for path in files:
                with aside(path.parent) as staging:
                    about = {"Date": None} if path.suffix.lower() == ".svg" else {}
                    figure.savefig(staging / path.name, dpi=120, metadata=about)
                    move(staging / path.name, path)
    except OSError as error:
        raise MinigptError(
            f"the picture could not be written to {path} ({error}): make room there, or choose "
            f"another place"
        ) from error
    return files[0]


def _curve(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Steps and values; means of neighbours where there are many."""
    points = np.array([(row["step"], row[name]) for row in rows if name in row]).reshape(-1, 2)
    parts = np.array_split(points, min(len(points), POINTS) or 1)
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0].tolist(), means[:, 1].tolist()


def draw_rewards(rows: Rows, files: Sequence[Path]) -> Path | None:
    """A picture of learning from rewards: how well it goes, and how far sampler and trainer are
    from each other. The first file; None where matplotlib is not installed.

    Raises:
        MinigptError: when it cannot be written.
    """
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(3, 2, 2))
    styles: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "reward": (top, "sampled answers' reward", {"linewidth": 0.7}),
        "solved": (top, "unseen problems solved", {"marker": "o"}),
        "ratio_error": (middle, "largest |ratio - 1| at first", {"linewidth": 0.7}),
        "sampler_kl": (middle, "KL of sampler and trainer", {"linewidth": 0.7}),
        "clipped": (bottom, "part of the tokens clipped", {"linewidth": 0.7}),
        "kl": (bottom, "KL from the start", {"linewidth": 0.7}),
    }
    for name, (axes, label, style) in styles.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    top.set(ylim=(0, 1))
    middle.set_yscale("symlog", linthresh=1e-16)  # with a 0, where exact numerics lie
    middle.set(ylim=(-5e-17, 10), yticks=(0, 1e-14, 1e-10, 1e-6, 1e-2))
    bottom.set(xlabel="step")
    for axes in filter(Axes.has_data, (top, middle, bottom)):
        axes.legend()
    return _save(figure, files)


def _board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MinigptError(
            "curves for TensorBoard need the tensorboard library: pip install tensorboard"
        ) from error
    return SummaryWriter(str(directory))
