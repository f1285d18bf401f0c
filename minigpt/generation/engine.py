"""Texts that come and go, side by side, each what it would be alone; long, because a scheduler is
best read in one piece.

As servers do it: requests join and leave between two steps (continuous batching, Yu et al. 2022),
long prompts are computed in chunks between the steps of everyone else (Agrawal et al. 2023), and
keys and values lie in pages that are found by their content (`cache/paged.py`). What servers do not
promise holds here under exact numerics: whoever shares a text's batch, pages or beginning, its
logits are those of `generate`, bit for bit. `Engine.step` is the scheduler: read that first.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.cache.origin import Origin
from minigpt.cache.paged import PagedCache
from minigpt.generation.decoding import Row
from minigpt.generation.device_steps import steps_for
from minigpt.generation.request import Counts, Request, RequestStream, Work
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT, require_model
from minigpt.numerics.copies import recheck
from minigpt.support.checks import is_number, whole
from minigpt.support.errors import MinigptError
from minigpt.support.memory import available_memory
from minigpt.support.modes import evaluating

REMEMBERED = 2**16  # pieces of work in the record


class Choice(NamedTuple):
    """A token that was chosen on the device, and its row's generator after that."""

    token: int
    state: Tensor


class Engine:
    """Continues many texts, which may come at any time, side by side.

    It belongs to one thread. The model may be trained or changed between two steps: what the old
    weights computed is then computed again.

    Args:
        model: decodes in evaluation mode; its mode is restored after each step.
        memory: bytes for keys and values; None: enough for `batch` texts of the whole context.
        batch: texts that are decoded side by side; more wait.
        chunk: tokens of prompts that a step computes at most: the more, the sooner a first token
            comes, and the longer everyone else waits for the next one.
        page: positions whose keys and values are found and shared together.

    Attributes:
        running, waiting: requests, the oldest first.
        counts: what was done so far.
        record: what was done in each of the last steps, for `plot.timeline`.

    Raises:
        MinigptError: for sizes out of range, or more memory than there is.
    """

    def __init__(
        self,
        model: GPT,
        memory: int | None = None,
        batch: int = 8,
        chunk: int = 128,
        page: int = 16,
    ) -> None:
        require_model(model)
        self.model = model
        self.batch, self.chunk = whole("batch", batch), whole("chunk", chunk)
        self._empty = PagedCache(model.cache_spec, 1, model.config.n_positions, page)
        self._pool, self._page = self._empty.pool, page
        in_page = page * model.cache_spec.bytes_per_token
        context = self._pages(model.config.n_positions)
        memory = batch * context * in_page if memory is None else whole("memory", memory, in_page)
        free = available_memory(model.device)
        if free is not None and memory > free:
            raise MinigptError(
                f"the engine was to keep {memory:,} bytes of keys and values, but {free:,} are "
                f"free: give a smaller memory"
            )
        self._pool.grow(memory // in_page, self._empty)
        self.pages = self._pool.available
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.counts = Counts()
        self.record: deque[Work] = deque(maxlen=REMEMBERED)
        self._rows: list[Request] = []  # those being decoded: row i of `_cache` is `_rows[i]`'s
        self._cache: PagedCache | None = None
        self._origin: Origin | None = None  # of all that is in pages
        self._numbers = count()
        self._layers = list(model.modules())
        self._busy = False

    def __repr__(self) -> str:
        held = self.pages - self._pool.available
        return (
            f"Engine({len(self.running)} of {self.batch} rows, {len(self.waiting)} waiting, "
            f"{held} of {self.pages} pages held, {len(self._pool.idle)} kept for later)"
        )

    # --- what users call --------------------------------------------------------------------------

    def submit(
        self,
        ids: Sequence[int],
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        no_repeat_ngram_size: int = 0,
        min_new_tokens: int = 0,
        logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
        policy: str = "stop",
        top_log_probabilities: int | None = None,
        max_seconds: float | None = None,
        on_token: Callable[[int], object] | None = None,
        on_logits: Callable[[Tensor], object] | None = None,
    ) -> Request:
        """Let a text be continued; nothing is computed yet.

        Args:
            ids, ..., top_log_probabilities: see `generate`.
            max_seconds: end it so long after the submission, between two steps.
            on_token: called with each token as it comes.
            on_logits: called with the logits (V,) that a token is about to be chosen from, which it
                may change in place. What either raises ends this request, and no other.

        Raises:
            MinigptError: for arguments out of range, and for a text that could never fit in this
                engine's memory.
        """
        sampler = Sampler(
            temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
            frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens, logits_processor,
        )  # fmt: skip
        row = Row(
            self.model, ids, max_new_tokens, sampler, seed, stop_tokens, policy,
            top_log_probabilities,
        )  # fmt: skip
        recheck(self.model)
        if max_seconds is not None and not (is_number(max_seconds) and max_seconds > 0):
            raise MinigptError(f"max_seconds is {max_seconds!r}, needed a positive number")
        longest = min(len(row.window) + row.left - 1, row.limit)  # the last token has no keys
        if self._pages(longest) > self.pages:
            raise MinigptError(
                f"this text may take {longest} positions, which are {self._pages(longest)} pages, "
                f"but the engine's memory has {self.pages}: ask for fewer tokens, or give the "
                f"engine more memory"
            )
        request = Request(next(self._numbers), row, max_seconds, on_token, on_logits)
        if row.goes_on():
            self.waiting.append(request)
        else:
            request.done = True
        return request

    def cancel(self, request: Request) -> None:
        """End a request now; its pages are free at once. One that is done stays as it is.

        Raises:
            MinigptError: for a request of another engine.
        """
        if request.done:
            return
        if request not in self.running and request not in self.waiting:
            raise MinigptError(f"{request!r} is not one of this engine's: cancel it where it is")
        self._finish(request, "cancelled")

    def stream(self, request: Request) -> RequestStream:
        """Its tokens as they come, from the first one on; then whatever exception ended it."""
        return RequestStream(request, self.step)

    def run(self) -> None:
        """Step until every request is done."""
        while self.step():
            pass

    # --- the scheduler ----------------------------------------------------------------------------

    def step(self) -> bool:
        """Some tokens of prompts, and the next token of every text that is prefilled.

        Returns:
            Is there more to do?

        Raises:
            MinigptError: when called inside of a step.
        """
        with self._one_at_a_time():
            self._look_around()
            self.counts.steps += 1
            with evaluating(self.model, self._layers), torch.inference_mode():
                # Prompts, first come first served. So many tokens and no more, since everyone else
                # waits for their next one meanwhile.
                budget = self.chunk
                while budget:
                    request = next((r for r in self.running if r.pending), None)
                    if request is None:
                        if not self._admit():  # nobody waits, or there is no room
                            break
                        continue
                    tokens = min(budget, request.pending)
                    if tokens < min(request.pending, self.chunk // 4) and budget < self.chunk:
                        break  # a small rest of the budget is not worth a pass
                    if not self._make_room(request, tokens):
                        break  # it was itself the youngest, and went back
                    self._prefill(request, tokens)
                    budget -= tokens
                # Then everyone who is prefilled, in one pass. When there are not enough pages for
                # that, the youngest text gives up its own and is computed again later, to the same
                # bits. The oldest never does, and fits when it is alone: so everyone's turn comes.
                while sum(self._missing(r, 1) for r in self._ready()) > self._pool.available:
                    self._put_back(self.running[-1])
                decoded = self._decode(self._ready())
            self._choose(decoded)
            return bool(self.running or self.waiting)

    def _ready(self) -> list[Request]:
        return [request for request in self.running if not request.pending]

    def _admit(self) -> bool:
        """Let the oldest that waits begin, if there is a row and there are pages for its text.

        Pages for what the others have not prefilled yet are not for it: it would be put back soon.
        """
        if not self.waiting or len(self.running) == self.batch:
            return False
        request = self.waiting[0]
        self._begin(request)
        expected = sum(self._missing(r, r.pending + 1) for r in (*self.running, request))
        if self.running and expected > self._pool.available:
            self._release(request)
            return False
        self.counts.reused += request.held
        if not request.tokens:
            request.result.reused = request.held
        request.slot = min(set(range(self.batch)) - {other.slot for other in self.running})
        self.waiting.popleft()
        insort(self.running, request, key=lambda request: request.number)
        return True

    def _make_room(self, request: Request, tokens: int) -> bool:
        """Put the youngest back until so many tokens of this one fit; False: it was itself."""
        while self._missing(request, tokens) > self._pool.available:
            youngest = self.running[-1]
            self._put_back(youngest)
            if youngest is request:
                return False
        return True

    def _put_back(self, request: Request) -> None:
        """Take its pages away; it waits, before those who came later, to be computed again."""
        self._note(request, "preempted", 0)
        self.counts.preemptions += 1
        request.preemptions += 1
        self._release(request)
        self.running.remove(request)
        insort(self.waiting, request, key=lambda request: request.number)

    def _look_around(self) -> None:
        """End what took too long; forget what other weights, numerics or kernels computed."""
        now = time.perf_counter()
        for request in (*self.running, *self.waiting):
            limit = request.max_seconds
            if limit is not None and now - request.submitted > limit:
                self._finish(request, "time")
        origin = Origin.of(self.model)
        if origin != self._origin:
            while self.running:
                self._put_back(self.running[-1])
            self._pool.forget(list(self._pool.names))
            self._origin = origin

    # --- the work ---------------------------------------------------------------------------------

    def _prefill(self, request: Request, tokens: int) -> None:
        """Compute keys and values of the next so many tokens; the logits are of no interest yet."""
        assert request.cache is not None
        new = request.row.window[request.held : request.held + tokens]
        self.model.next_logits(self._tensor([new]), cache=request.cache)
        request.cache.publish()
        request.held += tokens
        self.counts.prefilled += tokens
        self._note(request, "prefill", tokens)

    def _decode(self, ready: list[Request]) -> list[tuple[Request, Tensor, Choice | None]]:
        """The last token of each text, in one pass: the logits (V,) of what follows it, and what
        that is if it was chosen already."""
        if not ready:
            return []
        self._join([request for request in ready if request.cache is not None])
        assert self._cache is not None
        last = [request.row.window[-1] for request in self._rows]
        steps = steps_for(self.model, self._cache)
        if steps is None:
            logits = self.model.next_logits(self._tensor([[n] for n in last]), cache=self._cache)
            choices: list[Choice | None] = [None] * len(last)
        else:
            logits = steps.logits(last)
            choices = self._choose_on_device(logits)
        self._cache.publish()
        for request in self._rows:
            request.held += 1
            self._note(request, "decode", 1)
        self.counts.decoded += len(self._rows)
        return list(zip(self._rows, logits, choices, strict=True))

    def _choose_on_device(self, logits: Tensor) -> list[Choice | None]:
        """For everyone whose next token depends on its logits alone and who shows them to nobody,
        with one look for each way of choosing. What is no number is left to be told of later."""
        choices: list[Choice | None] = [None] * len(self._rows)
        sound = logits.amax(-1).isfinite().tolist()
        ways: dict[Sampler, list[int]] = {}
        for n, request in enumerate(self._rows):
            if sound[n] and request.on_logits is None and request.row.may_choose_on_device:
                ways.setdefault(request.row.sampler, []).append(n)
        for sampler, places in ways.items():
            rows = [self._rows[n].row for n in places]
            before = [row.generator.get_state() for row in rows]
            noise = None
            if sampler.draws:
                noise = torch.stack([row.noise() for row in rows]).to(logits.device)
            tokens = sampler.pick(logits[places], noise).tolist()
            for n, row, token, state in zip(places, rows, tokens, before, strict=True):
                choices[n] = Choice(token, row.generator.get_state())
                row.generator.set_state(state)  # nothing is drawn before the token is taken
        return choices

    def _choose(self, decoded: list[tuple[Request, Tensor, Choice | None]]) -> None:
        """Everyone's next token. Here users' functions run, and may submit or cancel as well."""
        try:
            for request, logits, choice in decoded:
                if not request.done:
                    self._take(request, logits, choice)
        finally:  # also when Ctrl-C came in between
            for request, *_ in decoded:
                if not request.done and request.pending:
                    # The window moved at the context's end, or no token was chosen: begin anew.
                    self._release(request)
                    self._begin(request)

    def _take(self, request: Request, logits: Tensor, choice: Choice | None) -> None:
        row = request.row
        try:
            if request.on_logits is not None:
                logits = logits.clone()  # not to be changed for anyone else
                request.on_logits(logits)
            if choice is None:
                token = row.take(logits)
            else:
                row.generator.set_state(choice.state)
                token = row.accept(choice.token)
            if token is not None:
                request.times.append(time.perf_counter() - request.submitted)
                row.result.prefill_seconds = request.times[0]
                row.result.decode_seconds = request.times[-1] - request.times[0]
                if request.on_token is not None:
                    request.on_token(token)
            if not request.done and not row.goes_on():
                self._finish(request, row.result.finish_reason)
        except Exception as error:  # a user's function may raise anything: it is this request's
            if not request.done:
                self._finish(request, "error", error)

    def _finish(self, request: Request, reason: str, error: Exception | None = None) -> None:
        request.row.finish(reason)
        request.done, request.error = True, error
        self._release(request)
        (self.running if request in self.running else self.waiting).remove(request)

    # --- rows and pages ---------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        """Give it an empty cache, or one with the pages that hold the beginning of its text."""
        assert self._origin is not None
        cache = self._empty.fork()
        assert isinstance(cache, PagedCache)
        request.held = cache.begin(request.row.window[:-1], self._origin)
        request.cache = cache

    def _join(self, new: list[Request]) -> None:
        """Let these into the batch. Their own caches must be gone when it is written, or the pages
        that they go on writing in would be shared, and copied."""
        if not new:
            return
        caches = [] if self._cache is None else [self._cache]
        joined = KVCache.concat([*caches, *(r.cache for r in new if r.cache is not None)])
        assert isinstance(joined, PagedCache)
        self._cache = joined
        self._rows += new
        for request in new:
            request.cache = None

    def _release(self, request: Request) -> None:
        """Drop its pages. Those that are published can be found until others need the memory."""
        if request in self._rows:
            assert self._cache is not None
            keep = [n for n, other in enumerate(self._rows) if other is not request]
            kept = self._cache.select(keep) if keep else None
            assert kept is None or isinstance(kept, PagedCache)
            self._cache = kept
            self._rows.remove(request)
        request.cache = None
        request.held = 0

    def _pages(self, positions: int) -> int:
        return -(-positions // self._page)

    def _missing(self, request: Request, tokens: int) -> int:
        """Pages that it needs for so many more tokens."""
        return self._pages(request.held + tokens) - self._pages(request.held)

    def _tensor(self, tokens: list[list[int]]) -> Tensor:
        return torch.tensor(tokens, device=self.model.device)

    def _note(self, request: Request, what: str, tokens: int) -> None:
        self.record.append(Work(self.counts.steps, request.slot, request.number, what, tokens))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._busy:
            raise MinigptError(
                "this engine is in the middle of a step: submit and cancel in a callback, but do "
                "not step, stream or run there"
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
