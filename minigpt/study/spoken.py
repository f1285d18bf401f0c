"""The language that the lessons speak: hints, labels in pictures, words in diagrams.

A lesson's first cell says it once, with `speak`; from then on `say` translates. That is the one
setting here that outlives a call: it belongs to the reader, whom a process has one of.
"""

from __future__ import annotations

import re
from functools import cache

from minigpt.study.plot_words import LABELS
from minigpt.support.errors import MinigptError

FIELD = re.compile(r"{\w+}")
_spoken = {"language": "en"}


def speak(language: str) -> None:
    """Say everything in this language from now on.

    Raises:
        MinigptError: for a language that has no translations.
    """
    if language != "en" and language not in PHRASES:
        known = ", ".join(["en", *PHRASES])
        raise MinigptError(f"language is {language!r}, needed one of {known}")
    _spoken["language"] = language


def language() -> str:
    """The language that was asked for last; English before."""
    return _spoken["language"]


def say(english: str, **values: object) -> str:
    """A phrase in the reader's language, with {names} filled in.

    Raises:
        KeyError: if the phrase has no translation into it.
    """
    phrase = english if language() == "en" else PHRASES[language()][english]
    return phrase.format(**values) if values else phrase


def label(english: str) -> str:
    """What stands at an axis, in the reader's language; what has no translation stays as it is."""
    for pattern, phrase in _labels(language()):
        if found := pattern.fullmatch(english):
            return phrase.format(**found.groupdict())
    return english


@cache
def _labels(language: str) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of the labels, with a group for each field; the most particular first."""

    def words(pair: tuple[str, str]) -> int:
        return len(FIELD.sub("", pair[0]))

    labels = sorted(LABELS.get(language, {}).items(), key=words, reverse=True)
    return [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(english))), phrase)
        for english, phrase in labels
    ]


PHRASES: dict[str, dict[str, str]] = {
    "vi": {
        "right!": "đúng rồi!",
        "not yet: {hint}": "chưa đúng: {hint}",
        "put your answer in place of ...": "hãy viết câu trả lời thay cho ...",
        "a {kind}, needed a tensor": "đây là {kind}, nhưng cần một tensor",
        "shape {found}, needed {needed}": "shape là {found}, nhưng cần {needed}",
        "NaN: a row of -inf only, or a division of 0 by 0": (
            "NaN: có hàng chỉ toàn -inf, hoặc 0 chia cho 0"
        ),
    },
    "ko": {
        "right!": "정답입니다!",
        "not yet: {hint}": "아직 아닙니다: {hint}",
        "put your answer in place of ...": "... 자리에 답을 쓰십시오",
        "a {kind}, needed a tensor": "{kind}입니다. 텐서가 필요합니다",
        "shape {found}, needed {needed}": "shape는 {found}인데 {needed}이어야 합니다",
        "NaN: a row of -inf only, or a division of 0 by 0": (
            "NaN: 행 전체가 -inf이거나 0을 0으로 나누었습니다"
        ),
    },
}
