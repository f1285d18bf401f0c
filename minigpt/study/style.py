"""The house style of all figures: one palette, one frame, one way to finish and to save.

Colours have a contrast of at least 4.5 to 1 with the white that they stand on, and are told apart
by colour-blind readers too; lines and bars also differ in dashes and hatches. Importing this needs
matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minigpt.study.spoken import label, language
from minigpt.support.errors import MinigptError

try:
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.image import AxesImage
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox
except ImportError as error:
    raise MinigptError(
        "pictures need matplotlib, which is not installed: pip install minigpt[plots]"
    ) from error

COLOURS = ("#0072B2", "#B34700", "#007A5E", "#A3256B", "#6B6400", "#6A51A3")  # as Okabe and Ito's,
# but that their lighter ones are darkened
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
INK, GREY = "#333333", "#6B6B6B"  # text; frames, and what is beside the point
AMOUNTS, SIGNED = "cividis", "RdBu_r"  # maps of colours; the second is white at 0
STYLE: Any = {  # for `matplotlib.rcParams`
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "hatch.color", "grid.color"), GREY),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
    **dict.fromkeys(("figure.dpi", "savefig.dpi"), 150),
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.5,
    "image.aspect": "auto",
    "image.interpolation": "nearest",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,  # a token may be a dollar
}
HANGUL = (  # fonts that have Korean, one of which most systems have; matplotlib's own has none
    "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
    "AppleGothic", "Noto Sans CJK JP", "UnDotum", "Baekmuk Dotum",
)  # fmt: skip


class Picture(Figure):
    """A figure of its own, not of `pyplot`, whose figures live until they are closed."""

    alt = ""  # what it shows, in words, for those who cannot see it

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """For a notebook: the words, which go with the image that matplotlib makes."""
        return {"text/plain": repr(self)}, {"image/png": {"alt": self.alt}}


@contextmanager
def drawing(
    path: str | Path | None, rows: int, columns: int, size: tuple[float, float], **layout: Any
) -> Iterator[Picture]:
    """A figure of rows x columns axes to draw in; when the block ends it is finished, and saved.

    Args:
        path: where to save it, *.png or *.svg; None: nowhere.
        size: width and height, in inches.
        layout: more for `Figure.subplots`.

    Raises:
        MinigptError: for another suffix, or when the file cannot be written.
    """
    check_suffix(path)
    with mpl.rc_context({**STYLE, "font.family": ["DejaVu Sans", *hangul()]}):
        figure = Picture(figsize=size, layout="constrained")
        figure.subplots(rows, columns, **layout)
        yield figure
        translate(figure)
        figure.draw_without_rendering()  # now every label has its place
        for axes in figure.axes:
            thin_out(axes.xaxis)
            thin_out(axes.yaxis)
        if path is not None:
            metadata = {"Title": figure.alt}
            if Path(path).suffix.lower() == ".svg":
                metadata["Date"] = None  # type: ignore[assignment]  # so that files repeat
            try:
                figure.savefig(path, metadata=metadata)
            except OSError as error:
                raise MinigptError(
                    f"the picture could not be written to {path} ({error})"
                ) from error


def translate(figure: Figure) -> None:
    """Titles, axes and legends in the reader's language. Ticks say the model's own tokens."""
    texts: list[Text | None] = [figure._suptitle]  # type: ignore[attr-defined]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
    for legend in legends:
        texts += legend.get_texts() if legend else []
    for text in texts:
        if text is not None:
            text.set_text(local(text.get_text()))


def local(words: str) -> str:
    """Words for a picture in the reader's language, as far as there is a font for it."""
    return words if language() == "ko" and not hangul() else label(words)


@cache
def hangul() -> list[str]:
    """The first font that has Korean, if one is installed."""
    installed = set(fontManager.get_font_names())
    return [name for name in HANGUL if name in installed][:1]


def check_suffix(path: str | Path | None) -> None:
    """Refuse now the file that a picture would refuse later.

    Raises:
        MinigptError: for it.
    """
    if path is not None and Path(path).suffix.lower() not in (".png", ".svg"):
        raise MinigptError(f"{path} does not end in .png or .svg, needed one of them for a picture")


def thin_out(axis: Axis) -> None:
    """Hide ticks, evenly, until no label touches its neighbour."""
    ticks = [t for t in axis.get_major_ticks() if t.label1.get_visible() and t.label1.get_text()]
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    step = 1
    while step < len(boxes) and _touch(boxes[::step]):
        step += 1
    for number, tick in enumerate(ticks):
        tick.set_visible(number % step == 0)


def _touch(boxes: list[Bbox]) -> bool:
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def draw_matrix(axes: Axes, numbers: Tensor, most: float, signed: bool) -> AxesImage:
    """Numbers (rows, columns) as colours, up to `most`; NaN stays blank."""
    low, colours = (-most, SIGNED) if signed else (0.0, AMOUNTS)
    return axes.imshow(numbers.numpy(), cmap=colours, vmin=low, vmax=most)


def contrasting(image: AxesImage, number: float) -> str:
    """Black or white, whichever reads better on the colour of a number."""
    rgb = image.to_rgba(np.array([number]))[0, :3]
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = light @ (0.2126, 0.7152, 0.0722)  # as WCAG 2 defines it
    return "black" if luminance > 0.179 else "white"
