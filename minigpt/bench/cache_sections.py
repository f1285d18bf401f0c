"""What a cache saves, and what each kind costs: a step, many branches of a text, keeping it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from minigpt.bench.contest import Contest
from minigpt.bench.measure import Prepare, Row, Section, interleave, ratios, turns
from minigpt.cache.kinds import KINDS
from minigpt.cache.kvcache import KVCache
from minigpt.checkpoint.caches import load_cache, save_cache
from minigpt.generation.continuation import generate
from minigpt.model import GPT
from minigpt.support.memory import process_memory

BRANCHES = 16


def measure_cache(contest: Contest) -> Section:
    """Whole texts with the cache and without, by their length."""
    contest.model.numerics = "exact"
    prompt = contest.tokens(1, contest.prompt // 8)[0].tolist()

    def run(use_cache: bool, count: int) -> tuple[list[int], list[float]]:
        """The tokens, and the seconds until each."""
        seconds: list[float] = []
        began = time.perf_counter()
        text = generate(
            contest.model,
            prompt,
            count,
            use_cache=use_cache,
            stop_tokens=(),
            on_token=lambda _: seconds.append(time.perf_counter() - began),
        )
        return text.tokens, seconds

    runs: dict[str, list[tuple[list[int], list[float]]]] = {"with": [], "without": []}
    rounds = max(1, contest.rounds // 5)
    for name in runs:  # warm up
        run(name == "with", 2)
    for name in turns(runs, rounds, "cache"):
        runs[name].append(run(name == "with", contest.lengths[-1]))
    rows = []
    for length in contest.lengths:
        cached, uncached = ([marks[length - 1] for _, marks in runs[name]] for name in runs)
        computed = len(prompt) + length - 1  # with the cache, each position once
        again = sum(len(prompt) + step for step in range(length))
        extra = {
            "speed-up": median(ratios(uncached, cached)),
            "less work": again / computed,
            "cache bytes": contest.model.cache_spec.bytes_per_token * computed,
        }
        rows.append(Row(f"{length} tokens with the cache", cached, "s", extra))
        rows.append(Row(f"{length} tokens without", uncached, "s"))
    texts = [text for name in runs for text, _ in runs[name]]
    same = "the same" if all(text == texts[0] for text in texts) else "NOT the same"
    title = f"generating after {len(prompt)} tokens, exact numerics, {rounds} rounds"
    notes = [
        f"the tokens with and without are {same}",
        "less work: positions computed without the cache, over those with it; what limits a "
        "single position is reading the weights, so the speed-up is smaller",
    ]
    return Section("cache", title, rows, notes)


def measure_kinds(contest: Contest) -> Section:
    """Steps in fast numerics with each kind; then forking, saving and loading a long text."""
    model = contest.model
    model.numerics = "fast"
    steps = 4 if contest.quick else 16
    tokens = contest.tokens(1, min(900, model.config.n_positions - steps - 1))
    caches: dict[str, KVCache] = {}
    with torch.inference_mode():
        for kind in KINDS:
            caches[kind] = model.new_cache(kind=kind)
            model.next_logits(tokens, cache=caches[kind])
    contenders = {kind: partial(_steps, model, caches[kind], tokens, steps) for kind in KINDS}
    samples = interleave(contenders, contest.rounds, "kinds")
    rows = []
    for kind, seconds in samples.items():
        extra = {
            "of static": median(ratios(seconds, samples["static"])),
            "cache bytes": caches[kind].nbytes,
        }
        rows.append(Row(kind, [1000 * took / steps for took in seconds], "ms", extra))
    rows += _forks(model, caches["paged"], tokens)
    rows += _kept(model, caches["static"], tokens, contest.rounds)
    notes = [f"{BRANCHES} forks, each one token on: memory over that of {BRANCHES} copies"]
    return Section("kinds", f"a step after {tokens.shape[1]} tokens, fast numerics", rows, notes)


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
