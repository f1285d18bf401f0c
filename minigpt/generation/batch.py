"""Many texts at once, each as it would come out alone.

Decoding one token reads all weights, whether for one row or for eight; a batch shares that. Rows
sit in one cache at positions of their own, so prompts of different lengths need no padding, and a
row that is finished leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.generation.decoding import Generation, Row, choose_on_device
from minigpt.generation.device_steps import AHEAD, steps_for
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT, require_model
from minigpt.numerics.base import whole_blocks
from minigpt.numerics.copies import recheck
from minigpt.support.checks import is_whole, listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.wording import counted

MOST_ROWS = 2**16


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
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
    seed: int | Sequence[int] = 0,
    n: int = 1,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    kind: str = "static",
    on_token: Callable[[int, int], object] | None = None,
    top_log_probabilities: int | None = None,
) -> list[Generation]:
    """Continue several prompts side by side, `n` times each.

    Every row has its own random draws: with exact numerics its text is that of
    `generate(model, prompt, ..., seed=its seed)`, whatever the other rows are.

    Each prompt is prefilled once, and its `n` rows begin as copies of that cache.

    Args:
        model: decodes in evaluation mode; its mode is restored afterwards.
        prompts: tokens of each, of any lengths; empty starts from the end-of-text token.
        max_new_tokens: at most so many for each.
        temperature, ..., logits_processor: how tokens are chosen, see `Sampler`; temperature 0 is
            greedy.
        seed: of the first row, the next ones count up from there; or one for each row.
        n: texts per prompt.
        stop_tokens, policy: see `generate`.
        kind: of the cache; with "paged", rows share the memory of their prompt.
        on_token: called with the row and the token, as they come.
        top_log_probabilities: see `generate`.

    Returns:
        len(prompts) x n generations, those of the first prompt first. Their times are the batch's.

    Raises:
        MinigptError: for arguments out of range, before any work is done.
    """
    n = whole("n", n)
    require_model(model)
    recheck(model)
    prompts = listed(prompts)
    if not prompts:
        raise MinigptError("no prompts were given, needed at least one")
    if any(isinstance(prompt, (int, str)) for prompt in prompts):
        raise MinigptError(
            "prompts is a list of single tokens or texts, needed a list of lists of token ids"
        )
    count = len(prompts) * n
    if count > MOST_ROWS:
        raise MinigptError(f"{count} rows were asked for, needed at most {MOST_ROWS} at once")
    given = range(seed, seed + count) if is_whole(seed) else seed
    seeds = listed(given, "seed")  # type: ignore[arg-type]  # mypy: still perhaps an int
    if len(seeds) != count:
        raise MinigptError(
            f"seed has {counted(len(seeds), 'number')} for {counted(count, 'row')}, needed one for "
            f"each"
        )
    sampler = Sampler(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens, logits_processor,
    )  # fmt: skip
    rows = [
        Row(
            model,
            prompts[number // n],
            max_new_tokens,
            sampler,
            its_seed,
            stop_tokens,
            policy,
            top_log_probabilities,
        )
        for number, its_seed in enumerate(seeds)
    ]
    if on_token is None:  # nobody waits for each token
        for row in rows:
            row.ahead = AHEAD
    longest = max(len(row.window) for row in rows) + max_new_tokens
    room = min(model.config.n_positions, whole_blocks(longest))
    _Batch(model, rows, n, model.new_cache(max_length=room, kind=kind), on_token).run()
    return [row.result for row in rows]


@dataclass
class _Batch:
    """The rows that go on, and their cache: row i of the cache belongs to `rows[seated[i]]`."""

    model: GPT
    rows: list[Row]
    n: int  # rows that share a prompt
    prompt: KVCache  # of one row: prompts are prefilled here
    on_token: Callable[[int, int], object] | None
    seated: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def run(self) -> None:
        if not any(row.left for row in self.rows):
            return
        with evaluating(self.model), torch.inference_mode():
            self.cache = self.prompt.expand(len(self.rows))
            for first in range(0, len(self.rows), self.n):
                numbers = self.prefill(range(first, first + self.n))
                self.seated += numbers
                end = len(self.seated)
                self.cache.adopt(range(end - len(numbers), end), self.prompt)
            if self.seated:
                self.keep(range(len(self.seated)))
            while any(self.rows[number].left for number in self.seated):
                self.step()

    def prefill(self, numbers: Sequence[int]) -> list[int]:
        """Compute one window, shared by these rows; which of them go on after its next token?"""
        numbers = [number for number in numbers if self.rows[number].goes_on()]
        if not numbers:
            return []
        self.prompt.reset()
        tokens = torch.tensor([self.rows[numbers[0]].window], device=self.model.device)
        (logits,) = self.model.next_logits(tokens, cache=self.prompt)
        return [number for number in numbers if self.take(number, logits)]

    def step(self) -> None:
        """One token for every row; or several, where a step is recorded and nobody waits."""
        for seat, number in enumerate(self.seated):
            row = self.rows[number]
            if row.left and len(row.window) > row.limit and self.prefill([number]):
                self.cache.adopt([seat], self.prompt)  # at the context's end, begun anew
        going = [seat for seat, number in enumerate(self.seated) if self.rows[number].left]
        if not going:
            return
        steps = steps_for(self.model, self.cache)
        # A recorded step is one of so many rows: there, those that ended leave when half have.
        if steps is None or 2 * len(going) <= len(self.seated):
            self.keep(going)
            steps = steps_for(self.model, self.cache)
        rows = [self.rows[number] for number in self.seated]
        if steps is None:
            tokens = torch.tensor([[row.window[-1]] for row in rows], device=self.model.device)
            logits = self.model.next_logits(tokens, cache=self.cache)
        else:
            self.hold_back(rows)
            new = choose_on_device(rows, steps) if rows[0].may_choose_on_device else None
            if new is not None:
                for number, its in zip(self.seated, new, strict=True):
                    for token in its:
                        self.tell(number, token)
                return
            logits = steps.logits([row.window[-1] for row in rows])
        for number, its_logits in zip(self.seated, logits, strict=True):
            if self.rows[number].left:
                self.take(number, its_logits)

    def hold_back(self, rows: list[Row]) -> None:
        """Rows that ended and are still computed must not come to the cache's end first."""
        lengths = self.cache.lengths
        if len(self.cache) > max(n for row, n in zip(rows, lengths, strict=True) if row.left):
            kept = [n if row.left else 0 for row, n in zip(rows, lengths, strict=True)]
            self.cache.truncate(kept)

    def take(self, number: int, logits: Tensor) -> bool:
        """Choose a row's next token; does the row go on?"""
        row = self.rows[number]
        token = row.take(logits)
        if token is not None:
            self.tell(number, token)
        return row.left > 0

    def tell(self, number: int, token: int) -> None:
        """A token has come."""
        result, now = self.rows[number].result, time.perf_counter() - self.began
        result.prefill_seconds = result.prefill_seconds or now
        result.decode_seconds = now - result.prefill_seconds
        if self.on_token is not None:
            self.on_token(number, token)

    def keep(self, seats: Sequence[int]) -> None:
        """Let the other rows leave the batch."""
        if len(seats) < self.cache.batch_size:
            self.cache = self.cache.select(seats)
            self.seated = [self.seated[seat] for seat in seats]
