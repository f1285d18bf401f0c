"""The plain cache. Read this first; what every kind can do besides is in `kvcache.py`.

Attention compares each new token with all tokens before it, by a key and a value that each layer
made of every one of them. Those do not change any more, so they are kept: `append` writes the new
ones behind the old ones and hands back everything up to them. `StaticCache` has room for all of
them from the start; `growing.py` has the textbook's, which makes its room anew for each token.

Shapes use the legend of `model.py`: `B` rows, `T` new positions, `G` key/value heads, `S`
positions, `D` head width, and `L` layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.numerics.base import whole_blocks


class StaticCache(KVCache):
    """One block of memory for all positions there may ever be; nothing is allocated later.

    Memory: 2 x L x G x D x bytes per number for each of `capacity` positions of each row, from the
    start: 73,728 bytes per token for GPT-2 124M in float32, 75 MB for its 1,024 positions.
    """

    kind = "static"

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        L, G, D = spec.n_layer, spec.n_kv_head, spec.head_dim
        self._data = self._zeros(L, 2, batch_size, G, capacity, D)
        self._views = self._by_layer(self._data)  # (B, G, capacity, D) each
        self._shown = self._views
        self._room: list[tuple[Tensor, Tensor]] | None = None
        self._prepared: tuple[list[int], int] = [], 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        T = k.shape[2]
        if self._prepared[0] is not self._lengths or self._prepared[1] != T:
            self._prepare(T)
        keys, values = self._shown[layer]
        if self._room is not None:
            key_room, value_room = self._room[layer]  # (B, G, T, D) each
            key_room.copy_(k)
            value_room.copy_(v)
        else:
            write(keys, k, self._lengths)  # each row's behind what the row has
            write(values, v, self._lengths)
        return keys, values, self._lengths

    def _prepare(self, count: int) -> None:
        """Views for a pass of `count` positions, of all layers at once."""
        # Attention reads keys in whole blocks. What lies beyond the last new one is still zero, and
        # in the future of every query, where attention does not look.
        shown = min(whole_blocks(len(self) + count), self.capacity)
        if self._shown[0][0].shape[2] != shown:
            self._shown = self._by_layer(self._data[..., :shown, :])
        even = min(self._lengths) == len(self)  # then all rows' new ones lie in the same place
        room = self._data.narrow(-2, len(self), count) if even else None
        self._room = None if room is None else self._by_layer(room)
        self._prepared = self._lengths, count

    @staticmethod
    def _by_layer(data: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[layer]: keys and values, of (L, 2, B, G, S, D)."""
        parts = data.flatten(0, 1).unbind()
        return list(zip(parts[::2], parts[1::2], strict=True))

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def _bytes_of_a_new_row(self) -> int:
        return self.capacity * self.spec.bytes_per_token

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._views[index]
        return keys[:, :, : len(self)], values[:, :, : len(self)]

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        for row, length in enumerate(lengths):
            # Zeros, not stale numbers: a masked weight is 0, but 0 x NaN would still be NaN.
            self._data[:, :, row, :, length:end].zero_()

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        for new, (cache, row) in enumerate(sources):
            assert isinstance(cache, StaticCache)
            if cache is not self:
                held = slice(0, cache._lengths[row])
                self._data[:, :, new, :, held] = cache._data[:, :, row, :, held]


def write(buffer: Tensor, new: Tensor, starts: Sequence[int]) -> None:
    """Put the T positions of each row of `new` (..., B, G, T, D) into `buffer`, from its start."""
    count, first = new.shape[-2], starts[0]
    if min(starts) == max(starts):
        buffer.narrow(-2, first, count).copy_(new)  # buffer[..., first : first + count, :] = new
    else:
        for row, start in enumerate(starts):
            buffer[..., row, :, start : start + count, :] = new[..., row, :, :, :]
