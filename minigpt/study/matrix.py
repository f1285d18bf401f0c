"""The invariance matrix: everything that may vary, against every kind of model.

Rows are what varies between two computations of the same logits; columns are dtype x heads x width.
A cell is "equal" only if every logit agreed to the bit; otherwise it says how many rows of logits
differed. What cannot be computed is refused with the program's own sentence, never left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.numerics.base import KEY_BLOCK
from minigpt.study.ways import Check, Ways, random_tokens
from minigpt.support.errors import MinigptError
from minigpt.support.tables import table

POSITIONS = 4 * KEY_BLOCK + 16  # whole key blocks, and the start of one
THREADS = (1, 2, 3, 5, 7, 8, 16)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Width, heads, and the fewer key/value heads of the grouped variant.
WIDTHS = {"toy": (160, 5, 1), "124M": (768, 12, 4), "XL": (1600, 25, 5)}


@dataclass(frozen=True)
class Column:
    """One kind of model: one layer of it, which is enough for every kernel to run."""

    dtype: torch.dtype
    grouped: bool
    width: str
    vocab_size: int = 1031

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.width} {'GQA' if self.grouped else 'MHA'} {dtype}"

    def model(
        self,
        device: str | torch.device = "cpu",
        numerics: str = "exact",
        positions: int = POSITIONS,
    ) -> GPT:
        """With random weights, large enough for attention to prefer some keys to others."""
        n_embd, n_head, n_kv_head = WIDTHS[self.width]
        config = GPTConfig(
            vocab_size=self.vocab_size,
            n_positions=positions,
            n_embd=n_embd,
            n_layer=1,
            n_head=n_head,
            n_kv_head=n_kv_head if self.grouped else None,
            initializer_range=1.5 / n_embd**0.5,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT(config, numerics=numerics)
        return model.eval().to(device=device, dtype=self.dtype)


COLUMNS = tuple(
    Column(dtype, grouped, width)
    for width in WIDTHS
    for grouped in (False, True)
    for dtype in DTYPES
)


@torch.inference_mode()
def start(model: GPT, seed: int = 0) -> Ways:
    """A random text as long as the model's context, and its uncached logits."""
    rng = random.Random(seed)
    return Ways(model, random_tokens(model, rng, 1, model.config.n_positions), rng)


def _threads(ways: Ways, check: Check) -> None:
    ways.threads(check, THREADS)


def _chunks(ways: Ways, check: Check) -> None:
    ways.chunks(check, (2, 3, 7, 16, 17, 31, 32, 64, 100, 127, 128))


def _batches(ways: Ways, check: Check) -> None:
    ways.batches(check, (2, 3, 5, 8), head=9)


def _ragged(ways: Ways, check: Check) -> None:
    ways.ragged(check, [1, 100, 126, ways.length - 6], [1, 1, 1, 3], "static")


def _kinds(ways: Ways, check: Check) -> None:
    ways.kinds(check, [77, 1, 49, 3, POSITIONS])


def _capacities(ways: Ways, check: Check) -> None:
    most = ways.length
    ways.capacities(check, sorted({min(size, most) for size in (130, 200, 256, 271, most)}))


def _prompts(ways: Ways, check: Check) -> None:
    last = ways.length - 1
    edges = (1, 2, 3, 15, 16, 17, 127, 128, 129, 255, 256, 257, last)
    lengths = sorted({min(edge, last) for edge in edges})
    ways.prompts(check, lengths)
    ways.prefixes(check, lengths)


ROWS: dict[str, Callable[[Ways, Check], None]] = {
    "decoding one by one": Ways.one_by_one,
    "chunks of 2 to 128": _chunks,
    "batches of 2 to 8, any place": _batches,
    "ragged rows": _ragged,
    "kinds of cache": _kinds,
    f"threads {', '.join(map(str, THREADS))}": _threads,
    "cache capacity": _capacities,
    "prompt length at block edges": _prompts,
    "context full": Ways.full,
}


@torch.inference_mode()
def cell(ways: Ways, row: str) -> str:
    """ "equal", how many differ, or "refused: ..." with the reason."""
    check = Check(row)
    try:
        ROWS[row](ways, check)
    except MinigptError as error:
        return f"refused: {error}"
    if ways.want.isnan().any():
        return "refused: the model's logits are NaN"
    return "equal" if check.equal else f"{check.unequal} of {check.compared} differ"


def render(results: dict[tuple[str, str], str]) -> str:
    """The matrix as text, at most 100 columns of it: {(row, column): cell}."""
    columns = list(dict.fromkeys(column for _, column in results))
    rows = [
        [row, *(results[row, column].split(":")[0] for column in columns)]
        for row in dict.fromkeys(row for row, _ in results)
    ]
    refused = dict.fromkeys(value for value in results.values() if value.startswith("refused"))
    equal = sum(value == "equal" for value in results.values())
    count = f"{equal} of {len(results)} cells equal, bit for bit"
    return "\n".join([table(["", *columns], rows, width=100), "", *refused, count])
