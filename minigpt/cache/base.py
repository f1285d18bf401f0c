"""The KV cache: what attention remembers of the tokens it has seen.

One object for all layers. It owns positions (`cache.lengths` says where each row goes on), so a
model and its cache cannot disagree about where they are. How keys are *used* is attention's
business. Here are what every kind of cache can do, and the plain kinds, static and growing; the
others are in `cache_paged.py` and `cache_lossy.py`.

Shapes use the legend of `model.py`: `B` rows, `T` new positions, `G` key/value heads, `S`
positions, `D` head width, and `L` layers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import torch
from torch import Tensor

from minigpt.numerics.base import whole_blocks
from minigpt.support.checks import is_whole, listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.memory import available_memory, zeros

if TYPE_CHECKING:
    from minigpt.model import GPT


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
    """One layer of a cache, as that layer's attention sees it."""

    def __init__(self, cache: KVCache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Keep the keys and values of T new positions, and return everything up to them.

        Args:
            k, v: (B, G, T, D).

        Returns:
            Keys and values (B, G, S', D), and for each row the number of its keys that come before
            the new ones. What lies beyond a row's last key is room for later tokens: it is zero, it
            is in the future of every query, and the causal mask hides the future anyway.
        """
        return self.cache._append(self.layer, k, v)


class KVCache(ABC):
    """Keys and values of every layer for B rows of text, each at its own position.

    Make one with `model.new_cache()`. The rows' lengths are the same for all layers, and they move
    only after the last layer has written (`extend`): a forward pass that is interrupted half way
    leaves the cache as it was.

    Several threads may decode with one model in evaluation mode, each with its own cache, which may
    be a fork of another's. One cache is in one hand at a time: a pass or a change that meets
    another one half done is refused, and leaves that one alone. Run the model once before the
    threads start; `numerics/certificates.py` says why (`_threads`).

    Raises:
        MinigptError: for sizes below 1, or a cache that does not fit in memory.
    """

    kind: ClassVar[str]
    lossy: ClassVar[bool] = False  # do its logits differ from those without a cache?

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        whole("batch_size", batch_size)
        whole("max_length", capacity)
        self.spec = spec
        self.batch_size = batch_size
        self.capacity = capacity  # positions that each row may reach
        self._refuse_beyond_memory(batch_size * self._bytes_of_a_new_row(), batch_size)
        self._lengths = [0] * batch_size
        self._tokens: list[list[int]] | None = [[] for _ in range(batch_size)]
        self._users: list[object] = []  # passes and changes that have begun: one, unless refused
        self.model: GPT | None = None  # whose keys and values these are, when `new_cache` made it

    @property
    def layers(self) -> list[LayerCache]:
        """One for each attention layer. (Made anew: a cache that held them would be in a cycle, and
        its memory would not come back at once when it is dropped.)"""
        return [LayerCache(self, layer) for layer in range(self.spec.n_layer)]

    # --- how long it is ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Positions of the longest row; with rows of one length, the position of the next token."""
        return max(self._lengths)

    @property
    def lengths(self) -> list[int]:
        """Each row's positions so far, which is also the position of its next token."""
        return list(self._lengths)

    @property
    def tokens(self) -> list[list[int]] | None:
        """Each row's token ids so far; None when they came from a program that did not tell."""
        return None if self._tokens is None else [list(row) for row in self._tokens]

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated, whether in use or not."""

    # --- growing ----------------------------------------------------------------------------------

    @contextmanager
    def extend(
        self, spec: CacheSpec, batch_size: int, count: int, tokens: Tensor | None = None
    ) -> Iterator[None]:
        """Take `count` more positions in every row of every layer, or none at all.

        Everything is checked before anything is written. Inside the `with`, each layer appends;
        the lengths move when the block ends without an exception.

        Args:
            tokens: (B, count), the ids, to be remembered beside their keys.

        Raises:
            MinigptError: when the model, the number of rows or the room left does not fit, or
                another pass is not over.
        """
        with self._in_use():
            self._check(spec, batch_size, count)
            end = len(self) + count
            try:
                self._reserve(count)
                yield
                self._commit(count)
            except BaseException:  # KeyboardInterrupt too
                with torch.inference_mode():
                    self._forget(self._lengths, end)
                raise
            self._lengths = [length + count for length in self._lengths]
            if tokens is None or self._tokens is None:
                self._tokens = None
            else:
                for row, new in zip(self._tokens, tokens.tolist(), strict=True):
                    row += new

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """One pass or change at a time, whichever thread it comes from.

        Appending to a list is a single step for threads; and unlike a lock, it cannot stay shut
        when Ctrl-C comes just after it.
        """
        this = object()
        try:
            self._users.append(this)
            if self._users[0] is not this:
                raise MinigptError(
                    "this cache is in use by another pass, which has not ended: wait for it, or "
                    "give each thread a cache of its own, such as a fork() made before"
                )
            yield
        finally:
            if this in self._users:
                self._users.remove(this)

    # --- surgery ----------------------------------------------------------------------------------

    def truncate(self, length: int | Sequence[int] | Tensor) -> None:
        """Forget every position from `length` on.

        Args:
            length: for all rows (those that are shorter stay as they are), or one for each row.

        Raises:
            MinigptError: when a length is negative or more than the cache holds.
        """
        if isinstance(length, (Sequence, Tensor)) and not isinstance(length, str):
            wanted, held = listed(length), self._lengths
            if len(wanted) != self.batch_size:
                raise MinigptError(
                    f"{len(wanted)} lengths were given for {self.batch_size} rows: give one for "
                    f"each, or a single number for all"
                )
        else:
            wanted, held = [length] * self.batch_size, [len(self)] * self.batch_size
        for new, old in zip(wanted, held, strict=True):
            if not is_whole(new) or not 0 <= new <= old:
                raise MinigptError(
                    f"cannot truncate to {new!r}: this cache holds {old} positions, needed "
                    f"a whole number from 0 to {old}"
                )
        with self._in_use():
            lengths = [min(new, old) for new, old in zip(wanted, self._lengths, strict=True)]
            with torch.inference_mode():
                self._forget(lengths, len(self))
            self._lengths = lengths
            if self._tokens is not None:
                self._tokens = [row[:n] for row, n in zip(self._tokens, lengths, strict=True)]

    def reset(self) -> None:
        """Forget everything, ready for the next text."""
        self.truncate(0)

    def fork(self) -> KVCache:
        """A second cache with the same history; either can go on alone."""
        return self.select(range(self.batch_size))

    def __copy__(self) -> KVCache:
        return self.fork()  # and not a second name for the same memory

    def __deepcopy__(self, memo: object) -> KVCache:
        return self.fork()  # and not a copy of the model that it knows

    def __reduce__(self) -> NoReturn:
        raise MinigptError(
            "a cache cannot be pickled, for its memory is shared by views and forks: write it to a "
            "file with cache.save(path), and read it with KVCache.load(path, model)"
        )

    def expand(self, count: int) -> KVCache:
        """A cache of `count` rows, each with the history of this one's only row.

        Raises:
            MinigptError: when this cache has several rows, or that many do not fit in memory.
        """
        whole("the number of rows to expand to", count)
        if self.batch_size != 1:
            raise MinigptError(
                f"this cache has {self.batch_size} rows and only a single one can be expanded: "
                f"select([row]) first"
            )
        self._refuse_beyond_memory(count * self._bytes_per_copy(), count)
        return self.select([0] * count)

    def select(self, rows: Sequence[int] | Tensor) -> KVCache:
        """A cache with these rows of this one, in this order; a row may come several times.

        Raises:
            MinigptError: for a row that is not there, or no row at all.
        """
        rows = listed(rows)
        if not rows:
            raise MinigptError("no rows were selected, needed at least one")
        for row in rows:
            if not is_whole(row) or not 0 <= row < self.batch_size:
                raise MinigptError(
                    f"cannot select row {row!r}: this cache has rows 0 to {self.batch_size - 1}"
                )
        return self._gathered([(self, row) for row in rows], self.capacity)

    @staticmethod
    def concat(caches: Sequence[KVCache]) -> KVCache:
        """One cache with the rows of all, whatever their lengths.

        Raises:
            MinigptError: when there are none, or they differ in model, dtype, device or kind.
        """
        caches = listed(caches)
        if not caches:
            raise MinigptError("no caches were given to concat, needed at least one")
        for cache in caches:
            if not isinstance(cache, KVCache):
                raise MinigptError(
                    f"concat was given a {type(cache).__name__}, needed caches from "
                    f"model.new_cache()"
                )
        first = caches[0]
        for cache in caches[1:]:
            if cache.spec != first.spec or cache._settings() != first._settings():
                raise MinigptError(
                    f"these caches do not belong together: {first!r} and {cache!r}, needed one "
                    f"kind, made for one model, dtype and device"
                )
        sources = [(cache, row) for cache in caches for row in range(cache.batch_size)]
        return first._gathered(sources, max(cache.capacity for cache in caches))

    def _gathered(self, sources: list[tuple[KVCache, int]], capacity: int) -> KVCache:
        new = self._empty(len(sources), capacity)
        new.model = self.model
        with ExitStack() as uses, torch.inference_mode():
            for cache in dict.fromkeys(cache for cache, _ in sources):
                uses.enter_context(cache._in_use())
            new._adopt(sources)
            new._lengths = [cache._lengths[row] for cache, row in sources]
            if any(cache._tokens is None for cache, _ in sources):
                new._tokens = None
            else:
                new._tokens = [list(cache._tokens[row]) for cache, row in sources]  # type: ignore[index]
        return new

    # --- looking inside, keeping ------------------------------------------------------------------

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (B, G, S, D); rows shorter than S end in zeros.

        Views of the cache where its kind keeps them in one piece, copies elsewhere.

        Raises:
            MinigptError: for a layer that is not there.
        """
        if not is_whole(index) or not 0 <= index < self.spec.n_layer:
            raise MinigptError(
                f"there is no layer {index!r}, needed one of 0 to {self.spec.n_layer - 1}"
            )
        return self._layer(index)

    def save(self, path: str | Path) -> None:
        """Write the cache to one safetensors file, with its tokens and a fingerprint of the model.

        Raises:
            MinigptError: when the file cannot be written; an old file there survives.
        """
        from minigpt.checkpoint.caches import save

        with self._in_use():
            save(self, path)

    @staticmethod
    def load(path: str | Path, model: GPT) -> KVCache:
        """A saved cache, ready to go on with the same model.

        Raises:
            MinigptError: when the file is missing, damaged, or another model's.
        """
        from minigpt.checkpoint.caches import load

        return load(path, model)

    def __repr__(self) -> str:
        spec, rows = self.spec, self.batch_size
        short = min(self._lengths)
        held = f"{len(self)}" if short == len(self) else f"{short} to {len(self)}"
        return (
            f"KVCache({self.kind}: {held} of {self.capacity} positions in use, "
            f"{rows} row{'s' * (rows != 1)}, "
            f"{spec.n_layer} layers x {spec.n_kv_head} heads x {spec.head_dim} channels x "
            f"(key + value) in {str(spec.dtype).removeprefix('torch.')} on {spec.device}, "
            f"{self.bytes_per_token():,} bytes per token, {self.nbytes:,} bytes allocated)"
        )

    def bytes_per_token(self) -> int:
        """Bytes that one more position of one row takes, in the long run."""
        return self.spec.bytes_per_token

    # --- what a kind must do ----------------------------------------------------------------------

    @abstractmethod
    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        """See `LayerCache.append`."""

    @abstractmethod
    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """See `layer`."""

    @abstractmethod
    def _forget(self, lengths: Sequence[int], end: int) -> None:
        """Keep `lengths[row]` positions of each row; layers may have written up to `end`."""

    @abstractmethod
    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        """Fill the rows of this new cache with copies of rows of others of its kind."""

    def _empty(self, batch_size: int, capacity: int) -> KVCache:
        """A new one of this kind and with these settings."""
        return type(self)(self.spec, batch_size, capacity)

    def _settings(self) -> tuple[object, ...]:
        """What caches must share for their rows to go into one."""
        return (self.kind,)

    def _reserve(self, count: int) -> None:
        """Make room for `count` more positions in every row."""
        return None

    def _commit(self, count: int) -> None:
        """Every layer has appended `count` positions."""
        return None

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """New memory for this cache, refused with an estimate where there is not enough of it."""
        dtype = dtype or self.spec.dtype
        need = dtype.itemsize * math.prod(shape)
        self._refuse_beyond_memory(need, self.batch_size)
        try:
            with torch.inference_mode(False):  # or it could not be written outside of that mode
                return zeros(shape, dtype, self.spec.device)
        except (RuntimeError, MemoryError) as error:
            raise self._too_large(need, self.batch_size) from error

    def _refuse_beyond_memory(self, need: int, rows: int) -> None:
        free = available_memory(self.spec.device)
        if free is not None and need > free:
            raise self._too_large(need, rows, f" ({free:,} are free)")

    def _too_large(self, need: int, rows: int, free: str = "") -> MinigptError:
        return MinigptError(
            f"a cache of {rows} x {self.capacity} positions needs {need:,} bytes, which "
            f"{self.spec.device} does not have{free}: make batch_size or max_length smaller"
        )

    def _bytes_of_a_new_row(self) -> int:
        """What each row takes at least: a single position."""
        return self.spec.bytes_per_token

    def _bytes_per_copy(self) -> int:
        """What one more row with the history of this one's only row takes."""
        return self.nbytes

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
        if len(self) + count > self.capacity:
            raise MinigptError(
                f"this cache holds {len(self)} of {self.capacity} positions and cannot take "
                f"{count} more: generate fewer tokens, truncate it, or make one with a larger "
                f"max_length"
            )


class StaticCache(KVCache):
    """One block of memory for all positions there may ever be; nothing is allocated later.

    Memory: 2 x L x G x D x bytes per number for each of `capacity` positions of each row, from the
    start: 73,728 bytes per token for GPT-2 124M in float32, 75 MB for its 1,024 positions.
    """

    kind = "static"

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        self._data = self._zeros(
            spec.n_layer, 2, batch_size, spec.n_kv_head, capacity, spec.head_dim
        )
        self._views = [(keys, values) for keys, values in self._data]  # (B, G, capacity, D) each

    def _bytes_of_a_new_row(self) -> int:
        return self.capacity * self.spec.bytes_per_token

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        keys, values = self._views[layer]
        write(keys, k, self._lengths)
        write(values, v, self._lengths)
        shown = whole_blocks(len(self) + k.shape[2])
        if shown < self.capacity:
            keys, values = keys[:, :, :shown], values[:, :, :shown]
        return keys, values, self._lengths

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        for row, length in enumerate(lengths):
            # Zeros, not stale numbers: a masked weight is 0, but 0 x NaN would still be NaN.
            self._data[:, :, row, :, length:end].zero_()

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        for new, (cache, row) in enumerate(sources):
            assert isinstance(cache, StaticCache)
            held = slice(0, cache._lengths[row])
            self._data[:, :, new, :, held] = cache._data[:, :, row, :, held]

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._views[index]
        return keys[:, :, : len(self)], values[:, :, : len(self)]


class GrowingCache(KVCache):
    """The textbook cache: every step concatenates the old keys and the new ones.

    Memory: 2 x L x G x D x bytes per number for each position held (73,728 bytes per token for
    GPT-2 124M in float32), and while a layer grows, that layer twice. Every step copies all there
    is: n tokens one by one cost n²/2 copies of a token's keys and values, where `static` makes n.
    """

    kind = "growing"

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        super().__init__(spec, batch_size, capacity)
        nothing = self._zeros(2, batch_size, spec.n_kv_head, 0, spec.head_dim)
        self._data = [nothing] * spec.n_layer  # (2, B, G, S, D) each

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for data in self._data)

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        self._data[layer] = appended(self._data[layer], torch.stack([k, v]), self._lengths)
        keys, values = self._data[layer]
        return keys, values, self._lengths

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

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._data[index]
        return keys, values


class NoCache:
    """What an uncached pass hands to attention: the keys and values are just the new ones."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        return k, v, [0] * k.shape[0]


# --- pieces that several kinds share --------------------------------------------------------------


def write(buffer: Tensor, new: Tensor, starts: Sequence[int]) -> None:
    """Put the T positions of each row of `new` (..., B, G, T, D) into `buffer`, from its start."""
    count, first = new.shape[-2], starts[0]
    if min(starts) == max(starts):
        buffer.narrow(-2, first, count).copy_(new)
    else:
        for row, start in enumerate(starts):
            buffer[..., row, :, start : start + count, :] = new[..., row, :, :, :]


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
