"""What everything leans on: numbers that count as numbers, tables of any width, words, files."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from minigpt import MinigptError
from minigpt.support import memory
from minigpt.support.checks import is_number, is_whole, whole
from minigpt.support.files import read_json
from minigpt.support.tables import table
from minigpt.support.wording import counted, meant


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), 5 + 2**70])
def test_whole_numbers_may_be_numpys(value):
    assert is_whole(value)
    found = whole("n", value)
    assert type(found) is int
    assert found == value


@pytest.mark.parametrize("value", [True, np.True_, 5.0, "5", None, np.float64(5), [5]])
def test_what_only_looks_like_a_whole_number_is_none(value):
    assert not is_whole(value)
    with pytest.raises(MinigptError, match="^n is .*, needed a whole number of at least 1$"):
        whole("n", value)


@pytest.mark.parametrize("value", [0.7, np.float32(0.7), np.float16(1), 3, np.int32(3), 2**62])
def test_numbers_may_be_numpys(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [False, np.False_, "1", None, 1j, Fraction(1, 2), 2**63])
def test_what_no_tensor_could_hold_is_no_number(value):
    assert not is_number(value)


@pytest.mark.parametrize(
    ("limits", "value", "sentence"),
    [
        ((), 0, "n is 0, needed a whole number of at least 1"),
        ((0,), -1, "n is -1, needed a whole number of at least 0"),
        ((0, 9), 10, "n is 10, needed a whole number from 0 to 9"),
        ((0, 2**63 - 1), -1, "n is -1, needed a whole number from 0 to 2**63 - 1"),
        ((1, 4, "it has 4 rows"), 5, "n is 5, needed a whole number from 1 to 4: it has 4 rows"),
    ],
)
def test_a_whole_number_out_of_its_limits_is_told_with_them(limits, value, sentence):
    with pytest.raises(MinigptError) as told:
        whole("n", value, *limits)
    assert str(told.value) == sentence


class TestATable:
    HEADINGS = ("kind", "bytes", "per token", "loss")
    ROWS = (("static", "1,024", "64", "1.5"), ("paged", "98", "64", "1.25"))

    def test_has_names_to_the_left_and_numbers_to_the_right(self):
        assert table(self.HEADINGS, self.ROWS).splitlines() == [
            "kind    bytes  per token  loss",
            "static  1,024         64   1.5",
            "paged      98         64  1.25",
        ]

    def test_too_wide_for_a_line_goes_on_below(self):
        assert table(self.HEADINGS, self.ROWS, width=24).splitlines() == [
            "kind    bytes  per token",
            "static  1,024         64",
            "paged      98         64",
            "",
            "kind    loss",
            "static   1.5",
            "paged   1.25",
        ]

    def test_too_wide_for_two_columns_is_a_list(self):
        assert table(self.HEADINGS, self.ROWS[:1], width=16).splitlines() == [
            "static",
            "  bytes    1,024",
            "  per token   64",
            "  loss       1.5",
        ]

    def test_may_be_named_by_several_columns_and_have_short_rows(self):
        lines = table(("a", "b", "c", "d"), [("x", "long", "1"), ("y", "", "2", "3")], left=2)
        assert lines.splitlines() == ["a  b     c  d", "x  long  1", "y        2  3"]

    @pytest.mark.parametrize("width", [16, 20, 30, 40, 120])
    def test_fits_the_line(self, width):
        lines = table(self.HEADINGS, self.ROWS, width=width).splitlines()
        assert max(map(len, lines)) <= width
        cells = {cell for row in self.ROWS for cell in row}
        assert cells <= {word for line in lines for word in line.split()}

    def test_asks_the_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "16")
        assert table(self.HEADINGS, self.ROWS) == table(self.HEADINGS, self.ROWS, width=16)


def test_one_is_singular():
    assert counted(1, "token") == "1 token"
    assert counted(0, "token") == "0 tokens"
    assert counted(2048, "token") == "2,048 tokens"
    assert counted(2, "guess", "guesses") == "2 guesses"


def test_a_mistyped_word_is_answered_with_the_nearest_known_one():
    assert meant("sede", ["seed", "stop"]) == ", did you mean 'seed'?"
    assert meant("zzz", ["seed", "stop"]) == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist: copy it again"),
        (b"{", r"is not valid JSON \(Expecting .*\): copy it again"),
        (b"\xff", "is not valid JSON .*: copy it again"),
        (b"[" * 90_000, "is not valid JSON .*: copy it again"),
        (b"1" * 100_001, r"is not valid JSON \(it has 100,001 bytes, needed at most 100,000\)"),
    ],
)
def test_json_that_cannot_be_read_is_told_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MinigptError, match=f"file.json {sentence}"):
        read_json(path, 100_000)


def test_json_may_follow_a_note(tmp_path):
    (tmp_path / "file.json").write_text('// note\n{"a": 1}')
    assert read_json(tmp_path / "file.json", 100, prefix="// note\n") == {"a": 1}


def test_memory_in_use_grows_with_what_is_held():
    before = memory.process_memory()
    if before is None:
        pytest.skip("this system does not tell")
    held = torch.ones(2**24)  # 64 MiB
    assert memory.process_memory() - before > 0.9 * held.nbytes
    now = memory.process_memory()
    assert memory.process_memory(peak=True) >= now
    assert memory.available_memory(torch.device("cpu")) > 0
