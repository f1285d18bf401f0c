"""From logits to the next token: small pure functions, and the order in which they apply.

Each filter takes logits (..., V) and returns logits (..., V), with -inf where a token is ruled out.
`Sampler` puts them together and draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.errors import MinigptError


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    numbers = torch.finfo(logits.dtype)  # beyond these ends it would become 0 or infinity, and
    return logits / min(max(temperature, numbers.tiny), numbers.max)  # 0 / 0 is not a number


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and any that tie with the last of them (Fan et al. 2018)."""
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens with at least probability p together (Holtzman et al. 2020).

    The likeliest token always stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens
    ordered = ordered.masked_fill(before >= p, -torch.inf)
    ordered[..., 0] = logits.amax(dim=-1)  # even for a p that rounds to 0
    return torch.empty_like(logits).scatter_(-1, index, ordered)


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the likeliest token (greedy), and the other settings do not matter.
        top_k: keep this many likeliest tokens; None keeps all.
        top_p: keep the likeliest tokens with this probability together; None keeps all.

    Raises:
        MinigptError: for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise MinigptError(
                f"temperature is {self.temperature!r}, needed 0 (greedy) or a positive number"
            )
        if self.top_k is not None and (
            not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 1
        ):
            raise MinigptError(f"top_k is {self.top_k!r}, needed a whole number of at least 1")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise MinigptError(f"top_p is {self.top_p!r}, needed a probability in (0, 1]")

    def check(self, vocab_size: int) -> None:
        """Refuse settings that this vocabulary cannot serve."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise MinigptError(
                f"top_k is {self.top_k}, but the vocabulary has {vocab_size} tokens: "
                f"needed 1 to {vocab_size}"
            )

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """The next token for one row of logits (V,).

        Drawn on the CPU in float32, from `generator`, so that a seed means the same everywhere.

        Raises:
            MinigptError: when the logits hold NaN or nothing but infinities.
        """
        logits = logits.detach().float().cpu()
        top = logits.max()
        if not top.isfinite():
            raise MinigptError(
                f"the model's logits hold {float(top)}: its weights are damaged, or its dtype "
                f"overflows; try dtype float32"
            )
        if self.temperature == 0:
            return int(logits.argmax())
        logits = scale_temperature(logits - top, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
