"""From documents to a directory of tokens: piece by piece, on all cores, and resumed when killed.

Memory holds a few pieces at a time, however long the text. What the directory is for is in
`data.py`, where documents come from in `documents.py`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from minigpt.support.errors import MinigptError
from minigpt.support.files import aside, locked, read_json, write_text
from minigpt.tokenizer import CharTokenizer, Tokenizer, byte_tokenizer
from minigpt.training.bpe import train_bpe
from minigpt.training.documents import (
    by_shares,
    hash_source,
    read_documents,
    source_bytes,
    story_count,
)

if TYPE_CHECKING:
    from multiprocessing.pool import AsyncResult

BPE_SAMPLE = 2**24  # characters that byte pairs are learned from: the first so many
SHARE = 2**22  # characters that a core tokenizes at a time
LARGE = 2**25  # bytes of a source, from which on all cores work, and what they did is kept
KEEP_EVERY = 8  # shares
PROGRESS = "progress.json"
_SPACE_AHEAD = re.compile(r"\S(?=[ \n])")

Item = tuple[bool, str | None]  # held out?, a piece of text; None: an end-of-text token


class Encoded(NamedTuple):
    """What a share of the text became."""

    training: bytes
    held_out: bytes
    held_out_bytes: int  # of its text in UTF-8
    done: int  # characters


@contextmanager
def workplace(home: Path, source: str | Path) -> Iterator[Path | None]:
    """Where to make what shall become `home`; None: another process has made it meanwhile.

    For a small source it is a place of one's own, that goes when the block ends. For a large one
    it is beside `home`, one process at a time works there, and what it leaves is not lost.
    """
    if source_bytes(source) < LARGE:
        with aside(home.parent) as staging:
            yield staging / "corpus"
        return
    kept = home.parent / f".making-{home.name}"
    kept.mkdir(exist_ok=True)
    with locked(kept):  # whoever comes second waits
        yield None if home.is_dir() else kept / "corpus"
        with suppress(OSError):  # only empty: when all is made
            kept.rmdir()


def tokenize(source: str | Path, spec: Tokenizer | str, directory: Path, held_out: float) -> None:
    """Write both parts' tokens, the tokenizer and `corpus.json`; go on where another one stopped.

    Raises:
        MinigptError: when there is no text, or it is not UTF-8.
        OSError: when the disk is full.
    """
    from tqdm import tqdm

    count = story_count(source)
    kept = _Kept.read(directory)
    if kept is None:
        total, cut, documents = (count, 0, count) if count else _cut(source, held_out)
        tokenizer = _tokenizer_for(spec, source)
        tokenizer.save_pretrained(directory)
        kept = _Kept(0, 0, 0, 0, total, cut, documents)
    else:
        tokenizer = Tokenizer.from_pretrained(directory)
    large = source_bytes(source) >= LARGE
    dtype = np.dtype("<u2" if tokenizer.n_vocab <= 2**16 else "<u4")
    separator = [] if tokenizer.eot_token is None else [tokenizer.eot_token]
    if count:
        made: Iterator[Encoded] = _encoded_stories(count, held_out, tokenizer, separator, dtype)
    else:
        work = partial(_encode, tokenizer, separator, dtype)
        shares = _shares(_split(source, kept.cut, tokenizer.is_local))
        for _ in range(kept.shares):
            next(shares, None)
        made = _on_all_cores(work, shares) if large else map(work, shares)
    with (
        _from(directory / "training.bin", kept.training) as training,
        _from(directory / "held_out.bin", kept.held_out) as rest,
        tqdm(
            total=kept.total, desc="tokenizing", unit="story" if count else "char",
            unit_scale=True, leave=False, disable=None,  # on terminals only
        ) as bar,
    ):  # fmt: skip
        bar.update(min(kept.shares * SHARE, kept.total))
        for share in made:
            training.write(share.training)
            rest.write(share.held_out)
            bar.update(share.done)
            kept = kept._replace(
                shares=kept.shares + 1,
                training=kept.training + len(share.training),
                held_out=kept.held_out + len(share.held_out),
                held_out_bytes=kept.held_out_bytes + share.held_out_bytes,
            )
            if large and kept.shares % KEEP_EVERY == 0:
                training.flush()
                rest.flush()
                kept.write(directory)
    (directory / PROGRESS).unlink(missing_ok=True)
    about = {
        "dtype": dtype.str, "held_out_bytes": kept.held_out_bytes, "documents": kept.documents,
    }  # fmt: skip
    (directory / "corpus.json").write_text(json.dumps(about), encoding="utf-8")


def check_kind(spec: str) -> None:
    """Refuse what is no kind of tokenizer."""
    if not re.fullmatch(r"char|byte|gpt2|bpe:\d+", spec):
        raise MinigptError(
            f"tokenizer is {spec!r}, needed 'char', 'byte', 'gpt2', or 'bpe:' and a "
            f"vocabulary's size such as bpe:1024"
        )


def shared_tokenizer(sources: Sequence[str], spec: str, directory: str | Path) -> Tokenizer:
    """One tokenizer for several sources: learned from all of them, and kept in `directory`.

    Raises:
        MinigptError: as `prepare`.
    """
    check_kind(spec)
    key = "\n".join((spec, *map(hash_source, sources)))
    home = Path(directory, f"tokenizer-{hashlib.sha256(key.encode()).hexdigest()[:16]}")
    if not home.is_dir():
        tokenizer = _tokenizer_for(spec, *sources)
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with aside(home.parent) as staging:
                tokenizer.save_pretrained(staging / "made")
                with suppress(OSError):  # another run was quicker, and has made the same
                    os.rename(staging / "made", home)
        except OSError as error:
            raise MinigptError(
                f"the tokenizer cannot be kept in {directory} ({error}): make room there, or "
                f"choose another place"
            ) from error
    return Tokenizer.from_pretrained(home)


class _Kept(NamedTuple):
    """How far the work is."""

    shares: int
    training: int  # bytes of the file
    held_out: int
    held_out_bytes: int
    total: int  # characters of the source
    cut: int  # of them before the held-out part
    documents: int

    @classmethod
    def read(cls, directory: Path) -> _Kept | None:
        """None where nothing is, or nothing that can be gone on from."""
        try:
            kept = cls(**read_json(directory / PROGRESS, 2**12))
            sizes = [(directory / name).stat().st_size for name in ("training.bin", "held_out.bin")]
        except (MinigptError, OSError, TypeError):
            return None
        there = all(type(value) is int and value >= 0 for value in kept)
        whole = there and sizes[0] >= kept.training and sizes[1] >= kept.held_out
        return kept if whole else None

    def write(self, directory: Path) -> None:
        write_text(directory / PROGRESS, json.dumps(self._asdict()))


@contextmanager
def _from(path: Path, size: int) -> Iterator[BinaryIO]:
    """A file to append to, after so many bytes of it."""
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


def _encode(
    tokenizer: Tokenizer, separator: list[int], dtype: np.dtype[np.unsignedinteger],
    items: Sequence[Item],
) -> Encoded:  # fmt: skip
    parts: tuple[list[bytes], list[bytes]] = [], []
    held_out_bytes = done = 0
    for is_held_out, text in items:
        ids = separator if text is None else tokenizer.encode(text, part=True)
        parts[is_held_out].append(np.array(ids, dtype).tobytes())
        held_out_bytes += len(text.encode()) if text and is_held_out else 0
        done += len(text or "")
    return Encoded(b"".join(parts[0]), b"".join(parts[1]), held_out_bytes, done)


def _shares(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The same in lists of about `SHARE` characters: always the same lists of the same text."""
    share: list[Item] = []
    size = 0
    for item in items:
        share.append(item)
        size += 1 + len(item[1] or "")
        if size >= SHARE:
            yield share
            share, size = [], 0
    if share:
        yield share


def _on_all_cores(work: partial[Encoded], shares: Iterator[list[Item]]) -> Iterator[Encoded]:
    """What `work` makes of each share, in order. No more are read than are soon to be worked on:
    `Pool.imap` would read them all."""
    with multiprocessing.Pool(initializer=_leave_interrupts) as pool:
        ahead = 2 * multiprocessing.cpu_count()
        waiting: deque[AsyncResult[Encoded]] = deque()
        for share in shares:
            waiting.append(pool.apply_async(work, (share,)))
            if len(waiting) == ahead:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tokenizer_for(spec: Tokenizer | str, *sources: str | Path) -> Tokenizer:
    if isinstance(spec, Tokenizer):
        return spec
    if spec == "byte":
        return byte_tokenizer()
    if spec == "gpt2":
        return Tokenizer.from_pretrained("gpt2")
    texts = [chain.from_iterable(read_documents(source)) for source in sources]
    if spec == "char":
        found: set[str] = set()
        for piece in chain.from_iterable(texts):  # not all of them at once: they may not fit
            found.update(piece)
        return CharTokenizer(sorted(found))
    most = BPE_SAMPLE // len(texts)
    sample = chain.from_iterable(_first(pieces, most) for pieces in texts)
    return train_bpe(sample, int(spec.removeprefix("bpe:")))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    return [(text, tokenizer.encode(text, part=True)) for text in texts]


def _first(pieces: Iterable[str], count: int) -> Iterator[str]:
    for piece in pieces:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def _cut(source: str | Path, held_out: float) -> tuple[int, int, int]:
    """Characters of all documents, how many come before the held-out part; how many documents."""
    starts = array("Q")  # of each document
    total = 0
    for document in read_documents(source):
        begin = total
        total += sum(map(len, document))
        if total > begin:
            starts.append(begin)
    if total == 0:
        raise MinigptError(f"{source} is empty, needed some text: choose another file or folder")
    wanted = round(total * (1 - held_out))
    cut = min(starts[1:], key=lambda start: abs(start - wanted), default=wanted)
    return total, cut, len(starts)


def _split(source: str | Path, cut: int, in_pieces: bool) -> Iterator[tuple[bool, str | None]]:
    """(held out?, a piece of text) and (held out?, None) where an end-of-text token belongs."""
    done = 0  # characters
    yield False, None
    for document in read_documents(source):
        begin = done
        for piece in document if in_pieces else ["".join(document)]:
            at = min(max(cut - done, 0), len(piece))
            if 0 < at < len(piece):  # in the only document: go on to the next white space
                space = _SPACE_AHEAD.search(piece, at - 1)
                at = space.end() if space else at
            yield False, piece[:at]
            yield True, piece[at:]
            done += len(piece)
        if done > begin:
            yield done > cut, None
            if done == cut:
                yield True, None


def _encoded_stories(
    count: int, held_out: float, tokenizer: Tokenizer, separator: list[int],
    dtype: np.dtype[np.unsignedinteger],
) -> Iterator[Encoded]:  # fmt: skip
    """The built-in stories, each with an end-of-text token before it and after; on all cores.

    They are all of one kind, so their number is cut, and nobody need measure them first.
    """
    cut = min(max(1, round(count * (1 - held_out))), max(1, count - 1))
    end = np.array(separator, dtype).tobytes()
    yield Encoded(end, end, 0, 0)
    every = chain.from_iterable(by_shares(partial(_encoded, tokenizer), count))
    for number, (text, ids) in enumerate(every):
        tokens = np.array(ids, dtype).tobytes() + end
        if number < cut:
            yield Encoded(tokens, b"", 0, 1)
        else:
            yield Encoded(b"", tokens, len(text.encode()), 1)
