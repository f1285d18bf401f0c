"""What was measured, drawn: bars are medians, and no sample is left out."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from minigpt import MinigptError
from minigpt.bench.measure import Row, Section, Table
from minigpt.bench.picture import draw_table
from minigpt.commands.cli import main


@pytest.fixture
def table():
    rows = [
        Row("batch 1      limit", [2.0, 1.0, 3.0], "ms"),
        Row("batch 1      minigpt fast", [4.0, 9.0, 5.0], "ms"),
        Row("batch 1      transformers", [8.0, 6.0, 7.0], "ms"),
    ]
    alone = Section("limits", "one row", rows[:1])
    return Table({}, 3, [Section("decode", "time of a step", rows), alone])


def test_bars_are_medians_and_a_single_row_is_no_comparison(table):
    (axes,) = draw_table(table).axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, 5.0, 7.0]
    assert axes.get_xlabel() == "ms"


def test_every_sample_is_a_point(table):
    (axes,) = draw_table(table).axes
    points = [line.get_xdata().tolist() for line in axes.lines]
    assert points == [row.samples for row in table.sections[0].rows]


def test_nothing_to_compare_is_refused(table):
    with pytest.raises(MinigptError, match="nothing was measured that could be compared"):
        draw_table(Table({}, 3, table.sections[1:]))


def test_a_wrong_suffix_is_refused_before_measuring(capsys):
    assert main(["bench", "--model", "random:nano", "--plot", "bench.pdf"]) == 2
    assert "needed one of them for a picture" in capsys.readouterr().err
