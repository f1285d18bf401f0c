"""The KV cache: what attention remembers of the tokens it has seen.

One object for all layers. It owns positions (`len(cache)` is the next one), so a model and its
cache cannot disagree about where they are. How keys are *used* is attention's business.

Shapes use the legend of `model.py`: `B` rows, `G` key/value heads, `S` positions, `D` head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import MinigptError

KEY_BLOCK = 128  # attention is handed keys in whole blocks of this many positions, where they fit


@dataclass(frozen=True)
class CacheSpec:
    """What a model and its cache must agree on."""

    n_layer: int
    n_kv_head: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """2 (a key and a value) x layers x key/value heads x head width x bytes per number."""
        return 2 * self.n_layer * self.n_kv_head * self.head_dim * self.dtype.itemsize


class LayerCache:
    """One layer's keys and values, as the attention layer sees them."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self.cache = cache
        self.keys, self.values = keys, values  # (B, G, capacity, D) each

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions and return everything up to them.

        Args:
            k, v: keys and values of the T new positions, (B, G, T, D).

        Returns:
            Two views (B, G, S', D) that hold the S = cached + new positions, with S' >= S. What
            lies beyond S is room for later tokens: it is zero, it is in the future of every query,
            and the causal mask hides the future anyway.
        """
        start, end = len(self.cache), len(self.cache) + k.shape[2]
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        shown = min(-(-end // KEY_BLOCK) * KEY_BLOCK, self.cache.capacity)
        return self.keys[:, :, :shown], self.values[:, :, :shown]


class KVCache:
    """Keys and values of every layer for B rows, preallocated for `capacity` positions.

    Memory: 2 x layers x key/value heads x head width x bytes per number, for each position of each
    row; 73,728 bytes per token for GPT-2 124M in float32. Make one with `model.new_cache()`.

    The length is one number for all layers, and it moves only after the last layer has written
    (`extend`). A forward pass that is interrupted half way leaves the length, and so the cache, as
    it was: whatever some layers wrote lies beyond the length, and is cleared.

    Raises:
        MinigptError: for sizes below 1, or a cache that does not fit in memory.
    """

    kind = "static"

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        for name, value in (("batch_size", batch_size), ("max_length", capacity)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MinigptError(f"{name} is {value!r}, needed a whole number of at least 1")
        self.spec = spec
        self.batch_size = batch_size
        self.capacity = capacity
        self._length = 0
        shape = (spec.n_layer, 2, batch_size, spec.n_kv_head, capacity, spec.head_dim)
        try:
            with torch.inference_mode(False):  # or it could not be written outside of that mode
                self._data = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        except RuntimeError as error:
            need = spec.bytes_per_token * batch_size * capacity
            raise MinigptError(
                f"a cache of {batch_size} x {capacity} positions needs {need:,} bytes, which "
                f"{spec.device} does not have: make batch_size or max_length smaller"
            ) from error
        self.layers = [LayerCache(self, keys, values) for keys, values in self._data]

    def __len__(self) -> int:
        """Positions held, which is also the position of the next token."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes allocated, whether in use or not."""
        return self._data.nbytes

    @contextmanager
    def extend(self, spec: CacheSpec, batch_size: int, count: int) -> Iterator[None]:
        """Take `count` more positions in every layer, or none at all.

        Everything is checked before anything is written. Inside the `with`, each layer appends;
        the length moves when the block ends without an exception.

        Raises:
            MinigptError: when the model, the number of rows or the room left does not fit.
        """
        self._check(spec, batch_size, count)
        start = self._length
        try:
            yield
            self._length = start + count
        except BaseException:  # KeyboardInterrupt too
            self._clear(start, start + count)
            raise

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on.

        Raises:
            MinigptError: when `length` is negative or more than the cache holds.
        """
        if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= len(self):
            raise MinigptError(
                f"cannot truncate to {length!r}: this cache holds {len(self)} positions, needed "
                f"a whole number from 0 to {len(self)}"
            )
        self._clear(length, self._length)
        self._length = length

    def reset(self) -> None:
        """Forget everything; the memory stays allocated for the next text."""
        self.truncate(0)

    def fork(self) -> KVCache:
        """A second cache with the same history; either can go on alone."""
        twin = KVCache(self.spec, self.batch_size, self.capacity)
        twin._data.copy_(self._data)
        twin._length = self._length
        return twin

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, views of (B, G, S, D)."""
        layer = self.layers[index]
        return layer.keys[:, :, : len(self)], layer.values[:, :, : len(self)]

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"KVCache({self.kind}: {len(self)} of {self.capacity} positions in use, "
            f"{self.batch_size} row{'s' * (self.batch_size != 1)}, "
            f"{spec.n_layer} layers x {spec.n_kv_head} heads x {spec.head_dim} channels x "
            f"(key + value) in {str(spec.dtype).removeprefix('torch.')} on {spec.device}, "
            f"{spec.bytes_per_token:,} bytes per token, {self.nbytes:,} bytes allocated)"
        )

    def _check(self, spec: CacheSpec, batch_size: int, count: int) -> None:
        if spec != self.spec:
            raise MinigptError(
                f"this cache was made for another model, dtype or device: it has {self.spec}, "
                f"the model needs {spec}: make one with model.new_cache()"
            )
        if batch_size != self.batch_size:
            raise MinigptError(
                f"this cache holds {self.batch_size} rows and was given {batch_size}: "
                f"make one with model.new_cache(batch_size={batch_size})"
            )
        if self._length + count > self.capacity:
            raise MinigptError(
                f"this cache holds {self._length} of {self.capacity} positions and cannot take "
                f"{count} more: generate fewer tokens, truncate it, or make one with a larger "
                f"max_length"
            )

    def _clear(self, start: int, end: int) -> None:
        # Zeros, not stale numbers: a masked weight is 0, but 0 x NaN would still be NaN.
        self._data[:, :, :, :, start:end].zero_()


class NoCache:
    """What an uncached pass hands to attention: the keys and values are just the new ones."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v
