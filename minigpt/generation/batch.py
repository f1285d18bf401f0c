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
from minigpt.generation.decoding import Generation, Row
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
    longest = max(len(row.window) for row in rows) + max_new_tokens
    room = min(model.config.n_positions, whole_blocks(longest))
    _Batch(model, rows, n, model.new_cache(max_length=room, kind=kind), on_token).run()
    return [row.result for row in rows]


@dataclass
class _Batch:
    """The rows that still go on, and their cache: row i of the cache belongs to `active[i]`."""

    model: GPT
    rows: list[Row]
    n: int  # rows that share a prompt
    empty: KVCache
    on_token: Callable[[int, int], object] | None
    active: list[int] = field(default_factory=list)
    cache: KVCache | None = None
    began: float = field(default_factory=time.perf_counter)

    def run(self) -> None:
        with evaluating(self.model), torch.inference_mode():
            for first in range(0, len(self.rows), self.n):
                self.prefill(range(first, first + self.n))
            while self.active:
                self.step()

    def prefill(self, numbers: Sequence[int]) -> None:
        """Compute one window, shared by these rows, and let those that go on into the batch."""
        numbers = [number for number in numbers if self.rows[number].goes_on()]
        if not numbers:
            return
        cache = self.empty.fork()  # of paged caches, one that shares its pages with the others
        tokens = torch.tensor([self.rows[numbers[0]].window], device=self.model.device)
        (logits,) = self.model.next_logits(tokens, cache=cache)
        numbers = [number for number in numbers if self.take(number, logits)]
        if numbers:
            cache = cache.expand(len(numbers)) if len(numbers) > 1 else cache
            self.cache = cache if self.cache is None else KVCache.concat([self.cache, cache])
            self.active += numbers

    def step(self) -> None:
        """One token for every row."""
        full = [n for n in self.active if len(self.rows[n].window) > self.rows[n].limit]
        self.keep([n for n in self.active if n not in full])
        if self.active:
            tokens = [[self.rows[n].window[-1]] for n in self.active]
            logits = self.model.next_logits(
                torch.tensor(tokens, device=self.model.device), cache=self.cache
            )
            going = [self.take(n, row) for n, row in zip(self.active, logits, strict=True)]
            self.keep([n for n, goes_on in zip(self.active, going, strict=True) if goes_on])
        for number in full:  # at the context's end: finished, or begun anew
            self.prefill([number])

    def take(self, number: int, logits: torch.Tensor) -> bool:
        """Choose a row's next token; does the row go on?"""
        row = self.rows[number]
        token = row.take(logits)
        if token is None:
            return False
        now = time.perf_counter() - self.began
        row.result.prefill_seconds = row.result.prefill_seconds or now
        row.result.decode_seconds = now - row.result.prefill_seconds
        if self.on_token is not None:
            self.on_token(number, token)
        return row.left > 0

    def keep(self, numbers: list[int]) -> None:
        """Let the other rows leave the batch."""
        if self.cache is None or numbers == self.active:
            return
        rows = [self.active.index(number) for number in numbers]
        self.cache = self.cache.select(rows) if rows else None
        self.active = numbers
