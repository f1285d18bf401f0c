"""Decoding steps that live on the device: captured once as a CUDA graph, then replayed.

A step of a small model is some 200 short kernels, and Python takes longer to ask for them than a
GPU to run them. All that changes from one step to the next (tokens, positions, which keys are in
the future) is therefore kept in tensors on the device, so that a step is the same list of kernels
every time: recorded once for each number of key blocks, and asked for in one call from then on. The
host looks only at the tokens that were chosen, and where nobody waits for each of them, at several
at once.

A step computes what a call of the model computes, by the same row operations: with exact numerics,
to the bit. Where nothing can be captured (on a CPU, or while a hook listens) the same function is
simply called. Shapes use the legend of `model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from minigpt.cache.kvcache import KVCache, LayerCache
from minigpt.cache.origin import Origin
from minigpt.cache.plain import StaticCache
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.base import KEY_BLOCK, DeviceStarts, RowModule
from minigpt.numerics.recorder import Recorder

AHEAD = 16  # tokens chosen before the host looks, where nobody waits for each
WORTH_IT = 6  # steps after which a capture, which takes two of them itself, has paid

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> the next tokens (B,)


class DeviceLayer(LayerCache):
    """One layer of a static cache, written where the device says."""

    def __init__(self, cache: StaticCache, layer: int, rows: Tensor, starts: DeviceStarts) -> None:
        super().__init__(cache, layer)
        self.keys, self.values = cache._views[layer]  # (B, G, capacity, D) each
        self.rows, self.starts = rows, starts  # (B,): 0, 1, ...

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Sequence[int]]:
        self.keys[self.rows, :, self.starts.positions] = k[:, :, 0]  # (B, G, D)
        self.values[self.rows, :, self.starts.positions] = v[:, :, 0]
        shown = max(self.starts) + 1
        return self.keys[:, :, :shown], self.values[:, :, :shown], self.starts


def step(
    model: GPT, cache: StaticCache, tokens: Tensor, positions: Tensor, blocks: Sequence[int]
) -> Tensor:
    """Logits of what follows one token a row: a pure function of what is on the device.

    Args:
        tokens, positions: (B,) int64.
        blocks: of keys, that each row's position lies in.

    Returns:
        (B, V). The keys and values are in the cache, whose lengths are the caller's business.
    """
    starts = DeviceStarts(blocks, positions)
    rows = torch.arange(cache.batch_size, device=tokens.device)
    layers = [DeviceLayer(cache, layer, rows, starts) for layer in range(cache.spec.n_layer)]
    return model.compute(tokens[:, None], positions[:, None], layers)


class DeviceSteps:
    """The steps of one model that go on with one cache.

    Args:
        model: in evaluation mode whenever a step is asked for.
        cache: whose memory the recordings write to.
    """

    def __init__(self, model: GPT, cache: StaticCache) -> None:
        self.model = model
        self._cache = ref(cache)  # not the cache: `_STEPS` would keep both alive for ever
        self.modules = list(model.modules())
        rows, device = cache.batch_size, model.device
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.noise: Tensor | None = None  # (B, V), where a recorded step reads it
        self._aside: Any = None  # a stream to record on, and the memory that recordings share
        self._pool: Any = None
        self._recorded: dict[tuple[object, ...], tuple[Any, Tensor]] = {}
        self._stamp: object = None

    @property
    def cache(self) -> StaticCache:
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
        self, tokens: Sequence[int], count: int, sampler: Sampler, noise: Callable[[], Tensor]
    ) -> list[list[int]] | None:
        """Feed one token to each row, the one chosen then to the next step, `count` times.

        Args:
            sampler: chooses on the device.
            noise: called for each step of a sampler that draws, gives (B, V) on the CPU.

        Returns:
            The chosen tokens, (count, B); None if logits were no numbers. The cache holds all
            tokens that were fed: `count` more, and not the last one chosen.
        """
        rows, device = len(tokens), self.tokens.device
        fed = torch.empty(count + 1, rows, dtype=torch.int64, device=device)
        with self._extended(count, fed[:count].T) as origin:
            self._begin(tokens, origin)
            fed[0] = self.tokens
            for n in range(count):
                if sampler.draws:  # while the device is busy with the step before
                    self._bring(noise())
                self._one(sampler, n, count - n)
                fed[n + 1] = self.tokens
        chosen: list[list[int]] = fed[1:].tolist()
        return chosen if self.finite.item() else None

    @contextmanager
    def _extended(self, count: int, fed: Tensor) -> Iterator[Origin]:
        """The cache grows by `count` tokens a row, which `fed` (B, count) holds in the end."""
        origin = Origin.of(self.model)
        self.model.ops.check_context(self.model.dtype, self.model.device)
        with self.cache.extend(self.model.cache_spec, len(fed), count, fed, origin):
            yield origin

    def _begin(self, tokens: Sequence[int], origin: Origin) -> None:
        """Put on the device where it goes on."""
        state = torch.tensor([tokens, self.cache.lengths])
        self.tokens.copy_(state[0], non_blocking=True)
        self.positions.copy_(state[1], non_blocking=True)
        self.finite.fill_(True)
        stamp = _stamp(origin, self.modules)
        if stamp != self._stamp:
            self._recorded, self._stamp = {}, stamp

    def _bring(self, noise: Tensor) -> None:
        """Put noise (B, V) where the recorded step reads it."""
        if self.noise is None:
            self.noise = torch.empty_like(noise, device=self.tokens.device)
        on_gpu = self.tokens.device.type == "cuda"  # which copies pinned memory without waiting
        self.noise.copy_(noise.pin_memory() if on_gpu else noise, non_blocking=True)

    def _one(self, sampler: Sampler | None, done: int, left: int) -> Tensor:
        """One step of every row, whose positions are `done` beyond the cache's lengths."""
        lengths = [length + done for length in self.cache._lengths]
        blocks = tuple(length // KEY_BLOCK + 1 for length in lengths)

        def run() -> Tensor:
            logits = step(self.model, self.cache, self.tokens, self.positions, blocks)
            self.positions += 1
            if sampler is not None:
                self.finite &= logits.amax().isfinite()
                self.tokens.copy_(sampler.pick(logits, self.noise if sampler.draws else None))
            return logits

        key = (blocks, sampler)
        if key in self._recorded:
            graph, logits = self._recorded[key]
            graph.replay()
            return logits
        room = min(
            KEY_BLOCK * block - length for block, length in zip(blocks, lengths, strict=True)
        )
        if self._stamp is None or min(left, room) < WORTH_IT or not self._can_record():
            return run()
        self._recorded[key] = graph, logits = self._record(run)
        graph.replay()
        return logits

    def _can_record(self) -> bool:
        return self.tokens.device.type == "cuda"

    def _record(self, run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """Capture a step. It is run once before, for what only a first call does: certificates,
        and what libraries allocate. Running it twice writes the same keys to the same places."""
        state = (self.tokens, self.positions, self.finite)
        before = [tensor.clone() for tensor in state]
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
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return graph, logits


_STEPS: WeakKeyDictionary[KVCache, DeviceSteps] = WeakKeyDictionary()


def steps_for(model: GPT, cache: KVCache | None, force: bool = False) -> DeviceSteps | None:
    """The steps that go on with this cache; None where calls of the model are as quick, or needed.

    A cache that is used again keeps its recordings.

    Args:
        force: also on a CPU, where a step is a plain call.
    """
    if not isinstance(cache, StaticCache) or not (force or model.device.type == "cuda"):
        return None
    steps = _STEPS.get(cache)
    if steps is None or steps.model is not model:
        steps = _STEPS[cache] = DeviceSteps(model, cache)
    return steps


def _stamp(origin: Origin, modules: Sequence[nn.Module]) -> object:
    """What a recording has baked in beside the cache; None while something listens in, which a
    replay would not call."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    ops = [module.ops for module in modules if isinstance(module, RowModule)]
    return None if any(isinstance(one, Recorder) for one in ops) else (origin, ops)
