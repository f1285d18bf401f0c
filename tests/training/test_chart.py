"""Curves as text: where what was measured is drawn."""

from __future__ import annotations

from itertools import pairwise

from minigpt.training.chart import ROWS, chart_lines, told, trend

STRAIGHT = [
    {"step": 0, "held_out": 4.0},
    *({"step": n, "loss": 4 - n / 50, "norm": 1.0} for n in range(1, 101)),
    {"step": 100, "held_out": 2.0},
]


def canvas(lines: list[str], columns: int = 100) -> list[str]:
    """What is drawn, without the axis on its left and what stands on its right."""
    return [line[9 : columns - 53].ljust(columns - 62) for line in lines[:ROWS]]


def test_no_line_is_longer_than_asked_for():
    assert max(map(len, chart_lines(STRAIGHT, 100, 100))) <= 100
    assert max(map(len, chart_lines(STRAIGHT, 10**9, 140))) <= 140


def test_a_loss_that_falls_evenly_is_a_line_from_one_corner_to_the_other():
    drawn = canvas(chart_lines(STRAIGHT, 100, 100))
    places = [min(n for n, c in enumerate(line) if c != " ") for line in drawn]
    steps = [b - a for a, b in pairwise(places)]
    assert places[0] == 0
    assert max(steps) - min(steps) <= 2


def test_a_loss_that_falls_at_once_is_a_line_without_a_gap():
    rows = [{"step": n, "loss": 4.0 if n < 50 else 2.0} for n in range(1, 101)]
    assert all(line.strip() for line in canvas(chart_lines(rows, 100, 100)))


def test_held_out_losses_stand_where_they_were_measured():
    drawn = canvas(chart_lines(STRAIGHT, 100, 100))
    assert (drawn[0][0], drawn[-1].rstrip()[-1]) == ("o", "o")
    assert "".join(drawn).count("o") == 2


def test_half_of_a_run_fills_half_of_the_width():
    drawn = canvas(chart_lines(STRAIGHT, 200, 100))
    furthest = max(len(line.rstrip()) for line in drawn)
    assert abs(furthest - len(drawn[0]) / 2) <= 1


def test_the_edges_tell_the_losses_there():
    lines = chart_lines(STRAIGHT, 100, 100)
    assert (lines[0].split()[0], lines[ROWS - 1].split()[0]) == ("4", "2")


def test_what_was_measured_last_stands_beside():
    shown = "\n".join(chart_lines(STRAIGHT, 100, 100))
    assert "held-out loss      2.0000" in shown
    assert "training loss      2.0000" in shown
    assert "solved" not in shown  # which nobody measured


def test_a_run_without_any_rows_has_a_chart():
    assert len(chart_lines([], 100, 100)) == ROWS + 2


def test_a_loss_that_is_no_number_is_left_out():
    drawn = canvas(chart_lines([*STRAIGHT, {"step": 50, "held_out": float("nan")}], 100, 100))
    assert "".join(drawn).count("o") == 2


def test_a_trend_goes_from_the_least_to_the_greatest():
    assert trend([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert trend(range(1000), width=4) == "▁▃▆█"
    assert trend([5.0]) == "▅"


def test_a_row_is_told_in_a_line():
    row = {"step": 3, "held_out": 1.23456, "solved": 0.125}
    assert told(row) == "held-out loss 1.2346, solved exactly 12.5%"
