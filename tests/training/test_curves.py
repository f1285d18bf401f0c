"""The log of a run, and the picture of it."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path

import pytest

from minigpt import MinigptError
from minigpt.training.curves import LOG, PICTURES, Artist, Log, draw, draw_runs, read


def test_rows_are_read_back_exactly(tmp_path):
    with Log(tmp_path) as log:
        log.append(1, loss=math.pi)
        log.append(1, held_out=0.1)
    assert read(tmp_path) == [{"step": 1, "loss": math.pi}, {"step": 1, "held_out": 0.1}]


def test_rows_are_there_before_the_log_is_closed(tmp_path):
    with Log(tmp_path) as log:
        log.append(1, loss=2.0)
        assert len(read(tmp_path)) == 1


def test_a_resumed_log_forgets_what_came_after_and_half_a_line(tmp_path):
    (tmp_path / LOG).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with Log(tmp_path, step=2) as log:
        log.append(3, loss=1.0)
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3]


def test_a_new_run_forgets_all_of_it(tmp_path):
    (tmp_path / LOG).write_text('{"step": 0}\n')
    with Log(tmp_path):
        assert read(tmp_path) == []


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(MinigptError, match="cannot write .*nowhere.*make room there"):
        Log(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": 1.5}', '{"step": 1, "loss": "x"}', "§"])
def test_a_line_that_is_no_row_is_told(tmp_path, line):
    (tmp_path / LOG).write_text(f'{{"step": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(MinigptError, match="line 2 of .* needed an object of numbers with a"):
        read(tmp_path)


ROWS = [
    {"step": 0, "held_out": 3.0, "solved": 0.0},
    *({"step": n, "loss": 3 - n / 100, "norm": 1.0} for n in range(1, 51)),
    {"step": 50, "held_out": 2.5, "solved": 0.5},
]


def written(directory):
    with Log(directory) as log:
        for row in ROWS:
            log.append(**row)


class TestThePicture:
    @pytest.fixture(autouse=True)
    def drawn_by_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_is_a_png_and_an_svg(self, tmp_path):
        written(tmp_path)
        assert draw(tmp_path).read_bytes().startswith(b"\x89PNG")
        svg = (tmp_path / "curves.svg").read_text()
        assert [name for name in PICTURES if (tmp_path / name).is_file()] == list(PICTURES)
        assert svg.rstrip().endswith("</svg>")

    def test_leaves_nothing_else_behind(self, tmp_path):
        written(tmp_path)
        draw(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {LOG, *PICTURES}

    def test_that_is_not_finished_leaves_the_last_one_whole(self, tmp_path, monkeypatch):
        from matplotlib.figure import Figure

        def dying(self, path, **_):
            path.write_bytes(b"half")
            raise OSError("No space left on device")

        written(tmp_path)
        before = draw(tmp_path).read_bytes()
        monkeypatch.setattr(Figure, "savefig", dying)
        with pytest.raises(MinigptError, match="could not be written to .*No space left"):
            draw(tmp_path)
        assert (tmp_path / "curves.png").read_bytes() == before

    def test_of_a_run_that_has_just_begun_is_one(self, tmp_path):
        assert draw_runs({"run": []}, [tmp_path / "a.png"]).is_file()

    def test_is_drawn_seldom_enough_to_leave_the_time_to_training(self, tmp_path, monkeypatch):
        times = iter([0, 1, 2, 3, 21, 22, 23])  # at each look at the clock: drawing takes a second
        drawn = []
        monkeypatch.setattr("minigpt.training.curves.draw", drawn.append)
        artist = Artist(tmp_path, lambda: next(times))
        for _ in range(4):  # at 1, which is too soon, at 2, at 21 and at 22
            artist()
        assert len(drawn) == 2


REWARDED = [
    {"step": 0, "solved": 0.1},
    {"step": 1, "loss": 0.0, "reward": 0.5, "ratio_error": 0.0, "norm": 1.0},
]


def test_a_run_that_learns_from_rewards_has_both_pictures_too(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / LOG).write_text("".join(json.dumps(row) + "\n" for row in REWARDED))
    assert draw(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert "sampled answers' reward" in titles_in(tmp_path / PICTURES[1])


def test_of_rewards_no_loss_is_drawn_beside_those_of_other_runs(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": 0, "held_out": 3.0}, {"step": 1, "loss": 2.0}]
    both = draw_runs({"taught": rows, "paid": REWARDED}, [tmp_path / "both.svg"])
    assert {"taught: training", "paid", "reward"} <= titles_in(both)
    assert "paid: training" not in titles_in(both)
    paid = draw_runs({"a": REWARDED, "b": REWARDED}, [tmp_path / "paid.svg"])
    assert {"a: reward", "b: solved"} <= titles_in(paid)


def titles_in(picture: Path) -> set[str]:
    """What an SVG of ours says: each text stands beside its letters' shapes, as a comment."""
    return set(re.findall(r"<!-- (.*?) -->", picture.read_text()))


def without(monkeypatch, library):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith(library):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)


def test_there_is_no_picture_without_matplotlib(tmp_path, monkeypatch):
    without(monkeypatch, "matplotlib")
    assert draw(tmp_path) is None


def test_tensorboard_is_asked_for_by_name_when_missing(tmp_path, monkeypatch):
    without(monkeypatch, "torch.utils.tensorboard")
    with pytest.raises(MinigptError, match="pip install tensorboard"):
        Log(tmp_path, tensorboard=True)
