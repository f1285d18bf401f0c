"""Many texts at once: the engine beside static batches and beside one text after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median, quantiles

import torch

from minigpt.bench.contest import Contest
from minigpt.bench.entrants import Entrant
from minigpt.bench.measure import Row, Section, interleave, ratios
from minigpt.generation.batch import generate_batch
from minigpt.generation.continuation import choose_likeliest, generate
from minigpt.generation.engine import Engine
from minigpt.generation.request import Request
from minigpt.model import GPT
from minigpt.numerics.base import whole_blocks

ROWS = 8
LOAD = 0.7  # of what the engine can do: how many requests arrive

Job = tuple[list[int], int]  # a prompt, and the tokens wanted after it


def measure_engine(contest: Contest) -> Section:
    """Throughput at full load, waiting times under Poisson arrivals, and shared beginnings."""
    model, rounds = contest.model, max(1, contest.rounds // 3)
    model.numerics = "fast"
    length, count = (16, 4) if contest.quick else (contest.prompt, 32)
    prompts = contest.tokens(ROWS * (1 if contest.quick else 2), length).tolist()
    even = [(prompt, count) for prompt in prompts]
    draw = random.Random(0)
    ragged = [
        (prompt[: draw.randint(length // 8, length)], draw.randint(count // 4, count))
        for prompt in prompts
    ]
    rows: list[Row] = []
    for name, jobs in (("even", even), ("ragged", ragged)):
        runs: dict[str, Callable[[], object]] = {
            "one by one": partial(one_by_one, model, jobs),
            f"static batches of {ROWS}": partial(static_batches, model, jobs),
            "engine": partial(served, model, jobs),
        }
        for rival in _transformers(contest) if name == "even" else []:
            runs[f"{rival.name}, batches of {ROWS}"] = partial(
                _in_groups, rival, jobs, model.device
            )
        samples = interleave({key: partial(_ready, run) for key, run in runs.items()}, rounds, name)
        wanted = sum(tokens for _, tokens in jobs)
        for key, seconds in samples.items():
            extra = {
                "tokens/s": wanted / median(seconds),
                "speed-up": median(ratios(samples["one by one"], seconds)),
            }
            if key == "engine":
                static = samples[f"static batches of {ROWS}"]
                extra["of static"] = median(ratios(static, seconds))
            rows.append(Row(f"{name}, {key}", seconds, "s", extra))
    pause = median(samples["engine"]) / len(ragged) / LOAD
    rows += _waiting(arriving(model, ragged, pause))
    notes = [
        f"{len(prompts)} texts, greedy, fast numerics; even: {length} + {count} tokens each; "
        f"ragged: {length // 8} to {length} + {count // 4} to {count}, of which static batches "
        f"compute as many as their longest",
        "of static: speed beside minigpt's static batches",
        f"waiting: Poisson arrivals at {LOAD:.0%} of the engine's own speed, real clock",
        shared_beginning(contest),
        contest.missing or "transformers: its own static batches, prompts of one length",
    ]
    title = "tokens per second, and how long one waits for them"
    return Section("engine", title, rows, notes)


def one_by_one(model: GPT, jobs: Sequence[Job]) -> list[list[int]]:
    return [generate(model, prompt, tokens, stop_tokens=()).tokens for prompt, tokens in jobs]


def static_batches(model: GPT, jobs: Sequence[Job]) -> list[list[int]]:
    """As many as fit at a time, all of them as long as the longest, cut to what was wanted."""
    done = []
    for first in range(0, len(jobs), ROWS):
        group = jobs[first : first + ROWS]
        most = max(tokens for _, tokens in group)
        results = generate_batch(model, [prompt for prompt, _ in group], most, stop_tokens=())
        done += [r.tokens[:tokens] for r, (_, tokens) in zip(results, group, strict=True)]
    return done


def served(model: GPT, jobs: Sequence[Job]) -> list[list[int]]:
    """All of them at once, from an engine that has seen none of them before."""
    engine = _engine(model, jobs)
    requests = [engine.submit(prompt, tokens, stop_tokens=()) for prompt, tokens in jobs]
    engine.run()
    return [request.tokens for request in requests]


def arriving(model: GPT, jobs: Sequence[Job], pause: float) -> list[Request]:
    """The same, coming one after the other with `pause` seconds between two on average."""
    engine, draw = _engine(model, jobs), random.Random(0)
    requests: list[Request] = []
    due = time.perf_counter()
    while len(requests) < len(jobs) or engine.running or engine.waiting:
        while len(requests) < len(jobs) and time.perf_counter() >= due:
            prompt, tokens = jobs[len(requests)]
            requests.append(engine.submit(prompt, tokens, stop_tokens=()))
            due += draw.expovariate(1 / pause)
        if engine.running or engine.waiting:
            engine.step()
        else:
            time.sleep(max(0.0, due - time.perf_counter()))
    return requests


def shared_beginning(contest: Contest) -> str:
    """What it costs that several texts begin alike, in words."""
    length = min(512, contest.model.config.n_positions // 2)
    beginning = contest.tokens(1, length)[0].tolist()
    engine = Engine(contest.model, batch=ROWS)
    for number in range(ROWS):
        engine.submit([*beginning, number], 2, stop_tokens=())
    engine.run()
    counts = engine.counts
    return (
        f"{ROWS} texts that share {length} tokens: {counts.prefilled} tokens were prefilled and "
        f"{counts.reused} found, a hit rate of {counts.hit_rate:.0%}"
    )


def _engine(model: GPT, jobs: Sequence[Job]) -> Engine:
    """One with room for a batch of the longest, as static batches have."""
    longest = whole_blocks(max(len(prompt) + tokens for prompt, tokens in jobs))
    return Engine(model, ROWS * longest * model.cache_spec.bytes_per_token, ROWS)


def _ready(run: Callable[[], object]) -> Callable[[], object]:
    return run  # there is nothing to prepare


def _waiting(requests: Sequence[Request]) -> list[Row]:
    first = [1000 * request.times[0] for request in requests]
    between = [1000 * (b - a) for r in requests for a, b in pairwise(r.times)]
    rows = []
    for name, waited in (("first token", first), ("between tokens", between)):
        rows.append(Row(f"waiting, {name}", waited, "ms"))
        last = quantiles(waited, n=100, method="inclusive")[98]
        rows.append(Row(f"waiting, {name}, 99th of 100", [last], "ms"))
    return rows


def _transformers(contest: Contest) -> list[Entrant]:
    return [rival for rival in contest.entrants if rival.name == "transformers"]


def _in_groups(rival: Entrant, jobs: Sequence[Job], device: torch.device) -> list[list[int]]:
    """Another program's static batches, of prompts of one length."""
    rival.ready()
    done: list[list[int]] = []
    for first in range(0, len(jobs), ROWS):
        group = jobs[first : first + ROWS]
        prompts = torch.tensor([prompt for prompt, _ in group], device=device)
        cache = rival.new_cache(len(group), prompts.shape[1] + group[0][1])
        done += choose_likeliest(rival.next_logits, prompts, group[0][1], cache).tolist()
    return done
