"""The reader's language: said once, kept, complete, and filled in."""

from __future__ import annotations

import re

import pytest

from minigpt import MinigptError
from minigpt.study import lessons
from minigpt.study.spoken import PHRASES, language, say, speak


@pytest.fixture(autouse=True)
def english_again():
    yield
    speak("en")


def test_phrases_are_english_until_another_language_is_asked_for():
    assert say("right!") == "right!"
    speak("ko")
    assert (language(), say("right!")) == ("ko", "정답입니다!")


def test_what_is_named_in_a_phrase_is_filled_in():
    speak("vi")
    assert say("a {kind}, needed a tensor", kind="list") == "đây là list, nhưng cần một tensor"


def test_a_language_that_nobody_has_written_is_refused_in_a_sentence():
    with pytest.raises(MinigptError, match="language is 'xx', needed one of en, vi, ko"):
        speak("xx")


def test_every_language_has_the_same_phrases_with_the_same_fields():
    first, *others = PHRASES.values()
    assert all(other.keys() == first.keys() for other in others)
    for phrases in PHRASES.values():
        for english, phrase in phrases.items():
            fields = [sorted(re.findall(r"{\w+}", text)) for text in (english, phrase)]
            assert fields[0] == fields[1], english


def test_checks_speak_it(capsys):
    speak("vi")

    @lessons.check
    def _():
        lessons.compare(None, None, {}, "")

    assert capsys.readouterr().out == "chưa đúng: hãy viết câu trả lời thay cho ...\n"
