"""The parts of `gpu_check.py`; long because each compares, times or weighs something else.

Weights are random: nothing is read from a network. transformers is measured where it is installed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from minigpt.bench.findings import Findings
from minigpt.bench.gpu_pieces import time_pieces
from minigpt.bench.gpu_place import Place
from minigpt.bench.plain_gpt import plain_step
from minigpt.cache.kvcache import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.batch import generate_batch
from minigpt.generation.continuation import choose_likeliest, generate
from minigpt.generation.device_steps import AHEAD, DeviceSteps
from minigpt.generation.engine import Engine
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.base import KEY_BLOCK, whole_blocks
from minigpt.study.verification import verify
from minigpt.study.ways import Check, Ways, random_tokens

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense, per second, as published
STEPS = 64  # tokens timed at once
GREEDY = Sampler()


def run(part: str, findings: Findings, device: str, small: bool) -> None:
    place = Place(device, small)
    if not place.cuda:
        torch.set_num_threads(1)  # a CPU is for trying the script, often beside other work
    PARTS[part](findings, place)


# --- exactness --------------------------------------------------------------------------------


def check_exactness(findings: Findings, place: Place) -> None:
    """Everything that may vary, against one uncached pass; then steps in graphs against calls."""
    findings.wait_for_turn()
    if place.cuda:
        about = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        findings.add("device", about)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    presets = ("toy",) if place.small else ("toy", "gpt2")
    for preset in presets:
        for dtype in dtypes[: None if preset == "toy" else 2]:
            name = f"{preset} {_name(dtype)}"
            with findings.trying(f"{name}: steps"):
                model = place.model(preset, dtype, "exact")
                _steps_against_calls(findings, place, model, name)
    with findings.trying("fast steps"):
        _texts_against_calls(findings, place, place.model("toy", torch.float32, "fast"), "fast toy")
    for preset in presets:
        for dtype in dtypes:
            name = f"{preset} {_name(dtype)}"
            with findings.trying(f"{name}: verify"):
                model = place.model(preset, dtype, "exact")
                began = time.perf_counter()
                length = 60 if place.small else (160 if preset == "toy" else 140)
                ids = random_tokens(model, random.Random(1), 1, length)
                report = verify(model, ids)
                for one in report.checks:
                    findings.add(
                        f"{name}: {one.name}", f"{one.unequal} of {one.compared} unequal",
                        equal=one.equal, ulp=one.median_ulp,
                    )  # fmt: skip
                findings.add(
                    f"{name}: verify", report.equal, seconds=time.perf_counter() - began,
                    first=str(report.diagnosis or "")[:300],
                )  # fmt: skip
    with findings.trying("drafts and batches"):
        _texts(findings, place, place.model("toy", torch.bfloat16, "exact"))


def _steps_against_calls(findings: Findings, place: Place, model: GPT, name: str) -> None:
    """Recorded steps give the bits of one uncached pass: alone, in batches, across key blocks."""
    length = min(model.config.n_positions, 2 * KEY_BLOCK + 8)
    rng = random.Random(0)
    with torch.inference_mode():
        ways = Ways(model, random_tokens(model, rng, 1, length), rng)
        edge = KEY_BLOCK if length > KEY_BLOCK + 4 else length // 2
        several = [3, edge - 9, edge - 1, edge]
        cases = [("static", [edge - 9]), ("static", [edge - 2]), ("static", several)]
        for kind, starts in (*cases, ("paged", several)):
            check = Check(f"{len(starts)} rows")
            cache = ways.after(length, kind).expand(len(starts))
            cache.truncate(starts)
            steps = DeviceSteps(model, cache)
            for n in range(min(16, length - max(starts))):
                fed = [int(ways.tokens[0, start + n]) for start in starts]
                # `left` is taken to be large: so a step is recorded at once, and then replayed
                logits = steps.logits(fed)
                for row, start in enumerate(starts):
                    check.compare(logits[row : row + 1], ways.want[start + n : start + n + 1])
            findings.add(
                f"{name}: recorded steps, {kind}, rows at {starts}",
                f"{check.unequal} of {check.compared} unequal",
                equal=check.equal, recordings=len(steps._recorded), ulp=check.median_ulp,
            )  # fmt: skip
    _texts_against_calls(findings, place, model, name)


def _texts_against_calls(findings: Findings, place: Place, model: GPT, name: str) -> None:
    """Greedy and drawn texts of `generate` are those of plain calls and draws on the CPU."""
    prompt = random_tokens(model, random.Random(2), 1, 20)[0].tolist()
    count = min(model.config.n_positions - 20, 40 if place.small else 130)
    for settings in ({}, {"temperature": 1.0, "top_k": 50, "seed": 3}):
        ours = generate(model, prompt, count, **settings)  # type: ignore[arg-type]
        plain = generate(model, prompt, count, use_cache=False, **settings)  # type: ignore[arg-type]
        same = sum(a == b for a, b in zip(ours.tokens, plain.tokens, strict=True))
        drawn = "drawn" if settings else "greedy"
        findings.add(f"{name}: {drawn} text, cached beside uncached", f"{same} of {count} the same")


def _texts(findings: Findings, place: Place, model: GPT) -> None:
    """Batches, an engine and drafts write what each text is alone; rows end at various times."""
    rng = random.Random(5)
    prompts = [random_tokens(model, rng, 1, n)[0].tolist() for n in (3, 17, 30, 9)]
    count = 20 if place.small else 100
    some = list(range(0, model.config.vocab_size, 30))
    for temperature, stops in ((0.0, []), (0.9, []), (0.9, some)):
        how: dict[str, Any] = {"temperature": temperature, "stop_tokens": stops}
        drawn = f"{'drawn' if temperature else 'greedy'}{', with ends' * bool(stops)}"
        alone = [generate(model, ids, count, seed=n, **how).tokens for n, ids in enumerate(prompts)]
        for kind in ("static", "paged"):
            texts = generate_batch(model, prompts, count, kind=kind, **how)
            same = [text.tokens for text in texts] == alone
            findings.add(f"generate_batch, {kind}, beside texts alone: {drawn}", same)
        engine = Engine(model, batch=3, chunk=16)
        requests = [engine.submit(ids, count, seed=n, **how) for n, ids in enumerate(prompts)]
        engine.run()
        same = [request.tokens for request in requests] == alone
        findings.add(f"engine beside texts alone: {drawn}", same)
    plain = [generate(model, ids, count, 0.9, seed=n).tokens for n, ids in enumerate(prompts)]
    drafted = [generate(model, ids, count, 0.9, seed=n, draft="lookup").tokens
               for n, ids in enumerate(prompts)]  # fmt: skip
    findings.add("texts with drafts beside those without", drafted == plain)


# --- speed ------------------------------------------------------------------------------------


class _Decoder:
    """Ours: prefilled once; each turn goes back to the prompt and decodes."""

    def __init__(self, model: GPT, tokens: Tensor, numerics: str, count: int) -> None:
        self.model, self.numerics, self.count = model, numerics, count
        model.numerics = numerics
        self.held, self.last = tokens.shape[1], [1] * len(tokens)
        room = min(model.config.n_positions, whole_blocks(self.held + count))
        self.cache = model.new_cache(len(tokens), room)
        with torch.inference_mode():
            model.next_logits(tokens, cache=self.cache)
        self.steps = DeviceSteps(model, self.cache)

    def ahead(self, at_once: int = AHEAD) -> Callable[[], Callable[[], object]]:
        """By recorded steps, looking at so many tokens at once."""

        def decode() -> None:
            tokens = self.last
            for n in range(0, self.count, at_once):
                chosen = self.steps.advance(
                    tokens, min(at_once, self.count - n), GREEDY, lambda: torch.empty(0)
                )
                assert chosen is not None
                tokens = chosen[-1]

        return self._prepared(decode)

    def calls(self) -> Callable[[], Callable[[], object]]:
        """By calls of the model, as without recordings."""
        device = self.model.device

        def decode() -> None:
            first = torch.tensor(self.last, device=device)[:, None]
            choose_likeliest(self.model.next_logits, first, self.count, self.cache).tolist()

        return self._prepared(decode)

    def _prepared(self, decode: Callable[[], None]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            self.model.numerics = self.numerics
            self.cache.truncate(self.held)
            return decode

        return prepare


def check_decoding(findings: Findings, place: Place) -> None:
    """One text and 64 of them, a prefill, beside transformers: 124M, bfloat16."""
    model = place.model("gpt2", torch.bfloat16)
    rival = None
    with findings.trying("transformers"):
        rival = _rival(model.config, place)
    findings.wait_for_turn()
    for rows in (1, 4 if place.small else 64):
        with findings.trying(f"decoding {rows}"):
            _decode(findings, place, model, rival, rows)
    with findings.trying("prefill"):
        _prefill(findings, place, model, rival)
    for name in ("fast", "exact"):
        with findings.trying(f"kernels of a step, {name}"):
            _kernels(findings, place, model, name)
    with findings.trying("float32"):
        del rival
        _decode(findings, place, place.model("gpt2", torch.float32), None, 1)
    with findings.trying("whole texts"):
        _write_texts(findings, place, model)


def _decode(findings: Findings, place: Place, model: GPT, rival: Any, rows: int) -> None:
    length = min(128, model.config.n_positions // 2)
    tokens = random_tokens(model, random.Random(0), rows, length)
    ours = {name: _Decoder(model, tokens, name, place.steps) for name in ("fast", "exact")}
    contenders = {f"minigpt {name}": one.ahead() for name, one in ours.items()}
    contenders["minigpt exact, looking at each"] = ours["exact"].ahead(1)
    contenders["minigpt fast, calls"] = ours["fast"].calls()
    if rival is not None:
        contenders["transformers, dynamic cache"] = lambda: _rival_decode(
            rival, tokens, place.steps
        )
    samples = place.interleaved(contenders)
    read = sum(weight.nbytes for weight in model.parameters()) - model.wpe.weight.nbytes
    read += rows * (length + place.steps / 2) * model.cache_spec.bytes_per_token
    base = samples.get("transformers, dynamic cache")
    for name, seconds in samples.items():
        each = [1e3 * s / place.steps for s in seconds]
        more: dict[str, object] = {
            "tokens/s": rows * 1e3 / median(each), "GB/s": read / median(each) / 1e6,
            "min": min(each), "max": max(each),
        }  # fmt: skip
        if base is not None:
            more["x"] = median([b / s for b, s in zip(base, seconds, strict=True)])
        what = f"{_name(model.dtype)}, {rows} rows, {name}"
        findings.add(what, median(each), "ms/step", **more)


def _write_texts(findings: Findings, place: Place, model: GPT) -> None:
    """What users call, prompts included: many texts of various lengths to their end."""
    rows, count = (4, 8) if place.small else (64, 128)
    rng, longest = random.Random(3), min(64, model.config.n_positions // 2)
    prompts = [random_tokens(model, rng, 1, rng.randint(4, longest))[0].tolist()
               for _ in range(rows)]  # fmt: skip

    def batch(**how: Any) -> Callable[[], Callable[[], object]]:
        return lambda: lambda: generate_batch(model, prompts, count, **how)

    def engine() -> Callable[[], object]:
        texts = Engine(model, batch=rows)
        for ids in prompts:
            texts.submit(ids, count)
        return texts.run

    def looked_at(number: int, token: int) -> None:
        return None

    model.numerics = "fast"
    contenders = {
        "generate_batch": batch(), "generate_batch, drawn": batch(temperature=1.0),
        "generate_batch, looking at each": batch(on_token=looked_at),
        "generate_batch, paged": batch(kind="paged"), "engine": engine,
    }  # fmt: skip
    for name, prepare in contenders.items():  # seconds each: once to warm up, once for the figure
        _, took = (place.seconds(prepare()) for _ in range(2))
        findings.add(f"{rows} texts of {count}, fast, {name}", took, "s",
                     **{"tokens/s": rows * count / took})  # fmt: skip


def _kernels(findings: Findings, place: Place, model: GPT, numerics: str) -> None:
    """Where the time of a step goes, on the device, by kernel."""
    from torch.profiler import ProfilerActivity, profile

    model.numerics = numerics
    cache = model.new_cache()
    with torch.inference_mode():
        model.next_logits(random_tokens(model, random.Random(0), 1, 20), cache=cache)
        steps = DeviceSteps(model, cache)
        for _ in range(3):
            steps.logits([1])
        kinds = [ProfilerActivity.CUDA] if place.cuda else [ProfilerActivity.CPU]
        place.wait()
        with profile(activities=kinds) as found:
            for _ in range(4):
                steps.logits([1])
            place.wait()
    times: dict[str, list[float]] = {}
    for event in found.key_averages():
        took = event.self_device_time_total if place.cuda else event.self_cpu_time_total
        if took:
            times[event.key] = [took / 4, event.count / 4]
    findings.add(f"kernels of a step, {numerics}", sum(t for t, _ in times.values()), "us",
                 count=sum(n for _, n in times.values()))  # fmt: skip
    for key, (took, count) in sorted(times.items(), key=lambda item: -item[1][0])[:14]:
        findings.add(f"  {key[:70]}", took, "us", count=count)


def _rival(config: GPTConfig, place: Place) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, bos_token_id=0, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    with place.device:
        model: Any = GPT2LMHeadModel(shape)
        return model.to(place.device, torch.bfloat16).eval()


@torch.inference_mode()
def _rival_decode(rival: Any, tokens: Tensor, count: int) -> Callable[[], object]:
    from transformers import DynamicCache

    def next_logits(tokens: Tensor, cache: Any) -> Tensor:
        return rival(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]

    cache = DynamicCache()
    first = next_logits(tokens, cache).argmax(-1, keepdim=True)
    return lambda: choose_likeliest(next_logits, first, count, cache).tolist()


def _prefill(findings: Findings, place: Place, model: GPT, rival: Any) -> None:
    length = min(1024, model.config.n_positions)
    tokens = random_tokens(model, random.Random(0), 1, length)
    caches = {name: model.new_cache() for name in ("fast", "exact")}

    def ours(name: str) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            model.numerics = name
            caches[name].reset()

            def prefill() -> None:
                with torch.inference_mode():
                    model.next_logits(tokens, cache=caches[name]).argmax().item()

            return prefill

        return prepare

    contenders = {f"minigpt {name}": ours(name) for name in caches}
    if rival is not None:
        from transformers import DynamicCache

        def theirs() -> Callable[[], object]:
            def prefill() -> None:
                with torch.inference_mode():
                    found = rival(tokens, past_key_values=DynamicCache(), logits_to_keep=1)
                    found.logits.argmax().item()

            return prefill

        contenders["transformers"] = theirs
    samples = place.interleaved(contenders)
    base = samples.get("transformers")
    for name, seconds in samples.items():
        more = {} if base is None else {
            "x": median([b / s for b, s in zip(base, seconds, strict=True)])
        }  # fmt: skip
        findings.add(f"prefill of {length}, {name}", 1e3 * median(seconds), "ms", **more)


def check_large(findings: Findings, place: Place) -> None:
    """How much of the bandwidth decoding reaches where weights are all there is to read."""
    model = place.model("gpt2-xl", torch.bfloat16)
    findings.wait_for_turn()
    side = 2**24 if place.small else 2**30
    block = torch.empty(side, dtype=torch.uint8, device=place.device)
    other = torch.empty_like(block)
    other.copy_(block)
    times = [place.seconds(lambda: [other.copy_(block) for _ in range(8)]) for _ in range(5)]
    limit = 8 * 2 * side / min(times)
    findings.add("copying, read and written", limit / 1e9, "GB/s")
    matrix = torch.ones(side // 2**13, 2**12, device=place.device, dtype=torch.bfloat16)
    times = [place.seconds(lambda: [matrix @ matrix[0] for _ in range(8)]) for _ in range(5)]
    findings.add("matrix times vector", 8 * matrix.nbytes / min(times) / 1e9, "GB/s")
    block = other = matrix = torch.empty(0)
    tokens = random_tokens(model, random.Random(0), 1, 64)
    read = sum(weight.nbytes for weight in model.parameters()) - model.wpe.weight.nbytes
    read += (64 + place.steps / 2) * model.cache_spec.bytes_per_token
    with findings.trying("pieces of a step"):
        time_pieces(findings, place, model)
    for name in ("fast", "exact"):
        one = _Decoder(model, tokens, name, place.steps).ahead()
        seconds = place.interleaved({name: one})[name]
        speed = read * place.steps / median(seconds)
        findings.add(
            f"XL, bfloat16, {name}", 1e3 * median(seconds) / place.steps, "ms/step",
            **{"GB/s": speed / 1e9, "of copying": speed / limit},
        )  # fmt: skip


def check_rival_compiled(findings: Findings, place: Place) -> None:
    """transformers with its static cache, compiled as its `generate` does it."""
    config = place.model("gpt2", torch.bfloat16).config
    rival = _rival(config, place)
    model = place.model("gpt2", torch.bfloat16)
    length = min(128, config.n_positions // 2)
    tokens = random_tokens(model, random.Random(0), 1, length)
    short, long = 2, 2 + place.steps

    def generated(count: int) -> None:
        rival.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count,
            min_new_tokens=count, do_sample=False, cache_implementation="static",
            use_cache=True,
        )  # fmt: skip

    findings.wait_for_turn()
    ours = {}
    for name in ("fast", "exact"):  # before the rival compiles, for what it breaks is all broken
        decode = _Decoder(model, tokens, name, place.steps).ahead()
        taken = [place.seconds(decode()) for _ in range(place.rounds + 1)][1:]
        ours[name] = 1e3 * median(taken) / place.steps
        findings.add(f"bfloat16, 1 row, {name}", ours[name], "ms/step")

    def tell(name: str, seconds: Callable[[], float]) -> None:
        each = 1e3 * median([seconds() for _ in range(place.rounds)]) / place.steps
        ratios = {f"/ {mine}": each / took for mine, took in ours.items()}
        findings.add(f"bfloat16, 1 row, transformers, {name}", each, "ms/step", **ratios)

    with findings.trying("generate compiled"):
        began = time.perf_counter()
        generated(long)
        generated(long)
        place.wait()
        findings.add("generate compiled: made and warmed up", time.perf_counter() - began, "s")
        tell(
            "generate compiled",
            lambda: (
                place.seconds(lambda: generated(long)) - place.seconds(lambda: generated(short))
            ),
        )
    with findings.trying("forward compiled"):
        forward = _compiled_forward(rival, tokens, place)
        place.wait()
        tell("forward compiled", lambda: place.seconds(forward))


def _compiled_forward(rival: Any, tokens: Tensor, place: Place) -> Callable[[], object]:
    """The leanest loop over its forward pass: compiled with CUDA graphs, nothing but argmax."""
    from transformers import StaticCache

    cache: Any = StaticCache(config=rival.config, max_cache_len=min(256, rival.config.n_positions))
    length = tokens.shape[1]
    fast = rival.forward
    if place.cuda:
        fast = torch.compile(fast, mode="reduce-overhead", fullgraph=True)

    @torch.inference_mode()
    def decode() -> None:
        cache.reset()
        at = torch.arange(length, device=tokens.device)
        new = rival(tokens, past_key_values=cache, cache_position=at, logits_to_keep=1).logits
        for n in range(place.steps):
            torch.compiler.cudagraph_mark_step_begin()
            token = new[:, -1].argmax(-1, keepdim=True).clone()
            at = torch.tensor([length + n], device=tokens.device)
            new = fast(
                token, past_key_values=cache, cache_position=at, position_ids=at[None]
            ).logits
        new.argmax().item()

    for _ in range(3):
        decode()
    return decode


# --- memory and training ----------------------------------------------------------------------


def check_memory(findings: Findings, place: Place) -> None:
    """A large cache takes what was computed, and generating takes no more and more."""
    model = place.model("gpt2", torch.bfloat16)
    findings.wait_for_turn()
    rows, length = (4, 100) if place.small else (64, 1024)
    before = _allocated(place)
    cache: KVCache | None = model.new_cache(rows, length)
    want = rows * length * model.cache_spec.bytes_per_token
    assert cache is not None
    findings.add(
        f"cache of {rows} x {length}", cache.nbytes, "bytes", computed=want,
        allocated=_allocated(place) - before,
    )  # fmt: skip
    del cache
    model = place.model("toy", torch.bfloat16, "exact")
    prompt = random_tokens(model, random.Random(0), 1, 10)[0].tolist()
    kept = model.new_cache()
    end, count, seen = time.perf_counter() + (2 if place.small else 10), 0, []
    while count < 1000 and (time.perf_counter() < end or count < 4):
        generate(model, prompt, 24)
        generate(model, prompt, 24, cache=kept)
        count += 2
        if count % 20 == 0 or count == 4:
            seen.append((_allocated(place), _reserved(place)))
    findings.add(
        f"bytes allocated, {count} generations", seen[-1][0] - seen[0][0], "more", first=seen[0][0],
        reserved_more=seen[-1][1] - seen[0][1],
    )  # fmt: skip


def _allocated(place: Place) -> int:
    return torch.cuda.memory_allocated() if place.cuda else 0


def _reserved(place: Place) -> int:
    return torch.cuda.memory_reserved() if place.cuda else 0


def check_training(findings: Findings, place: Place) -> None:
    """A step of 124M, 16 x 1,024 tokens, bfloat16: ours and a plain compiled loop."""
    from minigpt.bench.train_section import our_step

    config = GPTConfig.preset("nano" if place.small else "gpt2")
    vocab_size = config.vocab_size if place.small else 50304  # a multiple of 64, as both prefer
    shape = {**config.__dict__, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPTConfig(**{**shape, "vocab_size": vocab_size, "eos_token_id": None})
    rows = 2 if place.small else 16
    torch.set_float32_matmul_precision("high")
    contenders: dict[str, Callable[[], object]] = {}
    for name, make, compiled in (
        ("plain loop, compiled", plain_step, place.cuda),
        ("minigpt, compiled", our_step, place.cuda),
        ("minigpt", our_step, False),
    ):
        with findings.trying(name):
            began = time.perf_counter()
            step = make(config, place.device, rows, compiled)
            for _ in range(2):
                step()
            contenders[name] = step
            findings.add(f"{name}: made and warmed up", time.perf_counter() - began, "s")
    findings.wait_for_turn()
    samples = place.interleaved({name: _thrice(step) for name, step in contenders.items()})
    tokens = rows * config.n_positions
    count = sum(_count(shape) for shape in config.tensors().values())
    count -= config.n_positions * config.n_embd
    flops = (6 * count + 12 * config.n_layer * config.n_embd * config.n_positions) * tokens
    peak = next((p for name, p in PEAK.items() if place.cuda and name in _card()), None)
    for name, seconds in samples.items():
        each = median(seconds) / 3
        more: dict[str, object] = {"tokens/s": tokens / each, "TFLOP/s": flops / each / 1e12}
        if peak:
            more["MFU"] = flops / each / peak
        findings.add(f"training step, {name}", 1e3 * each, "ms", **more)
    if place.cuda:
        findings.add("peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB, all three")


def _thrice(step: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    return lambda: lambda: [step() for _ in range(3)]


def _count(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _card() -> str:
    return torch.cuda.get_device_name()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


PARTS: dict[str, Callable[[Findings, Place], None]] = {
    "exactness": check_exactness,
    "decoding": check_decoding,
    "training": check_training,
    "large": check_large,
    "rival_compiled": check_rival_compiled,
    "memory": check_memory,
}
