"""Text to train on: from documents to memory-mapped tokens, and from tokens to batches.

A source is tokenized once (in `tokenizing.py`) into a directory that appears whole or not at all;
every later run maps it. Which windows make a batch depends on seed, step and row number only, so a
resumed run, or several processes that share the rows, see what one uninterrupted run would.

Letters as in `model.py`, and: `N` tokens of a text, `R` rows of a batch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minigpt.support.errors import MinigptError
from minigpt.support.files import flush, read_json
from minigpt.tokenizer import Tokenizer
from minigpt.training import tokenizing
from minigpt.training.documents import hash_source

IGNORED = -100  # a target that does not count, as F.cross_entropy has it
LARGEST_ABOUT = 2**10  # bytes of corpus.json
FORMAT = 3  # of the cached files; a new number makes old ones be tokenized again

Tokens = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Corpus:
    """A tokenized text: one part to train on, one held out, both memory-mapped.

    Each part is documents in a row, with the end-of-text token before the first and after each.
    """

    tokenizer: Tokenizer
    training: Tokens  # (N,) uint16, or uint32 where the vocabulary needs it
    held_out: Tokens  # (N',)
    held_out_bytes: int  # of the held-out text in UTF-8
    documents: int = 1  # that were found in the source

    @property
    def bytes_per_token(self) -> float:
        """Of the held-out part; nats per token / ln 2 / this = bits per byte."""
        return self.held_out_bytes / len(self.held_out)

    def check(self, width: int, vocab_size: int) -> None:
        """Refuse a model that these tokens do not suit.

        Args:
            width: tokens that a row of a batch takes; at most the model's context.
            vocab_size: of the model.

        Raises:
            MinigptError: when either part is no longer than `width`, or tokens exceed the
                vocabulary.
        """
        for name, part in (("training", self.training), ("held-out", self.held_out)):
            if len(part) <= width:
                raise MinigptError(
                    f"the {name} text has {len(part)} tokens, needed more than one context of "
                    f"{width}: give more text, or a model with a shorter context"
                )
        if self.tokenizer.n_vocab > vocab_size:
            raise MinigptError(
                f"the text has tokens up to {self.tokenizer.n_vocab - 1} and the model's "
                f"vocabulary ends at {vocab_size - 1}: make a model with "
                f"vocab_size={self.tokenizer.n_vocab}"
            )


def prepare(
    source: str | Path,
    tokenizer: Tokenizer | str,
    directory: str | Path,
    held_out: float = 0.1,
) -> Corpus:
    """Tokenize a source, or map what an earlier run has made of it.

    The name of the cached copy carries a hash of the source's bytes. (Sizes and times would be
    quicker to compare, but a copied file has new times, and an edited one may keep its own; a hash
    reads a gigabyte in a few seconds, which tokenizing it takes minutes for.) Several runs may
    start at once: each works in a directory of its own, and the first to finish renames it; but
    where there is much to do, only one works, and when it is killed the next goes on from there.

    Args:
        source: a text file; a `.jsonl` file, whose lines are objects with a "text"; either of them
            compressed, with `.gz` at the end of its name; a folder of them, read in the order of
            their paths without the hidden ones; or "stories:COUNT", made up. A document
            is a line of JSON, a file, or what `<|endoftext|>` ends in one.
        tokenizer: "char", "byte", "bpe:SIZE" (byte pairs learned from this text), "gpt2", or one
            that is there already.
        directory: where cached copies live.
        held_out: share of the text that is not trained on: the last documents, cut between the
            two that come closest to it. A single document is cut at a white space.

    Raises:
        MinigptError: when there is no text, or it is not UTF-8, or an argument cannot be used.
    """
    if not 0.0 < held_out < 1.0:
        raise MinigptError(f"held_out is {held_out!r}, needed a share between 0 and 1")
    if isinstance(tokenizer, str):
        tokenizing.check_kind(tokenizer)
    spec = tokenizer if isinstance(tokenizer, str) else tokenizer.fingerprint
    key = "\n".join((str(FORMAT), hash_source(source), spec, repr(float(held_out))))
    name = re.sub(r"[^\w.-]", "-", Path(source).name or "text")
    home = Path(directory, f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}")
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with tokenizing.workplace(home, source) as made:
                if made is not None:
                    tokenizing.tokenize(source, tokenizer, made, held_out)
                    for path in (*made.iterdir(), made):
                        flush(path)
                    _rename(made, home)
        except OSError as error:
            raise MinigptError(
                f"the tokens of {source} cannot be kept in {directory} ({error}): make room there, "
                f"or choose another place"
            ) from error
    return _open(home)


def draws(seed: int, step: int, rows: Sequence[int]) -> npt.NDArray[np.uint64]:
    """A random number for each row of a step, (R,): a pure function of (seed, step, row).

    SplitMix64 (Steele et al. 2014), applied to the three in turn: no generator whose state a
    resumed run would have to restore, or two processes to share.
    """
    mixed = np.zeros(len(rows), np.uint64)
    for part in (seed, step, np.asarray(rows, np.uint64)):
        mixed += np.asarray(part, np.uint64)
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64
            mixed += np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def windows(
    tokens: Tokens,
    width: int,
    seed: int,
    step: int,
    rows: Sequence[int],
    end_of_text: int | None = None,
    starts: npt.NDArray[np.int64] | None = None,
) -> tuple[Tensor, Tensor]:
    """Random windows of a text: what the model reads, and the tokens that follow.

    Row r of a step is the same whoever asks for it: processes that share a step take their own
    `rows` of it, and a resumed run goes on with the next `step`.

    Args:
        tokens: (N,), N > width.
        width: T, tokens of a window.
        seed, step: whole numbers from 0 on.
        rows: which rows of the step's batch, such as range(rank * R, (rank + 1) * R).
        end_of_text: the token between documents. With it a row keeps to one document: a window
            that began less than `width` tokens into one begins at its start instead, and targets
            of the documents after it are `IGNORED`. Without it a window is whatever comes.
        starts: where a window may begin, (M,), each before the last `width` tokens; None: anywhere.

    Returns:
        inputs and targets, (R, T) int64 each.

    Raises:
        MinigptError: when the text is no longer than the window.
    """
    if len(tokens) <= width:
        raise MinigptError(
            f"the text has {len(tokens)} tokens, needed more than one window of {width}: give "
            f"more text, or make the window shorter"
        )
    places = len(tokens) - width if starts is None else len(starts)
    drawn = (draws(seed, step, rows) % np.uint64(places)).astype(np.int64)
    starts = drawn if starts is None else starts[drawn]
    if end_of_text is not None:
        back = np.maximum(starts[:, None] - np.arange(width), 0)  # (R, T), from the start backwards
        is_end = tokens[back] == end_of_text
        starts = np.where(is_end.any(1), back[np.arange(len(back)), is_end.argmax(1)], starts)
    positions = starts[:, None] + np.arange(width + 1)  # (R, T + 1)
    read = torch.from_numpy(tokens[positions].astype(np.int64))
    inputs, targets = read[:, :-1], read[:, 1:].clone()
    if end_of_text is not None:
        ended = (inputs[:, 1:] == end_of_text).cumsum(1) > 0  # the first token opens the document
        targets[:, 1:][ended] = IGNORED
    return inputs.contiguous(), targets


def _rename(made: Path, home: Path) -> None:
    try:
        os.rename(made, home)
        flush(home.parent)
    except OSError:
        if not home.is_dir():  # else another run was quicker, and has made the same
            raise


def _open(home: Path) -> Corpus:
    try:
        about = read_json(home / "corpus.json", LARGEST_ABOUT, "it is damaged")
        dtype, held_out_bytes = np.dtype(about["dtype"]), int(about["held_out_bytes"])
        found = int(about["documents"])
        training, held_out = (_map(home / name, dtype) for name in ("training.bin", "held_out.bin"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MinigptError(
            f"the cached tokens in {home} cannot be read ({error}): remove that directory, and "
            f"they are made again"
        ) from error
    return Corpus(Tokenizer.from_pretrained(home), training, held_out, held_out_bytes, found)


def _map(path: Path, dtype: np.dtype[np.unsignedinteger]) -> Tokens:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
