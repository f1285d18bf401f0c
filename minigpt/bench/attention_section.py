"""What a cache does for attention alone: one layer with it and without, 32 heads of 128.

The two classes are those of lesson 2 (`study/by_hand.py`), in torch's own products. A step without
the cache recomputes the layer for all tokens so far; a step with it computes the new one. Steps are
timed at some lengths, and the time of a whole text is their sum, with those in between on a
straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch

from minigpt.bench.contest import Contest
from minigpt.bench.measure import Prepare, Row, Samples, Section, interleave, ratios
from minigpt.study.by_hand import Attention, Cache, CachedAttention
from minigpt.support.wording import counted

HEADS, WIDTH = 32, 128
LENGTHS: tuple[int, ...] = (1, 10, 50, 100, 200, 500, 1000)
LONGER = (2000, 4000)  # a GPU multiplies so quickly that the gain begins late
GAIN = 1.1  # less than that is noise


def measure_attention(contest: Contest) -> Section:
    """The pair on the model's device and in its dtype; its weights are not used."""
    model = contest.model
    lengths = LENGTHS[:3] if contest.quick else LENGTHS
    if model.device.type == "cuda" and not contest.quick:
        lengths += LONGER
    rounds = 1 if contest.quick else max(2, contest.rounds // 3)
    steps = time_steps(lengths, rounds, model.device, model.dtype)
    sums = {name: sum_steps(by_length) for name, by_length in steps.items()}
    rows = []
    for n in lengths:
        cached, uncached = sums["with"][n], sums["without"][n]
        extra = {"speed-up": median(ratios(uncached, cached)),
                 "cache bytes": 2 * n * HEADS * WIDTH * model.dtype.itemsize}  # fmt: skip
        tokens = counted(n, "token")
        rows.append(Row(f"{tokens} with the cache", cached, "s", extra))
        rows.append(Row(f"{tokens} without", uncached, "s"))
    gains = first_gain(sums)
    where = (
        f"from {counted(gains, 'token')} on" if gains else f"nowhere up to {lengths[-1]:,} tokens"
    )
    notes = [
        f"the cache gains {GAIN} x or more {where}",
        "a text's time is the sum of its steps; they were timed at these lengths, and those in "
        "between lie on a straight line",
    ]
    title = f"one layer, {HEADS} heads of {WIDTH}, token by token, {rounds} rounds"
    return Section("attention", title, rows, notes)


@torch.inference_mode()
def time_steps(
    lengths: Sequence[int],
    rounds: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    heads: int = HEADS,
    width: int = WIDTH,
) -> dict[str, dict[int, list[float]]]:
    """Seconds of a step "with" and "without" the cache, when the new token is number n.

    Returns:
        By name and length, one measurement per round.
    """
    C = heads * width
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    plain, cached = Attention(C, heads), CachedAttention(C, heads)
    weights = {name: random(*w.shape) / C**0.5 for name, w in plain.state_dict().items()}
    for layer in (plain, cached):
        layer.to(device, dtype).load_state_dict(weights)
    x = random(1, max(lengths), C)

    def without(n: int) -> Callable[[], object]:
        return lambda: plain(x[:, :n])[0, -1, 0].item()  # a number: the device has finished

    def with_cache(n: int) -> Callable[[], object]:
        cache = Cache(1)
        if n > 1:
            cache.update(0, random(1, heads, n - 1, width), random(1, heads, n - 1, width))
        return lambda: cached(x[:, n - 1 : n], cache, 0)[0, -1, 0].item()

    steps: dict[str, dict[int, list[float]]] = {"with": {}, "without": {}}
    for n in lengths:
        pair: dict[str, Prepare] = {
            "with": lambda n=n: with_cache(n),  # type: ignore[misc]
            "without": lambda n=n: without(n),  # type: ignore[misc]
        }
        samples: Samples = interleave(pair, rounds, f"{n} tokens")
        for name, seconds in samples.items():
            steps[name][n] = seconds
    return steps


def sum_steps(steps: dict[int, list[float]]) -> dict[int, list[float]]:
    """Seconds of the first n steps together, for each n that was timed: one number per round."""
    lengths = sorted(steps)
    total = [seconds * lengths[0] for seconds in steps[lengths[0]]]  # from step 1 on
    sums = {lengths[0]: total}
    for low, high in pairwise(lengths):
        new = high - low  # steps low + 1, ..., high: a straight line that begins just above low
        rise = [(b - a) / new for a, b in zip(steps[low], steps[high], strict=True)]
        more = [new * a + r * new * (new + 1) / 2
                for a, r in zip(steps[low], rise, strict=True)]  # fmt: skip
        total = [t + m for t, m in zip(total, more, strict=True)]
        sums[high] = total
    return sums


def first_gain(sums: dict[str, dict[int, list[float]]]) -> int | None:
    """The least length measured from which on a text is quicker with the cache by `GAIN`."""
    found = None
    for n in sorted(sums["with"], reverse=True):
        if median(ratios(sums["without"][n], sums["with"][n])) < GAIN:
            break
        found = n
    return found
