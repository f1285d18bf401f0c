"""An entrant in a process of its own, which sleeps on a pipe while the others take their turns.

For programs that bring threads of their own. OpenMP waits actively between two parallel loops only
while a process has no more such threads than there are processors. Once CTranslate2 had run in the
bench's own process, every torch program there took 1.35 times as long, though it was idle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor

from minigpt.bench.entrants import Decode, Entrant, EntrantFailure
from minigpt.bench.measure import Elsewhere

GO = "go"  # run what was prepared, and say the ids and the seconds


class OwnProcess(Entrant):
    """Prepares and runs in a child process, which starts when it is first needed.

    The child takes the time itself, for a question and its answer take 0.1 to 0.3 ms. It ends with
    this object, and with this process, however that ends: its pipe is closed then.

    Args:
        name: of the entrant.
        batches: can it be timed on several rows side by side?
        arguments: of the Python interpreter that is to run `answer`.

    Raises:
        EntrantFailure: when asked for anything, if the child has failed.
    """

    def __init__(self, name: str, batches: bool, *arguments: str) -> None:
        self.name, self.batches, self._arguments = name, batches, arguments

    def prefill(self, tokens: Tensor) -> Decode:
        return self._prepare("prefill", tokens.tolist())

    def decode(self, tokens: Tensor, steps: int) -> Decode:
        return self._prepare("decode", tokens.tolist(), steps)

    def _prepare(self, *question: object) -> Decode:
        self._ask(question)
        return lambda: Elsewhere(*self._ask(GO))

    def _ask(self, question: object) -> Any:
        child, errors = self._child
        assert child.stdin and child.stdout
        try:
            print(json.dumps(question), file=child.stdin, flush=True)
            reply = child.stdout.readline()
        except OSError:  # it ended before it was asked
            reply = ""
        if not reply:
            raise EntrantFailure(self, _why(child, errors))
        return json.loads(reply)

    @cached_property
    def _child(self) -> tuple[subprocess.Popen[str], IO[str]]:
        errors: IO[str] = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        child = subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        weakref.finalize(self, _end, child, errors)  # also when the interpreter ends
        return child, errors


def _why(child: subprocess.Popen[str], errors: IO[str]) -> str:
    """What a child that says no more has failed of: the last it wrote, and how it ended."""
    status = child.wait()
    errors.seek(0)
    lines = errors.read().split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"its process ended with status {status}: {last}"


def _end(child: subprocess.Popen[str], errors: IO[str]) -> None:
    child.communicate()  # nothing: its pipe is closed, and it has ended
    errors.close()


def answer(enter: Callable[[], Entrant]) -> None:
    """In the child: be that entrant until the pipe is closed.

    What libraries print goes to stderr, of which the parent shows the last line if all fails.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    entrant = enter()
    timed: Decode = list
    for line in sys.stdin:
        question = json.loads(line)
        if question == GO:
            began = time.perf_counter()
            reply = [timed(), time.perf_counter() - began]
        else:
            method, tokens, *steps = question
            reply = []
            timed = getattr(entrant, method)(torch.tensor(tokens), *steps)
        print(json.dumps(reply), file=replies, flush=True)
