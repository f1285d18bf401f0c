"""What every row operation of a pass was given, and what it returned.

Lessons and plots look at it, and a diagnosis runs single operations again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.numerics.base import RowModule, RowOps, row_modules
from minigpt.numerics.copies import Copies


@dataclass(frozen=True)
class Recorded:
    """One call of one row operation."""

    kind: str
    arguments: tuple[Any, ...]
    output: Tensor  # (B, H, T, D) of attention, else (B, T, width)
    ops: RowOps

    def rows(self) -> Tensor:
        """The output, (T, all numbers of a position)."""
        return self.output.movedim(-2, 0).flatten(1)

    def again(self, low: int, high: int) -> Tensor:
        """The same operation on positions low, ..., high - 1 only: (high - low, numbers)."""
        first, *rest = self.arguments
        if self.kind == "attention":
            k, v, _, *rest = rest
            rest = [k[:, :, :high], v[:, :, :high], (low,), *rest]
        part = first[..., low:high, :].contiguous()
        if isinstance(rest[0], nn.Module):  # a product and its activation in one call
            linear, name = rest
            return replace(self, output=self.ops.activated(linear, part, name)).rows()
        return replace(self, output=getattr(self.ops, self.kind)(part, *rest)).rows()


class Recorder(RowOps):
    """Row operations that pass everything on and keep what they saw, in order."""

    name = "recorder"

    def __init__(self, ops: RowOps, module: str, log: dict[str, Recorded]) -> None:
        self.ops, self.module, self.log = ops, module, log

    def _call(self, kind: str, *arguments: Any) -> Tensor:
        output: Tensor = getattr(self.ops, kind)(*arguments)
        name = f"{self.module}.activation" if kind == "activation" else self.module
        self.log[name] = Recorded(kind, arguments, output, self.ops)
        return output

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
        return self._call("linear", x, weight, bias, copies)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        return self._call("attention", q, k, v, starts, scale, dropout)

    def check_context(self, dtype: torch.dtype, device: torch.device) -> None:
        self.ops.check_context(dtype, device)

    def activation(self, x: Tensor, name: str) -> Tensor:
        return self._call("activation", x, name)

    def activated(self, linear: nn.Module, x: Tensor, name: str) -> Tensor:
        """One after the other, to be seen; what goes on is what these operations make of both."""
        y = super().activated(linear, x, name)
        if not isinstance(linear, RowModule) or not isinstance(linear.ops, Recorder):
            return y
        recorder, linear.ops = linear.ops, linear.ops.ops
        try:
            together = self.ops.together(linear, x, name)
        finally:
            linear.ops = recorder
        if together is None:
            return y
        call = Recorded("activation", (x, linear, name), together, self.ops)
        self.log[f"{self.module}.activation"] = call
        return together

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self._call("layer_norm", x, weight, bias, eps)

    def log_softmax(self, x: Tensor) -> Tensor:
        return self.ops.log_softmax(x)  # no layer's, so it is not kept


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Recorded]]:
    """Inside the block, the last call of every row operation is kept, by its layer's name."""
    log: dict[str, Recorded] = {}
    before = {name: (module, module.ops) for name, module in row_modules(model)}
    try:
        for name, (module, ops) in before.items():
            module.ops = Recorder(ops, name, log)
        yield log
    finally:
        for module, ops in before.values():
            module.ops = ops
