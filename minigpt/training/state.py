"""The state of a training run on disk: all that is needed to go on as if nothing had happened.

A checkpoint is a directory: the model as any GPT-2 checkpoint (`weights.py`), the optimizer's
moments in safetensors, the rest in JSON and TOML. It is written aside, flushed, and renamed, so it
is there whole or not at all, whenever the process dies; and nothing in it can run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt.checkpoint import weights
from minigpt.config import GPTConfig
from minigpt.support.checks import is_number, is_whole, plain_file
from minigpt.support.errors import MinigptError, reason
from minigpt.support.files import STAGING, flush, move
from minigpt.training.recipes import TrainConfig, configure, differences

STATE = "state.json"
TENSORS = "training.safetensors"
LARGEST_STATE = 2**20  # bytes
_NAME = re.compile(r"step-(\d+)")


@dataclass
class State:
    """What changes from step to step, besides the model's weights."""

    step: int = 0  # steps taken; data order, schedule and dropout follow from it and the seed
    best: float | None = None  # the lowest held-out loss so far, in nats per token
    best_step: int = 0
    average: float | None = None  # of the training loss, for the progress bar
    seconds: float = 0.0  # spent training
    source: str = ""  # a fingerprint of the data
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16's gradients

    def check(self, steps: int) -> None:
        """Refuse what no run of so many steps can have saved: a file may hold anything."""
        counts = (self.step, self.best_step)
        numbers = (self.best or 0, self.average or 0, self.seconds)
        if not (
            all(is_whole(count) and 0 <= count <= steps for count in counts)
            and all(map(is_number, numbers))
            and isinstance(self.source, str)
            and isinstance(self.scaler, dict)
            and all(map(is_number, self.scaler.values()))
        ):
            raise MinigptError("its state is not a run's")


def save(
    directory: Path,
    state: State,
    config: TrainConfig,
    shape: GPTConfig,
    model: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    save_tokenizer: Callable[[Path], object],
) -> None:
    """Write `directory`/step-N, and delete all but the last `config.keep`.

    Args:
        model: as `weights.save` wants them.
        tensors: moments, and whatever else the model's own tensors do not say.

    Raises:
        MinigptError: when the disk is full or read-only; the checkpoints already there survive.
    """
    target = directory / f"step-{state.step:08d}"
    if target.exists():
        return
    staging = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left_behind in directory.glob(f"{STAGING}*"):  # by a run that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        staging = Path(mkdtemp(prefix=STAGING, dir=directory))
        weights.save(staging, shape, model)
        save_tokenizer(staging)
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, staging / TENSORS)
        content = {**vars(state), "config": vars(config)}
        (staging / STATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (staging / "train.toml").write_text(config.to_toml(), encoding="utf-8")
        for path in (*staging.iterdir(), staging):
            flush(path)
        move(staging, target)
    except (OSError, SafetensorError, MinigptError) as error:
        raise MinigptError(
            f"the checkpoint of step {state.step} could not be written to {directory} "
            f"({reason(error)}): those already there are whole, so make room and resume"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    for old in _all(directory)[: -config.keep]:
        with suppress(OSError):
            gone = directory / f"{STAGING}{old.name}"  # half deleted, it would look like one
            os.replace(old, gone)
            shutil.rmtree(gone, ignore_errors=True)


def newest(directory: Path) -> Path | None:
    """The checkpoint of the last step; None when there is none."""
    return next(reversed(_all(directory)), None)


def load(path: Path, config: TrainConfig) -> tuple[State, dict[str, Tensor], dict[str, Tensor]]:
    """The state, the model's tensors, and the moments, of a checkpoint that `save` wrote.

    Raises:
        MinigptError: when it is damaged, or of a run that was configured differently: the fields
            that differ are named.
    """
    try:
        plain_file(path / STATE, LARGEST_STATE)
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        before = configure(TrainConfig(), content.pop("config"), str(path / STATE))
        state = State(**content)
        state.check(before.steps)
        weights.check_header(path / TENSORS)
        moments = load_file(path / TENSORS)
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError
    ) as error:  # fmt: skip
        raise MinigptError(
            f"{path} is not a whole checkpoint of a training run ({reason(error)}): delete "
            f"it, and the one before it counts"
        ) from error
    changed = differences(before, config)
    if changed:
        raise MinigptError(
            f"{path} is of another run: {'; '.join(changed)}; needed the same to resume: train "
            f"with those values, or into another directory"
        )
    return state, weights.load(path)[1], moments


def _all(directory: Path) -> list[Path]:
    """The checkpoints in a directory, by step."""
    if not directory.is_dir():
        return []
    found = {int(name[1]): p for p in directory.iterdir() if (name := _NAME.fullmatch(p.name))}
    return [found[step] for step in sorted(found)]
