"""The reader's language: said once, kept, complete, and filled in."""

from __future__ import annotations

import ast
import re

import pytest

from minigpt import MinigptError
from minigpt.study import lessons
from minigpt.study.plot_words import LABELS
from minigpt.study.spoken import PHRASES, label, language, say, speak
from tests.helpers import ROOT


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
    assert PHRASES["vi"].keys() == PHRASES["ko"].keys()
    assert LABELS["vi"].keys() == LABELS["ko"].keys()
    for phrases in (*PHRASES.values(), *LABELS.values()):
        for english, phrase in phrases.items():
            fields = [sorted(re.findall(r"{\w+}", text)) for text in (english, phrase)]
            assert fields[0] == fields[1], english


def test_checks_speak_it(capsys):
    speak("vi")

    @lessons.check
    def _():
        lessons.compare(None, None, {}, "")

    assert capsys.readouterr().out == "chưa đúng: hãy viết câu trả lời thay cho ...\n"


def test_a_label_is_found_by_its_words_around_the_numbers():
    speak("vi")
    assert label("new tokens") == "token mới"
    assert label("layer 2, head 5") == "tầng 2, đầu 5"
    assert label("gpt2-xl: 614.4 kB per token") == "gpt2-xl: 614.4 kB mỗi token"
    assert label("a label that nobody translated") == "a label that nobody translated"


def written_at_axes(source: str) -> set[str]:
    """The texts that drawing code gives to titles, axes, legends and scales, 1 for each field."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        texts = [k.value for k in call.keywords if k.arg in ("title", "xlabel", "ylabel", "label")]
        if getattr(call.func, "attr", "") in ("set_title", "set_label", "suptitle", "local"):
            texts += call.args
        for text in texts:
            if isinstance(text, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "1" for p in text.values)
                found.add("".join(map(str, parts)))
            elif isinstance(text, ast.Constant):
                found.add(text.value)
    return found


def test_every_label_of_the_pictures_has_a_translation():
    written = written_at_axes((ROOT / "minigpt" / "study" / "plot.py").read_text("utf-8"))
    assert len(written) > 20
    for word in LABELS:
        speak(word)
        assert {text for text in written if label(text) == text} <= {"prefill"}
