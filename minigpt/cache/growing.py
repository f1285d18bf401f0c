"""The textbook cache, which concatenates: read `plain.py` first, and see what this costs.

Shapes use the legend of `model.py`: `B` rows, `T` new positions, `G` key/value heads, `S`
positions, `D` head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.plain import write


class GrowingCache(KVCache):
    """The textbook cache: every step concatenates the old keys and the new ones.

    Memory: 2 x L x G x D x bytes per number for each position held (73,728 bytes per token for
    GPT-2 124M in float32), and while a layer grows, that layer twice. Every step copies all there
    is: n tokens one by one cost n²/2 copies of a token's keys and values, where `static` makes n.

    The only kind that gradients flow through, as nothing is overwritten (`minigpt.hf`; a GPT of
    ours records none with a cache).
    """

    kind = "growing"

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        nothing = self._zeros(2, batch_size, spec.n_kv_head, 0, spec.head_dim)
        self._data = [nothing] * spec.n_layer  # (2, B, G, S, D) each

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        self._data[layer] = appended(self._data[layer], torch.stack([k, v]), self._lengths)
        keys, values = self._data[layer]
        return keys, values, self._lengths

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for data in self._data)

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._data[index]
        return keys, values

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        for layer, data in enumerate(self._data):
            self._data[layer] = data[..., : max(lengths), :].clone()
            for row, length in enumerate(lengths):
                self._data[layer][:, row, :, length:].zero_()

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        longest = max(cache._lengths[row] for cache, row in sources)
        for layer in range(self.spec.n_layer):
            rows = []
            for cache, row in sources:
                assert isinstance(cache, GrowingCache)
                held = cache._data[layer][:, row, :, : cache._lengths[row]]
                rows.append(padded(held, longest))
            self._data[layer] = torch.stack(rows, 1)


def appended(held: Tensor, new: Tensor, starts: Sequence[int]) -> Tensor:
    """Held positions (..., B, G, S, D) and then the new ones, each row's from its own start."""
    if all(start == held.shape[-2] for start in starts):
        return torch.cat([held, new], -2)
    longer = torch.cat([held, torch.zeros_like(new)], -2)
    write(longer, new, starts)
    return longer


def padded(held: Tensor, length: int) -> Tensor:
    """(..., S, D) with zeros after it: (..., length, D)."""
    return torch.nn.functional.pad(held, (0, 0, 0, length - held.shape[-2]))
