"""How good a model is, as people compare models: with an interval of what chance may have done.

A held-out text is a sample, and so is a list of unseen problems; another sample would have given
another number. Ninety-five of a hundred intervals made like these hold the true one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minigpt.model import GPT
from minigpt.training.losses import Evaluation, assess
from minigpt.training.sources import Problems, Source

Z = 1.959964  # standard deviations to each side of a normal distribution's middle 95 %
PROBLEMS = 1_000  # that are answered


@dataclass(frozen=True)
class Measurement:
    """Of a model on all that a source holds out."""

    evaluation: Evaluation
    width: int  # tokens of a window
    bytes_per_token: float | None  # None: no text
    accuracy: float | None  # part of unseen problems answered exactly; None: no task
    problems: int  # that were asked

    def __str__(self) -> str:
        found, margin = self.evaluation, Z * self.evaluation.error
        windows = f"{found.windows:,} windows of {self.width}"
        perplexities = ", ".join(f"{_exp(found.loss + d):,.2f}" for d in (-margin, margin))
        lines = [
            f"held-out loss      {found.loss:.4f} ± {margin:.4f} nats per token, over {windows}",
            f"perplexity         {_exp(found.loss):,.2f} ({perplexities})",
        ]
        if self.bytes_per_token is not None:
            bits = 1 / math.log(2) / self.bytes_per_token
            lines.append(f"bits per byte      {found.loss * bits:.4f} ± {margin * bits:.4f}")
        if self.accuracy is not None:
            low, high = share_interval(self.accuracy, self.problems)
            lines.append(
                f"exactly right      {self.accuracy:.2%} of {self.problems:,} unseen problems "
                f"({low:.2%}, {high:.2%})"
            )
        return "\n".join(lines)


def measure_model(model: GPT, source: Source) -> Measurement:
    """Everything that is held out, once; a task's problems are other ones than training shows."""
    accuracy, problems = None, 0
    if isinstance(source, Problems):
        problems = len(source.task.unseen(PROBLEMS))
        accuracy = source.task.accuracy(model, count=PROBLEMS)
    found = assess(model, source.held_out())
    return Measurement(found, source.width, source.bytes_per_token, accuracy, problems)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Where the true share lies, 95 times of 100, when `share` of `count` were found (Wilson 1927).

    Unlike the usual ± it is of use at 100 %: 1,000 of 1,000 mean at least 99.6 %.
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + (Z / count / 2) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
