"""A cache in pages: rows with the same beginning hold it once, and copy only what they write.

As an operating system does for processes that fork: a row is a table of page numbers, the pages lie
in a pool that forks share, each page counts the tables that it is in, and a page that several
tables hold is copied by the first that writes into it (Kwon et al. 2023, PagedAttention, which
reads pages in place with a kernel of its own; here a step gathers those that are not neighbours
anyway, so that attention reads the same numbers in the same order as from any other cache).

Full pages can also be found by what they hold (`publish`, `begin`): a text whose beginning another
one has computed takes over its pages, and nothing of it is computed again.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.origin import Origin
from minigpt.numerics.base import KEY_BLOCK, whole_blocks
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError

ZEROS = 0  # the page that stands for "nothing here yet": all zeros, in every table, never written


class PagePool:
    """Pages of `size` positions, each with the keys and values of all layers, and their owners.

    `data` is (L, 2, G, pages, size·D). It grows by an eighth, or by what is asked for if that is
    more; pages that nobody holds any longer are used again first, and of these the published ones
    last, since a text may still come that begins with them: the longest unused goes first.

    Threads that go on with forks of one cache share it, so it is changed and read under `lock`,
    for moments. A thread may take it twice: a cache can be dropped at any line of another's work.
    """

    def __init__(self, cache: PagedCache) -> None:
        self.spec, self.size = cache.spec, cache.page
        self.data = cache._zeros(*self._shape(1))
        self.owners = [1]  # [page]: how many tables it is in
        self.free: list[int] = []
        self.known: dict[bytes, int] = {}  # published content, as `following` names it -> its page
        self.names: dict[int, bytes] = {}  # the same the other way
        self.idle: dict[int, None] = {}  # known pages that nobody holds, the longest unused first
        self.lock = threading.RLock()

    def _shape(self, pages: int) -> tuple[int, ...]:
        spec = self.spec
        return spec.n_layer, 2, spec.n_kv_head, pages, self.size * spec.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes allocated, for all caches that share this pool."""
        return self.data.nbytes

    @property
    def available(self) -> int:
        """Pages that can be taken before the pool must grow."""
        return len(self.free) + len(self.idle)

    def grow(self, more: int, cache: KVCache) -> None:
        """Allocate so many more pages; `cache` refuses what does not fit in memory."""
        old = self.data.shape[3]
        bigger = cache._zeros(*self._shape(old + more))
        if old > 1:  # the page of zeros alone is there already, and memory not touched is not taken
            bigger[:, :, :, :old] = self.data
        self.data = bigger
        self.free += range(old + more - 1, old - 1, -1)
        self.owners += [0] * more

    def take(self, count: int, cache: KVCache) -> list[int]:
        """`count` pages of zeros, each in one table now."""
        short = count - len(self.free)
        if short > 0:
            self.forget(list(self.idle)[:short])
            short = count - len(self.free)
        if short > 0:
            self.grow(max(short, self.data.shape[3] // 8), cache)
        pages = [self.free.pop() for _ in range(count)]
        for page in pages:
            self.owners[page] = 1
        self.data[:, :, :, pages] = 0
        return pages

    def share(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.owners[page] += 1
            self.idle.pop(page, None)

    def drop(self, pages: Sequence[int]) -> None:
        for page in reversed(pages):  # the end of a text is of no use without its beginning, so it
            self.owners[page] -= 1  # is the first to be forgotten
            if self.owners[page] == 0:
                if self.known.get(self.names.get(page, b"")) == page:
                    self.idle[page] = None
                else:
                    self.names.pop(page, None)  # another page with the same content was first
                    self.free.append(page)

    def learn(self, page: int, name: bytes) -> None:
        """Publish what a page holds, unless another one that holds the same already is."""
        self.names[page] = name
        self.known.setdefault(name, page)

    def forget(self, pages: Sequence[int]) -> None:
        """Let nobody find these any more; those that nobody holds are free then."""
        for page in pages:
            name = self.names.pop(page, b"")
            if self.known.get(name) == page:
                del self.known[name]
            if page in self.idle:
                del self.idle[page]
                self.free.append(page)

    def drop_tables(self, tables: list[list[int]]) -> None:
        """What a cache owes when it is gone."""
        with self.lock:
            for table in tables:
                self.drop(table)


class PagedCache(KVCache):
    """Pages of 16 positions, allocated as a row grows, shared by the rows that have them in common.

    Memory: 2 x L x G x D x bytes per number for each position, in whole pages: 73,728 bytes per
    token for GPT-2 124M in float32, 1.2 MB per page. `fork`, `select` and `expand` allocate
    nothing; each branch then copies one page at most, the one it goes on writing in.

    `nbytes` counts every page that this cache can see once, shared or not; `pool.nbytes` is what
    all branches take together.
    """

    kind = "paged"
    setting_names = ("page",)

    def __init__(
        self, spec: CacheSpec, batch_size: int, capacity: int, page: int = 16,
        pool: PagePool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, batch_size, capacity)
        self.page = whole("page", page)
        if KEY_BLOCK % page and page % KEY_BLOCK:  # blocks of keys are whole pages, or pages blocks
            raise MinigptError(f"page is {page}, needed a divisor or a multiple of {KEY_BLOCK}")
        self.pool = pool or PagePool(self)
        self.tables: list[list[int]] = [[] for _ in range(batch_size)]  # [row][n]: the n-th page
        self._slots = self._shown = self._index = torch.empty(0)
        self._index_of = 0  # pages in the pool when `_index` was made: other threads may add some
        self._run: slice | None = None
        weakref.finalize(self, self.pool.drop_tables, self.tables).atexit = False

    @property
    def nbytes(self) -> int:
        pages = {page for table in self.tables for page in table}
        return len(pages) * self.page * self.spec.bytes_per_token

    def begin(self, tokens: Sequence[int], origin: Origin) -> int:
        """Start this row, which is empty, with published pages that hold the same beginning.

        Args:
            tokens: what the row is going to hold.
            origin: what the published pages were computed by.

        Returns:
            How many of the tokens it holds now: whole pages.
        """
        assert self.batch_size == 1 and not len(self)
        size, name, pages = self.page, b"", list[int]()
        with self.in_use(), self.pool.lock:
            for end in range(size, len(tokens) + 1, size):
                name = following(name, tokens[end - size : end])
                if name not in self.pool.known:
                    break
                pages.append(self.pool.known[name])
            self.pool.share(pages)
            self.tables[0] += pages
            held = len(pages) * size
            self._lengths, self._tokens, self._origin = [held], [list(tokens[:held])], origin
        return held

    def publish(self) -> None:
        """Let other rows `begin` with the full pages of these.

        Only right while all that is published in this pool has one origin; `forget` it otherwise.
        """
        assert self._tokens is not None
        pool, size = self.pool, self.page
        with pool.lock:
            for table, tokens in zip(self.tables, self._tokens, strict=True):
                full = named = len(tokens) // size
                while named and table[named - 1] not in pool.names:
                    named -= 1
                name = pool.names[table[named - 1]] if named else b""
                for n in range(named, full):
                    name = following(name, tokens[n * size : (n + 1) * size])
                    pool.learn(table[n], name)

    def _reserve(self, count: int) -> None:
        """Pages for `count` more positions of every row, its own from where it will write."""
        pool, size = self.pool, self.page
        with pool.lock:
            for table, length in zip(self.tables, self._lengths, strict=True):
                if length % size:
                    self._own_last(table)
                missing = -(-(length + count) // size) - len(table)
                table += pool.take(missing, self)
        # Where the new positions go, (B·T), counted in positions through one head's pages ...
        starts = torch.tensor(self._lengths)[:, None] + torch.arange(count)  # (B, T)
        longest = max(len(table) for table in self.tables)
        shown = whole_blocks(longest * size) // size
        self._shown = self._pages(shown)
        slots = self._shown.gather(1, starts // size) * size + starts % size
        self._slots = slots.flatten().to(self.spec.device)
        # ... and which pages to read: a run of neighbours, as a single row without forks has, or
        # any, which are looked up when it is known how many pages there are.
        first, *_ = table = self.tables[0]
        neighbours = self.batch_size == 1 and table == list(range(first, first + len(table)))
        self._run = slice(first * size, (first + len(table)) * size) if neighbours else None
        self._index_of = 0

    def _look_up(self, pages: int) -> None:
        """Where to read, (B·G·shown), counted through the pages of all heads, `pages` each."""
        heads = torch.arange(self.spec.n_kv_head)[:, None] * pages
        self._index = (heads + self._shown[:, None]).flatten().to(self.spec.device)
        self._index_of = pages

    def _pages(self, count: int) -> Tensor:
        """The tables, each filled up to `count` pages: (B, count)."""
        filled = [table + [ZEROS] * (count - len(table)) for table in self.tables]
        return torch.tensor(filled, dtype=torch.int64)  # also when there are none

    def _own_last(self, table: list[int]) -> None:
        """Copy on write: the last page of a row that is about to change, if others hold it too."""
        shared = table[-1]
        if self.pool.owners[shared] == 1:
            self.pool.forget([shared])  # it will not be what it was published as
        if self.pool.owners[shared] > 1:
            (table[-1],) = self.pool.take(1, self)
            self.pool.data[:, :, :, table[-1]] = self.pool.data[:, :, :, shared]
            self.pool.drop([shared])

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        B, G, _, D = k.shape
        with self.pool.lock:
            held = self.pool.data[layer]  # (2, G, pages, size·D)
            for data, new in zip(held, (k, v), strict=True):
                data.view(G, -1, D).index_copy_(1, self._slots, new.transpose(0, 1).flatten(1, 2))
            if self._run is not None:  # read where they lie
                keys, values = held.view(2, 1, G, -1, D)[:, :, :, self._run]
            else:
                if self._index_of != held.shape[2]:
                    self._look_up(held.shape[2])
                keys, values = (
                    data.view(-1, self.page * D).index_select(0, self._index).view(B, G, -1, D)
                    for data in held
                )
        return keys, values, self._lengths

    def _forget(self, lengths: Sequence[int], end: int) -> None:
        with self.pool.lock:
            for table, length in zip(self.tables, lengths, strict=True):
                pages = -(-length // self.page)
                self.pool.drop(table[pages:])
                del table[pages:]
                inside = length % self.page
                if inside:
                    self._own_last(table)
                    self.pool.data[:, :, :, table[-1], inside * self.spec.head_dim :].zero_()

    def _adopt(self, sources: list[tuple[KVCache, int]]) -> None:
        with self.pool.lock:
            for table, (cache, row) in zip(self.tables, sources, strict=True):
                assert isinstance(cache, PagedCache)
                pages = cache.tables[row]
                if cache is self:
                    continue
                if cache.pool is self.pool:
                    self.pool.share(pages)
                    table += pages
                else:
                    table += self.pool.take(len(pages), self)
                    self.pool.data[:, :, :, table] = cache.pool.data[:, :, :, pages]

    def _empty(self, batch_size: int, capacity: int) -> PagedCache:
        return PagedCache(self.spec, batch_size, capacity, self.page, self.pool)

    def _bytes_per_copy(self) -> int:
        return self.page * self.spec.bytes_per_token  # the page that the row goes on writing in

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies (B, G, S, D), gathered from the pages."""
        longest = max(len(table) for table in self.tables)
        pages = self._pages(longest)
        data = self.pool.data[index]  # (2, G, pages, size·D)
        shape = (self.spec.n_kv_head, self.batch_size, longest * self.page, self.spec.head_dim)
        seen = torch.arange(longest * self.page) < torch.tensor(self._lengths)[:, None]  # (B, S')
        kept = seen[:, None, :, None].to(self.spec.device)
        keys, values = (
            (part[:, pages].reshape(shape).transpose(0, 1) * kept)[:, :, : len(self)]
            for part in data
        )
        return keys, values


def following(name: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a page with these tokens, after a page of that name; b"" is a text's beginning.

    A page's keys and values depend on all tokens before it, and so does its name: a chain of
    hashes, in which no two texts meet (SHA-256).
    """
    return hashlib.sha256(name + array("q", tokens).tobytes()).digest()
