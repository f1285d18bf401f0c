"""Where text comes from: files, folders, lines of JSON, or the built-in stories, piece by piece.

Nothing is held in memory whole. What becomes of the text is in `data.py`.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TypeVar, cast

from minigpt.support.errors import MinigptError
from minigpt.tokenizer_settings import END_OF_TEXT
from minigpt.training.grammar import stories

PIECE = 2**20  # bytes of a file in memory at a time
STORIES_SEED = 1
STORIES_AT_ONCE = 2_000  # in one share of the work
FEW_SHARES = 10  # up to which one process writes them all

PACKED = ".gz"
_WEIGHTED = re.compile(r"(.+):(\d+\.?\d*|\.\d+)")  # a source and its weight
BOM = "\ufeff"  # a mark that some editors begin a file with; it is no part of the text

Documents = Iterator[Iterator[str]]  # each in pieces, which must be read before the next document
T = TypeVar("T")


def read_documents(source: str | Path, piece: int = PIECE) -> Documents:
    """The documents of a source, each an iterator over its text in pieces of about `piece` bytes.

    In a text file, `<|endoftext|>` ends a document.

    Pieces end where a white space follows something else. No token of GPT-2's reaches across such
    a place, so the pieces' tokens are the text's.

    Raises:
        MinigptError: as `prepare`, when the reading gets there.
    """
    count = story_count(source)
    if count is not None:
        shares = by_shares(list, count)
        yield from (iter([story]) for story in chain.from_iterable(shares))
        return
    for path in _files(Path(source)):
        kind = path.with_suffix("").suffix if path.suffix == PACKED else path.suffix
        if kind == ".jsonl":
            yield from (iter([text]) for text in _json_lines(path))
        else:
            if kind == ".json":
                _refuse_array(path)
            yield from map(_whole_words, _parted(_decoded(path, piece)))


def _parted(pieces: Iterator[str]) -> Documents:
    """The documents of a text that parts them with `<|endoftext|>`, as published dumps do.

    One line end before it and one after are its own. Each document must be read before the next.
    """
    held, more, fresh = "", True, False  # fresh: nothing came since the last end

    def document() -> Iterator[str]:
        nonlocal held, more, fresh
        while True:
            if fresh and held:
                held, fresh = held.removeprefix("\n"), False
            text, end, after = held.partition(END_OF_TEXT)
            if end:
                yield text.removesuffix("\n")
                held, fresh = after, True
                return
            piece = next(pieces, None)
            if piece is None:
                yield held
                held, more = "", False
                return
            safe = max(0, len(held) - len(END_OF_TEXT))  # what follows may become an end
            yield held[:safe]
            held = held[safe:] + piece

    while more:
        text = document()
        yield text
        deque(text, maxlen=0)  # what of it was not read


def _hash(parts: Iterable[str | bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()


def hash_source(source: str | Path) -> str:
    """A hash of all that a source holds, and of where its files lie in it."""
    count = story_count(source)
    if count is not None:  # a change of the grammar shows in the first stories
        return _hash([str(count), *stories(STORIES_SEED, 100)])
    root = Path(source)
    files = _files(root)
    return _hash(
        part
        for path in files
        for part in chain([f"\n{path.relative_to(root)} {path.suffix}\n"], [_hash(_read(path))])
    )


def named_sources(data: str) -> list[tuple[str, float | None]]:
    """What a run's `data` names, one source a line, each with its weight; None: it has none.

    Raises:
        MinigptError: for nothing at all, when all weights are 0 or one is no weight.
    """
    found: list[tuple[str, float | None]] = []
    for line in filter(None, data.split("\n")):
        match = _WEIGHTED.fullmatch(line)
        if match and not os.path.exists(line) and story_count(line) is None:
            found.append((match[1], float(match[2])))
        else:
            _refuse_weight(line)
            found.append((line, None))
    weights = [weight for _, weight in found if weight is not None]
    if not found or (len(weights) == len(found) and not sum(weights)):
        raise MinigptError(
            f"data is {data!r}, needed a text file, folder or JSONL file, or several with weights "
            f"above 0, such as a.txt:2 b/:1"
        )
    return found


def _refuse_weight(line: str) -> None:
    """Refuse a source that is there but for what follows its last colon."""
    source, colon, weight = line.rpartition(":")
    if colon and not os.path.exists(line) and os.path.exists(source):
        raise MinigptError(
            f"the weight of {source} is {weight!r}, needed a number from 0 on, such as {source}:2 "
            f"or {source}:0.5: correct it, or leave it and the colon out"
        )


def source_bytes(source: str | Path) -> int:
    """How large the files of a source are on the disk; 0 for the built-in stories."""
    if story_count(source) is not None:
        return 0
    return sum(path.stat().st_size for path in _files(Path(source)))


def story_count(source: str | Path) -> int | None:
    """How many of the built-in stories are meant; None: the source is something else."""
    match = re.fullmatch(r"stories(?::(\d+))?", str(source))
    if not match or Path(source).exists():
        return None
    return int(match[1] or 40_000)


def by_shares(work: Callable[[Sequence[str]], T], count: int) -> Iterator[T]:
    """What `work` makes of the first stories, a share at a time, in order.

    Where they are many, each core writes shares of its own: text of that kind takes longer to
    write than to learn from.
    """
    firsts = range(0, count, STORIES_AT_ONCE)
    share = partial(_share, work, count)
    if len(firsts) < FEW_SHARES:
        yield from map(share, firsts)
        return
    with multiprocessing.Pool() as processes:
        yield from processes.imap(share, firsts)


def _share(work: Callable[[Sequence[str]], T], count: int, first: int) -> T:
    return work(list(stories(STORIES_SEED, min(STORIES_AT_ONCE, count - first), first)))


def _files(source: Path) -> list[Path]:
    if os.path.isdir(source):  # rather than source.is_dir(), which fails for a long name
        inside = (path for path in sorted(source.rglob("*")) if path.is_file())
        return [
            path
            for path in inside
            if not any(part.startswith(".") for part in path.relative_to(source).parts)
        ]
    if not os.path.isfile(source):
        raise MinigptError(
            f"there is no file or folder {source}, needed a text file, a .jsonl file or a folder "
            f"of them: correct the path"
        )
    return [source]


def _read(path: Path, piece: int = PIECE) -> Iterator[bytes]:
    """What a file holds, unpacked if its name ends in .gz."""
    with _opened(path) as file:
        while chunk := file.read(piece):
            yield chunk


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], (gzip.open if path.suffix == PACKED else open)(path, "rb")) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MinigptError(
            f"{path} is not a whole gzip file ({error}): get it again, or give it another name if "
            f"it is no gzip file"
        ) from error
    except OSError as error:
        raise MinigptError(f"{path} cannot be read ({error}): check its permissions") from error


def _refuse_array(path: Path) -> None:
    """Refuse a JSON array: learning its brackets and quotes is hardly what is meant."""
    if next(_read(path), b"").lstrip(BOM.encode() + b" \t\r\n").startswith(b"["):
        raise MinigptError(
            f'{path} is a JSON array, needed text or a .jsonl file: write an object with a "text" '
            f"on each line, as `jq -c '.[]'` does, into a file that ends in .jsonl"
        )


def _decoded(path: Path, piece: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0  # bytes before what the decoder has in hand
    begun = False
    for chunk in chain(_read(path, piece), [b""]):
        waiting = len(decoder.getstate()[0])  # of a character that the last chunk cut
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise MinigptError(
                f"byte {read - waiting + error.start} of {path} is no UTF-8, needed UTF-8 text: "
                f"convert the file, for example with iconv, or take it away if it is no text"
            ) from None
        yield text if begun else text.removeprefix(BOM)
        begun = begun or bool(text)
        read += len(chunk)


def _whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, in pieces that end where a white space follows something else."""
    held = ""
    for piece in pieces:
        held += piece
        found = re.match(r".*\S(?=[ \n])", held, re.DOTALL)
        cut = found.end() if found else len(held) if len(held) > PIECE else 0
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _json_lines(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))["text"]
                text.encode()  # JSON may spell half of a character, such as \ud800
            except (ValueError, KeyError, TypeError, AttributeError):
                if number == 1:
                    _refuse_array(path)
                raise MinigptError(
                    f'line {number} of {path} is not a JSON object with a "text" in UTF-8, needed '
                    f"one on each line: correct or remove it"
                ) from None
            yield text
