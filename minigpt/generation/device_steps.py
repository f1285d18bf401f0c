"""Decoding steps that live on the device: captured once as a CUDA graph, then replayed.

A step of a small model is some 200 short kernels, and Python takes longer to ask for them than a
GPU to run them. All that changes from one step to the next (tokens, positions, which keys are in
the future) is therefore kept in tensors on the device, so that a step is the same list of kernels
every time: recorded once for the blocks of keys that its rows are in, and asked for in one call
from then on. The host looks only at the tokens that were chosen, and where nobody waits for each of
them, at several at once.

A step computes what a call of the model computes, by the same row operations: with exact numerics,
to the bit. Where nothing can be captured (on a CPU, or while a hook listens) the same function is
simply called. Shapes use the legend of `model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from minigpt.cache.kvcache import KVCache
from minigpt.cache.origin import Origin
from minigpt.cache.paged import PagedCache, PagePool
from minigpt.cache.plain import StaticCache
from minigpt.generation.device_caches import device_layers, device_tables
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.base import KEY_BLOCK, RowModule, whole_blocks
from minigpt.numerics.device_attention import DeviceStarts
from minigpt.numerics.recorder import Recorder

AHEAD = 16  # tokens chosen before the host looks, where nobody waits for each
WORTH_IT = 6  # steps after which a capture, which takes two of them itself, has paid
KEPT = 24  # recordings of one object; then the one longest unused goes

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next tokens (B,)


class State(NamedTuple):
    """All that changes from one step to the next, on the device."""

    tokens: Tensor  # (B,), to be fed
    positions: Tensor  # (B,), theirs
    flaws: Tensor  # (B,): 0, or NaN once a row's logits were no numbers
    tables: Tensor  # (B, pages) of a paged cache, (B, 0) of another


def step(
    model: GPT, cache: KVCache, state: State, blocks: Sequence[int], numbers: Tensor
) -> Tensor:
    """Logits of what follows one token a row: a pure function of what is on the device.

    Args:
        blocks: of keys, that the rows' positions lie in, each once and ascending.
        numbers: 0, 1, ... as many as there are rows, keys in these blocks, and twice the heads.

    Returns:
        (B, V). The keys and values are in the cache, whose lengths are the caller's business.
    """
    starts = DeviceStarts(blocks, state.positions, numbers, model.dtype)
    layers = device_layers(cache, starts, numbers, state.tables)
    return model.compute(state.tokens[:, None], state.positions[:, None], layers)


class DeviceSteps:
    """The steps of one model in one piece of memory: of a static cache, or of pages.

    Args:
        model: in evaluation mode whenever a step is asked for.
        cache: in whose memory the recordings write. Paged ones may take turns, if they have as many
            rows of the same capacity: `go_on_with`.
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.model = model
        self.go_on_with(cache)
        self.modules = list(model.modules())
        rows, device = cache.batch_size, model.device
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        tables = device_tables(cache).to(device)
        self.state = State(zeros, zeros.clone(), zeros.float(), tables)
        most = max(rows, whole_blocks(cache.capacity), 2 * cache.spec.n_kv_head)
        self.numbers = torch.arange(most, device=device)
        self.noise: Tensor | None = None  # (B, V), where a recorded step reads it
        self._aside: Any = None  # a stream to record on, and the memory that recordings share
        self._pool: Any = None
        self._recorded: dict[tuple[object, ...], tuple[Any, Tensor]] = {}
        self._stamp: object = None

    def go_on_with(self, cache: KVCache) -> None:
        self._cache = ref(cache)  # not the cache: `_STEPS` would keep it alive for ever

    @property
    def cache(self) -> KVCache:
        cache = self._cache()
        assert cache is not None, "whoever asks for a step holds the cache that it goes on with"
        return cache

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """What the model says after one more token of each row: (B, V), until the next step."""
        fed = torch.tensor(tokens)[:, None]
        with self._extended(1, fed) as origin:
            self._begin(tokens, origin)
            return self._one(None, 0, KEY_BLOCK)

    @torch.inference_mode()
    def advance(
        self,
        tokens: Sequence[int],
        count: int,
        sampler: Sampler,
        noise: Callable[[], Tensor],
        more: int = 0,
    ) -> list[list[int]] | None:
        """Feed one token to each row, the one chosen then to the next step, `count` times.

        Args:
            sampler: chooses on the device.
            noise: called for each step of a sampler that draws, gives (B, V) on the CPU.
            more: steps that are likely to be asked for after these: is a recording worth it?

        Returns:
            The chosen tokens, (count, B); None if some logits were no numbers. The cache holds all
            tokens that were fed: `count` more, and not the last one chosen.
        """
        rows, device = len(tokens), self.model.device
        fed = torch.empty(count + 1, rows, dtype=torch.int64, device=device)
        with self._extended(count, fed[:count].T) as origin:
            self._begin(tokens, origin)
            fed[0] = self.state.tokens
            for n in range(count):
                if sampler.draws:  # while the device is busy with the step before
                    self._bring(noise())
                self._one(sampler, n, count - n + more)
                fed[n + 1] = self.state.tokens
        chosen: list[list[int]] = fed[1:].tolist()
        return chosen if self.state.flaws.isfinite().all() else None

    @contextmanager
    def _extended(self, count: int, fed: Tensor) -> Iterator[Origin]:
        """The cache grows by `count` tokens a row, which `fed` (B, count) holds in the end."""
        origin = Origin.of(self.model)
        self.model.ops.check_context(self.model.dtype, self.model.device)
        cache = self.cache
        lock = cache.pool.lock if isinstance(cache, PagedCache) else nullcontext()
        with lock, cache.extend(self.model.cache_spec, len(fed), count, fed, origin):
            yield origin

    def _begin(self, tokens: Sequence[int], origin: Origin) -> None:
        """Put on the device where it goes on."""
        now, state = torch.tensor([tokens, self.cache.lengths]), self.state
        state.tokens.copy_(now[0], non_blocking=True)
        state.positions.copy_(now[1], non_blocking=True)
        state.flaws.zero_()
        state.tables.copy_(device_tables(self.cache), non_blocking=True)
        stamp = _stamp(origin, self.modules)
        if stamp is not None and isinstance(self.cache, PagedCache):
            stamp = (stamp, self.cache.pool.data.data_ptr())  # which moves when the pool grows
        if stamp != self._stamp:
            self._recorded, self._stamp = {}, stamp

    def _bring(self, noise: Tensor) -> None:
        """Put noise (B, V) where the recorded step reads it."""
        if self.noise is None:
            self.noise = torch.empty_like(noise, device=self.model.device)
        on_gpu = self.model.device.type == "cuda"  # which copies pinned memory without waiting
        self.noise.copy_(noise.pin_memory() if on_gpu else noise, non_blocking=True)

    def _one(self, sampler: Sampler | None, done: int, left: int) -> Tensor:
        """One step of every row, whose positions are `done` beyond the cache's lengths."""

        def blocks_after(steps: int) -> tuple[int, ...]:
            found = sorted({(n + done + steps) // KEY_BLOCK + 1 for n in lengths})
            return tuple(found if self.model.ops.keys_by_position else found[-1:])

        lengths = self.cache._lengths
        blocks = blocks_after(0)

        def run() -> Tensor:
            state = self.state
            logits = step(self.model, self.cache, state, blocks, self.numbers)
            state.positions.add_(1)
            if sampler is not None:
                state.flaws.add_(0 * logits.amax(-1))  # 0 x infinity is no number either
                state.tokens.copy_(sampler.pick(logits, self.noise if sampler.draws else None))
            return logits

        key = (blocks, sampler)
        if key in self._recorded:
            graph, logits = self._recorded[key] = self._recorded.pop(key)  # now the latest used
            graph.replay()
            return logits
        pays = left >= WORTH_IT and blocks_after(WORTH_IT - 1) == blocks
        if self._stamp is None or not pays or not self._can_record():
            return run()
        if len(self._recorded) == KEPT:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[key] = graph, logits = self._record(run)
        graph.replay()
        return logits

    def _can_record(self) -> bool:
        return self.model.device.type == "cuda"

    def _record(self, run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """Capture a step. It is run once before, for what only a first call does: certificates,
        and what libraries allocate. Running it twice writes the same keys to the same places."""
        before = [tensor.clone() for tensor in self.state]
        if self._aside is None:
            self._aside, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        graph, aside = torch.cuda.CUDAGraph(), self._aside
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
            torch.cuda.synchronize()
            # Not `torch.cuda.graph`, which empties torch's store of free memory every time.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = run()  # written down, not computed
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, value in zip(self.state, before, strict=True):
            tensor.copy_(value)
        return graph, logits


_STEPS: WeakKeyDictionary[KVCache | PagePool, dict[tuple[int, int], DeviceSteps]]
_STEPS = WeakKeyDictionary()  # by whose memory it is, and by a cache's rows and capacity


def steps_for(model: GPT, cache: KVCache | None, force: bool = False) -> DeviceSteps | None:
    """The steps that go on with this cache; None where calls of the model are as quick, or needed.

    A cache that is used again keeps its recordings, and so do pages, whatever cache they are in.

    Args:
        force: also on a CPU, where a step is a plain call.
    """
    if not isinstance(cache, (StaticCache, PagedCache)):
        return None
    if not (force or model.device.type == "cuda"):
        return None
    known = _STEPS.setdefault(cache.pool if isinstance(cache, PagedCache) else cache, {})
    shape = cache.batch_size, cache.capacity
    if shape not in known or known[shape].model is not model:
        known[shape] = DeviceSteps(model, cache)
    known[shape].go_on_with(cache)
    return known[shape]


def _stamp(origin: Origin, modules: Sequence[nn.Module]) -> object:
    """What a recording has baked in beside the cache; None while something listens in, which a
    replay would not call."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    ops = [module.ops for module in modules if isinstance(module, RowModule)]
    return None if any(isinstance(one, Recorder) for one in ops) else (origin, ops)
