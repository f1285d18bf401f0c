"""Tables fit the line, however short it is."""

from __future__ import annotations

import pytest

from minigpt.support.tables import table


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
