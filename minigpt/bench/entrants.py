"""What is measured: models that prefill and decode the same tokens, each through its own interface.

The sections take the time; who takes part is said in `lineup.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.continuation import choose_likeliest
from minigpt.model import GPT
from minigpt.numerics.base import whole_blocks
from minigpt.support.errors import MinigptError

Decode = Callable[[], list[list[int]]]  # what is timed; gives the ids, (B, steps)


@dataclass(eq=False)
class Entrant:
    """A model as the bench sees it."""

    name: str
    ready: Callable[[], object]  # to be called before it takes its turn
    new_cache: Callable[[int, int], Any]  # (rows, positions)
    next_logits: Callable[[Tensor, Any], Tensor]  # (B, T) tokens and a cache -> (B, V)
    batches: bool = True  # can it be timed on several rows side by side?

    def prefill(self, tokens: Tensor) -> Decode:
        """What comes back takes (B, T) tokens to their next ids, by way of a filled cache."""
        self.ready()
        return lambda: choose_likeliest(
            self.next_logits, tokens, 1, self.new_cache(*tokens.shape)
        ).tolist()

    def decode(self, tokens: Tensor, steps: int) -> Decode:
        """Prefill (B, T) tokens and choose the next ones; what comes back decodes `steps` more."""
        self.ready()
        cache = self.new_cache(len(tokens), tokens.shape[1] + steps)
        first = choose_likeliest(self.next_logits, tokens, 1, cache)
        return lambda: choose_likeliest(self.next_logits, first, steps, cache).tolist()


class EntrantFailure(MinigptError):
    """An entrant cannot go on; the others can."""

    def __init__(self, entrant: Entrant, why: str) -> None:
        super().__init__(f"{entrant.name} is left out, for {why}")
        self.entrant = entrant


def minigpt_entrant(model: GPT, numerics: str, name: str = "minigpt") -> Entrant:
    """Our model with one set of numerics; both sets share the model and its weights."""

    def new_cache(batch_size: int, length: int) -> KVCache:
        return model.new_cache(batch_size, min(whole_blocks(length), model.config.n_positions))

    ready = partial(setattr, model, "numerics", numerics)
    return Entrant(f"{name} {numerics}", ready, new_cache, model.next_logits)


def transformers_entrants(
    directory: Path, dtype: torch.dtype, device: torch.device
) -> list[Entrant]:
    """Hugging Face's GPT-2 on the same checkpoint, with its dynamic and its static cache."""
    from transformers import DynamicCache, GPT2LMHeadModel, StaticCache, logging

    library: Any = logging  # has no types
    library.set_verbosity_error()
    library.disable_progress_bar()
    loaded: Any = GPT2LMHeadModel.from_pretrained(directory)
    model = loaded.to(device, dtype).eval()

    def next_logits(tokens: Tensor, cache: Any) -> Tensor:
        return model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]

    def static(batch_size: int, length: int) -> Any:
        return StaticCache(config=model.config, max_cache_len=length)

    ready = lambda: None  # noqa: E731
    return [
        Entrant("transformers", ready, lambda *size: DynamicCache(), next_logits),
        Entrant("transformers static", ready, static, next_logits),
    ]


def why_no_transformers(config: GPTConfig) -> str | None:
    """What keeps transformers from running such a model here; None: nothing."""
    if config.kv_heads != config.n_head:
        return "transformers' GPT-2 has no grouped heads and cannot load this model"
    if installed("transformers") is None:
        return "transformers is not installed: pip install 'minigpt[bench]' to measure it as well"
    return None


def installed(package: str) -> str | None:
    """The version of a package, if it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
