"""What a checkpoint says about its tokenizer beside its vocabulary: how text is prepared and cut.

Most GPT-2s say nothing here. Those that do say it in `tokenizer.json`, which is the truth where it
is there, or beside `vocab.json` and `merges.txt` in up to three smaller files. What cannot be
honoured is refused by name, for ignoring it would give other tokens. Encoding itself is in
`tokenizer.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from minigpt.support.checks import is_whole
from minigpt.support.errors import MinigptError

END_OF_TEXT = "<|endoftext|>"
# What Unicode calls white space. Python's \s has four control characters more.
SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
CLASSES = ("GPT2Tokenizer", "CodeGenTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
FLAGS = ("special", "normalized", "lstrip", "rstrip")


def _lower(text: str) -> str:
    """Each character by itself: a sigma at a word's end stays a sigma, as in `tokenizers`."""
    return "".join(map(str.lower, text))


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "NFC": partial(unicodedata.normalize, "NFC"),
    "NFD": partial(unicodedata.normalize, "NFD"),
    "NFKC": partial(unicodedata.normalize, "NFKC"),
    "NFKD": partial(unicodedata.normalize, "NFKD"),
    "Lowercase": _lower,
}


@dataclass(frozen=True)
class Word:
    """A token that is found in the text as it is written, before any merging."""

    text: str
    id: int
    special: bool = False  # found only where special tokens are allowed
    normalized: bool = False  # found in the normalized text, after those that are not
    lstrip: bool = False  # takes the white space before it along, and loses it
    rstrip: bool = False  # ... after it


@dataclass(frozen=True)
class Settings:
    """How text is prepared, cut and framed; the defaults are GPT-2's."""

    normalizers: tuple[str, ...] = ()  # of `NORMALIZERS`, in this order
    prefix_space: bool = False  # a text that begins without a space gets one
    cut_words: bool = True  # before merging, as GPT-2 does; False: merges may cross words
    before: tuple[int, ...] = ()  # ids around every text: the template
    after: tuple[int, ...] = ()
    words: tuple[Word, ...] = ()

    def normalize(self, text: str) -> str:
        for name in self.normalizers:
            text = NORMALIZERS[name](text)
        return text

    def to_json(self, named: Mapping[int, str]) -> dict[str, Any]:
        """The parts of a `tokenizer.json` that say this.

        Args:
            named: the text of each id in the template.
        """
        frame = [*self.before, *self.after]
        ids = {named[i]: {"id": named[i], "ids": [i], "tokens": [named[i]]} for i in frame}

        def sequence(name: str) -> list[dict[str, Any]]:
            return [
                *({"SpecialToken": {"id": named[i], "type_id": 0}} for i in self.before),
                {"Sequence": {"id": name, "type_id": 0}},
                *({"SpecialToken": {"id": named[i], "type_id": 0}} for i in self.after),
            ]

        normalizers = [{"type": name} for name in self.normalizers]
        template = {
            "type": "TemplateProcessing",
            "single": sequence("A"),
            "pair": [*sequence("A"), *sequence("B")],
            "special_tokens": ids,
        }
        return {
            "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": self.prefix_space,
                "trim_offsets": True,
                "use_regex": self.cut_words,
            },
            "post_processor": template if frame else None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
        }


class Finder:
    """Finds the longest of some words, from left to right."""

    def __init__(self, words: Mapping[str, Word]) -> None:
        self._words = dict(words)
        longest_first = sorted(self._words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if words else None

    def split(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """The ids of the words in a text, and the pieces of text between them, none empty.

        A special token that is not allowed is text, and no shorter word is found inside it.
        """
        begin = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            word = self._words[match[0]]
            start, end = match.span()
            if word.special and not allow_special:
                continue
            if word.lstrip:
                while start > begin and re.match(SPACE, text[start - 1]):
                    start -= 1
            if word.rstrip:
                found = re.compile(f"{SPACE}*").match(text, end)
                end = found.end() if found else end
            if begin < start:
                yield text[begin:start]
            yield word.id
            begin = end
        if begin < len(text):
            yield text[begin:]


def from_tokenizer_json(content: Mapping[str, Any], where: object) -> Settings:
    """The settings of a `tokenizer.json`, the one-file format of the `tokenizers` library.

    Raises:
        MinigptError: for one that is not honoured here, by its name.
    """
    try:
        model = content["model"]
        for name, fine in {
            "type": (None, "BPE"), "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, ""), "byte_fallback": (None, False),
            "ignore_merges": (None, False),
        }.items():  # fmt: skip
            if model.get(name) not in fine:
                raise _refused(f"model.{name} is {model[name]!r}", where)
        normalizers = [part["type"] for part in _parts(content, "normalizer", "normalizers")]
        for name in normalizers:
            if name not in NORMALIZERS:
                raise _refused(f"its normalizer is {name!r}", where)
        cuts = _parts(content, "pre_tokenizer", "pretokenizers")
        if [cut["type"] for cut in cuts] != ["ByteLevel"]:
            kinds = " and ".join(cut["type"] for cut in cuts) or "nothing"
            raise _refused(f"its pre_tokenizer is {kinds}, and GPT-2's byte-level BPE", where)
        for part in _parts(content, "decoder", "decoders"):
            if part["type"] != "ByteLevel":
                raise _refused(f"its decoder is {part['type']!r}", where)
        before, after = _template(_parts(content, "post_processor", "processors"), where)
        words = tuple(_word(token, token["id"], where) for token in content["added_tokens"])
        return _settled(
            Settings(
                tuple(normalizers), bool(cuts[0].get("add_prefix_space", True)),
                bool(cuts[0].get("use_regex", True)), before, after, words,
            )
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise MinigptError(
            f"the tokenizer.json of {where} is not a byte-level BPE like GPT-2's ({error!r}), and "
            f"no other kind can be read: use a GPT-2-style checkpoint"
        ) from error


def from_small_files(
    config: Mapping[str, Any],
    named: Mapping[str, Any],
    added: Mapping[str, int],
    vocab: Mapping[str, int],
    where: object,
) -> Settings:
    """The settings beside `vocab.json` and `merges.txt`.

    Args:
        config, named, added: of `tokenizer_config.json`, `special_tokens_map.json` and
            `added_tokens.json`; empty where a file is not there.
        vocab: of `vocab.json`.

    Raises:
        MinigptError: for one that is not honoured here, by its name.
    """
    kind = config.get("tokenizer_class")
    if kind is not None and str(kind).removesuffix("Fast") not in CLASSES:
        raise _refused(f"its tokenizer_class is {kind!r}", where)
    try:
        if "added_tokens_decoder" in config:
            tokens = {t["content"]: (int(i), t) for i, t in config["added_tokens_decoder"].items()}
            named = config
        else:
            named = {**config, **named}
            specials = _named(named)
            tokens = {  # whose flags in `named` do not count, as in transformers
                text: (i, {"special": text in specials, "normalized": text not in specials})
                for text, i in added.items()
            }
        ids = {**vocab, **added, **{text: i for text, (i, _) in tokens.items()}}
        for text, flags in _named(named).items():
            if text in ids:
                tokens.setdefault(text, (ids[text], flags))
        words = [_word({"content": text, **flags}, i, where) for text, (i, flags) in tokens.items()]
        frame: dict[str, tuple[int, ...]] = {"bos": (), "eos": ()}
        for end in frame:
            if config.get(f"add_{end}_token"):
                text = _text(named.get(f"{end}_token", END_OF_TEXT))
                if text not in ids:
                    raise _refused(f"add_{end}_token is set, there is no token {text!r}", where)
                frame[end] = (ids[text],)
        space = bool(config.get("add_prefix_space", False))
        return _settled(Settings((), space, True, frame["bos"], frame["eos"], tuple(words)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MinigptError(
            f"the tokenizer's settings in {where} are damaged ({error!r}): get its "
            f"tokenizer_config.json again"
        ) from error


def check_agreement(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a `tokenizer_config.json` that adds what `tokenizer.json` beside it does not have."""
    try:
        extra = [t["content"] for t in config.get("added_tokens_decoder", {}).values()]
    except (TypeError, KeyError, AttributeError):
        raise MinigptError("tokenizer_config.json has a damaged added_tokens_decoder") from None
    missing = [text for text in extra if text not in known]
    if missing:
        raise MinigptError(
            f"tokenizer_config.json adds {missing[0]!r}, which tokenizer.json does not have: save "
            f"the tokenizer again, so that both are of one time"
        )


def _settled(settings: Settings) -> Settings:
    """The same in the simplest words: a flag that makes no difference here is off.

    Without a normalizer all words can be found in one pass, unless some of them come first.
    """
    words = settings.words
    if not settings.normalizers and len({word.normalized for word in words}) == 1:
        words = tuple(Word(w.text, w.id, w.special, False, w.lstrip, w.rstrip) for w in words)
    return replace(settings, words=tuple(sorted(words, key=lambda word: word.id)))


def _parts(content: Mapping[str, Any], name: str, inner: str) -> list[dict[str, Any]]:
    """What a part of the pipeline does, one after another."""
    part = content.get(name)
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [p for each in part[inner] for p in _parts({name: each}, name, inner)]
    return [part]


def _template(
    parts: Sequence[Mapping[str, Any]], where: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text."""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    for part in parts:
        if part["type"] == "ByteLevel":  # about the places of tokens in the text
            continue
        if part["type"] != "TemplateProcessing":
            raise _refused(f"its post_processor is {part['type']!r}", where)
        sides: list[list[int]] = [[]]
        for item in part["single"]:
            if "Sequence" in item:
                sides.append([])
            else:
                sides[-1] += part["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        if len(sides) != 2:
            raise _refused("its template does not name the text once", where)
        before, after = (*sides[0], *before), (*after, *sides[1])
    return before, after


def _named(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The special tokens that a configuration names, and their flags."""
    values = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    values |= {name: value for name, value in config.items() if name.endswith("_token")}
    several = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    if isinstance(several, Mapping):
        several = list(several.values())
    found = {}
    for value in (*values.values(), *several):
        if isinstance(value, (str, Mapping)):
            flags = dict(value) if isinstance(value, Mapping) else {}
            found[_text(value)] = flags | {"special": True}
    return found


def _text(token: Any) -> str:
    return token if isinstance(token, str) else token["content"]


def _word(token: Mapping[str, Any], number: int, where: object) -> Word:
    text = token["content"]
    if not isinstance(text, str) or not text or not is_whole(number) or number < 0:
        raise MinigptError(
            f"{where} adds the token {text!r} with id {number!r}, needed some text and a whole "
            f"number: get the tokenizer's files again"
        )
    if token.get("single_word"):
        raise _refused(f"its added token {text!r} is single_word", where)
    return Word(text, int(number), *(bool(token.get(flag, False)) for flag in FLAGS))


def added_token(word: Word) -> dict[str, Any]:
    """As `tokenizer.json` lists it."""
    flags = {flag: asdict(word)[flag] for flag in FLAGS}
    return {"id": word.id, "content": word.text, "single_word": False, **flags}


def _refused(what: str, where: object) -> MinigptError:
    return MinigptError(
        f"the tokenizer of {where} cannot be honoured: {what} is not supported, and without it the "
        f"tokens would be others: use a checkpoint with GPT-2's settings"
    )
