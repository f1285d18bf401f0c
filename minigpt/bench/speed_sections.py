"""How fast a step and a prompt are, beside other programs and the limits of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch

from minigpt.bench.contest import Contest
from minigpt.bench.entrants import Entrant, minigpt_entrant
from minigpt.bench.lineup import load_entrants, load_int8_entrants
from minigpt.bench.machine import prepare_product, prepare_read
from minigpt.bench.measure import Row, Samples, Section, interleave, ratios
from minigpt.model import GPT


def measure_decode(contest: Contest) -> Section:
    """A step, in batches of several sizes."""
    rows: list[Row] = []
    for batch in contest.batches:
        rows += _rows(f"batch {batch}", contest.decode(batch), contest.steps, batch)
    notes = [
        _compare_tokens(contest),
        "limit: reading weights and cache once, as fast as a matrix times a vector reads so much",
        _against(contest),
        *contest.left_out,
    ]
    return Section("decode", f"time of a step, {_after(contest)}", rows, notes)


def measure_prefill(contest: Contest) -> Section:
    """A prompt, of several lengths."""
    rows: list[Row] = []
    for length in contest.prefills:
        rows += _rows(f"{length} tokens", contest.prefill(length), 1, length)
    notes = [f"limit: as many multiplications in one large {contest.dtype} product"]
    notes += [_against(contest), *contest.left_out]
    return Section("prefill", "time to the first token, the cache filled", rows, notes)


def measure_exact(contest: Contest) -> Section:
    """What exact numerics cost, from the samples of the other sections."""
    length = contest.prefills[-1]
    samples = {f"decode, batch {batch}": contest.decode(batch) for batch in contest.batches}
    samples[f"prefill, {length} tokens"] = contest.prefill(length)
    rows = [
        Row(name, ratios(seconds["minigpt exact"], seconds["minigpt fast"]), "x")
        for name, seconds in samples.items()
    ]
    return Section("exact", "its time over that of fast", rows)


def measure_int8(contest: Contest) -> Section:
    """A step with 8-bit weights, and in the same turns with those there are."""
    plain = minigpt_entrant(contest.model, "fast")
    rivals = [plain, *load_int8_entrants(contest.model, contest.directory)]
    tokens = contest.tokens(1, contest.prompt)

    def measure(rivals: list[Entrant]) -> Samples:
        runs = {rival.name: partial(rival.decode, tokens, contest.steps) for rival in rivals}
        return interleave(runs, contest.rounds, "int8")

    samples = contest.without_failures(rivals, measure)
    rows = []
    for name, seconds in samples.items():
        extra = {
            "tokens/s": contest.steps / median(seconds),
            "speed-up": median(ratios(samples[plain.name], seconds)),
        }
        rows.append(Row(name, [1000 * took / contest.steps for took in seconds], "ms", extra))
    plain.ready()
    notes = [
        f"speed-up: over {plain.name}, whose weights are {contest.dtype}",
        "everyone rounds in a way of its own, so their texts may differ",
        *contest.left_out,
    ]
    return Section("int8", f"time of a step with 8-bit weights, {_after(contest)}", rows, notes)


def measure_limits(contest: Contest) -> Section:
    """How fast this machine reads and multiplies."""
    device, dtype = contest.model.device, contest.model.dtype
    read = prepare_read(device, contest.buffer)
    product = prepare_product(device, dtype, contest.side)
    probes = {"read": lambda: read, "multiply": lambda: product}
    seconds = interleave(probes, contest.rounds, "limits")
    rates = [contest.buffer / took / 1e9 for took in seconds["read"]]
    work = [2 * contest.side**3 / took / 1e9 for took in seconds["multiply"]]
    rows = [Row("memory read", rates, "GB/s"), Row(f"{contest.dtype} product", work, "GF/s")]
    notes = [f"a matrix of {contest.buffer:,} bytes times a vector; matrices {contest.side} square"]
    return Section("limits", "of this machine, by torch's own kernels", rows, notes)


def _rows(group: str, samples: Samples, steps: int, tokens: int) -> Iterator[Row]:
    """Milliseconds of each step, which takes `tokens` tokens on."""
    for name, seconds in samples.items():
        extra = {"tokens/s": steps * tokens / median(seconds)}
        if name != "limit":
            extra["of limit"] = median(ratios(samples["limit"], seconds))
        if name.startswith("minigpt") and "transformers" in samples:
            extra["speed-up"] = median(ratios(samples["transformers"], seconds))
        yield Row(f"{group:<12} {name}", [1000 * took / steps for took in seconds], "ms", extra)


def _after(contest: Contest) -> str:
    return f"{contest.steps} steps after {contest.prompt} tokens"


def _against(contest: Contest) -> str:
    return contest.missing or "speed-up: over transformers"


def _compare_tokens(contest: Contest) -> str:
    """Does everyone choose the same tokens? In float32, whatever dtype is timed."""
    rivals, prompts = contest.entrants, contest.tokens(8, contest.prompt)
    if contest.model.dtype != torch.float32:
        model = GPT.from_pretrained(contest.directory, torch.float32, contest.model.device)
        rivals = load_entrants(model, contest.directory)
    ids = contest.without_failures(
        rivals, lambda rivals: {r.name: r.decode(prompts, contest.steps)() for r in rivals}
    )
    odd = [name for name in ids if ids[name] != ids["minigpt fast"]]
    verdict = f"OTHERS from {' and '.join(odd)}" if odd else f"the same from {', '.join(ids)}"
    return f"8 x {contest.steps} greedy tokens in float32: {verdict}"
