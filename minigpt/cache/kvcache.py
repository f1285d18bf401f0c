"""What every KV cache can do: one class, because passes and surgery share the fields they move.

Read `plain.py` first, which is short. A cache is one object for all layers. It owns positions
(`cache.lengths` says where each row goes on), so a model and its cache cannot disagree about where
they are. Here is what all kinds share: checks, lengths, passes that happen whole or not at all,
rows that are cut, branched and put together. A kind adds memory and `append`; how keys are *used*
is attention's business.

Shapes use the legend of `model.py`: `B` rows, `T` new positions, `G` key/value heads, `S`
positions, `D` head width, and `L` layers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from minigpt.cache.origin import Origin, followed, joined
from minigpt.numerics.base import RowModule
from minigpt.numerics.place import weights_seen
from minigpt.support.checks import is_whole, listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.memory import available_memory, zeros
from minigpt.support.wording import counted


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
        return self.cache.append(self.layer, k, v)


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
    setting_names: ClassVar[tuple[str, ...]] = ()  # arguments that only this kind takes

    def __init__(self, spec: CacheSpec, batch_size: int, capacity: int) -> None:
        self.spec = spec
        self.batch_size = batch_size = whole("batch_size", batch_size)
        self.capacity = whole("max_length", capacity)  # positions that each row may reach
        self._refuse_beyond_memory(batch_size * self._bytes_of_a_new_row(), batch_size)
        self._lengths = [0] * batch_size
        self._tokens: list[list[int]] | None = [[] for _ in range(batch_size)]
        self._users: list[object] = []  # passes and changes that have begun: one, unless refused
        self._origin: Origin | None = None

    @property
    def layers(self) -> list[LayerCache]:
        """One for each attention layer. (Made anew: a cache that held them would be in a cycle, and
        its memory would not come back at once when it is dropped.)"""
        return [LayerCache(self, layer) for layer in range(self.spec.n_layer)]

    # --- how long it is ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Positions of the longest row; with rows of one length, the position of the next token."""
        return max(self._lengths)

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache, for whoever asks `if cache:`

    @property
    def lengths(self) -> list[int]:
        """Each row's positions so far, which is also the position of its next token."""
        return list(self._lengths)

    @property
    def tokens(self) -> list[list[int]] | None:
        """Each row's token ids so far; None when they came from a program that did not tell."""
        return None if self._tokens is None else [list(row) for row in self._tokens]

    @property
    def origin(self) -> Origin | None:
        """Whose keys and values these are; None while there are none, or when nobody told."""
        return self._origin if len(self) else None

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes allocated, whether in use or not."""

    # --- growing ----------------------------------------------------------------------------------

    @contextmanager
    def extend(
        self,
        spec: CacheSpec,
        batch_size: int,
        count: int,
        tokens: Tensor | None = None,
        origin: Origin | None = None,
    ) -> Iterator[None]:
        """Take `count` more positions in every row of every layer, or none at all.

        Everything is checked before anything is written. Inside the `with`, each layer appends;
        the lengths move when the block ends without an exception.

        Args:
            tokens: (B, count), the ids, to be remembered beside their keys.
            origin: what computes them; None: another program.

        Raises:
            MinigptError: when the model, its weights, the number of rows or the room left does not
                fit, or another pass is not over.
        """
        with self.in_use():
            after = self.check_model(spec, origin)
            self._check_room(batch_size, count)
            end, held = len(self) + count, self.origin
            try:
                self._reserve(count)
                yield
                if held is not None and origin is not None and held.place is not origin.place:
                    # The pass has found out what place it is.
                    after = self.check_model(spec, origin)
                self._commit(count)
            except BaseException:  # KeyboardInterrupt too
                self._forget(self._lengths, end)
                raise
            self._lengths = [length + count for length in self._lengths]
            self._origin = after
            if tokens is None or self._tokens is None:
                self._tokens = None
            else:
                for row, new in zip(self._tokens, tokens.tolist(), strict=True):
                    row += new

    def check_model(self, spec: CacheSpec, origin: Origin | None) -> Origin | None:
        """Whose its rows will be when this has added some.

        Raises:
            MinigptError: when it does not go with those held: see `origin.py`.
        """
        if spec != self.spec:
            raise MinigptError(
                f"this cache was made for another model, dtype or device: it has {self.spec}, "
                f"the model needs {spec}: make one with model.new_cache()"
            )
        return followed(self._origin, origin) if len(self) else origin

    @contextmanager
    def in_use(self) -> Iterator[None]:
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
                    f"length has {counted(len(wanted), 'number')} for "
                    f"{counted(self.batch_size, 'row')}: give one for "
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
        with self.in_use():
            lengths = [int(min(new, old)) for new, old in zip(wanted, self._lengths, strict=True)]
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
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise MinigptError(
            "a cache cannot be pickled, for its memory is shared by views and forks: write it to a "
            "file with save_cache(cache, path), and read it with load_cache(path, model)"
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
        rows = self._rows(rows)
        if not rows:
            raise MinigptError("no rows were selected, needed at least one")
        return self._gathered([(self, row) for row in rows], self.capacity)

    @staticmethod
    def concat(caches: Sequence[KVCache]) -> KVCache:
        """One cache with the rows of all, whatever their lengths.

        Raises:
            MinigptError: when there are none, or they differ in model, dtype, device or kind, or
                were filled by different weights.
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
            first._refuse_unlike(cache)
        sources = [(cache, row) for cache in caches for row in range(cache.batch_size)]
        return first._gathered(sources, max(cache.capacity for cache in caches))

    def adopt(self, rows: Sequence[int], other: KVCache) -> None:
        """Let each of these rows forget what it holds and go on from another cache's only row.

        Unlike `concat` this copies no other row, and needs no memory for a second cache of all.

        Raises:
            MinigptError: for a row that is not there, or another cache that has several, is longer
                than this one may become, or could not be concatenated with it.
        """
        chosen = set(self._rows(rows))
        if not isinstance(other, KVCache) or other is self or other.batch_size != 1:
            raise MinigptError(f"{other!r} cannot be adopted, needed another cache, of one row")
        self._refuse_unlike(other)
        if len(other) > self.capacity:
            raise MinigptError(
                f"a row of {counted(len(other), 'position')} cannot be adopted, this cache has "
                f"room for {self.capacity}: make one with a larger max_length"
            )
        kept = [0 if row in chosen else length for row, length in enumerate(self._lengths)]
        held = [self._origin] * any(kept) + [other._origin] * (len(other) > 0)
        origin = joined(held)
        if kept != self._lengths:
            self.truncate(kept)
        with self.in_use(), other.in_use():
            every = range(self.batch_size)
            self._take_over([(other, 0) if row in chosen else (self, row) for row in every])
            self._origin = origin

    def _gathered(self, sources: list[tuple[KVCache, int]], capacity: int) -> KVCache:
        caches = list(dict.fromkeys(cache for cache, _ in sources))
        origin = joined([cache._origin for cache in caches if len(cache)])
        new = self._empty(len(sources), capacity)
        with ExitStack() as uses:
            for cache in caches:
                uses.enter_context(cache.in_use())
            new._take_over(sources)
            new._origin = origin
        return new

    def _take_over(self, sources: list[tuple[KVCache, int]]) -> None:
        """Make each row what that row of some cache is, which may be itself."""
        self._adopt(sources)
        self._lengths = [cache._lengths[row] for cache, row in sources]
        if any(cache._tokens is None for cache, _ in sources):
            self._tokens = None
        else:
            self._tokens = [list(cache._tokens[row]) for cache, row in sources]  # type: ignore[index]

    def _rows(self, rows: Sequence[int] | Tensor) -> list[int]:
        """The same, if they are there."""
        rows = listed(rows)
        for row in rows:
            if not is_whole(row) or not 0 <= row < self.batch_size:
                raise MinigptError(
                    f"cannot select row {row!r}: this cache has rows 0 to {self.batch_size - 1}"
                )
        return rows

    def _refuse_unlike(self, other: KVCache) -> None:
        alike = (other.kind, other.spec, other.settings)
        if alike != (self.kind, self.spec, self.settings):
            raise MinigptError(
                f"these caches do not belong together: {self!r} and {other!r}, needed one "
                f"kind, made for one model, dtype and device"
            )

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

    @property
    def settings(self) -> dict[str, int]:
        """What distinguishes it from others of its kind, as `new_cache` takes it."""
        return {name: getattr(self, name) for name in self.setting_names}

    def state(self) -> dict[str, Tensor]:
        """The tensors from which `restore` makes the same cache again; not the room for more."""
        tensors: dict[str, Tensor] = {}
        for n in range(self.spec.n_layer if len(self) else 0):
            tensors[f"layer.{n}.keys"], tensors[f"layer.{n}.values"] = self._layer(n)
        return tensors

    def restore(
        self,
        lengths: list[int],
        state: Mapping[str, Tensor],
        tokens: list[list[int]] | None,
        origin: Origin | None,
    ) -> None:
        """Make this new cache what another one was.

        Args:
            lengths, state, tokens, origin: of that one, which had the same kind, settings and rows.

        Raises:
            LookupError, TypeError, ValueError, RuntimeError: for a state that does not fit.
        """
        self._restore(lengths, state)
        self._lengths, self._tokens, self._origin = lengths, tokens, origin
        again = {name: (tensor.dtype, tensor.shape) for name, tensor in self.state().items()}
        if again != {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}:
            raise ValueError("its tensors are of other shapes")  # which broadcasting made fit

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
    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        """What `LayerCache.append` does, for one layer. Lengths move later, in `extend`."""

    @abstractmethod
    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """See `layer`."""

    @abstractmethod
    def _forget(self, lengths: Sequence[int], end: int) -> None:
        """Keep `lengths[row]` positions of each row; layers may have written up to `end`."""

    @abstractmethod
    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        """Fill the rows of this cache with copies of rows of others of its kind. Those that others
        are to fill are empty; those to be filled from themselves, (self, row), stay as they are."""

    def _restore(self, lengths: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """See `restore`. Here: as a forward pass would, all rows as long as the longest, whose
        zeros are then cut off."""
        if max(lengths) > 0:
            with self.extend(self.spec, self.batch_size, max(lengths)):
                for n, layer in enumerate(self.layers):
                    layer.append(state[f"layer.{n}.keys"], state[f"layer.{n}.values"])
            self.truncate(lengths)

    def _empty(self, batch_size: int, capacity: int) -> KVCache:
        """A new one of this kind and with these settings."""
        return type(self)(self.spec, batch_size, capacity, **self.settings)

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

    def _check_room(self, batch_size: int, count: int) -> None:
        if batch_size != self.batch_size:
            raise MinigptError(
                f"this cache holds {counted(self.batch_size, 'row')} and was given {batch_size}: "
                f"make one with model.new_cache(batch_size={batch_size})"
            )
        if len(self) + count > self.capacity:
            raise MinigptError(
                f"this cache holds {len(self)} of {self.capacity} positions and cannot take "
                f"{count} more: generate fewer tokens, truncate it, or make one with a larger "
                f"max_length"
            )


class NoCache:
    """What an uncached pass hands to attention: the keys and values are just the new ones."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        return k, v, [0] * k.shape[0]


Layers = Sequence["LayerCache | NoCache"]  # one for each layer of a model

# --- the way into a pass --------------------------------------------------------------------------


@contextmanager
def opened(
    cache: KVCache | None, spec: CacheSpec, tokens: Tensor, model: RowModule
) -> Iterator[tuple[Tensor, Layers]]:
    """Positions for new tokens (B, T), and for each layer what keeps their keys and values.

    The cache grows when the block ends, and only if all of it succeeds; inside, no gradients are
    recorded. Without a cache, positions count from 0 and nothing is kept.

    Yields:
        positions, (T,), or (B, T) if rows differ in length; then one object for each layer, whose
        `append` attention calls.

    Raises:
        MinigptError: for a cache that is none, or does not fit the model or the tokens, or holds
            keys of other weights.
    """
    B, T = tokens.shape
    if cache is None:
        yield torch.arange(T, device=tokens.device), [NoCache()] * spec.n_layer
    elif not isinstance(cache, KVCache):
        raise MinigptError(f"cache is {cache!r}, needed one from model.new_cache()")
    else:
        origin = Origin.of(model)
        seen = None if origin.weights.hooked else origin.weights
        with torch.no_grad(), cache.extend(spec, B, T, tokens, origin), weights_seen(seen):
            yield _positions(cache.lengths, T, tokens.device), cache.layers


def _positions(lengths: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Of the next `count` tokens of each row: (count,) if all rows are as long, else (B, count)."""
    first, last = min(lengths), max(lengths)
    positions = torch.arange(first, first + count, device=device)
    if first == last:
        return positions
    return positions + torch.tensor(lengths, device=device)[:, None] - first
