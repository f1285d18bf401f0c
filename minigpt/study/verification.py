"""Is cached decoding equal to uncached decoding, bit for bit? Check it, on any model and machine.

`verify` computes the logits of a text once without a cache (the reference), then in every other way
the program can compute them, and compares the bits. When something differs it asks
`diagnose.py` which operation differed first, and why.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.base import KVCache
from minigpt.cache.kinds import LOSSLESS
from minigpt.model import GPT, require_model
from minigpt.numerics.base import KEY_BLOCK
from minigpt.study.diagnosis import Diagnosis, diagnose
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating

FARTHEST = 2**16 - 1  # units in the last place that are told apart; those beyond count as this many
Progress = Callable[[str], object]


@dataclass
class Check:
    """One way of computing the logits, against the reference."""

    name: str
    compared: int = 0  # positions, each a row of V logits
    unequal: int = 0
    first: int | None = None  # the first unequal position
    median_ulp: int = 0  # how far apart unequal logits are, in units in the last place: the middle
    # one of all, because a single logit near zero may be millions of tiny units off
    max_difference: float = 0.0
    greedy_changed: int = 0  # positions whose likeliest token is another one

    def __post_init__(self) -> None:
        self._distances = torch.zeros(FARTHEST + 1, dtype=torch.int64)  # [d]: so many d ULP apart

    @property
    def equal(self) -> bool:
        return self.compared > 0 and self.unequal == 0

    def compare(self, got: Tensor, want: Tensor, start: int = 0) -> None:
        """Take in logits (T, V) of positions start, start + 1, ... beside the reference's."""
        self.compared += len(want)
        if torch.equal(got, want):
            return
        unequal = (got != want).any(-1)
        self.unequal += int(unequal.sum())
        if self.first is None:
            self.first = start + int(unequal.nonzero()[0])
        got, want = got[unequal], want[unequal]
        self.max_difference = max(self.max_difference, float((got - want).abs().max()))
        self.greedy_changed += int((got.argmax(-1) != want.argmax(-1)).sum())
        distances = ulp_distance(got, want).clamp(max=FARTHEST)[got != want]
        self._distances += torch.bincount(distances, minlength=FARTHEST + 1).cpu()
        below = self._distances.cumsum(0)
        self.median_ulp = int((2 * below >= below[-1]).nonzero()[0])


@dataclass
class Report:
    """What `verify` found. `equal` is the answer."""

    numerics: str
    dtype: str
    device: str
    threads: int
    positions: int  # T, of the reference pass
    nan_positions: int = 0  # logits that are not numbers: the model's fault, not a mismatch
    checks: list[Check] = field(default_factory=list)
    diagnosis: Diagnosis | None = None

    @property
    def comparisons(self) -> int:
        """Positions compared, over all checks."""
        return sum(check.compared for check in self.checks)

    @property
    def equal(self) -> bool:
        """Every comparison was equal to the bit, and the logits are numbers."""
        return self.nan_positions == 0 and all(check.equal for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all fields, with `equal` and `comparisons`."""
        return {"equal": self.equal, "comparisons": self.comparisons, **asdict(self)}

    def __str__(self) -> str:
        lines = [
            f"{self.numerics} numerics, {self.dtype} on {self.device}, {self.threads} threads, "
            f"{self.positions} positions",
            "",
            _line("cached against uncached", "compared", "unequal", "median ULP", "max difference"),
        ]
        for check in self.checks:
            lines.append(
                _line(f"  {check.name}", f"{check.compared:,}", f"{check.unequal:,}",
                      f"{check.median_ulp:,}", f"{check.max_difference:.2g}")
            )  # fmt: skip
        lines.append("")
        if self.nan_positions:
            lines.append(
                f"logits equal: cannot say, the model gives NaN at {self.nan_positions} of "
                f"{self.positions} positions: its weights are damaged, or its dtype overflows"
            )
        elif self.equal:
            lines.append(
                f"logits equal: yes, bit for bit ({self.positions:,} positions, "
                f"{self.comparisons:,} comparisons)"
            )
        else:
            unequal = sum(check.unequal for check in self.checks)
            changed = sum(check.greedy_changed for check in self.checks)
            lines.append(
                f"logits equal: no, {unequal:,} of {self.comparisons:,} comparisons differ; "
                f"greedy choice changed in {changed:,}"
            )
            if self.diagnosis is None:
                lines.append("decoding one by one agrees: there is no operation to name")
            else:
                lines += ["", str(self.diagnosis)]
        return "\n".join(lines)


@torch.inference_mode()
def verify(
    model: GPT,
    ids: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    progress: Progress = lambda name: None,
) -> Report:
    """Check cached against uncached logits of a text, to the bit, in every way they are computed.

    Args:
        model: any; checked in evaluation mode, with the numerics it has.
        ids: the text's tokens, at most the context length; None: 160 random tokens.
        seed: of the random tokens, chunk lengths and rows.
        progress: called with the name of each check as it begins.

    Returns:
        A `Report`; `report.equal` is True only if every bit of every logit agreed.

    Raises:
        MinigptError: when the tokens do not fit the model.
    """
    require_model(model)
    if type(seed) is not int:
        raise MinigptError(f"seed is {seed!r}, needed a whole number")
    rng = random.Random(seed)
    config = model.config
    if ids is None:
        count = min(160, config.n_positions)
        ids = [rng.randrange(config.vocab_size) for _ in range(count)]
    try:
        tokens = torch.as_tensor(ids, device=model.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MinigptError(f"ids is {ids!r}, needed a list of token ids") from error
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.ndim != 2 or len(tokens) != 1:
        raise MinigptError(
            f"ids have shape {tuple(tokens.shape)}, needed the tokens of one text: (T,) or (1, T)"
        )
    T = tokens.shape[1]
    if not 2 <= T <= config.n_positions:
        raise MinigptError(
            f"the text to verify has {T} tokens, needed 2 to {config.n_positions}: "
            f"a context's worth at most"
        )
    with evaluating(model):
        progress("reference: one uncached pass")
        want = model(tokens)[0]  # (T, V)
        report = Report(
            model.numerics, str(model.dtype).removeprefix("torch."), str(model.device),
            torch.get_num_threads(), T, nan_positions=int(want.isnan().any(-1).sum()),
        )  # fmt: skip
        if report.nan_positions:
            return report
        for name, run in _checks(model, tokens, want, rng):
            progress(name)
            check = Check(name)
            run(check)
            report.checks.append(check)
        if not report.equal:
            progress("diagnosis")
            report.diagnosis = diagnose(model, tokens)
    return report


def _checks(
    model: GPT, tokens: Tensor, want: Tensor, rng: random.Random
) -> Iterator[tuple[str, Callable[[Check], None]]]:
    T, V = tokens.shape[1], model.config.vocab_size
    others = torch.tensor(
        [[rng.randrange(V) for _ in range(T)] for _ in range(3)], device=tokens.device
    )

    def decode(check: Check, cache: KVCache, start: int = 0, chunks: Sequence[int] = ()) -> None:
        for low, high in _spans(start, T, chunks):
            check.compare(model(tokens[:, low:high], cache=cache)[0], want[low:high], low)

    def one_by_one(check: Check) -> None:
        decode(check, model.new_cache())

    def random_chunks(check: Check) -> None:
        for _ in range(3):
            chunks = [rng.randint(1, max(1, T // 3)) for _ in range(T)]
            decode(check, model.new_cache(), chunks=chunks)

    def prefill_then_decode(check: Check) -> None:
        for prompt in _edges(T):
            cache = model.new_cache(max_length=T)  # another capacity, too
            check.compare(
                model.next_logits(tokens[:, :prompt], cache=cache), want[prompt - 1 : prompt]
            )
            for t in range(prompt, min(prompt + 2, T)):
                check.compare(model(tokens[:, t : t + 1], cache=cache)[0], want[t : t + 1], t)

    def uncached_prefixes(check: Check) -> None:
        for prompt in _edges(T):
            check.compare(model(tokens[:, :prompt])[0], want[:prompt])

    def batch_rows(check: Check) -> None:
        row = rng.randrange(4)
        batch = torch.cat([others[:row], tokens, others[row:]])
        check.compare(model(batch)[row], want)
        cache = model.new_cache(batch_size=4)
        for low, high in _spans(0, T, [rng.randint(1, max(1, T // 4)) for _ in range(T)]):
            check.compare(model(batch[:, low:high], cache=cache)[row], want[low:high], low)

    def after_truncate(check: Check) -> None:
        cache = model.new_cache()
        model(tokens, cache=cache)
        for _ in range(3):
            keep = rng.randrange(T)
            cache.truncate(keep)
            detour = others[:1, : max(1, (T - keep) // 2)]
            model(detour, cache=cache)
            cache.truncate(keep)
            decode(check, cache, keep, [rng.randint(1, T) for _ in range(T)])

    def after_fork(check: Check) -> None:
        parent = model.new_cache()
        half = T // 2
        model(tokens[:, :half], cache=parent)
        child = parent.fork()
        model(others[:1, : T - half], cache=parent)
        decode(check, child, half, [1, 2, 3] * T)

    def other_kinds(check: Check) -> None:
        for kind in LOSSLESS[1:]:
            chunks = [rng.randint(1, max(1, T // 3)) for _ in range(T)]
            decode(check, model.new_cache(kind=kind), chunks=chunks)

    def ragged_rows(check: Check) -> None:
        starts = [rng.randrange(T) for _ in range(4)]
        cache = model.new_cache(batch_size=4, kind="paged")
        model(tokens.expand(4, -1), cache=cache)
        cache.truncate(starts)
        for _ in range(min(4, T - max(starts))):
            at = cache.lengths
            logits = model(tokens[0, at][:, None], cache=cache)
            for row, t in zip(logits, at, strict=True):
                check.compare(row, want[t : t + 1], t)

    yield "decoding one by one", one_by_one
    yield "random chunks", random_chunks
    yield "prompts of every edge length", prefill_then_decode
    yield "uncached prefixes", uncached_prefixes
    yield "one row of a batch of 4", batch_rows
    yield "after truncate", after_truncate
    yield "after fork", after_fork
    yield "growing and paged caches", other_kinds
    yield "rows at different positions", ragged_rows


def _edges(T: int) -> list[int]:
    """Lengths at which something could change: the first, around each key block, the last."""
    edges = {1, 2, 3, 15, 16, 17, T - 1, T}
    for block in range(KEY_BLOCK, T + 1, KEY_BLOCK):
        edges |= {block - 1, block, block + 1}
    return sorted(edge for edge in edges if 1 <= edge <= T)


def _spans(start: int, end: int, chunks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut [start, end) into pieces of these lengths, and of 1 when there are no more."""
    lengths = iter(chunks)
    while start < end:
        stop = min(end, start + next(lengths, 1))
        yield start, stop
        start = stop


def _line(name: str, *cells: str) -> str:
    widths = (10, 10, 12, 16)  # each with a space before it, however wide the cell
    return f"{name:<30}" + "".join(f" {c:>{w - 1}}" for c, w in zip(cells, widths, strict=True))


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """How many steps from one number of their dtype to the next lead from a to b, elementwise."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]

    def ordered(x: Tensor) -> Tensor:  # the bits as integers that count up from the smallest float
        bits = x.contiguous().view(integer).long()
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    return (ordered(a) - ordered(b)).abs()
