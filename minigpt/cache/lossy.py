"""Caches that give up accuracy for memory: their logits differ from the uncached ones.

`quantized` keeps everything in fewer bits, `window` keeps fewer positions. `study/comparison.py`
measures what either costs on a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minigpt.cache.growing import appended, padded
from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.support.checks import whole


class QuantizedCache(KVCache):
    """Keys and values as 8-bit integers: about a quarter of float32's memory. Lossy.

    A value is stored as round(127 x / largest) with one scale per position and head. A few channels
    of the keys are far larger than the others, at every position, so keys get one scale per channel
    instead, for each block of 32 positions (Liu et al. 2024, KIVI); those of the block that is not
    yet full stay as they are.

    Memory for each position of each row, from the start: L x G x (2 D + 4 + 4 D / 32) bytes, and 32
    unquantized keys for each row: 20,160 bytes per token for GPT-2 124M in any dtype, of which
    float32 takes 73,728.
    """

    kind = "quantized"
    lossy = True
    BLOCK = 32

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        L, G, D, blocks = spec.n_layer, spec.n_kv_head, spec.head_dim, -(-capacity // self.BLOCK)
        room = L, batch_size, G, blocks * self.BLOCK
        self._keys = self._zeros(*room, D, dtype=torch.int8)
        self._values = self._zeros(*room, D, dtype=torch.int8)
        self._key_scales = self._zeros(L, batch_size, G, blocks, 1, D, dtype=torch.float32)
        self._value_scales = self._zeros(*room, 1, dtype=torch.float32)
        self._recent = self._zeros(L, batch_size, G, self.BLOCK, D)  # keys of the unfinished block
        self._next_recent: dict[tuple[int, int], Tensor] = {}

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {
            "keys": self._keys,
            "values": self._values,
            "key_scales": self._key_scales,
            "value_scales": self._value_scales,
            "recent": self._recent,
        }

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def bytes_per_token(self) -> int:
        spec = self.spec
        per_head = 2 * spec.head_dim + 4 + 4 * spec.head_dim // self.BLOCK
        return spec.n_layer * spec.n_kv_head * per_head

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        rows = [self._append_row(layer, row, k[row], v[row]) for row in range(self.batch_size)]
        longest = max(keys.shape[1] for keys, _ in rows)
        keys = torch.stack([padded(keys, longest) for keys, _ in rows])
        values = torch.stack([padded(values, longest) for _, values in rows])
        return keys, values, self._lengths

    def _append_row(self, layer: int, row: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """One row's new (G, T, D) in, all of its (G, S, D) out."""
        start, end = self._lengths[row], self._lengths[row] + k.shape[1]
        done = start - start % self.BLOCK  # keys up to here are quantized
        fresh = torch.cat([self._recent[layer, row, :, : start - done], k], 1)
        full = fresh.shape[1] // self.BLOCK * self.BLOCK
        if full:
            block = slice(done // self.BLOCK, (done + full) // self.BLOCK)
            blocks = fresh[:, :full].unflatten(1, (-1, self.BLOCK))  # (G, blocks, BLOCK, D)
            numbers, self._key_scales[layer, row, :, block] = quantize(blocks, -2)
            self._keys[layer, row, :, done : done + full] = numbers.flatten(1, 2)
        self._next_recent[layer, row] = fresh[:, full:]
        numbers, self._value_scales[layer, row, :, start:end] = quantize(v, -1)
        self._values[layer, row, :, start:end] = numbers
        keys = torch.cat([self._quantized_keys(layer, row, done + full), fresh[:, full:]], 1)
        return keys, self._quantized_values(layer, row, end)

    def _quantized_keys(self, layer: int, row: int, end: int) -> Tensor:
        numbers = self._keys[layer, row, :, :end].unflatten(1, (-1, self.BLOCK))
        scales = self._key_scales[layer, row, :, : end // self.BLOCK]
        return (numbers * scales).flatten(1, 2).to(self.spec.dtype)

    def _quantized_values(self, layer: int, row: int, end: int) -> Tensor:
        numbers, scales = self._values[layer, row, :, :end], self._value_scales[layer, row, :, :end]
        return (numbers * scales).to(self.spec.dtype)

    def _commit(self, count: int) -> None:
        for (layer, row), keys in self._next_recent.items():
            self._recent[layer, row, :, : keys.shape[1]] = keys
        self._next_recent.clear()

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        self._next_recent.clear()
        for row, (new, old) in enumerate(zip(lengths, self._lengths, strict=True)):
            block = new // self.BLOCK
            if block < old // self.BLOCK:  # back into a finished block: what is left of it is open
                done = (block + 1) * self.BLOCK
                for layer in range(self.spec.n_layer):
                    keys = self._quantized_keys(layer, row, done)
                    self._recent[layer, row] = keys[:, -self.BLOCK :]

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        for new, (cache, row) in enumerate(sources):
            assert isinstance(cache, QuantizedCache)
            for name, to in self._tensors.items() if cache is not self else ():
                source = cache._tensors[name]
                held = min(to.shape[3], source.shape[3])
                to[:, new, :, :held] = source[:, row, :, :held]

    def state(self) -> dict[str, Tensor]:
        S = len(self)
        used = S, S, -(-S // self.BLOCK), S, self.BLOCK
        both = zip(self._tensors.items(), used, strict=True)
        return {name: tensor[:, :, :, :count] for (name, tensor), count in both}

    def _restore(self, lengths: Sequence[int], state: Mapping[str, Tensor]) -> None:
        for name, to in self._tensors.items():
            to[:, :, :, : state[name].shape[3]] = state[name]

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies (B, G, S, D), as attention gets them."""
        keys, values = [], []
        for row, end in enumerate(self._lengths):
            done = end - end % self.BLOCK
            recent = self._recent[index, row, :, : end - done]
            both = torch.cat([self._quantized_keys(index, row, done), recent], 1)
            keys.append(padded(both, len(self)))
            values.append(padded(self._quantized_values(index, row, end), len(self)))
        return torch.stack(keys), torch.stack(values)


def quantize(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """8-bit integers and the scales that turn them back, one scale for all of `dim`."""
    scale = x.float().abs().amax(dim, keepdim=True) / 127
    numbers = (x / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return numbers.clamp(-127, 127).to(torch.int8), scale


class WindowCache(KVCache):
    """The first few positions and the last `window`; what lies between is forgotten. Lossy.

    Attention puts much of its weight on the very first positions, whatever they hold, so without
    those the text falls apart (Xiao et al. 2024, attention sinks). Every key keeps the position it
    was made with. A chunk of new tokens still sees all that was held when it came, and itself: a
    prompt that is prefilled in one go is seen in full, and pruned afterwards. `truncate` cannot
    bring back what was pruned.

    Memory: 2 x L x G x D x bytes per number (73,728 bytes for GPT-2 124M in float32) for each of at
    most `sinks + window` positions of each row, 19 MB for 4 + 256, however long the text.
    """

    kind = "window"
    lossy = True
    setting_names = ("window", "sinks")

    def __init__(
        self, spec: CacheSpec, batch_size: int, capacity: int, window: int = 256, sinks: int = 4
    ) -> None:
        super().__init__(spec, batch_size, capacity)
        self.window, self.sinks = whole("window", window), whole("sinks", sinks, low=0)
        nothing = self._zeros(2, batch_size, spec.n_kv_head, 0, spec.head_dim)
        self._data = [nothing] * spec.n_layer  # (2, B, G, held, D) each
        self.positions: list[list[int]] = [[] for _ in range(batch_size)]  # [row]: those held

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for data in self._data)

    @property
    def _held(self) -> list[int]:
        return [len(positions) for positions in self.positions]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        self._data[layer] = appended(self._data[layer], torch.stack([k, v]), self._held)
        keys, values = self._data[layer]
        return keys, values, self._held

    def _commit(self, count: int) -> None:
        for positions, length in zip(self.positions, self._lengths, strict=True):
            positions += range(length, length + count)
        self._keep(
            [
                [n for n, p in enumerate(held) if p < self.sinks or p > held[-1] - self.window]
                for held in self.positions
            ]
        )

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        self._keep(
            [
                [n for n, p in enumerate(held) if p < length]
                for held, length in zip(self.positions, lengths, strict=True)
            ]
        )

    def _keep(self, places: list[list[int]]) -> None:
        """Keep these places of each row, and nothing else."""
        self.positions[:] = [
            [held[n] for n in kept] for held, kept in zip(self.positions, places, strict=True)
        ]
        longest = max(self._held)
        if places == [list(range(self._data[0].shape[3]))] * self.batch_size and all(
            data.shape[3] == longest for data in self._data
        ):
            return
        for layer, data in enumerate(self._data):
            rows = [padded(data[:, row][:, :, kept], longest) for row, kept in enumerate(places)]
            self._data[layer] = torch.stack(rows, 1)

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        for new, (cache, row) in enumerate(sources):
            assert isinstance(cache, WindowCache)
            self.positions[new] = list(cache.positions[row])
        longest = max(self._held)
        for layer in range(self.spec.n_layer):
            rows = []
            for (cache, row), held in zip(sources, self._held, strict=True):
                assert isinstance(cache, WindowCache)
                rows.append(padded(cache._data[layer][:, row, :, :held], longest))
            self._data[layer] = torch.stack(rows, 1)

    def state(self) -> dict[str, Tensor]:
        longest = max(self._held)
        positions = [held + [-1] * (longest - len(held)) for held in self.positions]  # -1: none
        layers = {f"layer.{n}": data for n, data in enumerate(self._data)}
        return {**layers, "positions": torch.tensor(positions, dtype=torch.int64)}

    def _restore(self, lengths: Sequence[int], state: Mapping[str, Tensor]) -> None:
        self.positions[:] = [[p for p in row if p >= 0] for row in state["positions"].tolist()]
        for held, length in zip(self.positions, lengths, strict=True):
            if held != sorted({*range(length)} & {*held}):
                raise ValueError(f"positions are {held}")
        shape = (2, self.batch_size, self.spec.n_kv_head, max(self._held), self.spec.head_dim)
        self._data = [state[f"layer.{n}"].clone() for n in range(self.spec.n_layer)]
        if {(data.dtype, tuple(data.shape)) for data in self._data} != {(self.spec.dtype, shape)}:
            raise ValueError("its tensors are of other shapes")

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, held, D); `positions` says which they are."""
        keys, values = self._data[index]
        return keys, values
