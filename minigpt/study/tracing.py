"""A recording of decoding, for a page; long because every step is shown with and without a cache.

Both ways of computing a step run and are timed, and their logits compared to the bit. What a query
reads, what the cache holds, what each layer adds and what was likely come along. Any model can be
recorded; `pages.py` makes the page, where a small one can also run by itself.
"""

from __future__ import annotations

import base64
import codecs
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.decoding import Row
from minigpt.generation.sampling import Sampler, TokenLogProb, log_probabilities
from minigpt.model import GPT
from minigpt.numerics.base import attention_weights
from minigpt.numerics.copies import recheck
from minigpt.numerics.recorder import Recorded, recording
from minigpt.study.pages import write_page
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.wording import counted
from minigpt.tokenizer import Tokenizer

LARGEST_PAGE = 20 * 10**6  # bytes; browsers on phones give up not far above
BYTES_PER_WEIGHT = 3  # of JSON: "0," for most attention weights, "1000," for a few
LIKELIEST = 10  # tokens shown at each step
SAID = 3  # tokens that the head would say at each layer


@dataclass(frozen=True)
class Work:
    """What one pass computed.

    Multiplications are those of the mathematics, matrix products and attention; masked keys and
    the padding of exact calls are not counted.
    """

    positions: int  # whose queries, keys and values were computed
    keys: int  # read by each head of each layer, over all queries
    multiplications: int
    seconds: float  # median of the rounds


@dataclass(frozen=True)
class Step:
    """One token: the pass that continues the cache, and the pass over everything."""

    length: int  # tokens that the model has seen after this step
    cached: Work
    uncached: Work
    equal: bool  # are both passes' logits the same bits?
    max_difference: float  # between a logit and the other pass's
    chosen: TokenLogProb  # the next token, and what the model thought likeliest


@dataclass(frozen=True)
class Inside:
    """What each position left behind in each layer. Later tokens change none of it."""

    lens: list[
        list[list[tuple[int, float]]]
    ]  # [layer][position]: the likeliest next tokens, if the
    # head read the residual stream there; layer 0 is the embedding, n what n layers made of it
    norms: Tensor  # (L, S, 3): of what attention adds, of what the MLP adds, of the stream after
    keys: Tensor | None  # (L, G, S, D); None where the page would be too large
    values: Tensor | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: keys and values as base64 of float16, little-endian."""
        return {
            "lens": [
                [[[token, float(f"{p:.4g}")] for token, p in said] for said in layer]
                for layer in self.lens
            ],
            "norms": [
                [[round(norm, 3) for norm in norms] for norms in layer]
                for layer in self.norms.tolist()
            ],
            "keys": _halves(self.keys),
            "values": _halves(self.values),
        }


@dataclass(frozen=True)
class Trace:
    """Everything the page shows; the first step is the prefill."""

    config: GPTConfig
    numerics: str
    dtype: str
    device: str
    threads: int
    temperature: float
    seed: int
    rounds: int  # of timing
    prompt: int  # tokens given, or 1 for the end-of-text token that an empty prompt starts from
    tokens: list[int]  # the prompt, and the token that each step chose
    finish_reason: str  # "length", "end_of_text" or "context"
    cache_kind: str
    capacity: int  # positions that the cache has room for
    cache_bytes: int  # allocated
    bytes_per_token: int
    steps: list[Step]
    attention: Tensor = field(repr=False)  # (L, H, S, S) float32: [.., i, j] of query i for key j
    inside: Inside = field(repr=False)
    labels: dict[int, str] = field(repr=False)  # by id: a token alone, bytes outside UTF-8 as \xff
    pieces: list[str] = field(repr=False)  # for each of `tokens`, the text that it completes

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Attention is in thousandths: [layer][head][query], a list of its keys."""
        content = {name: value for name, value in vars(self).items() if name != "attention"}
        content["config"] = asdict(self.config)
        content["steps"] = [asdict(step) for step in self.steps]
        content["inside"] = self.inside.to_dict()
        content["attention"] = [
            [[row[: query + 1] for query, row in enumerate(head)] for head in layer]
            for layer in (self.attention * 1000).round().int().tolist()
        ]
        return content


@torch.inference_mode()
def trace(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int = 40,
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
    rounds: int = 3,
    progress: Callable[[str], object] = lambda line: None,
) -> Trace:
    """Decode a prompt step by step, with the cache and without, and keep what happened.

    The tokens are those of `generate`, but that an end-of-text token is kept as the last one.

    Args:
        model: runs in evaluation mode; its mode is restored afterwards.
        prompt: text, or its tokens; empty starts from the end-of-text token.
        max_new_tokens: steps, the prefill included; the context's end or an end of text stops it.
        temperature, ..., seed: as for `generate`.
        rounds: how often both passes of a step are timed, in turns.
        progress: called with a line now and then.

    Raises:
        MinigptError: for arguments out of range, or a trace too large for a page, before any work;
            when the model's caches do not keep every token, as soon as one is missing.
    """
    whole("max_new_tokens", max_new_tokens)
    whole("rounds", rounds)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    sampler = Sampler(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens, logits_processor,
    )  # fmt: skip
    row = Row(model, ids, max_new_tokens, sampler, seed, stop_tokens=())
    recheck(model)
    config, given = model.config, len(row.window)
    longest = min(given + max_new_tokens - 1, config.n_positions)
    _refuse_large(config, given, longest)
    cache = model.new_cache(max_length=longest)
    steps: list[Step] = []
    with evaluating(model):
        numerics = model.numerics
        progress("warming up")
        _warm_up(model, row.window, longest)
        while row.goes_on():
            progress(f"step {len(steps) + 1} of {max_new_tokens}")
            steps.append(_step(model, row, cache, rounds))
            if row.window[-1] == config.eos_token_id:
                row.finish("end_of_text")
        with recording(model) as log:
            model.next_logits(torch.tensor(cache.tokens, device=model.device))
        attention = _attention_weights(model, cache, log)
        inside = _inside(model, cache, log)
    shown = {t for step in steps for t, _ in step.chosen.top}.union(row.window)
    shown |= {t for layer in inside.lens for said in layer for t, _ in said}
    return Trace(
        config=config,
        numerics=numerics,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        threads=torch.get_num_threads(),
        temperature=temperature,
        seed=seed,
        rounds=rounds,
        prompt=given,
        tokens=row.window,
        finish_reason=row.result.finish_reason,
        cache_kind=cache.kind,
        capacity=cache.capacity,
        cache_bytes=cache.nbytes,
        bytes_per_token=cache.bytes_per_token(),
        steps=steps,
        attention=attention,
        inside=inside,
        labels={t: _spelled(tokenizer, t).decode(errors="backslashreplace") for t in sorted(shown)},
        pieces=list(_pieces(tokenizer, row.window)),
    )


def write_html(trace: Trace, path: str | Path) -> None:
    """Write a trace as one page that works from anywhere, also without a network.

    Raises:
        MinigptError: when the file cannot be written; an old file there survives.
    """
    write_page(path, trace.to_dict())


# --- pieces ---------------------------------------------------------------------------------------


def _refuse_large(config: GPTConfig, given: int, longest: int) -> None:
    heads = config.n_layer * config.n_head

    def size(length: int) -> int:
        return BYTES_PER_WEIGHT * heads * length * (length + 1) // 2

    if size(longest) <= LARGEST_PAGE:
        return
    most = max(length for length in range(longest) if size(length) <= LARGEST_PAGE)
    advice = f"lower max_new_tokens to {most - given + 1}"
    if given > most:
        advice = f"shorten the prompt of {given} tokens"
    raise MinigptError(
        f"the attention of {heads} heads over {longest} tokens makes a page of "
        f"{size(longest) / 10**6:.0f} MB, needed at most {LARGEST_PAGE // 10**6} MB, which is "
        f"{most} tokens: {advice}"
    )


def _warm_up(model: GPT, window: list[int], longest: int) -> None:
    """What is done once, packing weights and certifying kernels, no step shall pay for."""
    text = torch.tensor([(window * longest)[:longest]], device=model.device)
    cache = model.new_cache(max_length=longest)
    if longest > 1:
        model.next_logits(text[:, :-1], cache)
    model.next_logits(text[:, -1:], cache)
    model.next_logits(text)


def _step(model: GPT, row: Row, cache: KVCache, rounds: int) -> Step:
    seen, length = len(cache), len(row.window)
    everything = torch.tensor([row.window], device=model.device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):  # in turns, for machines drift
        cache.truncate(seen)
        began = time.perf_counter()
        cached = model.next_logits(everything[:, seen:], cache)[0].cpu()  # waits for the device
        middle = time.perf_counter()
        uncached = model.next_logits(everything)[0].cpu()  # (V,)
        times[0].append(middle - began)
        times[1].append(time.perf_counter() - middle)
        held = cache.layer(0)[0].shape[-2]
        if held != length:  # a window: what it dropped, no later round or drawing can bring back
            raise MinigptError(
                f"a trace needs a cache that keeps every token, and after "
                f"{counted(length, 'token')} this one holds {held:,}: trace fewer tokens, or a "
                f"model whose new_cache makes another kind"
            )
    token = row.take(cached)
    assert token is not None  # nothing stops the row but its length

    def work(first: int, seconds: list[float]) -> Work:
        keys = sum(range(first + 1, length + 1))  # query t reads the keys up to itself
        count = length - first
        return Work(count, keys, model.config.multiplications(count, keys), median(seconds))

    return Step(
        length=length,
        cached=work(seen, times[0]),
        uncached=work(0, times[1]),
        equal=torch.equal(cached, uncached),
        max_difference=float((cached.float() - uncached.float()).abs().max()),
        chosen=log_probabilities(cached, token, min(LIKELIEST, len(cached))),
    )


def _attention_weights(model: GPT, cache: KVCache, log: dict[str, Recorded]) -> Tensor:
    """The weights of all queries of a cache's text, in every layer and head: (L, H, S, S) float32.

    Computed again, from the queries of an uncached pass and the keys in the cache: they are what
    attention multiplies the values with, up to rounding.

    Args:
        cache: one row, of a kind that keeps all keys and knows its tokens.
        log: of a pass over these tokens.
    """
    weights = []
    for layer in range(model.config.n_layer):
        q, _, _, starts, scale, _ = log[f"h.{layer}.attn"].arguments  # (1, H, S, D)
        k, _ = cache.layer(layer)  # (1, G, S, D)
        weights.append(attention_weights(q.float(), k.float(), starts, scale)[0].cpu())
    return torch.stack(weights)


def _inside(model: GPT, cache: KVCache, log: dict[str, Recorded]) -> Inside:
    config, layers = model.config, range(model.config.n_layer)
    streams = [log[f"h.{layer}.ln_1"].arguments[0] for layer in layers]  # (1, S, C) each
    streams.append(log["ln_f"].arguments[0])
    lens = []
    for stream in streams:
        said = model.lm_head(model.ln_f(stream))[0].float().softmax(-1)  # (S, V)
        top = said.topk(min(SAID, config.vocab_size))
        tokens, shares = top.indices.tolist(), top.values.tolist()
        lens.append([list(zip(*each, strict=True)) for each in zip(tokens, shares, strict=True)])
    norms = [
        torch.stack([numbers[0].float().norm(dim=-1) for numbers in (attention, mlp, after)], -1)
        for attention, mlp, after in (
            (log[f"h.{layer}.attn.c_proj"].output, log[f"h.{layer}.mlp.c_proj"].output,
             streams[layer + 1])
            for layer in layers
        )
    ]  # fmt: skip
    keys, values = (
        torch.cat([cache.layer(layer)[part] for layer in layers]).cpu() for part in (0, 1)
    )
    fits = 8 / 3 * (keys.numel() + values.numel()) <= LARGEST_PAGE / 2  # bytes of base64
    return Inside(lens, torch.stack(norms).cpu(), keys if fits else None, values if fits else None)


def _halves(numbers: Tensor | None) -> str | None:
    if numbers is None:
        return None
    words = numbers.to(torch.float16).contiguous().view(torch.int16).numpy()
    return base64.b64encode(words.astype("<i2").tobytes()).decode("ascii")


def _spelled(tokenizer: Tokenizer, token: int) -> bytes:
    """A token's bytes; its number where the model has more tokens than the tokenizer."""
    try:
        return tokenizer.decode_bytes([token])
    except MinigptError:
        return b"[%d]" % token


def _pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[str]:
    """Text, token by token; "" where a token ends within a character."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield utf8.decode(_spelled(tokenizer, token))
