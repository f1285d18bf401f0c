"""What a model in training writes: whole texts from a beginning, or answers to questions."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.generation.continuation import generate
from minigpt.generation.text import only_spelled
from minigpt.model import GPT
from minigpt.training.losses import uncompiled
from minigpt.training.sources import Beginning, Source

TEMPERATURE = 0.8  # of text; a task is answered greedily, as its accuracy is measured
BEFORE = 100  # tokens at most of an untrained model, which has no end


@dataclass(frozen=True)
class Sample:
    """One beginning, and what two models made of it."""

    prompt: str
    before: str
    after: str
    wanted: str  # the answer to a problem; "" for text

    def __str__(self) -> str:
        if self.wanted:
            made = f"{self.before!r} before, {self.after!r} after"
            return f"  {self.prompt}  {made}, wanted {self.wanted!r}"
        return "\n".join(
            f"--- {when}\n{self.prompt}{text}"
            for when, text in (("before", self.before), ("after", self.after))
        )


def before_and_after(
    before: GPT, after: GPT, source: Source, most: int, count: int = 1, seed: int = 1
) -> list[Sample]:
    """What two models make of the same beginnings, up to `most` tokens each."""
    return [
        Sample(
            source.tokenizer.decode(beginning.tokens, skip_special_tokens=True),
            continue_beginning(before, source, beginning, min(most, BEFORE), seed),
            continue_beginning(after, source, beginning, most, seed),
            beginning.wanted,
        )
        for beginning in source.beginnings(count)
    ]


def continue_beginning(
    model: GPT, source: Source, beginning: Beginning, most: int, seed: int
) -> str:
    """The text that follows, to its end or `most` tokens, also beyond the model's context."""
    tokens, tokenizer = beginning.tokens, source.tokenizer
    temperature = TEMPERATURE
    if beginning.wanted:
        temperature, most = 0.0, min(most, model.config.n_positions - len(tokens))
    with uncompiled():
        text = generate(
            model, tokens, max(0, most), temperature, seed=seed, policy="reprefill",
            logit_bias=only_spelled(model, tokenizer),
        )  # fmt: skip
    return tokenizer.decode(text.tokens)
