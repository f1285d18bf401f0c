"""Checkpoints of training: whole or not there; a resumed run is the run that was not stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.checkpoint import weights
from minigpt.tokenizer import byte_tokenizer
from minigpt.training import state as checkpoint
from minigpt.training.curves import read
from minigpt.training.data import Corpus
from minigpt.training.loop import CHECKPOINTS, Run, train
from minigpt.training.parallel import Processes
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text

CONFIG = TrainConfig(
    n_layer=1, n_head=2, n_embd=16, n_positions=8, dropout=0.2, steps=60, batch_size=4, warmup=5,
    accumulate=2, evaluate_every=7, evaluate_windows=5, save_every=3, precision="float16",
)  # fmt: skip
forkserver = get_context("forkserver")  # each child a real process, without a second import
forkserver.set_forkserver_preload(["minigpt.training.loop", "torch._dynamo"])


def source(length: int = 500) -> Text:
    training, rest = (np.arange(n, dtype=np.uint16) % 7 for n in (length, 60))
    return Text(Corpus(byte_tokenizer(), training, rest, 60), 8, seed=1)


def go(directory: Path, config: TrainConfig = CONFIG, resume: bool = True, die_at: int = 0) -> GPT:
    """Train, or go on; as process, die at the n-th time that files are flushed or renamed."""
    torch.set_num_threads(1)
    if die_at:
        die_in_a_save(die_at)
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 8, 16, 1, 2, resid_pdrop=0.2))
    train(model, source(), config, directory, resume=resume)
    return model


def die_in_a_save(when: int) -> None:
    calls = iter(range(1, 10**9))

    def dying(call, *arguments):
        if next(calls) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    for name in ("fsync", "replace"):
        setattr(os, name, partial(dying, getattr(os, name)))


def child(directory: Path, die_at: int = 0, config: TrainConfig = CONFIG):
    process = forkserver.Process(target=go, args=(directory, config, True, die_at))
    process.start()
    return process


def outcome(directory: Path) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]], bytes]:
    """What a run leaves: its last weights, its losses, and its best model."""
    last = checkpoint.newest_checkpoint(directory / CHECKPOINTS)
    losses = [(row["step"], row.get("loss") or row["held_out"]) for row in read(directory)]
    return weights.load(last)[1], losses, (directory / "model.safetensors").read_bytes()


def equal(one: Path, two: Path) -> bool:
    (a, *others), (b, *theirs) = outcome(one), outcome(two)
    return others == theirs and a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    process = child(directory)
    process.join()
    assert process.exitcode == 0
    return directory


class TestARunThatIsKilled:
    def test_at_any_moment_ends_as_if_it_had_not_been(self, uninterrupted, tmp_path):
        kills, rng = 0, random.Random(0)
        for _ in range(200):
            process, steps = child(tmp_path), len(read(tmp_path))
            while process.is_alive() and len(read(tmp_path)) <= steps:  # until it moves on
                time.sleep(0.005)
            process.join(rng.uniform(0, 0.1) if kills < 5 else None)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            kills += 1
        assert kills >= 3
        assert equal(tmp_path, uninterrupted)

    def test_in_the_midst_of_a_save_ends_as_if_it_had_not_been(self, uninterrupted, tmp_path):
        exits = []
        for when in (*range(1, 44, 6), 0):
            process = child(tmp_path, die_at=when)
            process.join()
            exits.append(process.exitcode)
        assert exits == [-signal.SIGKILL] * 8 + [0]
        assert equal(tmp_path, uninterrupted)

    def test_leaves_nothing_of_unfinished_saves_once_it_is_resumed(self, tmp_path):
        process = child(tmp_path, die_at=5)
        process.join()
        assert any(p.name.startswith(".saving-") for p in tmp_path.rglob("*"))
        go(tmp_path)
        assert not any(p.name.startswith(".saving-") for p in tmp_path.rglob("*"))


class TestResuming:
    def test_a_finished_run_changes_nothing(self, uninterrupted):
        before = outcome(uninterrupted)
        go(uninterrupted)
        assert outcome(uninterrupted)[1:] == before[1:]

    def test_without_a_checkpoint_begins(self, uninterrupted, tmp_path):
        go(tmp_path)
        assert equal(tmp_path, uninterrupted)

    def test_restores_the_scale_of_float16(self, tmp_path):
        config = replace(CONFIG, steps=3)
        go(tmp_path, config)
        model, alone = GPT(GPTConfig(257, 8, 16, 1, 2)), Processes(torch.device("cpu"))
        resumed = Run(model, source(), config, tmp_path, alone, resume=True)
        assert resumed.scaler.state_dict()["_growth_tracker"] == 3  # steps without an overflow

    def test_another_run_names_the_fields_that_differ(self, uninterrupted):
        config = replace(CONFIG, learning_rate=1.0, task="copying", keep=7)
        with pytest.raises(MinigptError) as told:
            go(uninterrupted, config)
        assert "task was '' and is 'copying'; learning_rate was 0.002 and is 1.0" in str(told.value)
        assert "keep" not in str(told.value)  # which may change

    def test_other_data_are_refused(self, uninterrupted):
        with pytest.raises(MinigptError, match="the data have changed since"):
            train(GPT(CONFIG.shape(257, None)), source(501), CONFIG, uninterrupted, resume=True)

    @pytest.mark.parametrize("file", [checkpoint.STATE, checkpoint.TENSORS])
    def test_a_damaged_checkpoint_is_told(self, tmp_path, file):
        config = replace(CONFIG, steps=3)
        go(tmp_path, config)
        path = checkpoint.newest_checkpoint(tmp_path / CHECKPOINTS) / file
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(MinigptError, match="is not a whole checkpoint of a training run"):
            go(tmp_path, config)


class TestACheckpoint:
    def test_is_kept_with_the_one_before_and_no_more(self, uninterrupted):
        names = sorted(path.name for path in (uninterrupted / CHECKPOINTS).iterdir())
        assert names == ["step-00000057", "step-00000060"]

    def test_appears_in_one_step_and_not_before(self, tmp_path, monkeypatch):
        def refuse(source, target):
            if "step-" in str(target):
                raise OSError("no")
            move(source, target)

        move = os.replace
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(MinigptError, match="the checkpoint of step 3 could not be written"):
            go(tmp_path)
        assert list((tmp_path / CHECKPOINTS).iterdir()) == []

    def test_holds_a_plain_model_and_the_configuration(self, uninterrupted):
        path = checkpoint.newest_checkpoint(uninterrupted / CHECKPOINTS)
        assert GPT.from_pretrained(path).config.n_embd == 16
        assert TrainConfig(**json.loads((path / "state.json").read_text())["config"]) == CONFIG

    def test_holds_nothing_that_can_run(self, uninterrupted):
        files = checkpoint.newest_checkpoint(uninterrupted / CHECKPOINTS).iterdir()
        assert {path.suffix for path in files} <= {".json", ".safetensors", ".toml", ".txt"}

    def test_survives_a_disk_that_is_full_when_the_next_is_saved(self, tmp_path, monkeypatch):
        go(tmp_path, replace(CONFIG, steps=3))
        save_file = checkpoint.save_file

        def full(tensors, path, *rest):
            save_file(tensors, path, *rest)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", full)
        config, state = replace(CONFIG, steps=3), checkpoint.State(step=9)
        model = GPT.from_pretrained(tmp_path)
        tensors = {n: p for n, p in model.state_dict().items() if n != "lm_head.weight"}
        with pytest.raises(MinigptError, match=r"step 9 could not .*No space left.*make room"):
            checkpoint.save_checkpoint(
                tmp_path / CHECKPOINTS, state, config, model.config, tensors, {}, lambda place: None
            )
        assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000003"]
        go(tmp_path, config)
