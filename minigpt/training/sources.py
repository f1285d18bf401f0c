"""What a run learns from, and the model that it starts with, as its configuration says.

A source hands out windows: which ones are in a step is a function of the seed and the step's
number, never of what was asked for before. Files become tokens in `data.py`, problems are drawn in
`tasks.py`; the loop that asks is in `train.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer
from minigpt.training import data
from minigpt.training.documents import named_sources
from minigpt.training.recipes import TrainConfig
from minigpt.training.tasks import TASKS, Problem, Task
from minigpt.training.tokenizing import shared_tokenizer

APART = 0x6D69_7869  # so that choosing a text and choosing a window in it are different draws
ROWS = 64  # windows in one pass of an evaluation
PROBLEMS = 1_000  # unseen ones to evaluate on, where all of them would be too many ...
SHOWN = 1  # ... drawn from this seed; accuracy at the end is measured on those of another
WORDS, LONGEST_BEGINNING = 4, 40  # of a text that a sample goes on from; tokens, at most
Batch = tuple[Tensor, Tensor]  # inputs and targets, (R, T) int64; a target of -100 does not count


class Beginning(NamedTuple):
    """Where a sample starts."""

    tokens: list[int]
    wanted: str  # what should follow, of a problem; "": anything


class Source(Protocol):
    """Where windows come from."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def width(self) -> int:
        """T, tokens in a window."""
        ...

    def batch(self, step: int, rows: Sequence[int]) -> Batch:
        """Some rows of one step's windows: the same whenever, and whoever, asks."""
        ...

    def held_out(self, most: int | None = None) -> Iterator[Batch]:
        """Windows that are never trained on, at most so many, always the same."""
        ...

    @property
    def bytes_per_token(self) -> float | None:
        """Of the held-out text, in UTF-8; None: it is no text."""
        ...

    def prompt(self) -> list[int]:
        """What a sample begins with."""
        ...

    def beginnings(self, count: int) -> list[Beginning]:
        """Up to so many beginnings of held-out texts, or problems that are never trained on."""
        ...

    def fingerprint(self) -> str:
        """Differs when the data do."""
        ...


@dataclass(frozen=True)
class Text:
    """Windows of a text: random ones to train on, and one after another of what is held out."""

    corpus: data.Corpus
    width: int
    seed: int
    documents: bool = False  # keep a window to one document
    openings: bool = False  # begin a window where a document begins

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    def batch(self, step: int, rows: Sequence[int]) -> Batch:
        end = self.tokenizer.eot_token if self.documents else None
        starts = self._openings if self.openings else None
        return data.windows(self.corpus.training, self.width, self.seed, step, rows, end, starts)

    @cached_property
    def _openings(self) -> npt.NDArray[np.int64]:
        """Where the training documents begin: half of the places to start from are the end-of-text
        token before one, half its own first token, for a prompt is read without that token."""
        tokens = self.corpus.training
        ends = np.flatnonzero(tokens[: len(tokens) - self.width - 1] == self.tokenizer.eot_token)
        return np.concatenate((ends, ends + 1))

    def held_out(self, most: int | None = None) -> Iterator[Batch]:
        tokens, width = self.corpus.held_out, self.width
        starts = np.arange(0, len(tokens) - width, width)
        if self.openings:  # where a document begins, as in training, and after the last window
            ends = np.flatnonzero(tokens[: len(tokens) - width] == self.tokenizer.eot_token)
            starts = ends[np.unique(np.searchsorted(ends, starts).clip(max=len(ends) - 1))]
        # Fewer than all are spread over the text, which may change its subject on the way.
        count = len(starts)
        chosen = np.linspace(0, count, min(count, most or count), endpoint=False).astype(np.int64)
        for first in range(0, len(chosen), ROWS):
            positions = starts[chosen[first : first + ROWS], None] + np.arange(width + 1)
            read = torch.from_numpy(tokens[positions].astype(np.int64))  # (R, T + 1)
            yield read[:, :-1], read[:, 1:]

    @property
    def bytes_per_token(self) -> float:
        return self.corpus.bytes_per_token

    def prompt(self) -> list[int]:
        end = self.tokenizer.eot_token
        return [int(self.corpus.held_out[0]) if end is None else end]

    def beginnings(self, count: int) -> list[Beginning]:
        tokens, end = self.corpus.held_out, self.tokenizer.eot_token
        most = min(LONGEST_BEGINNING, max(1, self.width // 2))
        starts = [0, *(np.flatnonzero(tokens[: 2**20] == end) + 1).tolist()]
        found: list[Beginning] = []
        for start in starts:
            if len(found) == count:
                break
            taken: list[int] = []
            for token in tokens[start : start + most].tolist():
                words = self.tokenizer.decode([*taken, token]).split()
                if token == end or len(words) > WORDS:
                    break
                taken.append(token)
            if taken:
                found.append(Beginning(taken, ""))
        return found

    def fingerprint(self) -> str:
        training = self.corpus.training
        ends = np.concatenate((training[: 2**20], training[-(2**20) :]))
        return f"{len(training)}-{zlib.crc32(ends.tobytes())}-{self.tokenizer.fingerprint[:16]}"


@dataclass(frozen=True)
class Mixture:
    """Windows of several texts, drawn by weight; of what they hold out, all in a row."""

    parts: tuple[Text, ...]  # of one tokenizer and width
    weights: tuple[float, ...]  # as many
    seed: int

    @classmethod
    def of(cls, parts: Sequence[Text], weights: Sequence[float | None], seed: int) -> Mixture:
        """Without any weight each text is drawn as often as it is long; with some, the others
        have 1."""
        if all(weight is None for weight in weights):
            return cls(tuple(parts), tuple(float(len(p.corpus.training)) for p in parts), seed)
        return cls(tuple(parts), tuple(1.0 if w is None else w for w in weights), seed)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.parts[0].tokenizer

    @property
    def width(self) -> int:
        return self.parts[0].width

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """The part of all windows that each text has."""
        return np.array(self.weights) / sum(self.weights)

    def batch(self, step: int, rows: Sequence[int]) -> Batch:
        drawn = data.draws(self.seed ^ APART, step, rows) / 2.0**64  # in [0, 1)
        chosen = np.searchsorted(self.shares.cumsum()[:-1], drawn, side="right")
        inputs = torch.empty(len(rows), self.width, dtype=torch.int64)
        targets = torch.empty_like(inputs)
        for number, part in enumerate(self.parts):
            where = np.flatnonzero(chosen == number).tolist()
            if where:
                inputs[where], targets[where] = part.batch(step, [rows[n] for n in where])
        return inputs, targets

    def held_out(self, most: int | None = None) -> Iterator[Batch]:
        """Of each text as many windows as its share of `most`, at least one; or all."""
        counts = [most and max(1, round(most * share)) for share in self.shares]
        return chain.from_iterable(
            part.held_out(count) for part, count in zip(self.parts, counts, strict=True)
        )

    @property
    def bytes_per_token(self) -> float:
        held_out = [part.corpus for part in self.parts]
        return sum(c.held_out_bytes for c in held_out) / sum(len(c.held_out) for c in held_out)

    def prompt(self) -> list[int]:
        return self.parts[0].prompt()

    def beginnings(self, count: int) -> list[Beginning]:
        return [found for part in self.parts for found in part.beginnings(1)][:count]

    def fingerprint(self) -> str:
        shares = ",".join(f"{share:.6g}" for share in self.shares)
        return "+".join(part.fingerprint() for part in self.parts) + f" {shares}"


@dataclass(frozen=True)
class Problems:
    """Windows of one problem each; only the answers count."""

    task: Task
    seed: int

    @property
    def tokenizer(self) -> Tokenizer:
        return self.task.tokenizer

    @property
    def width(self) -> int:
        return self.task.context

    def batch(self, step: int, rows: Sequence[int]) -> Batch:
        return self.task.batch(self.seed, step, rows)

    def held_out(self, most: int | None = None) -> Iterator[Batch]:
        for part in _cut(self.task.unseen(most or PROBLEMS, SHOWN), ROWS):
            yield self.task.windows(part)

    @property
    def bytes_per_token(self) -> None:
        return None

    def prompt(self) -> list[int]:
        [(question, _)] = self.task.unseen(1, SHOWN)
        return self.tokenizer.encode(question)

    def beginnings(self, count: int) -> list[Beginning]:
        problems = self.task.unseen(count, SHOWN)
        return [Beginning(self.tokenizer.encode(q), wanted) for q, wanted in problems]

    def fingerprint(self) -> str:
        return f"{self.task.name}-{self.tokenizer.fingerprint[:16]}"


def _cut(problems: list[Problem], size: int) -> Iterator[list[Problem]]:
    for first in range(0, len(problems), size):
        yield problems[first : first + size]


def open_source(config: TrainConfig, cache: str | Path) -> Source:
    """The data or the task of a run; text is tokenized in `cache`, unless it is there already.

    Raises:
        MinigptError: when there is no such data or task, or not enough of it.
    """
    if config.task:
        return Problems(TASKS[config.task], config.seed)
    named = named_sources(config.data)
    tokenizer: Tokenizer | str = config.tokenizer
    if config.start:
        tokenizer = Tokenizer.from_pretrained(config.start)
    elif len(named) > 1:
        tokenizer = shared_tokenizer([place for place, _ in named], config.tokenizer, cache)
    texts = []
    for place, _ in named:
        corpus = data.prepare(place, tokenizer, cache, config.held_out)
        corpus.check(config.n_positions, corpus.tokenizer.n_vocab)
        if config.openings and corpus.tokenizer.eot_token is None:
            raise MinigptError(
                f"openings needs an end-of-text token between documents, which the tokenizer "
                f"{config.tokenizer!r} does not have: choose bpe:N, byte or gpt2"
            )
        texts.append(
            Text(corpus, config.n_positions, config.seed, config.documents, config.openings)
        )
    if len(texts) == 1:
        return texts[0]
    return Mixture.of(texts, [weight for _, weight in named], config.seed)


def starting_model(config: TrainConfig, source: Source) -> GPT:
    """New weights, drawn from the seed; or those of the checkpoint to start from, in float32.

    Raises:
        MinigptError: when that checkpoint does not suit the source.
    """
    torch.manual_seed(config.seed)
    tokenizer = source.tokenizer
    if config.start:
        model = GPT.from_pretrained(config.start, torch.float32)
        shape, p = model.config, config.dropout
        shape = replace(shape, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)
    else:
        shape = config.shape(tokenizer.n_vocab, tokenizer.eot_token)
    for what, found, needed in (
        ("a vocabulary", shape.vocab_size, tokenizer.n_vocab),
        ("a context", shape.n_positions, source.width),
    ):
        if found < needed:
            raise MinigptError(
                f"the model has {what} of {found} and the data need one of {needed}: change "
                f"n_positions or the tokenizer, or start from another checkpoint"
            )
    fresh = GPT(shape)
    if config.start:
        fresh.load_state_dict(model.state_dict())  # copied: the files stay as they are
    return fresh
