"""What a GPU would do with a recorded step, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from minigpt.generation.device_steps import DeviceSteps


class Tape(TorchDispatchMode):
    """A list of torch's operations, and the very tensors they were given, to be done again.

    As of a CUDA graph: what Python decided is decided, and only what lies in the tensors may differ
    the next time. Nothing may be looked at meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.logits = torch.empty(0)
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert "_local_scalar_dense" not in str(func), "a step waits for the device"
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        self.replays += 1
        again: dict[int, Tensor] = {}

        def now(x: Any) -> Any:
            return again.get(id(x), x) if isinstance(x, Tensor) else x

        for func, args, kwargs, made in self.calls:
            new = func(*tree_map(now, args), **tree_map(now, kwargs))
            for one, other in zip(tree_leaves(made), tree_leaves(new), strict=True):
                if isinstance(one, Tensor):
                    again[id(one)] = other
        self.logits.copy_(again[id(self.logits)])


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Steps are recorded and replayed, as on a GPU."""
    recorded = []

    def record(self: DeviceSteps, run: Callable[[], Tensor]) -> tuple[Tape, Tensor]:
        before, tape = [tensor.clone() for tensor in self.state], Tape()
        run()
        with tape:
            tape.logits = run()
        for tensor, value in zip(self.state, before, strict=True):
            tensor.copy_(value)
        recorded.append(tape)
        return tape, tape.logits

    monkeypatch.setattr(DeviceSteps, "_can_record", lambda _: True)
    monkeypatch.setattr(DeviceSteps, "_record", record)
    return recorded
