"""An entrant in a process of its own: the same answers, its own clock, an end with its parent."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.bench.contest import Contest
from minigpt.bench.entrants import EntrantFailure
from minigpt.bench.measure import interleave
from minigpt.bench.own_process import OwnProcess
from minigpt.bench.speed_sections import measure_prefill

CHILD = """
import os, time
from minigpt.bench import own_process

clock = [0.0]
time.perf_counter = lambda: clock[0]  # seconds of work, and nothing else

class Echo(own_process.Entrant):
    name = "echo"

    def __init__(self):
        print("a library may print")

    def prefill(self, tokens):
        return lambda: [[os.getpid()]]

    def decode(self, tokens, steps):
        clock[0] += 100
        def run():
            clock[0] += 7
            if steps == 13:
                os._exit(3)
            return [[token] * steps for token in tokens[:, -1].tolist()]
        return run

own_process.answer(Echo)
"""
TOKENS = torch.tensor([[1, 2], [3, 4]])


@pytest.fixture(scope="module")
def echo():
    return OwnProcess("echo", True, "-c", CHILD)


def test_it_answers_for_the_tokens_it_was_given(echo):
    assert echo.decode(TOKENS, 3)() == [[2, 2, 2], [4, 4, 4]]


def test_its_time_is_that_of_the_run_without_the_preparation_and_the_pipe(echo):
    samples = interleave({"echo": lambda: echo.decode(TOKENS, 3)}, rounds=2)
    assert samples == {"echo": [7.0, 7.0]}


def test_it_is_another_process(echo):
    assert echo.prefill(TOKENS)() != [[os.getpid()]]


def test_one_that_dies_is_one_sentence():
    child = OwnProcess("echo", True, "-c", CHILD)
    with pytest.raises(EntrantFailure, match="^echo is left out, for its process ended with stat"):
        child.decode(TOKENS, 13)()
    with pytest.raises(EntrantFailure):
        child.decode(TOKENS, 3)


def test_the_sentence_ends_with_the_last_that_it_wrote():
    child = OwnProcess("echo", True, "-c", "raise KeyError('no such checkpoint')")
    with pytest.raises(EntrantFailure, match="status 1: KeyError: 'no such checkpoint'$"):
        child.prefill(TOKENS)


def test_one_that_fails_is_left_out_and_said_so_and_the_others_are_measured(tmp_path, monkeypatch):
    GPT(GPTConfig.preset("nano")).save_pretrained(tmp_path)
    contest = Contest(GPT.from_pretrained(tmp_path), tmp_path, quick=True)
    contest.entrants.append(OwnProcess("broken", True, "-c", "raise KeyError('luck')"))
    section = measure_prefill(contest)
    names = [row.name for row in section.rows]
    assert any("minigpt exact" in name for name in names)
    assert not any("broken" in name for name in names)
    assert (
        "broken is left out, for its process ended with status 1: KeyError: 'luck'" in section.notes
    )


def test_it_ends_with_the_object():
    child = OwnProcess("echo", True, "-c", CHILD)
    ((pid,),) = child.prefill(TOKENS)()
    assert alive(pid)
    del child
    gc.collect()
    assert not alive(pid)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_it_ends_with_a_parent_that_is_killed():
    parent = f"""
import os, signal, torch
from minigpt.bench.own_process import OwnProcess
child = OwnProcess("echo", True, "-c", {CHILD!r})
print(child.prefill(torch.tensor([[1]]))()[0][0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    for _ in range(100):  # of 0.1 s, as it is nobody's child to be waited for
        if not alive(int(done.stdout)):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent by 10 seconds")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one that nobody waited for
    except psutil.NoSuchProcess:
        return False
