"""Six caches that are wrong, each by one plausible mistake, for lesson 2b: find the bug.

All of them let a model write fluent text, and none raises an error. Each differs from a sound kind
of `cache/` by a few lines. Do not read on if you are about to do the lesson.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.growing import GrowingCache, appended
from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.lossy import WindowCache
from minigpt.cache.plain import StaticCache
from minigpt.model import GPT
from minigpt.support.errors import MinigptError

Appended = tuple[Tensor, Tensor, Sequence[int]]


class PositionStays(GrowingCache):
    """Position not advanced: after the first pass, every new token gets the same one."""

    first: Sequence[int] | None = None

    @property
    def lengths(self) -> list[int]:
        if self.first is None and min(self._lengths) > 0:
            self.first = super().lengths
        return list(self.first or super().lengths)


class HeadsMixed(GrowingCache):
    """Concatenated along the heads, where several tokens come at once after others."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Appended:
        if k.shape[2] == 1 or len(self) == 0:
            return super().append(layer, k, v)
        new = torch.stack([k, v])  # (2, B, G, T, D)
        flat = torch.cat([self._data[layer].flatten(2, 3), new.flatten(2, 3)], 2)
        self._data[layer] = flat.unflatten(2, (self.spec.n_kv_head, -1))  # (2, B, G, S, D)
        keys, values = self._data[layer]
        return keys, values, self._lengths


class MaskShifted(StaticCache):
    """The mask of a chunk is off by one: each token sees the one after it as well."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> Appended:
        keys, values, starts = super().append(layer, k, v)
        seen = 1 if k.shape[2] > 1 else 0
        return keys, values, [start + seen for start in starts]


class KeptBetweenPrompts(GrowingCache):
    """Kept between prompts: the memory is the class's, so the next cache begins with it."""

    memory: dict[int, list[Tensor]]  # by batch size

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        self._data = self.memory.setdefault(batch_size, self._data)

    def append(self, layer: int, k: Tensor, v: Tensor) -> Appended:
        before = self._data[layer].shape[-2] - len(self)  # keys that it began with
        starts = [before + length for length in self._lengths]
        self._data[layer] = appended(self._data[layer], torch.stack([k, v]), starts)
        keys, values = self._data[layer]
        return keys, values, starts


class ValuesStay(GrowingCache):
    """Rows are reordered for keys but not for values."""

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        super()._adopt(sources)
        keys = [data[0] for data in self._data]
        super()._adopt([(cache, n % cache.batch_size) for n, (cache, _) in enumerate(sources)])
        self._data = [torch.stack([k, d[1]]) for k, d in zip(keys, self._data, strict=True)]


class WindowForgets(WindowCache):
    """A window that forgets the positions: the next token's is the number of tokens held."""

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int, **_: int) -> None:
        super().__init__(spec, batch_size, capacity, window=24, sinks=4)

    def _empty(self, batch_size: int, capacity: int) -> WindowForgets:
        return WindowForgets(self.spec, batch_size, capacity)

    @property
    def lengths(self) -> list[int]:
        return self._held


class Sound(GrowingCache):
    """Nothing is wrong with this one."""


CASES: dict[str, type[KVCache]] = {
    "A": MaskShifted,
    "B": WindowForgets,
    "C": HeadsMixed,
    "D": ValuesStay,
    "E": PositionStays,
    "F": KeptBetweenPrompts,
}
DIAGNOSES = {
    "position": PositionStays,
    "heads": HeadsMixed,
    "mask": MaskShifted,
    "prompts": KeptBetweenPrompts,
    "rows": ValuesStay,
    "window": WindowForgets,
}


def patient(model: GPT, cache: str | type[KVCache]) -> GPT:
    """The same model, whose `new_cache` makes caches of another class.

    Args:
        model: is not changed; weights are shared.
        cache: one of `CASES`, or a class made like a kind of `cache/`.

    Raises:
        MinigptError: for a case that is not there.
    """
    if isinstance(cache, str):
        if cache not in CASES:
            raise MinigptError(f"there is no case {cache!r}, needed one of {', '.join(CASES)}")
        cache = CASES[cache]
    made = type(cache.__name__, (cache,), {"memory": {}})  # the memory of this patient

    def new_cache(batch_size: int = 1, max_length: int | None = None, **_: Any) -> KVCache:
        room = model.config.n_positions if max_length is None else max_length
        return made(model.cache_spec, batch_size, room)

    sick = copy.copy(model)
    sick.__dict__["new_cache"] = new_cache
    return sick
