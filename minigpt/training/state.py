"""The state of a training run on disk: all that is needed to go on as if nothing had happened.

A checkpoint is a directory: the model as any GPT-2 checkpoint (`weights.py`), the optimizer's
moments in safetensors, the rest in JSON and TOML. It is written aside, flushed, and renamed, so it
is there whole or not at all, whenever the process dies; and nothing in it can run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler

from minigpt.checkpoint import weights
from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.support.checks import is_number, is_whole
from minigpt.support.errors import MinigptError, reason
from minigpt.support.files import aside, flush, move, read_json
from minigpt.training.parallel import gather, scatter_like
from minigpt.training.recipes import TrainConfig, configure, differences

STATE = "state.json"
TENSORS = "training.safetensors"
LARGEST_STATE = 2**20  # bytes
MOST_THREADS = 1024
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter
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
    threads: int = 0  # of the CPU; 0: not known
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16's gradients

    def check(self, steps: int) -> None:
        """Refuse what no run of so many steps can have saved: a file may hold anything."""
        counts = (self.step, self.best_step)
        numbers = (self.best or 0, self.average or 0, self.seconds)
        if not (
            all(is_whole(count) and 0 <= count <= steps for count in counts)
            and all(map(is_number, numbers))
            and is_whole(self.threads)
            and 0 <= self.threads <= MOST_THREADS
            and isinstance(self.source, str)
            and isinstance(self.scaler, dict)
            and all(map(is_number, self.scaler.values()))
        ):
            raise MinigptError("its state is not a run's")


def save_checkpoint(
    directory: Path,
    state: State,
    config: TrainConfig,
    shape: GPTConfig,
    model: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    save_tokenizer: Callable[[Path], object],
) -> None:
    """Write `directory`/step-N, and delete all but the last `config.keep`.

    Both go by way of a folder beside `directory`, whose own lock is held while a run goes on.

    Args:
        model: as `weights.save` wants them.
        tensors: moments, and whatever else the model's own tensors do not say.

    Raises:
        MinigptError: when the disk is full or read-only; the checkpoints already there survive.
    """
    target = directory / f"step-{state.step:08d}"
    if target.exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with aside(directory.parent) as staging:
            made = staging / target.name
            weights.save(made, shape, model)
            save_tokenizer(made)
            plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, made / TENSORS)
            content = {**vars(state), "config": vars(config)}
            (made / STATE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            (made / "train.toml").write_text(config.to_toml(), encoding="utf-8")
            for path in (*made.iterdir(), made):
                flush(path)
            move(made, target)
            for old in _all(directory)[: -config.keep]:
                with suppress(OSError):
                    os.replace(old, staging / old.name)  # half deleted, it would look like one
    except (OSError, SafetensorError, MinigptError) as error:
        raise MinigptError(
            f"the checkpoint of step {state.step} could not be written to {directory} "
            f"({reason(error)}): those already there are whole, so make room and resume"
        ) from error


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint of the last step; None when there is none."""
    return next(reversed(_all(directory)), None)


@dataclass
class Saved:
    """A checkpoint that was read, and is still to be fitted to the model of this run."""

    path: Path
    state: State
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # none when it was saved before the first step

    def restore_weights(self, model: GPT) -> None:
        """Give a model its weights. All tensors are checked first, the moments too.

        Raises:
            MinigptError: for tensors of other names or shapes than this run saves.
        """
        ours = dict(model.state_dict())
        for name, tensor in self.weights.items():
            if name not in ours or ours[name].shape != tensor.shape:
                raise self._does_not_fit(name)
        for name, parameter in trained(model).items() if self.moments else ():
            for key in ADAM:
                tensor = self.moments.get(f"{name}.adam.{key}", torch.empty(0, dtype=torch.bool))
                shape = () if key == "step" else parameter.shape
                if tensor.shape != shape or tensor.dtype != torch.float32:
                    raise self._does_not_fit(f"{name}.adam.{key}")
        model.load_state_dict(self.weights, strict=False)

    def restore_optimizer(
        self, model: GPT, optimizer: torch.optim.Optimizer, scaler: GradScaler
    ) -> None:
        """Give the optimizer of a model, which may be sharded by now, its moments."""
        if self.state.scaler:
            try:
                scaler.load_state_dict(self.state.scaler)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise self._does_not_fit(f"scaler: {error}") from error
        for name, parameter in trained(model).items() if self.moments else ():
            for key in ADAM:
                value = self.moments[f"{name}.adam.{key}"]
                optimizer.state[parameter][key] = (
                    value.to(parameter.device) if key == "step" else scatter_like(value, parameter)
                )

    def _does_not_fit(self, what: str) -> MinigptError:
        return MinigptError(
            f"{self.path} does not fit the model of this run ({what}): delete it, and the one "
            f"before it counts"
        )


def trained(model: GPT) -> dict[str, nn.Parameter]:
    """The parameters that change, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gather_moments(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, each tensor whole. Every process must ask."""
    return {
        f"{name}.adam.{key}": gather(value)
        for name, parameter in trained(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def read_state(path: Path) -> tuple[State, TrainConfig]:
    """How far a checkpoint's run was, and its configuration.

    Raises:
        MinigptError: when it is damaged.
    """
    try:
        content = read_json(path / STATE, LARGEST_STATE, "it is damaged")
        before = configure(TrainConfig(), content.pop("config"), str(path / STATE))
        state = State(**content)
        state.check(before.steps)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MinigptError) as error:
        raise _damaged(path, error) from error
    return state, before


def check_same_run(path: Path, state: State, before: TrainConfig, config: TrainConfig) -> None:
    """Refuse a configuration with which the run of a checkpoint cannot be continued.

    Raises:
        MinigptError: then; it names the fields that differ.
    """
    changed = differences(before, config)
    if changed:
        raise MinigptError(
            f"{path} is of another run: {'; '.join(changed)}; needed the same to resume: train "
            f"with those values, or into another directory"
        )
    if config.steps < state.step:
        raise MinigptError(
            f"{path} has taken {state.step} steps and steps is {config.steps}: give more to go on"
        )


def load_checkpoint(path: Path, config: TrainConfig) -> Saved:
    """Read a checkpoint that `save_checkpoint` wrote.

    Raises:
        MinigptError: when it is damaged, or of a run that was configured differently: the fields
            that differ are named.
    """
    state, before = read_state(path)
    try:
        weights.check_header(path / TENSORS)
        tensors = load_file(path / TENSORS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise _damaged(path, error) from error
    check_same_run(path, state, before, config)
    moments = {name: tensors.pop(name) for name in list(tensors) if ".adam." in name}
    return Saved(path, state, {**weights.load(path)[1], **tensors}, moments)


def _damaged(path: Path, error: Exception) -> MinigptError:
    return MinigptError(
        f"{path} is not a whole checkpoint of a training run ({reason(error)}): delete it, and the "
        f"one before it counts"
    )


def _all(directory: Path) -> list[Path]:
    """The checkpoints in a directory, by step."""
    if not directory.is_dir():
        return []
    found = {int(name[1]): p for p in directory.iterdir() if (name := _NAME.fullmatch(p.name))}
    return [found[step] for step in sorted(found)]
