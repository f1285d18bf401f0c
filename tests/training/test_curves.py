"""The log of a run, and the picture of it."""

from __future__ import annotations

import builtins
import math

import pytest

from minigpt import MinigptError
from minigpt.training.curves import LOG, Log, draw, draw_rewards, read


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


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / LOG).write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "held_out": 2.5}\n')
    assert draw(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_rewards_is_a_png_too(tmp_path):
    pytest.importorskip("matplotlib")
    rows = '{"step": 0, "solved": 0.1}\n{"step": 1, "reward": 0.5, "ratio_error": 0.0}\n'
    (tmp_path / LOG).write_text(rows)
    assert draw_rewards(tmp_path).read_bytes().startswith(b"\x89PNG")


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
