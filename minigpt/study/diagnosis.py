"""Which operation of which layer is the first to give a row other bits, and why.

Cached and uncached passes are run again with every layer's row operations recorded. Up to the first
operation that differs the two agree to the bit, so its inputs are equal and only the call was
different; calling it again, with one thing varied at a time, shows what made the difference.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.numerics.recorder import Recorded, recording
from minigpt.support.modes import evaluating
from minigpt.support.wording import counted


@dataclass(frozen=True)
class Diagnosis:
    """The first operation to differ between the uncached pass and one-by-one decoding."""

    operation: str  # "h.0.attn.c_attn", as in the model's parameter names
    kind: str  # "linear", "attention", "activation" or "layer_norm"
    shape: str  # of one row's work
    rows: int  # rows computed together in the uncached pass
    unequal: int  # of these, how many differ when computed one at a time
    max_difference: float
    causes: tuple[str, ...]
    operations_before: int  # operations that agreed to the bit before this one

    def __str__(self) -> str:
        before = {0: "it is the first of all", 1: "the operation before it agrees to the bit"}
        agree = f"the {self.operations_before} operations before it agree to the bit"
        rows = counted(self.rows, "position")
        lines = [
            f"first to differ: {self.operation} ({self.kind}, {self.shape}), at {self.unequal} of "
            f"{rows}, by up to {self.max_difference:.2g}; "
            f"{before.get(self.operations_before, agree)}",
            *(f"why: {cause}" for cause in self.causes),
        ]
        return "\n".join(textwrap.fill(line, 90, subsequent_indent="  ") for line in lines)


@torch.inference_mode()
def diagnose(model: GPT, tokens: Tensor) -> Diagnosis | None:
    """The first operation whose bits differ, or None if none does.

    Keeps the intermediate results of one uncached pass in memory.

    Args:
        tokens: (1, T), a text for which cached and uncached logits differ.
    """
    T = tokens.shape[1]
    with evaluating(model):
        with recording(model) as uncached:
            model(tokens)
        cache = model.new_cache(max_length=T)
        unequal: dict[str, list[int]] = {name: [] for name in uncached}  # positions
        difference = dict.fromkeys(uncached, 0.0)
        for t in range(T):
            with recording(model) as cached:
                model(tokens[:, t : t + 1], cache=cache)
            for name, alone in cached.items():
                got, want = alone.rows(), uncached[name].rows()[t : t + 1]
                if not torch.equal(got, want):
                    unequal[name].append(t)
                    difference[name] = max(difference[name], float((got - want).abs().max()))
        for number, (name, together) in enumerate(uncached.items()):
            if unequal[name]:
                return Diagnosis(
                    operation=name,
                    kind=together.kind,
                    shape=_shape(together),
                    rows=T,
                    unequal=len(unequal[name]),
                    max_difference=difference[name],
                    causes=tuple(_causes(together, unequal[name])),
                    operations_before=number,
                )
    return None


def _shape(call: Recorded) -> str:
    if call.kind == "linear":
        return "{} -> {}".format(*call.arguments[1].shape)
    if call.kind == "attention":
        return "{1} heads of {3}".format(*call.arguments[0].shape)
    return f"{call.output.shape[-1]} wide"


def _causes(call: Recorded, unequal: list[int]) -> Iterator[str]:
    """Vary one thing at a time. `unequal` are the positions that differ when computed alone."""
    T, threads = len(call.rows()), torch.get_num_threads()
    t = unequal[0]

    def agrees_alone() -> bool:
        return torch.equal(call.again(t, t + 1)[0], call.again(0, T)[t])

    if agrees_alone():
        yield "this call alone does not repeat the difference: the same call gave other bits twice"
        return
    rows = counted(T, "row")
    many = threads > 1 and call.output.device.type == "cpu"
    if many and _on_one_thread(agrees_alone):
        yield (
            f"thread split: with {threads} threads the work of {rows} is cut between threads "
            f"where that of one row is not, and numbers at a cut go through other code or are "
            f"added up in another order; on one thread the bits agree"
        )
        return
    also = ", on one thread as well" if many else ""
    if call.kind == "attention":
        for t in unequal[: -_TRIES - 1 : -1]:  # many queries come before the last positions
            few = [n for n in _FEW if n <= t]
            over = call.again(0, t + 1)[t]
            if not torch.equal(call.again(t, t + 1)[0], over):
                yield (
                    f"query count: over the same {t + 1} keys, a call of one query adds up in "
                    f"another order than a call of {t + 1} queries{also}"
                )
                yield from _enough((n, call.again(t + 1 - n, t + 1)[-1], over) for n in few)
                return
        yield (
            f"key count: a call over later keys as well, those after a query's own masked, adds up "
            f"in another order than a call over the keys so far; over the same keys, one query "
            f"and many get the same bits{also}"
        )
        return
    what = "adds up each row's terms" if call.kind == "linear" else "computes each row"
    yield (
        f"row count: a call of 1 row runs another kernel than a call of {rows}, and {what} in "
        f"another order{also}"
    )
    low = {n: max(0, t + 1 - n) for n in _FEW if n < T}
    want = call.again(0, T)[t]
    yield from _enough((n, call.again(low[n], low[n] + n)[t - low[n]], want) for n in low)


_TRIES = 16  # unequal positions of an attention that are looked at
_FEW = (2, 3, 4, 8, 16, 32, 64, 128, 256, 512)


def _enough(results: Iterator[tuple[int, Tensor, Tensor]]) -> Iterator[str]:
    """The smallest call that gives the bits wanted, if any does."""
    for rows, got, want in results:
        if torch.equal(got, want):
            yield f"a call of {rows} gives the same bits as the large one"
            return


def _on_one_thread(question: Callable[[], bool]) -> bool:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return question()
    finally:
        torch.set_num_threads(threads)
