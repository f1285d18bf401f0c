"""Who is measured: minigpt with both numerics, and the programs that can run the same checkpoint.

An entrant prefills and decodes the same tokens as the others, each through its own interface;
the sections take the time. Programs that are not installed are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.continuation import choose_likeliest
from minigpt.model import GPT
from minigpt.numerics import NUMERICS
from minigpt.numerics.base import whole_blocks

Decode = Callable[[], list[list[int]]]  # what is timed; gives the ids, (B, steps)


@dataclass
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


class CTranslate2(Entrant):
    """OpenNMT's C++ program, in which no Python runs between two tokens.

    It keeps the prefilled beginning of one text, so that the steps after it can be timed alone;
    not of several, so it takes its turns with single texts.

    Args:
        directory: what `convert` wrote.
        weights: "float32" or "int8".
    """

    def __init__(self, directory: Path, weights: str) -> None:
        import ctranslate2

        self.name, self.batches = "CTranslate2" + " int8" * (weights == "int8"), False
        self._generator = ctranslate2.Generator(
            str(directory), compute_type=weights, intra_threads=torch.get_num_threads()
        )

    def _continue(self, row: list[int], count: int, prefilled: list[int]) -> list[int]:
        beginning, words = ([_word(token) for token in part] for part in (prefilled, row))
        (result,) = self._generator.generate_batch(
            [words],
            max_length=count,
            end_token=[],
            return_end_token=True,
            static_prompt=beginning or None,
            include_prompt_in_result=False,
        )
        return result.sequences_ids[0]

    def prefill(self, tokens: Tensor) -> Decode:
        return lambda: [self._continue(row, 1, []) for row in tokens.tolist()]

    def decode(self, tokens: Tensor, steps: int) -> Decode:
        rows = [(row, self._continue(row, 1, [])) for row in tokens.tolist()]
        if len(rows) == 1:
            self._continue(rows[0][1], 1, rows[0][0])  # from here on its beginning is kept
        return lambda: [self._continue(first, steps, row) for row, first in rows]


def convert(directory: Path, to: Path) -> None:
    """Write a checkpoint the way CTranslate2 reads it; its words are numbers, as no text is run."""
    from ctranslate2.converters import TransformersConverter

    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]

    converter = TransformersConverter(str(directory))
    converter.load_tokenizer = lambda *_, **__: _Words(vocab_size)
    converter.convert(str(to), force=True)


class _Words:
    """As much of a tokenizer as the conversion asks for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.bos_token = self.eos_token = self.unk_token = _word(count - 1)

    def get_vocab(self) -> dict[str, int]:
        return {_word(token): token for token in range(self.count)}


def _word(token: int) -> str:
    return f"<{token}>"


def load_entrants(model: GPT, directory: Path) -> list[Entrant]:
    """Who can run this checkpoint here: minigpt twice, and the others where they can."""
    ours = [minigpt_entrant(model, name) for name in NUMERICS]
    if why_no_transformers(model.config):
        return ours
    theirs = transformers_entrants(directory, model.dtype, model.device)
    return [*ours, *theirs, *ctranslate2_entrants(model, directory, "float32")]


def load_int8_entrants(model: GPT, directory: Path) -> list[Entrant]:
    """Who can run it with 8-bit weights; each rounds them, and the activations, in its own way."""
    small = GPT.from_pretrained(directory, model.dtype, model.device, weights="int8")
    ours = [minigpt_entrant(small, name, "minigpt int8") for name in NUMERICS]
    return [*ours, *ctranslate2_entrants(model, directory, "int8")]


def ctranslate2_entrants(model: GPT, directory: Path, weights: str) -> list[Entrant]:
    """CTranslate2 with such weights, if it is installed and our model is in float32 on the CPU."""
    usual = model.dtype == torch.float32 and model.device.type == "cpu"
    if not usual or why_no_transformers(model.config) or not installed("ctranslate2"):
        return []
    with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as folder:
        convert(directory, Path(folder))
        return [CTranslate2(Path(folder), weights)]


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
