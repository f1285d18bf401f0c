"""What each kind of cache costs: a step after a long text, many branches of it, and keeping it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from minigpt.bench.measure import Prepare, Row, Section, interleave, ratios
from minigpt.cache.base import KVCache
from minigpt.cache.kinds import KINDS
from minigpt.checkpoint.caches import load_cache, save_cache
from minigpt.model import GPT
from minigpt.support.memory import process_memory

BRANCHES = 16


def kinds(model: GPT, rounds: int, quick: bool = False) -> Section:
    """Steps in fast numerics with each kind; then forking, saving and loading a long text."""
    model.numerics = "fast"
    steps = 4 if quick else 16
    length = min(900, model.config.n_positions - steps - 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    tokens = tokens.to(model.device)
    caches: dict[str, KVCache] = {}
    with torch.inference_mode():
        for kind in KINDS:
            caches[kind] = model.new_cache(kind=kind)
            model.next_logits(tokens, cache=caches[kind])
    contenders = {kind: partial(_steps, model, caches[kind], tokens, steps) for kind in KINDS}
    samples = interleave(contenders, rounds, "kinds")
    rows = []
    for kind, seconds in samples.items():
        extra = {
            "of static": median(ratios(seconds, samples["static"])),
            "cache bytes": caches[kind].nbytes,
        }
        rows.append(Row(kind, [1000 * took / steps for took in seconds], "ms", extra))
    rows += _forks(model, caches["paged"], tokens)
    rows += _kept(model, caches["static"], tokens, rounds)
    notes = [
        f"{BRANCHES} forks, each one token on: memory over that of {BRANCHES} copies; goal 0.05",
        "goals for gpt2, two cores: paged 1.15 x static; loading 20 x quicker than prefilling",
    ]
    return Section("kinds", f"a step after {length} tokens, fast numerics", rows, notes)


def _steps(model: GPT, cache: KVCache, tokens: Tensor, steps: int) -> Callable[[], object]:
    if cache.kind != "window":  # which cannot go back; its steps cost the same wherever they are
        cache.truncate(tokens.shape[1])
    elif len(cache) + steps > cache.capacity:
        cache.reset()
        with torch.inference_mode():
            model.next_logits(tokens, cache=cache)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(steps):
            model.next_logits(tokens[:, :1], cache=cache).argmax().item()

    return run


@torch.inference_mode()
def _forks(model: GPT, cache: KVCache, tokens: Tensor) -> list[Row]:
    cache.truncate(tokens.shape[1])
    copies = BRANCHES * cache.spec.bytes_per_token * len(cache)
    pool = cache.pool  # type: ignore[attr-defined]
    allocated, resident = pool.nbytes, process_memory()
    branches = [cache.fork() for _ in range(BRANCHES)]
    for branch in branches:
        model.next_logits(tokens[:, :1], cache=branch)
    rows = [Row("forks, allocated", [(pool.nbytes - allocated) / copies], "x")]
    now = process_memory()
    if resident is not None and now is not None and model.device.type == "cpu":
        rows.append(Row("forks, in memory", [max(0, now - resident) / copies], "x"))
    return rows


def _kept(model: GPT, cache: KVCache, tokens: Tensor, rounds: int) -> list[Row]:
    """Prefill against load, in turns."""
    rows = []
    cache.truncate(tokens.shape[1])
    with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "cache.safetensors"
        save_cache(cache, path)

        @torch.inference_mode()
        def prefill() -> None:
            model.next_logits(tokens, cache=model.new_cache())

        contenders: dict[str, Prepare] = {
            "prefill": lambda: prefill,
            "load": lambda: partial(load_cache, path, model),
        }
        samples = interleave(contenders, max(1, rounds // 2), "load")
    for name, seconds in samples.items():
        extra = {"speed-up": median(ratios(samples["prefill"], seconds))}
        rows.append(Row(name, [1000 * took for took in seconds], "ms", extra))
    return rows
