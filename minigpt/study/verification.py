"""Is cached decoding equal to uncached decoding, bit for bit? Check it, on any model and machine.

`verify` computes the logits of a text once without a cache (the reference), then in every other way
the program can compute them (`ways.py`), and compares the bits. When something differs it asks
`diagnosis.py` which operation differed first, and why.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from minigpt.model import GPT, require_model
from minigpt.numerics.base import KEY_BLOCK
from minigpt.numerics.copies import recheck
from minigpt.study.diagnosis import Diagnosis, diagnose
from minigpt.study.ways import Check, Ways, random_tokens
from minigpt.support.checks import is_whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.tables import table
from minigpt.support.wording import counted

Progress = Callable[[str], object]


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
        headings = ("compared", "unequal", "median ULP", "max difference")
        rows = [
            (
                f"  {check.name}",
                f"{check.compared:,}",
                f"{check.unequal:,}",
                f"{check.median_ulp:,}",
                f"{check.max_difference:.2g}",
            )
            for check in self.checks
        ]
        lines = [
            f"{self.numerics} numerics, {self.dtype} on {self.device}, "
            f"{counted(self.threads, 'thread')}, {counted(self.positions, 'position')}",
            "",
            table(("cached against uncached", *headings), rows),
        ]
        lines.append("")
        if self.nan_positions:
            lines.append(
                f"logits equal: cannot say, the model gives NaN at {self.nan_positions} of "
                f"{self.positions} positions: its weights are damaged, or its dtype overflows"
            )
        elif self.equal:
            lines.append(
                f"logits equal: yes, bit for bit ({counted(self.positions, 'position')}, "
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
    recheck(model)
    if not is_whole(seed):
        raise MinigptError(f"seed is {seed!r}, needed a whole number")
    rng = random.Random(seed)
    if ids is None:
        tokens = random_tokens(model, rng, 1, min(160, model.config.n_positions))
    else:
        tokens = _one_text(model, ids)
    with evaluating(model):
        progress("reference: one uncached pass")
        ways = Ways(model, tokens, rng)
        report = Report(
            model.numerics,
            str(model.dtype).removeprefix("torch."),
            str(model.device),
            torch.get_num_threads(),
            ways.length,
            nan_positions=int(ways.want.isnan().any(-1).sum()),
        )
        if report.nan_positions:
            return report
        for name, compare in CHECKS.items():
            progress(name)
            report.checks.append(Check(name))
            compare(ways, report.checks[-1])
        if not report.equal:
            progress("diagnosis")
            report.diagnosis = diagnose(model, tokens)
    return report


CHECKS: dict[str, Callable[[Ways, Check], None]] = {
    "decoding one by one": Ways.one_by_one,
    "random chunks": Ways.random_chunks,
    "prompts of every edge length": lambda ways, check: ways.prompts(check, _edges(ways.length)),
    "uncached prefixes": lambda ways, check: ways.prefixes(check, _edges(ways.length)),
    "one row of a batch of 4": lambda ways, check: ways.batches(check, [4], ways.length),
    "after truncate": Ways.truncated,
    "after fork": Ways.forked,
    "growing and paged caches": Ways.kinds,
    "rows at different positions": Ways.random_rows,
}


def _edges(T: int) -> list[int]:
    """Lengths at which something could change: the first, around each key block, the last."""
    edges = {1, 2, 3, 15, 16, 17, T - 1, T}
    for block in range(KEY_BLOCK, T + 1, KEY_BLOCK):
        edges |= {block - 1, block, block + 1}
    return sorted(edge for edge in edges if 1 <= edge <= T)


def _one_text(model: GPT, ids: Sequence[int] | Tensor) -> Tensor:
    """(1, T) on the model's device; whether they are tokens of it, the model checks."""
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
    if not 2 <= tokens.shape[1] <= model.config.n_positions:
        raise MinigptError(
            f"the text to verify has {counted(tokens.shape[1], 'token')}, needed 2 to "
            f"{model.config.n_positions}: a context's worth at most"
        )
    return tokens
