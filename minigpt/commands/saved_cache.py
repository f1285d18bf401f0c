"""`--save-cache` and `--load-cache`: a long prompt is prefilled once and continued another day."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from minigpt.cache.kvcache import KVCache
from minigpt.checkpoint.caches import describe_cache, load_cache, save_cache
from minigpt.commands.options import say
from minigpt.generation.decoding import common_prefix
from minigpt.model import GPT
from minigpt.support.checks import is_number
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted
from minigpt.tokenizer import Tokenizer


def resume(
    path: str, model: GPT, tokenizer: Tokenizer, prompt: str | None, special: bool = False
) -> tuple[KVCache, str, list[int], float]:
    """A saved cache, the whole prompt as text and tokens, and the seconds that the cache took to
    compute. Generation cuts the cache to what it shares with the prompt."""
    began = time.perf_counter()
    cache = load_cache(path, model, model.config.n_positions)
    took = time.perf_counter() - began
    if cache.batch_size != 1 or cache.tokens is None:
        raise MinigptError(f"{path} holds {cache!r}, needed a single row whose tokens are known")
    held = cache.tokens[0]
    text = tokenizer.decode(held)
    ids = held if prompt is None else tokenizer.encode(prompt, special)
    prompt = text if prompt is None else prompt
    shared = common_prefix(held, ids)
    if shared < min(len(held), len(ids)) and not prompt.startswith(text):
        raise MinigptError(
            f"the prompt and the text in {path} part after {counted(shared, 'token')}, where the "
            f"file goes on with {tokenizer.decode(held[shared:][:8])!r}: begin the prompt with the "
            f"file's text, or leave it out to go on from there"
        )
    noted = describe_cache(path)["notes"].get("prefill_seconds")
    seconds = float(noted) if is_number(noted) else 0.0  # the file may be another program's
    before = f"; prefilling took {seconds:.2f} s, so {seconds - took:.2f} s are saved"
    say(f"({counted(len(held), 'token')} loaded in {took:.2f} s{before if seconds else ''})")
    return cache, prompt, ids, seconds


def keep(cache: KVCache, path: str, model: GPT, text: list[int], seconds: float) -> None:
    """Save the cache, with those tokens of the text that the model has not seen yet."""
    rest = text[len(cache) : cache.capacity]
    began = time.perf_counter()
    if rest and cache.tokens == [text[: len(cache)]]:  # or it holds only the end of a long text
        model.next_logits(torch.tensor([rest], device=model.device), cache)
    seconds += time.perf_counter() - began
    save_cache(cache, path, {"prefill_seconds": seconds})
    size = counted(Path(path).stat().st_size, "byte")
    say(f"({counted(len(cache), 'token')} saved in {path}, {size})")
