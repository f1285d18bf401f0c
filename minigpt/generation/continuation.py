"""Continue one prompt: all of it with its timings (`generate`), or token by token (`stream`).

Both run the loop in `decoding.py`. Many prompts at once are in `batch.py`, text instead of ids in
`text.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.generation.decoding import (
    Drafter,
    Generation,
    Row,
    check_cache,
    decode,
    keep_common_prefix,
)
from minigpt.generation.device_steps import AHEAD
from minigpt.generation.drafts import drafter_for
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.base import whole_blocks
from minigpt.numerics.copies import recheck
from minigpt.support.errors import MinigptError


def generate(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: int = 0,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    on_token: Callable[[int], object] | None = None,
    cache: KVCache | None = None,
    draft: str | GPT | Drafter | None = None,
    top_log_probabilities: int | None = None,
) -> Generation:
    """Continue a prompt.

    With exact numerics the tokens are the same with and without the cache, with and without
    drafts, whatever the seed, because the logits are.

    Args:
        model: decodes in evaluation mode; its mode is restored afterwards.
        ids: the prompt's tokens; empty starts from the end-of-text token.
        max_new_tokens: at most so many.
        temperature, ..., logits_processor: how tokens are chosen, see `Sampler`; temperature 0 is
            greedy.
        seed: of the draws; the same seed gives the same text.
        use_cache: False recomputes everything for every token.
        stop_tokens: end before any of these; None: the model's end-of-text token, if it has one.
        policy: at the end of the context, "stop" or "reprefill": forget the older half of the text
            in sight, prefill the rest and go on. (GPT-2 learned a vector for each position, so a
            shifted text cannot reuse its keys and values.)
        on_token: called with each token as it comes.
        cache: one that may hold the beginning of the prompt already, which is then not computed
            again; afterwards it holds prompt and text, but for the last token. None: a new one.
        draft: guess several tokens and check them in one pass: "lookup", a smaller model, or a
            `Drafter`; see `drafts.py`. The text is the same.
        top_log_probabilities: keep the log-probability of each token, and of so many likeliest
            ones beside it.

    Raises:
        MinigptError: for arguments out of range, before any work is done.
    """
    tokens = stream(
        model, ids, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
        presence_penalty, frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens,
        logits_processor, seed, use_cache, stop_tokens, policy, cache, draft, top_log_probabilities,
    )  # fmt: skip
    if on_token is None:  # nobody waits for each token
        tokens.row.ahead = AHEAD
    for token in tokens:
        if on_token is not None:
            on_token(token)
    return tokens.result


class TokenStream(Iterator[int]):
    """The new tokens as they come; `result` is what came so far, with its timings."""

    def __init__(self, row: Row, steps: Iterator[int]) -> None:
        self.row, self._steps, self.result = row, steps, row.result

    def __next__(self) -> int:
        return next(self._steps)


def stream(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: int = 0,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    cache: KVCache | None = None,
    draft: str | GPT | Drafter | None = None,
    top_log_probabilities: int | None = None,
) -> TokenStream:
    """Like `generate`, yielding each new token as it comes.

    Between two tokens the model is in its own mode, and gradients are recorded as before: the
    caller may do anything there, and may stop whenever it likes.

    Raises:
        MinigptError: for arguments out of range, in the call itself.
    """
    sampler = Sampler(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens, logits_processor,
    )  # fmt: skip
    row = Row(model, ids, max_new_tokens, sampler, seed, stop_tokens, policy, top_log_probabilities)
    recheck(model)
    drafter = None if draft is None else drafter_for(draft, model)
    if cache is not None:
        if not use_cache:
            raise MinigptError("a cache was given and use_cache is False: choose one of them")
        check_cache(cache, model)
        row.result.reused = keep_common_prefix(cache, row.window)
        row.limit = min(row.limit, cache.capacity)
    elif use_cache:  # whole key blocks, so that exact attention reads them as they lie
        room = whole_blocks(len(row.window) + row.left)
        cache = model.new_cache(max_length=min(row.limit, room))
    return TokenStream(row, decode(row, cache, drafter))


@torch.inference_mode()
def choose_likeliest(
    next_logits: Callable[[Tensor, Any], Tensor], tokens: Tensor, count: int, cache: Any
) -> Tensor:
    """Continue several texts of one length by their likeliest tokens: (B, T) -> (B, count).

    Args:
        next_logits: of a model, ours or another: (B, T) tokens and a cache to the (B, V) that
            follow.
        cache: what it keeps between two calls; None: it is given the whole texts every time.
    """
    text = tokens
    for _ in range(count):
        new = next_logits(tokens, cache).argmax(-1, keepdim=True)  # (B, 1)
        text = torch.cat((text, new), 1)
        tokens = text if cache is None else new
    return text[:, -count:]
