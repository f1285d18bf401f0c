"""A model's mode, changed for as long as something is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module, layers: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every layer is in the mode that it was in.

    Args:
        layers: `model.modules()`, from a caller that comes for every token: to list them takes
            as long as to run one.
    """
    before = [(layer, layer.training) for layer in layers or model.modules()]
    if not any(training for _, training in before):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
        for layer, training in before:
            layer.training = training
