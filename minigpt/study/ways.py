"""Every way in which the program can compute the logits of one text, held against the plainest.

The plainest is one uncached pass, the reference. `verify` and the invariance matrix both choose
their checks from the methods here; `Check` counts what differs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.cache.kinds import LOSSLESS
from minigpt.cache.kvcache import KVCache
from minigpt.model import GPT

FARTHEST = 2**16 - 1  # units in the last place that are told apart; those beyond count as this many


@dataclass
class Check:
    """One way of computing the logits, against the reference."""

    name: str
    compared: int = 0  # positions, each a row of V logits
    unequal: int = 0
    first: int | None = None  # the first unequal position
    median_ulp: int = 0  # how far apart unequal logits are, in units in the last place: the middle
    # one of all, because a single logit near zero may be millions of tiny units off
    max_difference: float = 0.0
    greedy_changed: int = 0  # positions whose likeliest token is another one

    def __post_init__(self) -> None:
        self._distances = torch.zeros(FARTHEST + 1, dtype=torch.int64)  # [d]: so many d ULP apart

    @property
    def equal(self) -> bool:
        return self.compared > 0 and self.unequal == 0

    def compare(self, got: Tensor, want: Tensor, start: int = 0) -> None:
        """Take in logits (T, V) of positions start, start + 1, ... beside the reference's."""
        self.compared += len(want)
        if torch.equal(got, want):
            return
        unequal = (got != want).any(-1)
        self.unequal += int(unequal.sum())
        if self.first is None:
            self.first = start + int(unequal.nonzero()[0])
        got, want = got[unequal], want[unequal]
        self.max_difference = max(self.max_difference, float((got - want).abs().max()))
        self.greedy_changed += int((got.argmax(-1) != want.argmax(-1)).sum())
        distances = ulp_distance(got, want).clamp(max=FARTHEST)[got != want]
        self._distances += torch.bincount(distances, minlength=FARTHEST + 1).cpu()
        below = self._distances.cumsum(0)
        self.median_ulp = int((2 * below >= below[-1]).nonzero()[0])


class Ways:
    """A text and its reference logits; each method compares one other way of computing them.

    Args:
        model: in evaluation mode; call everything in `torch.inference_mode`.
        tokens: (1, T), at least 2 of them.
        rng: draws other texts, lengths of chunks and rows.
    """

    def __init__(self, model: GPT, tokens: Tensor, rng: random.Random) -> None:
        self.model, self.tokens, self.rng = model, tokens, rng
        self.length = tokens.shape[1]  # T
        self.want = model(tokens)[0]  # (T, V)
        self._whole: dict[str, KVCache] = {}  # by kind: a cache that holds all of the text

    def one_by_one(self, check: Check) -> None:
        self._feed(check, self.model.new_cache())

    def chunks(self, check: Check, sizes: Iterable[int]) -> None:
        """A chunk of each size at the end of the text, and two of small ones at its beginning."""
        for size in sizes:
            self._feed(check, self.after(max(0, self.length - size)), [size])
            if size < 64:  # a long one at the beginning is no more than a prompt
                self._feed(check, self.model.new_cache(), [size, size], end=2 * size)

    def random_chunks(self, check: Check) -> None:
        for _ in range(3):
            self._feed(check, self.model.new_cache(), self._lengths(3))

    def prompts(self, check: Check, lengths: Iterable[int]) -> None:
        """A prompt and two steps, in a cache that has room for the text and no more."""
        for length in lengths:
            cache = self.model.new_cache(max_length=self.length)
            logits = self.model.next_logits(self.tokens[:, :length], cache=cache)
            check.compare(logits, self.want[length - 1 : length], length - 1)
            self._feed(check, cache, end=length + 2)

    def prefixes(self, check: Check, lengths: Iterable[int]) -> None:
        """Beginnings of the text, uncached."""
        for length in lengths:
            check.compare(self.model(self.tokens[:, :length])[0], self.want[:length])

    def batches(self, check: Check, sizes: Sequence[int], head: int) -> None:
        """In a random row of a batch: the first `head` tokens uncached, and all of them cached.

        All but the end is cached in a batch of the first size; those of other sizes select from it.
        """
        start = max(1, self.length - 4)
        beginning: KVCache | None = None
        for size in sizes:
            row = self.rng.randrange(size)
            others = self._texts(size - 1)
            batch = torch.cat([others[:row], self.tokens, others[row:]])  # (size, T)
            check.compare(self.model(batch[:, :head])[row], self.want[:head])
            if beginning is None:
                beginning, ours = self.model.new_cache(batch_size=size), row
                logits = self.model(batch[:, :start], cache=beginning)[row]
                check.compare(logits, self.want[:start])
            theirs = (ours + 1) % beginning.batch_size
            cache = beginning.select([ours if n == row else theirs for n in range(size)])
            for low, high in _spans(start, self.length, [3]):
                logits = self.model(batch[:, low:high], cache=cache)[row]
                check.compare(logits, self.want[low:high], low)

    def ragged(self, check: Check, lengths: Sequence[int], steps: Iterable[int], kind: str) -> None:
        """Rows that are at different positions of the text and go on together."""
        cache = self.after(self.length, kind).expand(len(lengths))
        cache.truncate(lengths)
        for count in steps:
            spans = [slice(start, start + count) for start in cache.lengths]
            logits = self.model(torch.cat([self.tokens[:, span] for span in spans]), cache=cache)
            for row, span in zip(logits, spans, strict=True):
                check.compare(row, self.want[span], span.start)

    def random_rows(self, check: Check) -> None:
        lengths = [self.rng.randrange(self.length) for _ in range(4)]
        self.ragged(check, lengths, [1] * min(4, self.length - max(lengths)), "paged")

    def kinds(self, check: Check, lengths: Sequence[int] | None = None) -> None:
        """The other lossless caches, forked after each chunk."""
        for kind in LOSSLESS[1:]:
            cache = self.model.new_cache(kind=kind)
            for low, high in _spans(0, self.length, lengths or self._lengths(3)):
                logits = self.model(self.tokens[:, low:high], cache=cache)[0]
                check.compare(logits, self.want[low:high], low)
                cache = cache.fork()

    def truncated(self, check: Check) -> None:
        """A cache that went astray and came back, three times."""
        cache = self.after(self.length)
        for _ in range(3):
            keep = self.rng.randrange(self.length)
            cache.truncate(keep)
            detour = self._texts(1)[:, : max(1, (self.length - keep) // 2)]
            self.model(detour, cache=cache)
            cache.truncate(keep)
            self._feed(check, cache, self._lengths(1))

    def forked(self, check: Check) -> None:
        """A fork whose parent went another way."""
        half = self.length // 2
        parent = self.after(half)
        child = parent.fork()
        self.model(self._texts(1)[:, half:], cache=parent)
        self._feed(check, child, [1, 2, 3] * self.length)

    def threads(self, check: Check, counts: Iterable[int]) -> None:
        """Uncached, and half of the text from the cache and then a chunk and two steps."""
        half, before = self.length // 2, torch.get_num_threads()
        start = self.after(half)
        try:
            for count in counts:
                torch.set_num_threads(count)
                check.compare(self.model(self.tokens)[0], self.want)
                self._feed(check, start.fork(), [17], end=half + 19)
        finally:
            torch.set_num_threads(before)

    def capacities(self, check: Check, capacities: Iterable[int]) -> None:
        """Caches that end before the text does, filled to the brim."""
        for capacity in capacities:
            cache = self.model.new_cache(max_length=capacity)
            self._feed(check, cache, [capacity - 3], end=capacity)

    def full(self, check: Check) -> None:
        """The whole text at once, and its last token alone, in caches that are then full."""
        self._feed(check, self.model.new_cache(max_length=self.length), [self.length])
        self._feed(check, self.after(self.length - 1))

    def after(self, length: int, kind: str = "static") -> KVCache:
        """A cache with as much room as the text needs that holds its first `length` tokens."""
        if kind not in self._whole:
            self._whole[kind] = self.model.new_cache(max_length=self.length, kind=kind)
            self.model.next_logits(self.tokens, cache=self._whole[kind])
        cache = self._whole[kind].fork()
        cache.truncate(length)
        return cache

    def _feed(
        self, check: Check, cache: KVCache, lengths: Sequence[int] = (), end: int | None = None
    ) -> None:
        """Go on with a cache in chunks of these lengths, then one by one, up to `end`."""
        for low, high in _spans(len(cache), min(end or self.length, self.length), lengths):
            logits = self.model(self.tokens[:, low:high], cache=cache)[0]
            check.compare(logits, self.want[low:high], low)

    def _lengths(self, parts: int) -> list[int]:
        """Random lengths, enough for the text, of at most this part of it."""
        most = max(1, self.length // parts)
        return [self.rng.randint(1, most) for _ in range(self.length)]

    def _texts(self, count: int) -> Tensor:
        """Other texts of the same length: (count, T)."""
        return random_tokens(self.model, self.rng, count, self.length)


def random_tokens(model: GPT, rng: random.Random, rows: int, length: int) -> Tensor:
    """(rows, length) of the model's vocabulary, on its device."""
    ids = [rng.randrange(model.config.vocab_size) for _ in range(rows * length)]
    return torch.tensor(ids, dtype=torch.int64, device=model.device).view(rows, length)


def _spans(start: int, end: int, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut [start, end) into pieces of these lengths, and of 1 when there are no more."""
    rest = iter(lengths)
    while start < end:
        stop = min(end, start + next(rest, 1))
        yield start, stop
        start = stop


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """How many steps from one number of their dtype to the next lead from a to b, elementwise."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]

    def ordered(x: Tensor) -> Tensor:  # the bits as integers that count up from the smallest float
        bits = x.contiguous().view(integer).long()
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    return (ordered(a) - ordered(b)).abs()
