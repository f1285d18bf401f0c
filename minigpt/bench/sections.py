"""How fast, how large, compared with what: the measurements behind `minigpt bench`.

Everything runs in turns on the same weights (`measure.py`). Figures are reported, never asserted;
printing is left to the command line, and whether the bits are right to `verify.py`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from minigpt.bench import cache_sections as bench_cache
from minigpt.bench import text_sections as bench_generate
from minigpt.bench import train_section as bench_train
from minigpt.bench.entrants import (
    Decode,
    Entrant,
    entrants,
    greedy,
    installed,
    int8_entrants,
    minigpt_entrant,
    transformers_entrants,
    why_no_transformers,
)
from minigpt.bench.measure import (
    Prepare,
    Row,
    Samples,
    Section,
    Table,
    interleave,
    ratios,
    turns,
)
from minigpt.checkpoint import hub
from minigpt.config import GPTConfig
from minigpt.generation.decoding import generate
from minigpt.model import GPT
from minigpt.numerics import NUMERICS
from minigpt.support.errors import MinigptError
from minigpt.support.memory import process_memory

SECTIONS = (
    "decode", "prefill", "exact", "int8", "cache", "kinds", "texts", "train", "start", "limits",
)  # fmt: skip
BATCHES = (1, 4, 8, 16)
SMALL = 50e6  # bytes of weights up to which 500 tokens without a cache take seconds
COSTS = {  # of exact over fast, at most: the goals for GPT-2 124M on two cores
    "float32": {"decode, batch 1": 1.10, "decode, batch 8": 1.00, "prefill, 1024 tokens": 1.10},
    "bfloat16": {"decode, batch 1": 1.10, "prefill, 1024 tokens": 1.50},
}
START = {
    "import, after torch": 0.2,
    "first exact pass, extra": 0.5,
    "memory to load": 1.3,
}  # seconds, x


@contextmanager
def checkpoint(source: str, dtype: torch.dtype | None = None) -> Iterator[Path]:
    """A directory that minigpt and transformers both load.

    The source is what `GPT.from_pretrained` takes; or "random:" and a preset's name, for a model of
    that shape with random weights (float32 unless `dtype` says otherwise), deleted afterwards.
    """
    preset = source.removeprefix("random:")
    if preset == source:
        yield hub.resolve(source)
        return
    with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as directory:
        model = GPT(GPTConfig.preset(preset)).to(dtype or torch.float32)
        model.save_pretrained(directory)
        del model
        yield Path(directory)


# --- the sections ---------------------------------------------------------------------------------


class Bench:
    """Speed and memory of a model, beside transformers where that is installed.

    Args:
        model: in evaluation mode.
        directory: the checkpoint it came from, which transformers and fresh processes load.
        rounds: of what takes seconds; what takes longer gets fewer. None: 10, or 2 when quick.
        quick: as little as shows that everything works.
        long: up to 500 tokens without the cache, whatever the size of the model.

    Raises:
        MinigptError: for fewer rounds than one.
    """

    def __init__(
        self, model: GPT, directory: Path, rounds: int | None = None, quick: bool = False,
        long: bool = False,
    ) -> None:  # fmt: skip
        self.rounds = (2 if quick else 10) if rounds is None else rounds
        if self.rounds < 1:
            raise MinigptError(f"rounds is {self.rounds}, needed at least 1")
        self.model, self.directory, self.quick = model, directory, quick
        self.missing = why_no_transformers(model.config)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.bytes = sum(weight.nbytes for weight in model.parameters())
        limit = model.config.n_positions
        self.prompt = min(128, limit // 2)
        self.steps = min(4 if quick else 16, limit - self.prompt)
        self.batches = (1, 8) if quick else BATCHES
        self.prefills = sorted({min(length, limit) for length in (128, 512, 1024)})
        lengths = [10] if quick else [10, 50, 100, 200]
        if long or (self.bytes < SMALL and not quick):
            lengths.append(500)
        self.lengths = sorted({min(length, limit - self.prompt // 8) for length in lengths})
        self.buffer = 2**27 if quick else 2**29  # bytes read to find the limit of reading,
        self.side = 1024 if quick else 3072  # and width of the matrices multiplied for the other
        self._samples: dict[tuple[str, int], Samples] = {}  # which sections share

    @cached_property
    def entrants(self) -> list[Entrant]:
        """Who is compared: loaded and converted when a section first asks."""
        return entrants(self.model, self.directory)

    def measure(self, sections: Sequence[str] = SECTIONS) -> Table:
        """Each section is the method of that name."""
        return Table(about(self.model), self.rounds, [getattr(self, name)() for name in sections])

    def decode(self) -> Section:
        rows: list[Row] = []
        for batch in self.batches:
            rows += self._rows(f"batch {batch}", self._contest("decode", batch), self.steps, batch)
        notes = [self._same_ids(), "limit: reading weights and cache once, as fast as memory goes"]
        notes.append(self._against("1.60 x, exact 1.45 x, batch 8 1.70 x"))
        return Section("decode", f"time of a step, {self._after()}", rows, notes)

    def prefill(self) -> Section:
        rows: list[Row] = []
        for length in self.prefills:
            samples = self._contest("prefill", length)
            rows += self._rows(f"{length} tokens", samples, 1, length)
        notes = [f"limit: as many multiplications in one large {self.dtype} product"]
        notes.append(self._against("2.00 x for 512 and 1024 tokens"))
        return Section("prefill", "time to the first token, the cache filled", rows, notes)

    def exact(self) -> Section:
        contests = [("decode", batch, f"decode, batch {batch}") for batch in self.batches]
        contests.append(("prefill", self.prefills[-1], f"prefill, {self.prefills[-1]} tokens"))
        rows = []
        for kind, size, name in contests:
            samples, goal = self._contest(kind, size), COSTS.get(self.dtype, {}).get(name)
            cost = ratios(samples["minigpt exact"], samples["minigpt fast"])
            rows.append(Row(name, cost, "x", {} if goal is None else {"goal": goal}))
        return Section("exact", "its time over that of fast (goals: gpt2, two cores)", rows)

    def int8(self) -> Section:
        """A step with 8-bit weights, and in the same turns with those there are."""
        plain = minigpt_entrant(self.model, "fast")
        rivals = [plain, *int8_entrants(self.model, self.directory)]
        tokens, rows = self._tokens(1, self.prompt), []
        runs = {rival.name: partial(rival.decode, tokens, self.steps) for rival in rivals}
        samples = interleave(runs, self.rounds, "int8")
        for name, seconds in samples.items():
            extra = {"tokens/s": self.steps / median(seconds)}
            extra["speed-up"] = median(ratios(samples[plain.name], seconds))
            rows.append(Row(name, [1000 * took / self.steps for took in seconds], "ms", extra))
        plain.ready()
        notes = [
            f"speed-up: over {plain.name}, whose weights are {self.dtype}",
            "everyone rounds in a way of its own, so their texts may differ",
        ]
        return Section("int8", f"time of a step with 8-bit weights, {self._after()}", rows, notes)

    def cache(self) -> Section:
        self.model.numerics = "exact"
        prompt = self._tokens(1, self.prompt // 8)[0].tolist()

        def run(use_cache: bool, count: int) -> tuple[list[int], list[float]]:
            """The tokens, and the seconds until each."""
            seconds: list[float] = []
            began = time.perf_counter()
            text = generate(
                self.model, prompt, count, use_cache=use_cache, stop_tokens=(),
                on_token=lambda _: seconds.append(time.perf_counter() - began),
            )  # fmt: skip
            return text.tokens, seconds

        runs: dict[str, list[tuple[list[int], list[float]]]] = {"with": [], "without": []}
        rounds = max(1, self.rounds // 5)
        for name in runs:  # warm up
            run(name == "with", 2)
        for name in turns(runs, rounds, "cache"):
            runs[name].append(run(name == "with", self.lengths[-1]))
        rows = []
        for length in self.lengths:
            cached, uncached = ([marks[length - 1] for _, marks in runs[name]] for name in runs)
            computed = len(prompt) + length - 1  # with the cache, each position once
            again = sum(len(prompt) + step for step in range(length))
            extra = {"speed-up": median(ratios(uncached, cached)), "less work": again / computed}
            extra["cache bytes"] = self.model.cache_spec.bytes_per_token * computed
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

    def kinds(self) -> Section:
        return bench_cache.kinds(self.model, self.rounds, self.quick)

    def texts(self) -> Section:
        return bench_generate.texts(self.model, self.rounds, self.quick)

    def start(self) -> Section:
        rounds = 1 if self.quick else max(1, self.rounds // 3)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in _IMPORTS}
        if self.missing:
            del runs["transformers"]
        what = (str(self.directory), self.dtype, str(self.model.device), torch.get_num_threads())
        for name in turns(runs, rounds + (not self.quick), "start"):  # the first warms the disk up
            runs[name].append(_fresh(_PROBE.format(_IMPORTS[name], (name, *what))))
        rows = []
        for package, found in runs.items():
            for key in found[0]:
                samples, unit = [run[key] for run in found[-rounds:]], "s"
                if "memory" in key:
                    samples, unit = [taken / self.bytes for taken in samples], "x"
                goal = START.get(key) if package == "minigpt" else None
                extra = {} if goal is None else {"goal": goal}
                rows.append(Row(f"{package:<13}{key}", samples, unit, extra))
        notes = [
            "extra: a first pass less a second; minigpt packs weights in it, exact then certifies",
            "memory: peak less what was in use before loading, over bytes of weights; goals: gpt2",
        ]
        return Section("start", f"a fresh process, {rounds} rounds", rows, notes)

    def train(self) -> Section:
        return bench_train.train_section(max(1, self.rounds // 2), self.quick)

    def limits(self) -> Section:
        probes = {"read": self._reader(), "multiply": self._multiplier()}
        seconds = interleave(probes, self.rounds, "limits")
        read = [self.buffer / took / 1e9 for took in seconds["read"]]
        work = [2 * self.side**3 / took / 1e9 for took in seconds["multiply"]]
        rows = [Row("memory read", read, "GB/s"), Row(f"{self.dtype} product", work, "GF/s")]
        notes = [f"a matrix of {self.buffer:,} bytes times a vector; matrices {self.side} square"]
        return Section("limits", "of this machine, by torch's own kernels", rows, notes)

    def _contest(self, kind: str, size: int) -> Samples:
        """Seconds of the limit and of every entrant, in the same turns; measured once."""
        if (kind, size) not in self._samples:
            prepare: Callable[[Entrant, int], Callable[[], object]] = self._prefill
            limit, scale = self._multiplier(), self._multiplications(size) / self.side**3
            if kind == "decode":
                prepare = self._decode
                limit, scale = self._reader(), self.steps * self._bytes_read(size) / self.buffer
            rivals = {
                rival.name: partial(prepare, rival, size)
                for rival in self.entrants
                if kind == "prefill" or size == 1 or rival.batches
            }
            samples = interleave({"limit": limit, **rivals}, self.rounds, f"{kind} {size}")
            samples["limit"] = [scale * took for took in samples["limit"]]
            self._samples[kind, size] = samples
        return self._samples[kind, size]

    def _decode(self, entrant: Entrant, batch_size: int) -> Decode:
        return entrant.decode(self._tokens(batch_size, self.prompt), self.steps)

    def _prefill(self, entrant: Entrant, length: int) -> Decode:
        return entrant.prefill(self._tokens(1, length))

    def _after(self) -> str:
        return f"{self.steps} steps after {self.prompt} tokens"

    def _bytes_read(self, batch_size: int) -> float:
        """In a step: every weight but the embeddings that are looked up, and the cache."""
        looked_up = self.model.wpe.weight.nbytes
        if not self.model.config.tie_word_embeddings:
            looked_up += self.model.wte.weight.nbytes
        positions = batch_size * (self.prompt + self.steps / 2)  # half way through the steps
        return self.bytes - looked_up + self.model.cache_spec.bytes_per_token * positions

    def _multiplications(self, length: int) -> int:
        """In a prefill: linear layers, causal attention (scores and mix), one row of logits."""
        c = self.model.config
        linear = sum(weight.numel() for weight in self.model.h.parameters() if weight.ndim == 2)
        attention = c.n_layer * c.n_embd * (length + 1)  # half of all keys, twice
        return length * (linear + attention) + c.vocab_size * c.n_embd

    def _rows(self, group: str, samples: Samples, steps: int, tokens: int) -> Iterator[Row]:
        """Milliseconds of each step, which takes `tokens` tokens on."""
        for name, seconds in samples.items():
            extra = {"tokens/s": steps * tokens / median(seconds)}
            if name != "limit":
                extra["of limit"] = median(ratios(samples["limit"], seconds))
            if name.startswith("minigpt") and "transformers" in samples:
                extra["speed-up"] = median(ratios(samples["transformers"], seconds))
            yield Row(f"{group:<12} {name}", [1000 * took / steps for took in seconds], "ms", extra)

    def _against(self, goal: str) -> str:
        return self.missing or f"speed-up: over transformers; goal for gpt2, two cores: {goal}"

    def _same_ids(self) -> str:
        """Does everyone choose the same tokens? In float32, whatever dtype is timed."""
        rivals, prompts = self.entrants, self._tokens(8, self.prompt)
        if self.model.dtype != torch.float32:
            model = GPT.from_pretrained(self.directory, torch.float32, self.model.device)
            rivals = entrants(model, self.directory)
        ids = {rival.name: rival.decode(prompts, self.steps)() for rival in rivals}
        odd = [name for name in ids if ids[name] != ids["minigpt fast"]]
        verdict = f"OTHERS from {' and '.join(odd)}" if odd else f"the same from {', '.join(ids)}"
        return f"8 x {self.steps} greedy tokens in float32: {verdict}"

    def _tokens(self, batch_size: int, length: int) -> Tensor:
        generator, vocab_size = torch.Generator().manual_seed(0), self.model.config.vocab_size
        tokens = torch.randint(vocab_size, (batch_size, length), generator=generator)
        return tokens.to(self.model.device)

    def _reader(self) -> Prepare:
        """Read much memory once: a matrix times a vector, torch's quickest way."""
        matrix = torch.ones(self.buffer // 2**14, 2**12, device=self.model.device)
        return lambda: lambda: torch.mv(matrix, matrix[0])[0].item()

    def _multiplier(self) -> Prepare:
        side = torch.ones(self.side, self.side, dtype=self.model.dtype, device=self.model.device)
        return lambda: lambda: (side @ side)[0, 0].item()


def choose(only: str | None) -> list[str]:
    """The sections named in "decode,cache"; None: all of them.

    Raises:
        MinigptError: for a name that is not in `SECTIONS`.
    """
    names = list(SECTIONS) if only is None else only.split(",")
    for name in names:
        if name not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise MinigptError(f"there is no section {name!r} to measure, needed some of {known}")
    return [name for name in SECTIONS if name in names]


# --- this machine, and fresh processes on it ------------------------------------------------------


def about(model: GPT) -> dict[str, str]:
    """What the figures depend on: processor, threads, versions, size of the model."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for key, _, value in lines if "model name" in key), cpu)
    found: dict[str, Any] = {
        "CPU": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if model.device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(model.device)
    for name in ("torch", "transformers", "ctranslate2", "minigpt"):
        found[name] = installed(name) or "missing"
    found["parameters"] = f"{sum(weight.numel() for weight in model.parameters()):,}"
    found["dtype"], found["device"] = str(model.dtype).removeprefix("torch."), model.device
    return {name: str(value) for name, value in found.items()}


_IMPORTS = {
    "minigpt": "from minigpt import GPT",
    "transformers": "from transformers import DynamicCache, GPT2LMHeadModel",
}
_PROBE = """
import json, time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
{}
times.append(time.perf_counter())
found = {{"import torch": times[1] - times[0], "import, after torch": times[2] - times[1]}}
from minigpt.bench.sections import load_probe
print(json.dumps(found | load_probe(*{})))
"""


def _fresh(code: str) -> dict[str, float]:
    """Run code in a new process; its last line is JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MinigptError(f"a fresh process failed ({reason}): leave out the section 'start'")
    return json.loads(done.stdout.splitlines()[-1])


def load_probe(
    package: str, directory: str, dtype: str, device: str, threads: int
) -> dict[str, float]:
    """In a fresh process: seconds and, where known, peak bytes of loading and of first passes."""
    torch.set_num_threads(threads)
    number, place = getattr(torch, dtype), torch.device(device)
    before, began = process_memory(), time.perf_counter()
    if package == "minigpt":
        model = GPT.from_pretrained(directory, number, place)
        rivals = [minigpt_entrant(model, name) for name in NUMERICS]
    else:
        rivals = transformers_entrants(Path(directory), number, place)[:1]
    found = {"load": time.perf_counter() - began}
    loaded = process_memory(peak=True)
    tokens = torch.zeros(1, 32, dtype=torch.int64, device=place)
    for rival, name in zip(rivals, ("first pass, extra", "first exact pass, extra"), strict=False):
        rival.ready()
        seconds = []
        for _ in range(2):  # a prompt, then a single token
            began = time.perf_counter()
            greedy(rival, tokens, rival.new_cache(1, 64), 2).tolist()
            seconds.append(time.perf_counter() - began)
        found[name] = seconds[0] - seconds[1]
    if before is not None and loaded is not None:
        found["memory to load"] = loaded - before
        found["memory to decode"] = (process_memory(peak=True) or loaded) - before
    return found
