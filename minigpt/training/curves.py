"""The curves of a training run: numbers as JSON lines while it runs, a picture when it ends.

Each line says the step and what was measured there. A run that is resumed forgets the lines after
its checkpoint and writes them again. TensorBoard and matplotlib are needed only where asked for.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigpt.support.errors import MinigptError
from minigpt.support.files import write_text

LOG = "log.jsonl"
PICTURE = "curves.png"


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
    """The rows of a log; a last line that a killed process did not finish is left out."""
    path = directory / LOG
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def draw(directory: Path) -> Path | None:
    """A picture of the losses in the log; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rows = read(directory)
    for name, style in (("loss", {"linewidth": 0.7}), ("held_out", {"marker": "o"})):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", "-"), **style)
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend()
    figure.savefig(directory / PICTURE, dpi=120)
    return directory / PICTURE


def draw_rewards(directory: Path) -> Path | None:
    """A picture of learning from rewards: how well it goes, and how far sampler and trainer are
    from each other. None where matplotlib is not installed."""
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = read(directory)
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
    figure.savefig(directory / PICTURE, dpi=120)
    return directory / PICTURE


def _board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MinigptError(
            "curves for TensorBoard need the tensorboard library: pip install tensorboard"
        ) from error
    return SummaryWriter(str(directory))
