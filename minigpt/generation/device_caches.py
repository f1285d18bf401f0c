"""Caches written and read where the device says: one new position a row, for `device_steps.py`.

What a cache does by its lengths, and a paged one by its tables, on the host, is done here by
tensors, so that it can be recorded once and replayed for every position. Shapes use the legend of
`model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache, LayerCache
from minigpt.cache.paged import PagedCache
from minigpt.cache.plain import StaticCache
from minigpt.numerics.base import whole_blocks
from minigpt.numerics.device_attention import DeviceStarts


def device_layers(
    cache: KVCache, starts: DeviceStarts, numbers: Tensor, tables: Tensor
) -> list[LayerCache]:
    """For each layer what keeps its keys and values.

    Args:
        numbers: 0, 1, ... as many as there are rows, and twice as many as there are heads.
        tables: of a paged cache, see `device_tables`.
    """
    layers = range(cache.spec.n_layer)
    if isinstance(cache, StaticCache):
        rows = numbers[: cache.batch_size]
        return [StaticLayer(cache, layer, starts, rows) for layer in layers]
    assert isinstance(cache, PagedCache)
    size, at = cache.page, starts.positions
    slots = tables.gather(1, at[:, None] // size)[:, 0] * size + at % size  # (B,)
    heads = numbers[: 2 * cache.spec.n_kv_head] * cache.pool.data.shape[3]  # (2·G,)
    shown = tables[:, None, : (max(starts) + 1) // size]  # (B, 1, pages)
    pages = (heads.view(2, 1, -1, 1) + shown).flatten()  # (2·B·G·pages,)
    return [PagedLayer(cache, layer, starts, slots, pages) for layer in layers]


def device_tables(cache: KVCache) -> Tensor:
    """Each row's pages, and zeros up to the last that it may have: (B, pages), on the CPU."""
    if isinstance(cache, PagedCache):
        return cache._pages(whole_blocks(cache.capacity) // cache.page)
    return torch.empty(cache.batch_size, 0, dtype=torch.int64)


class StaticLayer(LayerCache):
    """One layer of a static cache."""

    def __init__(self, cache: StaticCache, layer: int, starts: DeviceStarts, rows: Tensor) -> None:
        super().__init__(cache, layer)
        self.data = cache._data[layer]  # (2, B, G, capacity, D)
        self.starts, self.rows = starts, rows  # (B,): 0, 1, ...

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        new = side_by_side(k, v)[..., 0, :]  # (2, B, G, D)
        self.data[:, self.rows, :, self.starts.positions] = new.transpose(0, 1)
        keys, values = self.data[:, :, :, : max(self.starts) + 1]
        return keys, values, self.starts


class PagedLayer(LayerCache):
    """One layer of a paged cache.

    Args:
        slots: (B,), where each row's new position goes, counted in positions through the pages.
        pages: (2·B·G·pages,), which to read, counted through those of all keys' and values' heads.
    """

    def __init__(
        self, cache: PagedCache, layer: int, starts: DeviceStarts, slots: Tensor, pages: Tensor
    ) -> None:
        super().__init__(cache, layer)
        self.data = cache.pool.data[layer]  # (2, G, pages, size·D)
        self.starts, self.slots, self.pages = starts, slots, pages

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        B, G, _, D = k.shape
        new = side_by_side(k, v)[..., 0, :]  # (2, B, G, D)
        self.data.view(2, G, -1, D)[:, :, self.slots] = new.transpose(1, 2)
        found = self.data.flatten(0, 2).index_select(0, self.pages)  # (2·B·G·pages, size·D)
        keys, values = found.view(2, B, G, -1, D)
        return keys, values, self.starts


def side_by_side(k: Tensor, v: Tensor) -> Tensor:
    """Keys and values, (2, ...): a view where they are cut from one tensor, as in attention."""
    apart = v.storage_offset() - k.storage_offset()
    one = k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    if one and apart > 0 and k.stride() == v.stride():
        return k.as_strided((2, *k.shape), (apart, *k.stride()))
    return torch.stack((k, v))
