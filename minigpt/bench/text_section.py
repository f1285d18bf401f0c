"""Ways of writing text: several samples from one prefill, and guesses checked many at a time."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from minigpt.bench.contest import Contest
from minigpt.bench.measure import Row, Section, interleave, ratios
from minigpt.generation.batch import generate_batch
from minigpt.generation.continuation import generate
from minigpt.generation.drafts import acceptance
from minigpt.model import GPT

SAMPLES = 8


def measure_texts(contest: Contest) -> Section:
    """`generate_batch` against as many runs of `generate`; drafts against none; fast numerics."""
    model, quick = contest.model, contest.quick
    model.numerics = "fast"
    rounds = max(1, contest.rounds // 3)
    length, count = min(512, model.config.n_positions // 2), 4 if quick else 32
    prompt = contest.tokens(1, length)[0].tolist()
    drawn: dict[str, Any] = {"temperature": 1.0, "stop_tokens": ()}

    def one_by_one() -> None:
        for seed in range(SAMPLES):
            generate(model, prompt, count, seed=seed, **drawn)

    def together() -> None:
        generate_batch(model, [prompt], count, n=SAMPLES, **drawn)

    samples = interleave(
        {f"{SAMPLES} runs": lambda: one_by_one, f"n={SAMPLES}": lambda: together}, rounds, "samples"
    )
    rows = []
    for name, seconds in samples.items():
        extra = {"speed-up": median(ratios(samples[f"{SAMPLES} runs"], seconds))}
        rows.append(Row(f"{length} + {count}, {name}", seconds, "s", extra))
    notes = []
    count = 8 if quick else 128
    for name, settings in (("greedy", {"stop_tokens": ()}), ("drawn", drawn)):
        contenders = {
            "plain": _text(model, prompt[:16], count, None, settings),
            "lookup": _text(model, prompt[:16], count, "lookup", settings),
        }
        samples = interleave(contenders, rounds, name)
        for draft, seconds in samples.items():
            extra = {
                "tokens/s": count / median(seconds),
                "speed-up": median(ratios(samples["plain"], seconds)),
            }
            rows.append(Row(f"{name}, {draft}", seconds, "s", extra))
        result = generate(model, prompt[:16], count, draft="lookup", **settings)
        pairs = list(zip(result.tokens, result.tokens[1:], strict=False))
        repeats = 1 - len(set(pairs)) / max(1, len(pairs))
        notes.append(
            f"{name}: {repeats:.0%} of token pairs occurred before; "
            f"{acceptance(result.drafted, result.accepted)}"
        )
    return Section("texts", "samples of one prompt, and drafts, fast numerics", rows, notes)


def _text(
    model: GPT, prompt: list[int], count: int, draft: str | None, settings: dict[str, Any]
) -> Callable[[], Callable[[], object]]:
    return lambda: lambda: generate(model, prompt, count, draft=draft, **settings)
