"""A text on its way through an engine, and what an engine tells of its work; see `engine.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from minigpt.cache.paged import PagedCache
from minigpt.generation.decoding import Generation, Row


class Work(NamedTuple):
    """Something done for a request in one step."""

    step: int
    slot: int  # its row of the batch
    request: int  # its number
    what: str  # "prefill", "decode", or "preempted"
    tokens: int  # computed


@dataclass
class Counts:
    """What an engine has done so far, in tokens unless it says otherwise."""

    steps: int = 0  # calls of `step`
    prefilled: int = 0  # computed of prompts, and again of texts that were put back
    reused: int = 0  # of these, found in pages instead
    decoded: int = 0  # passed through the model to choose the next one
    preemptions: int = 0  # times that a text was put back

    @property
    def hit_rate(self) -> float:
        """The share of prompts that was found and not computed; 0 before there are any."""
        return self.reused / max(1, self.reused + self.prefilled)


class Request:
    """A text on its way through an engine, from `Engine.submit`.

    Attributes:
        number: counts up; the lower, the earlier it came.
        result: what came so far. Its times count from the submission, and `finish_reason` has three
            values more: "cancelled", "time" (`max_seconds` are over), "error".
        done: is nothing more to come?
        error: the exception that ended it.
        times: when each token came, in seconds after the submission.
        preemptions: how often it was put back.
    """

    def __init__(
        self,
        number: int,
        row: Row,
        max_seconds: float | None,
        on_token: Callable[[int], object] | None,
        on_logits: Callable[[Tensor], object] | None,
    ) -> None:
        self.number = number
        self.result: Generation = row.result
        self.done = False
        self.error: Exception | None = None
        self.times: list[float] = []
        self.preemptions = 0
        self.submitted = time.perf_counter()
        self.max_seconds = max_seconds
        self.on_token, self.on_logits = on_token, on_logits
        # The engine's: where the text is while it runs.
        self.row = row
        self.slot = 0
        self.cache: PagedCache | None = None  # until it joins the batch
        self.held = 0  # positions whose keys and values are in pages

    @property
    def tokens(self) -> list[int]:
        """The new ids so far, without the one that ended it."""
        return self.result.tokens

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None while it goes on."""
        return self.result.finish_reason if self.done else None

    def __repr__(self) -> str:
        state = self.finish_reason or "going on"
        return f"Request({self.number}: {len(self.tokens)} tokens, {state})"

    @property
    def pending(self) -> int:
        """Tokens to prefill: all of the text but the last, which a step of decoding computes."""
        return len(self.row.window) - 1 - self.held


class RequestStream(Iterator[int], AsyncIterator[int]):
    """A request's tokens as they come, for `for` and `async for`.

    Whoever waits for a token drives the engine, for everyone. With `async for`, others get their
    turn between two steps; a step itself holds the event loop up.
    """

    def __init__(self, request: Request, step: Callable[[], object]) -> None:
        self.request = request
        self._step, self._shown = step, 0

    def __next__(self) -> int:
        while self._waits():
            self._step()
        return self._next(StopIteration)

    async def __anext__(self) -> int:
        while self._waits():
            self._step()
            await asyncio.sleep(0)
        return self._next(StopAsyncIteration)

    def _waits(self) -> bool:
        return self._shown == len(self.request.tokens) and not self.request.done

    def _next(self, end: type[Exception]) -> int:
        if self._shown == len(self.request.tokens):
            raise self.request.error or end
        self._shown += 1
        return self.request.tokens[self._shown - 1]
