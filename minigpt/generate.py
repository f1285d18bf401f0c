"""Text, token by token: prefill the prompt, then decode, with or without the cache.

`generate` returns everything with its timings, `stream` yields ids as they come. How a token is
chosen is in `sampling.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from minigpt.cache import KEY_BLOCK, KVCache
from minigpt.errors import MinigptError
from minigpt.model import GPT
from minigpt.sampling import Sampler

POLICIES = ("stop", "reprefill")


@dataclass
class Generation:
    """What came out, and what it took."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # the new ids, without the end-of-text token
    finish_reason: str = "length"  # "length", "end_of_text" or "context" (the context is full)
    prefill_seconds: float = 0.0  # until the first token
    decode_seconds: float = 0.0  # for all tokens after the first
    cache_bytes: int = 0  # allocated; 0 without a cache

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, prefill aside; 0 when fewer than two tokens came."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else 0.0


def generate(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    on_token: Callable[[int], object] | None = None,
    cache: KVCache | None = None,
) -> Generation:
    """Continue a prompt.

    With exact numerics the tokens are the same with and without the cache, whatever the seed,
    because the logits are.

    Args:
        model: decodes in evaluation mode; its mode is restored afterwards.
        ids: the prompt's tokens; empty starts from the end-of-text token.
        max_new_tokens: at most so many.
        temperature, top_k, top_p: see `Sampler`; temperature 0 is greedy.
        seed: of the draws; the same seed gives the same text.
        use_cache: False recomputes everything for every token.
        stop_tokens: end before any of these; None: the model's end-of-text token, if it has one.
        policy: at the end of the context, "stop" or "reprefill": forget the older half of the text
            in sight, prefill the rest and go on. (GPT-2 learned a vector for each position, so a
            shifted text cannot reuse its keys and values.)
        on_token: called with each token as it comes.
        cache: one that holds the first tokens of the prompt, or none yet: only the rest is
            computed, and afterwards it holds the prompt and the new tokens, but for the last.

    Raises:
        MinigptError: for arguments out of range, before any work is done.
    """
    result = Generation(_listed("the prompt", ids))
    steps = _steps(
        model, result, max_new_tokens, Sampler(temperature, top_k, top_p), seed, use_cache,
        stop_tokens, policy, cache,
    )  # fmt: skip
    for token in steps:
        if on_token is not None:
            on_token(token)
    return result


def stream(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
) -> Iterator[int]:
    """Like `generate`, yielding each new token as it comes.

    Between two tokens the model is in its own mode, and gradients are recorded as before: the
    caller may do anything there, and may stop whenever it likes.

    Raises:
        MinigptError: for arguments out of range, in the call itself.
    """
    return _steps(
        model, Generation(_listed("the prompt", ids)), max_new_tokens,
        Sampler(temperature, top_k, top_p), seed, use_cache, stop_tokens, policy,
    )  # fmt: skip


def _steps(
    model: GPT,
    result: Generation,
    max_new_tokens: int,
    sampler: Sampler,
    seed: int,
    use_cache: bool,
    stop_tokens: Sequence[int] | None,
    policy: str,
    cache: KVCache | None = None,
) -> Iterator[int]:
    """Check everything now; decode when iterated."""
    config = model.config
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise MinigptError(f"max_new_tokens is {max_new_tokens!r}, needed a whole number from 0 on")
    if policy not in POLICIES:
        raise MinigptError(f"policy is {policy!r}, needed one of {', '.join(POLICIES)}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise MinigptError(f"seed is {seed!r}, needed a whole number from 0 to 2**63 - 1")
    sampler.check(config.vocab_size)
    eot = config.eos_token_id
    if stop_tokens is None:
        stop_tokens = () if eot is None else (eot,)
    stop_tokens = _listed("stop_tokens", stop_tokens)
    window = list(result.prompt)
    if not window:
        if eot is None:
            raise MinigptError(
                "the prompt is empty and this model has no end-of-text token to start from: "
                "give at least one token"
            )
        window = [eot]
    for name, tokens in (("the prompt", window), ("stop_tokens", stop_tokens)):
        bad = next((t for t in tokens if not _is_token(t, config.vocab_size)), None)
        if bad is not None:
            raise MinigptError(
                f"{name} holds {bad!r}, needed whole numbers from 0 to {config.vocab_size - 1}"
            )
    if len(window) > config.n_positions:
        raise MinigptError(
            f"the prompt has {len(window)} tokens, but this model's context is "
            f"{config.n_positions}: shorten it"
        )
    return _decode(model, result, window, max_new_tokens, sampler, seed, use_cache,
                   frozenset(stop_tokens), policy, cache)  # fmt: skip


def _decode(
    model: GPT,
    result: Generation,
    window: list[int],
    max_new_tokens: int,
    sampler: Sampler,
    seed: int,
    use_cache: bool,
    stop_tokens: frozenset[int],
    policy: str,
    cache: KVCache | None,
) -> Iterator[int]:
    limit = model.config.n_positions
    generator = torch.Generator().manual_seed(seed)
    pending = window  # what the model has not seen yet; without a cache, everything
    if cache is not None:
        cache.truncate(min(len(cache), len(window) - 1))
        pending = window[len(cache) :]
    elif use_cache:  # whole key blocks, so that exact attention reads them as they lie
        blocks = -(-(len(window) + max_new_tokens) // KEY_BLOCK)
        cache = model.new_cache(max_length=min(limit, blocks * KEY_BLOCK))
    if cache is not None:
        result.cache_bytes = cache.nbytes
    began = time.perf_counter()
    for count in range(max_new_tokens):
        if len(window) > limit:
            if policy == "stop":
                result.finish_reason = "context"
                return
            window = window[-max(1, limit // 2) :]
            pending = window
            if cache is not None:
                cache.reset()
        with evaluating(model), torch.inference_mode():  # and in neither while the caller has it
            tokens = torch.tensor([pending], device=model.device)
            token = sampler.choose(model.next_logits(tokens, cache=cache)[0], generator)
        if token in stop_tokens:
            result.finish_reason = "end_of_text"
            return
        result.tokens.append(token)
        now = time.perf_counter()
        if count == 0:
            result.prefill_seconds = now - began
            began = now
        result.decode_seconds = now - began
        yield token
        window.append(token)
        pending = window if cache is None else window[-1:]


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every layer is in the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    if any(before.values()):
        model.eval()
    try:
        yield
    finally:
        if before[model]:
            model.train()
        for module, training in before.items():
            module.training = training


def _listed(name: str, tokens: Sequence[int]) -> list[int]:
    try:
        return list(tokens)
    except TypeError:
        raise MinigptError(f"{name} is {tokens!r}, needed a list of token ids") from None


def _is_token(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
