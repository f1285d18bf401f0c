"""Diagrams of a model and its cache as SVG; long because each is drawn from the model's own shape.

They stand in the lessons (an object draws itself in a notebook), in the README (files that `write`
makes) and in pages (`svg` can be pasted into HTML), all from here. A diagram brings its own paper,
so it reads on any page; it turns dark where the reader's system is dark; what colours say is said
by signs as well; and its title and description stand for it where it cannot be seen.

Letters are those of `model.py`. Words come from `diagram_words.py`, in the reader's language.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from minigpt.config import GPTConfig
from minigpt.study import spoken
from minigpt.study.diagram_words import WORDS
from minigpt.support.errors import MinigptError
from minigpt.support.files import write_text

WIDTH = 560  # of all diagrams: on a phone that is 360 wide, 15 units of text are 10 pixels
STYLE = (
    ".mg{--paper:#fff;--ink:#1b1f24;--soft:#4d555e;--line:#6e7781;--new:#0072b2;--on-new:#fff;"
    "--kept:#cfe5f4;--on-kept:#1b1f24;--mark:#a34a00}"
    "@media(prefers-color-scheme:dark){.mg{--paper:#10151c;--ink:#e6edf3;--soft:#b3bdc7;"
    "--line:#8b949e;--new:#56b4e9;--on-new:#10151c;--kept:#1d4059;--on-kept:#e6edf3;"
    "--mark:#f0a35e}}"
    ".mg text{font:15px system-ui,'Noto Sans',sans-serif;fill:var(--ink)}"
    ".mg .shape{font-family:ui-monospace,'DejaVu Sans Mono',monospace;font-size:13px;"
    "fill:var(--soft)}"
    ".mg .head{font-weight:600}.mg .mark{fill:var(--mark)}.mg .small{font-size:13px}"
    ".mg .on-new{fill:var(--on-new)}.mg .on-kept{fill:var(--on-kept)}"
    ".mg .paper{fill:var(--paper)}.mg .box{fill:none;stroke:var(--line);stroke-width:1.5}"
    ".mg .new{fill:var(--new);stroke:var(--new)}.mg .kept{fill:var(--kept);stroke:var(--line)}"
    ".mg .empty{fill:none;stroke:var(--line);stroke-dasharray:2 3}"
    ".mg .line{fill:none;stroke:var(--line);stroke-width:1.5}"
    ".mg .stream{fill:none;stroke:var(--new);stroke-width:4}.mg .tip{fill:var(--line)}"
)
NEW, KEPT = "●", "·"


@dataclass(frozen=True)
class Diagram:
    """One picture: `svg` is all of it, `title` and `description` say it in words."""

    name: str  # of its file, without a suffix
    title: str
    description: str
    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:  # what a notebook keeps beside the picture, for who cannot see it
        return f"{self.title}. {self.description}"


class _Canvas:
    """Shapes from top to bottom, and how high they reach."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.height = 0.0

    def _reach(self, y: float) -> None:
        self.height = max(self.height, y)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "middle") -> None:
        place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}"'
        self.shapes.append(f"<text {place}>{escape(text)}</text>")
        self._reach(y + 6)

    def rect(self, x: float, y: float, wide: float, high: float, style: str = "box") -> None:
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="4" class="{style}"/>'
        )
        self._reach(y + high)

    def box(
        self, x: float, y: float, wide: float, lines: Sequence[str], style: str = "box"
    ) -> float:
        """Around a name and, below it, shapes; returns where it ends."""
        high = 14 + 19 * len(lines)
        self.rect(x, y, wide, high, style)
        on = f" on-{style}" if style in ("new", "kept") else ""
        for n, line in enumerate(lines):
            self.text(x + wide / 2, y + 22 + 19 * n, line, ("shape" if n else "head") + on)
        return y + high

    def path(self, *points: tuple[float, float], tip: bool = True, style: str = "line") -> None:
        way = " ".join(f"{'ML'[n > 0]}{x:g} {y:g}" for n, (x, y) in enumerate(points))
        self.shapes.append(f'<path d="{way}" class="{style}"/>')
        if tip:
            (a, b), (x, y) = points[-2:]
            across = (y - b) == 0
            s = 5.0 if (x - a) + (y - b) > 0 else -5.0
            corners = ((x - 1.6 * s, y - 4), (x - 1.6 * s, y + 4)) if across else (
                (x - 4, y - 1.6 * s), (x + 4, y - 1.6 * s))  # fmt: skip
            at = " ".join(f"{u:g},{v:g}" for u, v in ((x, y), *corners))
            self.shapes.append(f'<polygon points="{at}" class="tip"/>')

    def plus(self, x: float, y: float) -> None:
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="12" class="paper"/>')
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="12" class="line"/>')
        self.text(x, y + 5, "+", "head")

    def cell(self, x: float, y: float, side: float, sign: str) -> None:
        """One position: computed now, kept from before, or room for later."""
        style = {NEW: "new", KEPT: "kept"}.get(sign, "empty")
        self.rect(x, y, side - 3, side - 3, style)
        if sign != " ":
            self.text(x + side / 2 - 1.5, y + side / 2 + 3.5, sign, f"small on-{style}")

    def finished(self, name: str, words: Mapping[str, str], language: str, **facts: str) -> Diagram:
        title, description = words[f"{name}.title"], words[f"{name}.text"].format(**facts)
        high = self.height + 14
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high:g}" class="mg" '
            f'width="{WIDTH}" height="{high:g}" style="max-width:100%;height:auto" role="img" '
            f'lang="{language}" aria-labelledby="mg-{name}-t mg-{name}-d">'
            f'<title id="mg-{name}-t">{escape(title)}</title>'
            f'<desc id="mg-{name}-d">{escape(description)}</desc><style>{STYLE}</style>'
            f'<rect width="{WIDTH}" height="{high:g}" rx="8" class="paper"/>'
        )
        return Diagram(name, title, description, "\n".join([head, *self.shapes, "</svg>\n"]))


def _words(language: str) -> dict[str, str]:
    if language not in WORDS:
        raise MinigptError(f"language is {language!r}, needed one of {', '.join(WORDS)}")
    return WORDS[language]


# --- the diagrams ---------------------------------------------------------------------------------


def block(config: GPTConfig, language: str = "") -> Diagram:
    """The whole model: embeddings, one block and how often it stands there, the tied head."""
    language = language or spoken.language()
    say, draw = _words(language), _Canvas()
    C, V, P, D = config.n_embd, config.vocab_size, config.n_positions, config.head_dim
    stream, left, right = 80, 150, 540
    y = draw.box(20, 14, 170, [say["tokens"], "(B, T)"])
    draw.box(230, 14, 310, [say["vectors"], f"wte ({V:,}, {C:,}) + wpe ({P:,}, {C:,})"])
    draw.path((190, 40), (230, 40))
    draw.path((385, y), (385, y + 18), (stream, y + 18), (stream, y + 40), tip=False,
              style="stream")  # fmt: skip
    draw.text(stream + 12, y + 38, "(B, T, C)", "shape", "start")
    top = y + 52
    draw.path((stream, y + 40), (stream, y + 324), tip=False, style="stream")
    y = top + 34
    draw.text(right - 10, top + 21, f"{say['block']} × {config.n_layer}", "head mark", "end")
    parts = (
        ("ln_1", say["attention"], [f"{config.n_head} × {D}"], say["between"]),
        ("ln_2", "MLP", [f"{C:,} → {config.inner:,} → {C:,}"], say["alone"]),
    )
    for norm, name, shape, note in parts:
        draw.path((stream, y + 26), (left, y + 26))
        draw.box(left, y, 84, [norm, f"{C:,}"])
        draw.path((left + 84, y + 26), (270, y + 26))
        end = draw.box(270, y, 255, [name, *shape])
        draw.path((397, end), (397, end + 26), (stream + 12, end + 26))
        draw.text(387, end + 19, note, "small", "end")
        draw.plus(stream, end + 26)
        y = end + 56
    draw.rect(34, top, right - 34 - 4, y - top - 8)
    bottom = y + 22
    draw.text(stream + 12, bottom - 6, say["stream"], "small", "start")
    draw.box(34, bottom, 110, ["ln_f", f"{C:,}"])
    draw.path((144, bottom + 26), (180, bottom + 26))
    head = f"wte{'' if config.tie_word_embeddings else ' ≠ lm_head'} ({V:,}, {C:,})"
    draw.box(180, bottom, 215, [say["head"], head])
    draw.path((395, bottom + 26), (430, bottom + 26))
    draw.box(430, bottom, 110, [say["logits"], "(B, T, V)"])
    return draw.finished("block", say, language, L=str(config.n_layer), H=str(config.n_head))


def cache_grid(config: GPTConfig, language: str = "", prompt: int = 4, steps: int = 4) -> Diagram:
    """Pass by pass what is computed and what is kept: the prefill, then decode steps.

    Args:
        prompt: tokens that the first pass reads, 1 to 8.
        steps: decode steps after it, 1 to 8.
    """
    if not (1 <= prompt <= 8 and 1 <= steps <= 8):
        raise MinigptError(f"prompt is {prompt} and steps {steps}, needed 1 to 8 of each to draw")
    language = language or spoken.language()
    say, draw = _words(language), _Canvas()
    columns = prompt + steps
    side = min(34.0, 300 / columns)
    left = 118
    draw.text(left + side * columns / 2, 26, say["positions"], "small")
    for column in range(columns):
        draw.text(left + side * (column + 0.5) - 1.5, 46, str(column), "shape")
    y = 56.0
    for number in range(steps + 1):
        T, S = (prompt, prompt) if number == 0 else (1, prompt + number)
        draw.text(
            left - 12, y + side / 2 + 4, say["decode" if number else "prefill"], "head", "end"
        )
        for column in range(columns):
            sign = " " if column >= S else KEPT if column < S - T else NEW
            draw.cell(left + side * column, y, side, sign)
        draw.text(
            left + side * columns + 10, y + side / 2 + 4, f"T = {T}, S = {S}", "shape", "start"
        )
        y += side + (10 if number == 0 else 2)
    y += 12
    for x, sign in ((20, NEW), (210, KEPT), (400, " ")):
        draw.cell(x, y, 26, sign)
        draw.text(
            x + 32, y + 17, say[{NEW: "new", KEPT: "kept", " ": "room"}[sign]], "small", "start"
        )
    y += 50
    G, D, L = config.kv_heads, config.head_dim, config.n_layer
    for line in say["cell"].format(G=G, D=D, L=L).split("\n"):
        draw.text(20, y, line, "small", "start")
        y += 20
    size = f"2 × {L} × {G} × {D} × 4 = {8 * L * G * D:,}"
    draw.text(20, y + 2, f"{size} {say['bytes']} (float32)", "shape", "start")
    return draw.finished("cache", say, language, prompt=str(prompt), steps=str(steps))


def attention_step(config: GPTConfig, language: str = "") -> Diagram:
    """One decode step through one attention layer, with the shape of everything."""
    language = language or spoken.language()
    say, draw = _words(language), _Canvas()
    H, G, D, C = config.n_head, config.kv_heads, config.head_dim, config.n_embd
    q, k, v, wide = 20, 200, 380, 160
    end = draw.box(k, 14, wide, ["x", f"(B, 1, {C:,})"])
    draw.path((280, end), (280, end + 18), tip=False)
    draw.text(288, end + 12, "c_attn", "small", "start")
    y = end + 44
    for x, name, heads in ((q, "q", H), (k, "k", G), (v, "v", G)):
        draw.path((280, end + 18), (x + wide / 2, end + 18), (x + wide / 2, y))
        below = draw.box(x, y, wide, [name, f"(B, {heads}, 1, {D})"], "new")
    y = below + 34
    for x, name in ((k, "K"), (v, "V")):
        draw.path((x + wide / 2, below), (x + wide / 2, y))
        draw.text(x + wide / 2 + 10, below + 22, say["append"], "small", "start")
        held = draw.box(x, y, wide, [f"{name}, {say['in cache']}", f"(B, {G}, S, {D})"], "kept")
    draw.path((q + wide / 2, below), (q + wide / 2, held + 36))
    draw.path((k + wide / 2, held), (k + wide / 2, held + 36))
    y = held + 36
    end = draw.box(q, y, k + wide - q, [f"q · Kᵀ / √{D}", f"(B, {H}, 1, S)"])
    draw.text(k + wide - 6, end + 22, say["scores"], "small", "end")
    draw.path((190, end), (190, end + 34))
    y = end + 34
    end = draw.box(q, y, k + wide - q, ["softmax", f"(B, {H}, 1, S)"])
    draw.text(k + wide - 6, end + 22, say["weights"], "small", "end")
    draw.path((190, end), (190, end + 34))
    y = end + 34
    draw.path((v + wide / 2, held), (v + wide / 2, y))
    end = draw.box(q, y, v + wide - q, [say["mix"], f"(B, {H}, 1, {D})"])
    draw.path((280, end), (280, end + 30))
    draw.text(288, end + 20, "c_proj", "small", "start")
    draw.box(k - 20, end + 30, wide + 40, [say["out"], f"(B, 1, {C:,})"])
    return draw.finished("attention", say, language, H=str(H))


def growing_against_paged(config: GPTConfig, language: str = "") -> Diagram:
    """What a step does to memory: all copied to a longer piece, or one more place in a page."""
    language = language or spoken.language()
    say, draw = _words(language), _Canvas()
    token = 8 * config.n_layer * config.kv_heads * config.head_dim
    side, page = 26.0, 4
    draw.text(20, 28, f"growing: {say['growing']}", "head", "start")
    y = 44.0
    for held in range(4, 8):
        draw.text(84, y + 17, f"S = {held + 1}", "shape", "end")
        for n in range(held + 1):
            draw.cell(96 + side * n, y, side, NEW if n == held else KEPT)
        draw.text(116 + side * 8, y + 17, say["copied"].format(n=held, size=f"{held * token:,}"),
                  "small", "start")  # fmt: skip
        y += side + 4
    y += 26
    draw.text(20, y, f"paged: {say['paged'].format(page=page)}", "head", "start")
    y += 18
    tables = {"A": (0, 1, 3), "B": (0, 1, 4)}
    fills = {0: 4, 1: 4, 3: 1, 4: 2}
    wide = page * side
    places = {number: (96 + (number % 3) * (wide + 44), 0.0) for number in range(6)}
    rows = (y + 20, y + 96)
    for number in range(6):
        x, at = places[number][0], rows[number // 3]
        draw.text(x + wide / 2 - 1.5, at - 6, f"{say['page']} {number}", "shape")
        for n in range(page):
            full = n < fills.get(number, 0)
            last = full and n == fills[number] - 1 and number in (3, 4)
            draw.cell(x + side * n, at, side, NEW if last else KEPT if full else " ")
    y = rows[1] + side + 28
    for text, table in tables.items():
        order = " → ".join(str(number) for number in table)
        draw.text(20, y, f"{say['text']} {text}: {say['page']} {order}", "", "start")
        y += 22
    draw.text(20, y + 2, say["shared"], "small", "start")
    return draw.finished("paged", say, language, page=str(page))


def grouped_heads(config: GPTConfig, language: str = "") -> Diagram:
    """Query heads that share key/value heads: each its own, a few together, all one."""
    language = language or spoken.language()
    say, draw = _words(language), _Canvas()
    H, L, D = config.n_head, config.n_layer, config.head_dim
    quarter = max(G for G in range(1, H + 1) if H % G == 0 and (G == 1 or 3 * G <= H))
    y = 30.0
    shown = min(H, 12)  # more heads than that would be dots
    scale = H // shown if H % shown == 0 else 1
    shown = H // scale
    for G in sorted({H, quarter, 1}, reverse=True):
        groups = max(1, G // scale)
        step = 400 / shown
        size = min(26.0, step - 6)
        kind = "each" if G == H else "one" if G == 1 else "few"
        draw.text(20, y, f"G = {G}: {say[kind]}", "head", "start")
        middle = [140 + step * (n + 0.5) for n in range(shown)]
        below = y + 76
        draw.text(20, y + 33, say["queries"], "small", "start")
        draw.text(20, below + size / 2 + 4, say["keys values"], "small", "start")
        each = shown // groups
        for n, x in enumerate(middle):
            first = n // each * each
            at = sum(middle[first : first + each]) / each
            draw.path((x, y + 18 + size), (at, below), tip=False)
            draw.rect(x - size / 2, y + 18, size, size, "new")
        for group in range(groups):
            at = sum(middle[group * each : (group + 1) * each]) / each
            draw.rect(at - size / 2, below, size, size, "kept")
        size_of_token = f"{8 * L * G * D:,} {say['bytes']}"
        draw.text(540, y, size_of_token, "shape", "end")
        y = below + size + 46
    return draw.finished("heads", say, language, H=str(H))


DIAGRAMS: tuple[Callable[[GPTConfig, str], Diagram], ...] = (
    block, cache_grid, attention_step, growing_against_paged, grouped_heads,
)  # fmt: skip


def write(directory: str | Path, config: GPTConfig, language: str = "") -> list[Path]:
    """Every diagram as a file, `block.svg` and so on; returns where they are.

    Raises:
        MinigptError: for an unknown language, or when a file cannot be written.
    """
    directory, paths = Path(directory), []
    for diagram in DIAGRAMS:
        drawn = diagram(config, language)
        paths.append(directory / f"{drawn.name}.svg")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_text(paths[-1], drawn.svg)
        except OSError as error:
            raise MinigptError(
                f"the diagram could not be written to {paths[-1]} ({error})"
            ) from error
    return paths


if __name__ == "__main__":  # python -m minigpt.study.diagrams DIRECTORY MODEL
    from minigpt.study.cost import inspect

    write(sys.argv[1], inspect(sys.argv[2]).config)
