"""Two processes that train together: the steps of one, wherever the work is divided."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
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
from minigpt.training.loop import CHECKPOINTS, train
from minigpt.training.parallel import Processes, processes
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text

CONFIG = TrainConfig(
    n_layer=2, n_head=2, n_embd=16, n_positions=8, steps=12, batch_size=8, warmup=2, accumulate=2,
    learning_rate=5e-3, evaluate_every=4, save_every=4, keep=3,
)  # fmt: skip
SHARDED = replace(CONFIG, shard=True)
# Two halves of a gradient are added up in another order than one whole. Over a dozen steps AdamW,
# which divides by a gradient's size, turns that into 1e-5 of a loss of 5 nats.
TOLERANCE = 1e-4
forkserver = get_context("forkserver")
forkserver.set_forkserver_preload(["minigpt.training.loop", "torch._dynamo"])


def learn(directory: Path, config: TrainConfig, rank: int = 0, count: int = 1, port: int = 0):
    torch.set_num_threads(1)
    if count > 1:  # what torchrun sets
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    training = (np.arange(500) ** 2 % 97).astype(np.uint16)
    source = Text(Corpus(byte_tokenizer(), training, training[:100], 100), 8, seed=1)
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 8, 16, 2, 2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0))
    with processes(torch.device("cpu")) as ours:
        train(model, source, config, directory, ours, resume=True)


def together(directory: Path, config: TrainConfig, count: int = 2) -> Path:
    """A run of so many processes, each a real one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [forkserver.Process(target=learn, args=(directory, config, rank, count, port))
             for rank in range(count)]  # fmt: skip
    for process in group:
        process.start()
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0] * count
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return together(tmp_path_factory.mktemp("alone"), CONFIG, 1)


@pytest.fixture(scope="module", params=[CONFIG, SHARDED], ids=["DDP", "FSDP2"])
def two(request, tmp_path_factory) -> Path:
    return together(tmp_path_factory.mktemp("two"), request.param)


def losses(directory: Path) -> list[float]:
    return [row.get("loss") or row["held_out"] for row in read(directory)]


def last_weights(directory: Path) -> torch.Tensor:
    path = checkpoint.newest_checkpoint(directory / CHECKPOINTS)
    return torch.cat([tensor.flatten() for tensor in weights.load(path)[1].values()])


def forget_after(directory: Path, step: int) -> None:
    """As if the run had been killed before it saved any later step."""
    for path in (directory / CHECKPOINTS).iterdir():
        if int(path.name.removeprefix("step-")) > step:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


class TestTwoProcesses:
    def test_have_the_loss_curve_of_one(self, two, alone):
        assert len(losses(two)) == 16
        assert losses(two) == pytest.approx(losses(alone), rel=TOLERANCE)

    def test_end_with_the_weights_of_one(self, two, alone):
        torch.testing.assert_close(last_weights(two), last_weights(alone), rtol=1e-2, atol=1e-4)

    def test_leave_a_best_model_that_loads_by_itself(self, two):
        assert GPT.from_pretrained(two).config.n_layer == 2

    def test_may_be_resumed_by_one(self, two, alone, tmp_path):
        forget_after(two, 8)
        together(two, CONFIG, 1)
        assert losses(two) == pytest.approx(losses(alone), rel=TOLERANCE)


@pytest.mark.parametrize("config", [CONFIG, SHARDED], ids=["DDP", "FSDP2"])
def test_one_may_be_resumed_by_two(config, alone, tmp_path):
    together(tmp_path, CONFIG, 1)
    forget_after(tmp_path, 4)
    together(tmp_path, config)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=TOLERANCE)


def test_a_steps_rows_are_divided_without_overlap_and_without_rest():
    shares = [
        row
        for rank in range(3)
        for rows in Processes(torch.device("cpu"), rank, 3).share(24, 2)
        for row in rows
    ]
    assert sorted(shares) == list(range(24))


def test_rows_that_cannot_be_divided_are_refused():
    with pytest.raises(MinigptError, match="among 2 processes with 1 piece each: .* of 2"):
        Processes(torch.device("cpu"), 0, 2).share(9, 1)


def test_torchrun_runs_the_command_and_only_the_first_process_tells(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "minigpt", "train", "--task", "copying", "--steps", "2", "--n-embd", "16",
         "--out", str(tmp_path), "--batch-size", "4"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.count("held-out loss") == 1
    assert done.stderr.count("step 2: held-out loss") == 1
    assert len(read(tmp_path)) == 4
