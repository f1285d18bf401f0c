"""Text in, text out: a prompt is encoded, tokens are decoded as they come, stop strings end it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minigpt.generation.decoding import Generation, TokenStream, stream
from minigpt.generation.stops import StopStrings
from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import StreamDecoder, Tokenizer


class TextStream(Iterator[str]):
    """New text, piece by piece, never half a character and nothing of a stop string.

    Attributes:
        result: tokens and timings so far. The tokens may reach past the text: into a stop string.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, prompt: str | Sequence[int], stop: Sequence[str],
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        if not isinstance(tokenizer, Tokenizer):
            raise MinigptError(f"the tokenizer is {tokenizer!r}, needed a minigpt.Tokenizer")
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        self._stops = StopStrings([stop] if isinstance(stop, str) else stop)
        self._decoder = StreamDecoder(tokenizer)
        self._tokens = stream(model, ids, **settings)
        self.result: Generation = self._tokens.result
        # Not a method: a generator that held this would keep it, and its cache, in a cycle.
        self._pieces = _pieces(self._tokens, self._stops, self._decoder)

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


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    stop: Sequence[str] = (),
    **settings: Any,
) -> TextStream:
    """Continue a prompt as text.

    Args:
        prompt: text, or its tokens.
        stop: strings before which the text ends, even where they span tokens.
        settings: everything that `stream` takes.

    Raises:
        MinigptError: for arguments out of range, in the call itself.
    """
    return TextStream(model, tokenizer, prompt, stop, settings)
