"""Text in, text out: a prompt is encoded, tokens are decoded as they come, stop strings end it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.generation.continuation import TokenStream, stream
from minigpt.generation.decoding import Drafter, Generation
from minigpt.generation.sampling import ban
from minigpt.generation.stops import StopStrings
from minigpt.model import GPT, require_model
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
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
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    cache: KVCache | None = None,
    draft: str | GPT | Drafter | None = None,
    top_log_probabilities: int | None = None,
) -> TextStream:
    """Continue a prompt as text.

    Ids of the model's vocabulary that the tokenizer has no text for are never drawn.

    Args:
        prompt: text, or its tokens.
        stop: strings before which the text ends, even where they span tokens.

    The other arguments are those of `generate`.

    Raises:
        MinigptError: for arguments out of range, in the call itself.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise MinigptError(f"the tokenizer is {tokenizer!r}, needed a minigpt.Tokenizer")
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    logit_bias = only_spelled(model, tokenizer, logit_bias)
    stops = StopStrings([stop] if isinstance(stop, str) else stop)
    tokens = stream(
        model, ids, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
        presence_penalty, frequency_penalty, logit_bias, no_repeat_ngram_size, min_new_tokens,
        logits_processor, seed, use_cache, stop_tokens, policy, cache, draft, top_log_probabilities,
    )  # fmt: skip
    return TextStream(tokens, StreamDecoder(tokenizer), stops)


def only_spelled(
    model: GPT, tokenizer: Tokenizer, logit_bias: Mapping[int, float] | None = None
) -> Mapping[int, float] | None:
    """The bias under which, too, no id is drawn that the tokenizer has no text for."""
    require_model(model)
    padding = ban(tokenizer.without_text(model.config.vocab_size))
    if not padding or not isinstance(logit_bias, (Mapping, type(None))):
        return logit_bias
    return {**(logit_bias or {}), **padding}


class TextStream(Iterator[str]):
    """New text, piece by piece, never half a character and nothing of a stop string.

    Attributes:
        result: tokens and timings so far. The tokens may reach past the text: into a stop string.
    """

    def __init__(self, tokens: TokenStream, decoder: StreamDecoder, stops: StopStrings) -> None:
        self._decoder, self._stops = decoder, stops
        self.result: Generation = tokens.result
        # Not a method: a generator that held this would keep it, and its cache, in a cycle.
        self._pieces = _pieces(tokens, stops, decoder)

    def __next__(self) -> str:
        return next(self._pieces)

    def rest(self) -> str:
        """What was held back, after the text was cut short by the caller."""
        text, stopped = self._stops.push(self._decoder.flush())
        return text + ("" if stopped else self._stops.flush())


def _pieces(tokens: TokenStream, stops: StopStrings, decoder: StreamDecoder) -> Iterator[str]:
    """The text of these tokens, as soon as it is settled."""
    for token in tokens:
        text, stopped = stops.push(decoder.push(token))
        if text:
            yield text
        if stopped:
            tokens.result.finish_reason = "stop_string"
            return
    text, stopped = stops.push(decoder.flush())
    if stopped:
        tokens.result.finish_reason = "stop_string"
    if rest := text + stops.flush():
        yield rest


class StreamDecoder:
    """Text from tokens that come one by one, never half a character.

    A token may end in the middle of a UTF-8 character; its bytes wait here for the next one. Bytes
    that no later one can complete become U+FFFD, so that all pieces together are what
    `Tokenizer.decode` gives. A *character* is a code point: a family of emoji comes one by one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly "". Raises as `Tokenizer.decode_bytes`."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What is left at the end: "" or U+FFFD. The decoder is then ready for another text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
