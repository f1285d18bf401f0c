"""The loss of a language model: of a batch, in training, and of a held-out text.

Both are sums of nats over the targets that count, so that pieces of any size add up to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.support.modes import evaluating
from minigpt.training.data import IGNORED
from minigpt.training.parallel import Processes


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats, added up over the targets that count: (R, T, V), (R, T) -> ()."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", ignore_index=IGNORED
    )


@torch.no_grad()
def evaluate(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], processes: Processes | None = None
) -> float:
    """Mean cross-entropy in nats per token that counts, in the dtype of the weights.

    Args:
        batches: inputs and targets, (R, T) each; each process takes its part of the rows.
    """
    processes = processes or Processes(model.device)
    total, count = 0.0, 0
    with evaluating(model), uncompiled():
        for inputs, targets in batches:
            x, y = (part[processes.rank :: processes.count] for part in (inputs, targets))
            if not len(x):  # sharded weights need every process in every pass
                x, y = inputs[:1], torch.full_like(targets[:1], IGNORED)
            total += cross_entropy(model(x.to(processes.device)), y.to(processes.device)).item()
            count += int((y != IGNORED).sum())
    total, counted = processes.sums(total, count)
    return total / counted


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled blocks run as they are written: compiling them again would take longer."""
    with torch.compiler.set_stance("force_eager"):
        yield
