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
from torch import Tensor

from minigpt.cache.kinds import LOSSLESS
from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.numerics.base import KEY_BLOCK
from minigpt.study.verification import Check
from minigpt.support.errors import MinigptError

POSITIONS = 2 * KEY_BLOCK + 16  # two whole key blocks and the start of a third
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
            vocab_size=self.vocab_size, n_positions=positions, n_embd=n_embd, n_layer=1,
            n_head=n_head, n_kv_head=n_kv_head if self.grouped else None,
            initializer_range=1.5 / n_embd**0.5,
        )  # fmt: skip
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


class Cells:
    """One column's model and reference logits, and a method for each row of the matrix."""

    def __init__(self, model: GPT, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.model = model
        self.device = model.device
        self.positions = model.config.n_positions
        self.tokens = self.text(1)
        with torch.inference_mode():
            self.want = model(self.tokens)[0]  # (T, V)

    def text(self, rows: int) -> Tensor:
        vocab_size = self.model.config.vocab_size
        ids = [self.rng.randrange(vocab_size) for _ in range(rows * self.positions)]
        return torch.tensor(ids, device=self.device).view(rows, self.positions)

    def fed(self, check: Check, spans: list[tuple[int, int]], capacity: int | None = None) -> None:
        """Compare cached logits, fed in these spans, with the reference."""
        cache = self.model.new_cache(max_length=capacity)
        for low, high in spans:
            check.compare(
                self.model(self.tokens[:, low:high], cache=cache)[0], self.want[low:high], low
            )

    def one_by_one(self, check: Check) -> None:
        self.fed(check, [(t, t + 1) for t in range(self.positions)])

    def chunks(self, check: Check) -> None:
        end = self.positions
        for size in (2, 3, 7, 16, 17, 31, 32, 64, 100, 127, 128):
            self.fed(check, [(t, min(t + size, end)) for t in range(0, end, size)])

    def batches(self, check: Check) -> None:
        for size in (2, 3, 5, 8):
            place = self.rng.randrange(size)
            batch = self.text(size)
            batch[place] = self.tokens[0]
            check.compare(self.model(batch)[place], self.want)
            cache = self.model.new_cache(batch_size=size)
            self.model(batch[:, :-4], cache=cache)
            for t in range(self.positions - 4, self.positions):
                logits = self.model(batch[:, t : t + 1], cache=cache)[place]
                check.compare(logits, self.want[t : t + 1], t)

    def ragged(self, check: Check) -> None:
        """The same text in four rows of a cache, each at another position of it."""
        lengths, steps = [1, 100, 126, self.positions - 6], [1, 1, 1, 3]
        cache = self.model.new_cache(batch_size=4)
        self.model(self.tokens[:, : max(lengths)].expand(4, -1), cache=cache)
        cache.truncate(lengths)
        for count in steps:
            spans = [range(start, start + count) for start in cache.lengths]
            logits = self.model(torch.stack([self.tokens[0, span] for span in spans]), cache=cache)
            for row, span in zip(logits, spans, strict=True):
                check.compare(row, self.want[span], span.start)

    def kinds(self, check: Check) -> None:
        """The other lossless caches, forked on the way."""
        for kind in LOSSLESS[1:]:
            cache = self.model.new_cache(kind=kind)
            for low, high in [(0, 77), (77, 78), (78, 127), (127, 130), (130, 131)]:
                logits = self.model(self.tokens[:, low:high], cache=cache)[0]
                check.compare(logits, self.want[low:high], low)
                cache = cache.fork()

    def threads(self, check: Check) -> None:
        before = torch.get_num_threads()
        try:
            for count in THREADS:
                torch.set_num_threads(count)
                check.compare(self.model(self.tokens)[0], self.want)
                half = self.positions // 2
                self.fed(check, [(0, half)] + [(t, t + 1) for t in range(half, half + 4)])
        finally:
            torch.set_num_threads(before)

    def capacity(self, check: Check) -> None:
        sizes = (130, 200, 256, 271, self.positions)
        for capacity in sorted({min(size, self.positions) for size in sizes}):
            end = capacity - 3
            self.fed(check, [(0, end), *[(t, t + 1) for t in range(end, capacity)]], capacity)

    def prompt_lengths(self, check: Check) -> None:
        last = self.positions - 1
        edges = (1, 2, 3, 15, 16, 17, 127, 128, 129, 255, 256, 257, last)
        for length in sorted({min(edge, last) for edge in edges}):
            self.fed(check, [(0, length), (length, length + 1)])
            check.compare(self.model(self.tokens[:, :length])[0], self.want[:length])

    def context_full(self, check: Check) -> None:
        end = self.positions
        self.fed(check, [(0, end - 1), (end - 1, end)], end)
        self.fed(check, [(0, end)], end)


ROWS: dict[str, Callable[[Cells, Check], None]] = {
    "decoding one by one": Cells.one_by_one,
    "chunks of 2 to 128": Cells.chunks,
    "batches of 2 to 8, any place": Cells.batches,
    "ragged rows": Cells.ragged,
    "kinds of cache": Cells.kinds,
    f"threads {', '.join(map(str, THREADS))}": Cells.threads,
    "cache capacity": Cells.capacity,
    "prompt length at block edges": Cells.prompt_lengths,
    "context full": Cells.context_full,
}


@torch.inference_mode()
def cell(cells: Cells, row: str) -> str:
    """ "equal", how many differ, or "refused: ..." with the reason."""
    check = Check(row)
    try:
        ROWS[row](cells, check)
    except MinigptError as error:
        return f"refused: {error}"
    if cells.want.isnan().any():
        return "refused: the model's logits are NaN"
    return "equal" if check.equal else f"{check.unequal} of {check.compared} differ"


def render(results: dict[tuple[str, str], str]) -> str:
    """The matrix as text, at most 100 columns of it: {(row, column): cell}."""
    rows = list(dict.fromkeys(row for row, _ in results))
    columns = list(dict.fromkeys(column for _, column in results))
    shown = {place: value.split(":")[0] for place, value in results.items()}
    first = max(map(len, rows))
    width = max(map(len, [*columns, *shown.values()])) + 2
    abreast = max(1, (100 - first) // width)
    lines = []
    for group in (columns[i : i + abreast] for i in range(0, len(columns), abreast)):
        lines.append(" " * first + "".join(f"{column:>{width}}" for column in group))
        for row in rows:
            lines.append(f"{row:<{first}}" + "".join(f"{shown[row, c]:>{width}}" for c in group))
        lines.append("")
    refused = dict.fromkeys(value for value in results.values() if value.startswith("refused"))
    equal = sum(value == "equal" for value in results.values())
    return "\n".join([*lines, *refused, f"{equal} of {len(results)} cells equal, bit for bit"])
