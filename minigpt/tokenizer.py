"""Text to tokens and back, by GPT-2's byte pairs or by characters: one long file, because a
checkpoint's files say which of the two kinds of tokenizer it has.

tiktoken does the merging. Reads and writes the two files of a GPT-2 checkpoint (`vocab.json`,
`merges.txt`), or `tokenizer.json` where there is more to say: what comes before merging is in
`tokenizer_settings.py`. How byte pairs are learned is in `training/bpe.py`, where a checkpoint
comes from in `checkpoint/hub.py`, text of tokens as they come in `generation/text.py`.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from minigpt.support.checks import is_whole, listed, path_of, plain_file
from minigpt.support.errors import MinigptError
from minigpt.support.files import read_json, write_text
from minigpt.tokenizer_settings import (
    END_OF_TEXT,
    Finder,
    Settings,
    Word,
    added_token,
    check_agreement,
    from_small_files,
    from_tokenizer_json,
)

# How GPT-2 cuts text before merging (Radford et al. 2019): a word takes the space before it along.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LONGEST_GAP = 900_000  # characters; tiktoken's regex engine panics on 999,999 white spaces in a row
UNCUT = r"(?s:.+)"  # for a tokenizer whose merges may cross words
LONGEST_SPECIALS = 2**16  # characters, of all that are searched for at once
LARGEST_FILE = 2**25  # bytes of a vocabulary: GPT-2's has 1 MB
FILES = (  # in which a checkpoint may keep its tokenizer
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
GPT2_VOCAB_SIZE = 50257


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where it shows, else U+0100 and up."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}


SYMBOLS = _byte_symbols()
BYTES = {symbol: byte for byte, symbol in SYMBOLS.items()}


class Tokenizer:
    """A vocabulary: `encode` text to a list of ids, `decode` ids to text.

    Args:
        ids: the id of each token that bytes and merges make, *in merge order*: the 256 single
            bytes, then the result of the first merge, of the second, and so on.
        specials: the id of each special token, by its text. Merges never make these.
        settings: what happens to text before merging; None: nothing, as with GPT-2.

    Attributes:
        n_vocab: V, one more than the highest id: the rows that a model of it needs.
        eot_token: the id of `<|endoftext|>`, which separates documents; None if there is none.
    """

    def __init__(
        self,
        ids: Mapping[bytes, int],
        specials: Mapping[str, int],
        settings: Settings | None = None,
    ) -> None:
        import tiktoken  # here rather than above, so that `import minigpt` stays cheap

        self._settings = settings or Settings()
        words = {text: Word(text, i, special=True) for text, i in specials.items()}
        words |= {word.text: word for word in self._settings.words}
        _check_vocabulary(ids, {text: word.id for text, word in words.items()} | dict(specials))
        self._ranks = {token: rank for rank, token in enumerate(ids)}
        self._specials = {text: word.id for text, word in words.items() if word.special}
        # tiktoken takes a token's id for its merge priority. Ours may be anything, so it gets the
        # priorities and `_ids` translates.
        self._ids = list(ids.values())
        self._bytes = {i: token for token, i in ids.items()}
        self._bytes |= {word.id: word.text.encode() for word in words.values()}
        self.n_vocab: int = max(self._bytes) + 1
        self.eot_token: int | None = self._specials.get(END_OF_TEXT)
        self._written = Finder({t: word for t, word in words.items() if not word.normalized})
        found: dict[str, Word] = {}
        for text, word in words.items():
            if word.normalized:
                found.setdefault(self._settings.normalize(text), word)
        self._normalized = Finder(found)
        self._encoding = tiktoken.Encoding(
            "minigpt",
            pat_str=PATTERN if self._settings.cut_words else UNCUT,
            mergeable_ranks=self._ranks,
            special_tokens={},
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint.

        Args:
            source: a directory, one of `GPT2_NAMES`, or what else `hub.resolve` knows. A directory
                is read from `tokenizer.json`, else from `vocab.json` and `merges.txt` and what
                lies beside them; with none of them and GPT-2's vocabulary size, it is taken to be
                GPT-2's own.

        Raises:
            MinigptError: when there is no such checkpoint, its files are missing, damaged or
                disagree, or they have a setting that would be ignored.
        """
        from minigpt.checkpoint.hub import WEIGHTS_DIR, resolve

        name = str(source).removeprefix("openai-community/")
        if name not in GPT2_NAMES or os.path.isdir(source):
            return cls._from_directory(resolve(source))
        if (WEIGHTS_DIR / name).is_dir():  # downloaded before
            return cls._from_directory(WEIGHTS_DIR / name)
        return cls._gpt2()  # without fetching half a gigabyte of weights

    @classmethod
    def _from_directory(cls, directory: Path) -> Tokenizer:
        vocab, merges = directory / "vocab.json", directory / "merges.txt"
        both, config = directory / "tokenizer.json", directory / "config.json"
        said, named, added = (
            _read_json(directory / name) if (directory / name).is_file() else {}
            for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        )
        if both.is_file():
            content = _read_json(both)
            if CharTokenizer.wrote(content):
                return CharTokenizer.from_tokenizer_json(content, directory)
            tokenizer = cls.from_tokenizer_json(content, directory)
            known = {text.decode(errors="replace") for text in tokenizer._bytes.values()}
            check_agreement(said, known)
            return tokenizer
        if vocab.is_file() and merges.is_file():
            lines = _read_text(merges).rstrip("\n").split("\n")
            header = lines[0].startswith("#version")  # "#" alone may start a merge
            pairs = [line.split(" ") for line in lines[header:] if line]
            tokens = _read_json(vocab)
            settings = from_small_files(said, named, added, tokens, directory)
            return cls._from_symbols(tokens, pairs, settings, directory)
        if config.is_file() and _read_json(config).get("vocab_size") == GPT2_VOCAB_SIZE:
            return cls._gpt2()
        raise MinigptError(
            f"{directory} has no tokenizer: put the vocab.json and merges.txt (or the "
            f"tokenizer.json) that belong to the weights beside them"
        )

    @classmethod
    def _gpt2(cls) -> Tokenizer:
        import tiktoken

        try:
            gpt2 = tiktoken.get_encoding("gpt2")  # TIKTOKEN_CACHE_DIR, else a download
        except (OSError, ValueError) as error:  # no network, or a damaged download
            raise MinigptError(
                f"GPT-2's vocabulary could not be downloaded ({type(error).__name__}): get "
                f"vocab.json and merges.txt from https://huggingface.co/openai-community/gpt2, put "
                f"them beside the weights and pass that directory"
            ) from error
        tokens = (gpt2.decode_single_token_bytes(i) for i in range(gpt2.eot_token))
        return cls({token: i for i, token in enumerate(tokens)}, {END_OF_TEXT: gpt2.eot_token})

    @classmethod
    def from_tokenizer_json(cls, content: dict[str, Any], where: Path | str) -> Tokenizer:
        """From the one-file format of the `tokenizers` library. Raises as `from_pretrained`."""
        settings = from_tokenizer_json(content, where)
        try:
            vocab, merges = content["model"]["vocab"], content["model"]["merges"]
            pairs = [m.split(" ") if isinstance(m, str) else list(m) for m in merges]
            return cls._from_symbols(dict(vocab), pairs, settings, where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MinigptError(
                f"the tokenizer.json of {where} is damaged ({error!r}): get the file again"
            ) from error

    @classmethod
    def _from_symbols(
        cls,
        vocab: dict[str, int],
        merges: Sequence[Sequence[str]],
        settings: Settings,
        where: Path | str,
    ) -> Tokenizer:
        """From the vocabulary and merges as GPT-2 writes them, in printable symbols.

        What neither bytes nor merges make is a special token, unless the settings say otherwise.
        """
        added = {word.text: word for word in settings.words}
        for text, word in added.items():
            if vocab.get(text, word.id) != word.id:
                raise MinigptError(
                    f"{text!r} has the id {vocab[text]} in the vocabulary of {where} and "
                    f"{word.id} among its added tokens: use the files of one and the same "
                    f"checkpoint"
                )
        vocab = vocab | {text: word.id for text, word in added.items()}
        if not all(type(text) is str for text in vocab):
            raise MinigptError(f"the vocabulary of {where} has tokens that are no text")
        if not all(is_whole(i) and i >= 0 for i in vocab.values()):
            raise MinigptError(f"the vocabulary of {where} has ids that are not whole numbers >= 0")
        if len(set(vocab.values())) < len(vocab):
            raise MinigptError(f"the vocabulary of {where} gives one id to two tokens")
        made = dict.fromkeys(sorted(BYTES))  # a set that keeps its order
        for number, pair in enumerate(merges, start=1):
            known = all(type(part) is str and part in made for part in pair)
            if len(pair) != 2 or not known or "".join(pair) in made:
                raise MinigptError(
                    f"merge {number} of {where} is {' '.join(map(str, pair))!r}, needed two tokens "
                    f"that come earlier and together are new: get merges.txt again"
                )
            made["".join(pair)] = None
        specials = {text: i for text, i in vocab.items() if text not in made}
        # Special tokens are spelled out: one with the stand-in for a space is a merge gone astray.
        wrong = [f"no id for {token!r}" for token in made if token not in vocab]
        wrong += [
            f"no merge for {text!r}"
            for text in specials
            if (SYMBOLS[0x20] in text and text not in added) or not text
        ]
        if wrong:
            raise MinigptError(
                f"the vocabulary and merges of {where} disagree, there is {wrong[0]}: use the "
                f"vocab.json and merges.txt of one and the same checkpoint"
            )
        specials = {t: i for t, i in specials.items() if t not in added or _plain(added[t])}
        words = tuple(word for word in settings.words if word.text not in specials)
        ids = {bytes(BYTES[s] for s in token): vocab[token] for token in made}
        return cls(ids, specials, replace(settings, words=words))

    def encode(self, text: str, allow_special: bool = False, part: bool = False) -> list[int]:
        """The tokens of `text`.

        Special tokens written out in the text are read as the characters they are, so that nobody
        can smuggle one in; `allow_special=True` reads them as special tokens.

        Args:
            part: the text goes on another one: where the checkpoint asks for a space before each
                text, or tokens around it, there are none here.

        Raises:
            MinigptError: when `text` is not a str, holds a surrogate (half of a UTF-16 character),
                or has more than `LONGEST_GAP` white spaces in a row.
        """
        check_text(text)
        gaps = re.findall(r"\s+", text) if len(text) > LONGEST_GAP else []
        if any(len(gap) > LONGEST_GAP for gap in gaps):
            raise MinigptError(f"text has over {LONGEST_GAP} white spaces in a row: cut it there")
        settings, tokens = self._settings, []
        for number, piece in enumerate(self._pieces(text, allow_special)):
            if isinstance(piece, int):
                tokens.append(piece)
                continue
            if settings.prefix_space and not piece.startswith(" ") and (number or not part):
                piece = " " + piece
            tokens += [self._ids[rank] for rank in self._encoding.encode_ordinary(piece)]
        return tokens if part else [*settings.before, *tokens, *settings.after]

    def _pieces(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """The text, normalized, and in it the ids of the words that are not merged."""
        for piece in self._written.split(text, allow_special):
            if isinstance(piece, int):
                yield piece
            else:
                yield from self._normalized.split(self._settings.normalize(piece), allow_special)

    @property
    def is_local(self) -> bool:
        """Whether a text may be cut before a white space, and its parts' tokens are the text's."""
        return self._settings.cut_words and not self._settings.words

    def without_text(self, vocab_size: int) -> list[int]:
        """The ids below `vocab_size` that no token has: rows that pad a model's vocabulary."""
        return [i for i in range(vocab_size) if i not in self._bytes]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `tokens`; bytes that are no UTF-8 become U+FFFD. Raises as `decode_bytes`.

        Args:
            skip_special_tokens: leave them out, rather than spell them.
        """
        text = self.decode_bytes(tokens, skip_special_tokens)
        return text.decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> bytes:
        """The bytes of `tokens`, exactly: the inverse of `encode`, where its settings are GPT-2's.

        Raises:
            MinigptError: for a token that is no whole number or has no entry in the vocabulary.
        """
        try:
            skipped = frozenset(self._specials.values() if skip_special_tokens else ())
            return b"".join(
                [self._bytes_of(token) for token in tokens if not skipped or token not in skipped]
            )
        except TypeError:
            raise MinigptError(f"tokens is {tokens!r}, needed a list: write [id] for one") from None

    def _bytes_of(self, token: Any) -> bytes:
        truth = isinstance(token, bool) or str(getattr(token, "dtype", "")).endswith("bool")
        try:
            return self._bytes[-1 if truth else operator.index(token)]
        except (KeyError, TypeError):  # operator.index takes torch's and numpy's whole numbers too
            raise MinigptError(
                f"token {token!r} is not in this vocabulary, needed whole numbers from 0 to "
                f"{self.n_vocab - 1}: decode with the tokenizer that belongs to the model"
            ) from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `vocab.json` and `merges.txt`, as GPT-2 has them, into `directory`.

        A tokenizer with settings that these two cannot say writes `tokenizer.json` instead. Files
        of another tokenizer, which would be read along, are removed.

        Raises:
            MinigptError: when they cannot be written.
        """
        directory = path_of(directory)
        vocab = {_symbols(token): self._ids[rank] for token, rank in self._ranks.items()}
        pairs = [_halves(token, self._ranks) for token in self._ranks if len(token) > 1]
        merges = [f"{_symbols(left)} {_symbols(right)}" for left, right in pairs]
        if self._settings == Settings():
            by_id = dict(sorted((vocab | self._specials).items(), key=operator.itemgetter(1)))
            lines = "".join(f"{merge}\n" for merge in merges)
            files = {
                "vocab.json": json.dumps(by_id, ensure_ascii=False),
                "merges.txt": f"#version: 0.2\n{lines}",
            }
        else:
            words = {text: Word(text, i, special=True) for text, i in self._specials.items()}
            words |= {word.text: word for word in self._settings.words}
            by_id = dict(sorted(vocab.items(), key=operator.itemgetter(1)))
            content = {
                "version": "1.0",
                "added_tokens": sorted(map(added_token, words.values()), key=lambda t: t["id"]),
                **self._settings.to_json({word.id: word.text for word in words.values()}),
                "model": {"type": "BPE", "vocab": by_id, "merges": merges},
            }
            kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
            if self.eot_token is not None:
                kind |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
            files = {
                "tokenizer.json": json.dumps(content, ensure_ascii=False),
                "tokenizer_config.json": json.dumps(kind),
            }
        _write_files(directory, files)

    @property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and the order of its merges; equal ones give equal tokens."""
        single = sorted(item for item in self._bytes.items() if len(item[1]) == 1)
        longer = [item for item in self._bytes.items() if len(item[1]) > 1]  # in merge order
        content = repr((type(self).__name__, single, longer, self._specials))
        if self._settings != Settings():
            content += repr(self._settings)
        return hashlib.sha256(content.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_vocab={self.n_vocab}, specials={list(self._specials)})"


class CharTokenizer(Tokenizer):
    """One token per character (Unicode code point), and `<|endoftext|>` after the last of them.

    Args:
        characters: the vocabulary, in the order of the ids; one that comes again counts once.

    Raises:
        MinigptError: when there are no characters, or one of them is half of a surrogate pair.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        given = listed(characters, "the vocabulary", "characters")
        if not all(isinstance(text, str) for text in given):
            raise MinigptError(f"the vocabulary is {characters!r}, needed characters")
        alphabet = dict.fromkeys(check_text("".join(given)))
        if not alphabet:
            raise MinigptError("the vocabulary is empty, needed at least one character")
        self._settings = Settings()
        self._id_of = {character: i for i, character in enumerate(alphabet)}
        self._specials = {END_OF_TEXT: len(alphabet)}
        self._bytes = {i: character.encode() for character, i in self._id_of.items()}
        self._bytes[len(alphabet)] = END_OF_TEXT.encode()
        self.n_vocab = len(self._bytes)
        self.eot_token = len(alphabet)

    def encode(self, text: str, allow_special: bool = False, part: bool = False) -> list[int]:
        """The tokens of `text`, one for each character; `allow_special` as in `Tokenizer`.

        Raises:
            MinigptError: when `text` is not a str or has a character outside the vocabulary.
        """
        if allow_special and END_OF_TEXT in check_text(text):
            before, after = text.split(END_OF_TEXT, 1)
            return [*self.encode(before), len(self._id_of), *self.encode(after, allow_special)]
        try:
            return [self._id_of[character] for character in check_text(text)]
        except KeyError as error:
            raise MinigptError(
                f"character {error.args[0]!r} is not among the {len(self._id_of)} of this "
                f"vocabulary: leave it out, or use a tokenizer of bytes, which takes any text"
            ) from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `tokenizer.json` (and who reads it, for transformers' AutoTokenizer)."""
        directory = path_of(directory)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = {"id": self.eot_token, "content": END_OF_TEXT, **flags, "special": True}
        content = {
            "version": "1.0",
            "added_tokens": [added],
            "pre_tokenizer": _EVERY_CHARACTER,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": self._id_of, "unk_token": "<unk>"},
        }
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
        files = {
            "tokenizer.json": json.dumps(content, ensure_ascii=False),
            "tokenizer_config.json": json.dumps(kind),
        }
        _write_files(directory, files)

    @staticmethod
    def wrote(content: Mapping[str, Any]) -> bool:
        """Whether a `tokenizer.json` is one of these."""
        return content.get("pre_tokenizer") == _EVERY_CHARACTER

    @classmethod
    def from_tokenizer_json(cls, content: dict[str, Any], where: Path | str) -> CharTokenizer:
        try:
            vocab = content["model"]["vocab"]
            tokenizer = cls(sorted(vocab, key=vocab.__getitem__))
        except (KeyError, TypeError, AttributeError):
            vocab, tokenizer = None, None
        if tokenizer is None or tokenizer._id_of != vocab:
            raise MinigptError(
                f"the tokenizer.json of {where} has no list of characters with ids from 0 on: get "
                f"the file again"
            )
        return tokenizer


# How the `tokenizers` library writes "cut before and after every character, line ends too".
_EVERY_CHARACTER = {
    "type": "Split",
    "pattern": {"Regex": r"[\s\S]"},
    "behavior": "Isolated",
    "invert": False,
}


def byte_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer before the first merge: 256 bytes, and the end of text as token 256."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})


def _plain(word: Word) -> bool:
    """Whether nothing is to be said of a word but that it is special."""
    return word == Word(word.text, word.id, special=True)


def _check_vocabulary(ids: Mapping[bytes, int], specials: Mapping[str, int]) -> None:
    """Refuse what is no vocabulary: tokens are bytes, specials text, ids whole numbers from 0."""
    right = isinstance(ids, Mapping) and isinstance(specials, Mapping) and len(ids) > 0
    right = right and all(type(token) is bytes and token for token in ids)
    if not right or not all(is_whole(i) and i >= 0 for i in (*ids.values(), *specials.values())):
        raise MinigptError(
            "a vocabulary is something else than two dicts, needed ids from 0 on, by the bytes of "
            "each token and by the text of each special one"
        )
    length = sum(len(check_text(text)) for text in specials)
    if length > LONGEST_SPECIALS:
        raise MinigptError(
            f"the special tokens have {length} characters together, needed at most "
            f"{LONGEST_SPECIALS}: they are searched for all at once"
        )


def _symbols(token: bytes) -> str:
    return "".join(SYMBOLS[byte] for byte in token)


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The merge that makes `token`: what its bytes have become just before it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [left + right for left, right in pairwise(parts)]
        first = min(range(len(joined)), key=lambda i: ranks.get(joined[i], len(ranks)))
        parts[first : first + 2] = [joined[first]]
    return parts[0], parts[1]


def check_text(text: str) -> str:
    """The text, if it is one that has bytes."""
    if not isinstance(text, str):
        raise MinigptError(f"text is a {type(text).__name__}, needed a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MinigptError(
            f"text has a lone surrogate {text[error.start]!r} at position {error.start}, needed "
            f"whole characters: read the text as UTF-8, or replace it"
        ) from None
    return text


def _read_text(path: Path) -> str:
    try:
        plain_file(path, LARGEST_FILE)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MinigptError(f"{path} cannot be read ({error}): get the file again") from error


def _read_json(path: Path) -> dict[str, Any]:
    found = read_json(path, LARGEST_FILE, "get the file again")
    if not isinstance(found, dict):
        raise MinigptError(f"{path} is not a JSON object: get the file again")
    return found


def _write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Write a tokenizer's files, and remove those of another that lie there."""
    for name, text in files.items():
        _write_text(directory / name, text)
    for name in FILES:
        if name not in files:
            (directory / name).unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise MinigptError(
            f"the tokenizer could not be written to {path} ({error}): make room or choose another "
            f"directory"
        ) from error
