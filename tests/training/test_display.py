"""What a run shows: a chart where there is room, else a bar, and lines for files and pipes."""

from __future__ import annotations

import io
import os
import sys

import pytest

from minigpt.training import display
from minigpt.training.display import Bar, Chart, display_for


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Pipe(Terminal):
    def isatty(self) -> bool:
        return False


class Old(Terminal):
    encoding = "latin-1"


@pytest.fixture
def shown(monkeypatch):
    """shown(Terminal, 120, 40): what we say goes to such a thing of so many columns and lines."""

    def set_up(kind=Terminal, columns=120, lines=40):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(
            display.shutil, "get_terminal_size", lambda *_: os.terminal_size((columns, lines))
        )
        monkeypatch.setattr(sys, "stderr", kind())
        return sys.stderr

    return set_up


def screen(text: str) -> list[str]:
    """The lines that a terminal would show in the end."""
    lines, row, column = [""], 0, 0
    while text:
        if text.startswith("\033["):
            end = next(n for n, c in enumerate(text[2:], 2) if c.isalpha())
            if text[end] == "A":
                row -= int(text[2:end])
            else:
                assert text[2 : end + 1] == "J"
                lines = [*lines[:row], lines[row][:column]]
            text = text[end + 1 :]
        elif text[0] == "\n":
            row, column, text = row + 1, 0, text[1:]
            lines += [""] * (row + 1 - len(lines))
        elif text[0] == "\r":
            column, text = 0, text[1:]
        else:
            lines[row] = lines[row][:column] + text[0] + lines[row][column + 1 :]
            column, text = column + 1, text[1:]
    return lines


@pytest.mark.parametrize(
    ("kind", "columns", "lines", "expected"),
    [(Terminal, 100, 20, Chart), (Terminal, 99, 40, Bar), (Terminal, 120, 19, Bar),
     (Pipe, 120, 40, Bar), (Old, 120, 40, Bar)],
)  # fmt: skip
def test_a_chart_is_for_terminals_with_room_that_can_show_it(shown, kind, columns, lines, expected):
    shown(kind, columns, lines)
    assert isinstance(display_for(0, 9, [], print, True), expected)


def test_a_process_that_shall_show_nothing_has_no_chart(shown):
    stderr = shown()
    quiet = display_for(0, 9, [], print, False)
    quiet.step({"step": 1, "loss": 1.0, "tokens_per_second": 1.0}, 1.0)
    quiet.close()
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("columns", "wanted"), [(40, ["reward 0.500", "50%"]), (80, ["reward 0.500", "5,000 tokens/s"])]
)
def test_what_matters_most_is_in_the_bar_of_a_narrow_terminal(monkeypatch, columns, wanted):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 20))
    bar = Bar(499, 1000, print, average="reward")
    bar.step({"step": 500, "tokens_per_second": 5000.0}, 0.5)
    bar.close()  # draws it a last time
    last = stderr.getvalue().split("\r")[-1]
    assert [word for word in wanted if word not in last] == []


def taken(stderr: Terminal, steps: int) -> Chart:
    chart = Chart(0, 10, [], lambda line: print(line, file=stderr))
    for n in range(1, steps + 1):
        chart.step({"step": n, "loss": 5.0 - n / 10, "tokens_per_second": 1e4}, 5.0)
        chart.draw()
    return chart


class TestTheChart:
    def test_stands_once_on_the_screen_however_often_it_was_drawn(self, shown):
        stderr = shown()
        taken(stderr, 7).close()
        lines = screen(stderr.getvalue())
        assert sum("training loss" in line for line in lines) == 1
        assert sum(line.startswith("training  70%  7 of 10 steps") for line in lines) == 1

    def test_stays_below_the_lines_that_are_said(self, shown):
        stderr = shown()
        chart = taken(stderr, 3)
        chart.say("step 3: one")
        chart.say("step 3: two")
        chart.close()
        lines = screen(stderr.getvalue())
        assert lines[:2] == ["step 3: one", "step 3: two"]
        assert sum("training loss" in line for line in lines) == 1

    def test_fits_into_the_terminal(self, shown):
        stderr = shown()
        taken(stderr, 3).close()
        assert max(map(len, screen(stderr.getvalue()))) < 120

    def test_begins_with_the_rows_of_a_run_that_goes_on(self, shown):
        stderr = shown()
        rows = [{"step": n, "loss": 9.0} for n in range(1, 6)]
        Chart(5, 10, rows, print).draw()
        assert "training loss      9.0000" in stderr.getvalue()
