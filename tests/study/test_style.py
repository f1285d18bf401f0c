"""The house style: what is written can be read, and the file is a picture."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from minigpt import MinigptError
from minigpt.study import style
from minigpt.study.spoken import speak
from minigpt.study.style import (
    COLOURS,
    GREY,
    INK,
    STYLE,
    contrasting,
    draw_matrix,
    drawing,
    hangul,
)


def contrast(one, other):
    """Between two colours, as WCAG 2 defines it."""
    lights = []
    for colour in (one, other):
        rgb = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        lights.append(0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2] + 0.05)
    return max(lights) / min(lights)


@pytest.mark.parametrize("colour", [*COLOURS, INK, GREY])
def test_every_colour_reads_on_the_background(colour):
    assert contrast(colour, STYLE["figure.facecolor"]) >= 4.5
    assert STYLE["figure.facecolor"] == STYLE["axes.facecolor"] == STYLE["savefig.facecolor"]


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_written_in_a_cell_reads_on_its_colour(signed):
    with drawing(None, 1, 1, (3, 3)) as figure:
        image = draw_matrix(figure.axes[0], torch.zeros(1, 1), 1.0, signed)
        for number in torch.linspace(-1 if signed else 0, 1, 50).tolist():
            colour = image.cmap(image.norm(number))
            assert contrast(contrasting(image, number), colour) >= 4.5


def test_zero_is_white_where_numbers_have_signs_and_nothing_is_drawn_where_there_is_none():
    with drawing(None, 1, 1, (3, 3)) as figure:
        numbers = torch.tensor([[-2.0, 0.0, torch.nan]])
        image = draw_matrix(figure.axes[0], numbers, 2.0, signed=True)
        assert image.norm.vmin == -image.norm.vmax == -2.0
        red, green, blue, _ = image.cmap(image.norm(0.0))
        assert min(red, green, blue) > 0.95
        assert image.get_array().mask.tolist() == [[False, False, True]]


@pytest.mark.parametrize("count", [3, 40, 400])
def test_labels_never_touch(count):
    with drawing(None, 1, 1, (4, 3)) as figure:
        (axes,) = figure.axes
        axes.set_xticks(range(count), [f"label {n}" for n in range(count)])
        axes.set_yticks(range(count), [f"label {n}" for n in range(count)])
    for axis in (axes.xaxis, axes.yaxis):
        shown = [tick.label1 for tick in axis.get_major_ticks() if tick.get_visible()]
        boxes = [label.get_window_extent() for label in shown]
        assert 2 <= len(boxes) <= count
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
        assert len(boxes) == count or count > 3


def test_a_dollar_is_a_dollar(tmp_path):
    with drawing(tmp_path / "maths.svg", 1, 1, (3, 3)) as figure:
        figure.axes[0].set_xticks([0, 1], ["$\\no{$", "b"])


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_file_is_of_the_kind_that_its_name_says_and_has_the_words(tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    with drawing(path, 1, 1, (3, 2)) as figure:
        figure.alt = "A line that <rises>."
    content = path.read_bytes()
    assert content.startswith(start)
    assert (b"<title>A line that &lt;rises&gt;.</title>" in content) == (suffix == "svg")
    assert (b"A line that <rises>." in content) == (suffix == "png")


def test_a_png_has_150_dots_per_inch(tmp_path):
    with drawing(tmp_path / "picture.png", 1, 1, (3, 2)):
        pass
    size = (tmp_path / "picture.png").read_bytes()[16:24]  # big-endian width and height
    assert [int.from_bytes(part, "big") for part in (size[:4], size[4:])] == [450, 300]


def test_a_notebook_gets_the_words_with_the_image():
    with drawing(None, 1, 1, (3, 2)) as figure:
        figure.alt = "A line."
    _, metadata = figure._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": "A line."}}


def test_another_suffix_is_refused(tmp_path):
    with (
        pytest.raises(MinigptError, match=r"does not end in \.png or \.svg"),
        drawing(tmp_path / "picture.pdf", 1, 1, (3, 2)),
    ):
        pass


def test_the_file_needs_a_place(tmp_path):
    with (
        pytest.raises(MinigptError, match="could not be written to .*nowhere"),
        drawing(tmp_path / "nowhere" / "picture.png", 1, 1, (3, 2)),
    ):
        pass


def test_without_matplotlib_it_says_how_to_install_it():
    code = "import sys; sys.modules['matplotlib'] = None; import minigpt.study.plot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("pip install minigpt[plots]")
    assert "MinigptError" in done.stderr.splitlines()[-1]


class TestLanguages:
    @pytest.fixture(autouse=True)
    def english_again(self):
        yield
        speak("en")

    def drawn(self):
        with drawing(None, 1, 1, (3, 2)) as figure:
            (axes,) = figure.axes
            axes.plot([0, 1], label="without")
            axes.set(title="layer 3, head 5", xlabel="new tokens", ylabel="no such label")
            axes.set_xticks([0, 1], ["keys", " time"])
            axes.legend()
            figure.suptitle("head 2")
        ticks = [tick.get_text() for tick in axes.get_xticklabels()]
        (legend,) = axes.get_legend().get_texts()
        words = [figure.get_suptitle(), axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        return [*words, legend.get_text(), *ticks]

    def test_words_are_translated_and_tokens_are_not(self):
        tokens = ["keys", " time"]
        assert self.drawn()[2:] == ["new tokens", "no such label", "without", *tokens]
        speak("vi")
        words = ["đầu 2", "tầng 3, đầu 5", "token mới", "no such label", "không có cache"]
        assert self.drawn() == [*words, *tokens]

    @pytest.mark.parametrize(("fonts", "said"), [(["DejaVu Serif"], "새 토큰"), ([], "new tokens")])
    def test_korean_needs_a_font_and_is_english_without(self, monkeypatch, fonts, said):
        monkeypatch.setattr(style, "hangul", lambda: fonts)
        speak("ko")
        with pytest.warns(UserWarning, match="missing") if fonts else nullcontext():
            assert self.drawn()[2] == said

    def test_the_first_font_that_is_installed_is_taken(self, monkeypatch):
        monkeypatch.setattr(style, "HANGUL", ("No Such Font", "DejaVu Sans Mono", "DejaVu Serif"))
        hangul.cache_clear()
        assert hangul() == ["DejaVu Sans Mono"]
        hangul.cache_clear()
