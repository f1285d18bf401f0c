"""The loss of a language model: of a batch, in training, and of a held-out text.

Both are sums of nats over the targets that count, so that pieces of any size add up to the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

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


class Evaluation(NamedTuple):
    """How well a model foretells held-out windows."""

    loss: float  # mean cross-entropy, in nats per token that counts
    error: float  # its standard error, taking the windows for a random sample; NaN for one window
    right: float  # part of the windows whose every target that counts is the likeliest token
    windows: int


def evaluate(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], processes: Processes | None = None
) -> float:
    """Mean cross-entropy in nats per token that counts: the loss of `assess`."""
    return assess(model, batches, processes).loss


@torch.no_grad()
def assess(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], processes: Processes | None = None
) -> Evaluation:
    """What a model makes of windows, in the dtype of its weights.

    Args:
        batches: inputs and targets, (R, T) each; each process takes its part of the rows.
    """
    processes = processes or Processes(model.device)
    nats: list[Tensor] = []  # (R,) float64 each, by window
    counts: list[Tensor] = []
    right = 0.0
    with evaluating(model), uncompiled():
        for inputs, targets in batches:
            x, y = (part[processes.rank :: processes.count] for part in (inputs, targets))
            if not len(x):  # sharded weights need every process in every pass
                x, y = inputs[:1], torch.full_like(targets[:1], IGNORED)
            logits, y = model(x.to(processes.device)), y.to(processes.device)
            each = F.cross_entropy(
                logits.flatten(0, 1).float(), y.flatten(), reduction="none", ignore_index=IGNORED
            )
            counted = y != IGNORED
            nats.append(each.view_as(y).sum(1, dtype=torch.float64).cpu())
            counts.append(counted.sum(1).cpu())
            hits = ((logits.argmax(-1) == y) | ~counted).all(1) & counted.any(1)
            right += int(hits.sum())
    n, count = torch.cat(nats), torch.cat(counts)
    n, count = n[count > 0], count[count > 0].double()
    total, tokens, rows, right = processes.sums(n.sum().item(), count.sum().item(), len(n), right)
    loss = total / tokens
    [squares] = processes.sums((n - loss * count).square().sum().item())  # of a ratio's residuals
    error = math.sqrt(squares * rows / (rows - 1)) / tokens if rows > 1 else math.nan
    return Evaluation(loss, error, right / rows, int(rows))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled blocks run as they are written: compiling them again would take longer."""
    with torch.compiler.set_stance("force_eager"):
        yield
