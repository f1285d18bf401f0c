"""The diagrams: drawn from a shape, in three languages, readable by whom and whatever looks."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from minigpt.config import GPTConfig
from minigpt.study import diagrams
from minigpt.study.cost import inspect
from minigpt.study.diagram_words import WORDS
from minigpt.support.errors import MinigptError
from tests.helpers import ROOT

SHAPES = {
    "toy": GPTConfig(vocab_size=300, n_positions=64, n_embd=96, n_layer=3, n_head=6),
    "gpt2-xl": GPTConfig.preset("gpt2-xl"),
    "grouped": GPTConfig(n_embd=64, n_head=8, n_kv_head=2, tie_word_embeddings=False),
    "one head": GPTConfig(n_embd=8, n_head=1),
}
every_diagram = pytest.mark.parametrize("draw", diagrams.DIAGRAMS, ids=lambda draw: draw.__name__)
every_language = pytest.mark.parametrize("language", WORDS)
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}text"))


@every_diagram
@every_language
@pytest.mark.parametrize("shape", SHAPES)
def test_a_diagram_is_well_formed_and_says_in_words_what_it_shows(draw, language, shape):
    diagram = draw(SHAPES[shape], language)
    root = ElementTree.fromstring(diagram._repr_svg_())
    named = root.get("aria-labelledby").split()
    says = {child.get("id"): child.text for child in root}
    assert [says[name] for name in named] == [diagram.title, diagram.description]
    assert root.get("lang") == language
    assert repr(diagram) == f"{diagram.title}. {diagram.description}"
    assert "{" not in diagram.description


@every_diagram
@every_language
@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_leaves_the_paper(draw, language, shape):
    for text in texts(draw(SHAPES[shape], language).svg):
        style = text.get("class").split()
        # What fonts take at most: mono 0.6 of the size, others less, Korean letters all of it.
        size, share = (13, 0.6) if "shape" in style else (13 if "small" in style else 15, 0.54)
        wide = sum(size * (0.95 if ord(letter) > 0x1100 else share) for letter in text.text)
        before = {"start": 0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
        begins = float(text.get("x")) - before
        assert begins >= 0 and begins + wide <= diagrams.WIDTH, text.text


def test_every_language_has_the_same_words():
    assert [set(words) for words in WORDS.values()] == [set(WORDS["en"])] * len(WORDS)
    for key in WORDS["en"]:
        slots = [set(re.findall(r"\{(\w+)\}", words[key])) for words in WORDS.values()]
        assert slots == [slots[0]] * len(slots), key


def test_the_numbers_are_those_of_the_shape():
    small, grouped = SHAPES["toy"], SHAPES["grouped"]
    assert "(B, 6, 1, 16)" in diagrams.attention_step(small).svg
    assert "block × 3" in diagrams.block(small).svg
    assert "lm_head" in diagrams.block(grouped).svg
    assert f"{2 * 12 * 2 * 8 * 4:,} bytes per token" in diagrams.cache_grid(grouped).svg
    assert [f"G = {G}:" in diagrams.grouped_heads(small).svg for G in (6, 3, 2, 1)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_a_decode_step_computes_one_position_and_keeps_the_others():
    signs = [text.text for text in texts(diagrams.cache_grid(SHAPES["toy"], "en", 3, 2).svg)]
    grid = "".join(sign for sign in signs if sign in (diagrams.NEW, diagrams.KEPT))
    assert grid == "●●●" + "···●" + "····●" + "●·"  # prefill, two steps, the legend


def test_colours_change_with_the_readers_system_and_are_never_alone():
    svg = diagrams.cache_grid(SHAPES["toy"]).svg
    assert "prefers-color-scheme:dark" in svg
    assert svg.count('class="paper"') == 1


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it, from 1 to 21."""

    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_what_it_is_written_on():
    colours: dict[str, str] = {}
    for scheme in diagrams.STYLE.split("@media")[:2]:
        colours |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", scheme))
        for text, ground in (
            ("ink", "paper"), ("soft", "paper"), ("mark", "paper"), ("on-new", "new"),
            ("on-kept", "kept"),
        ):  # fmt: skip
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_files_are_written_and_name_what_cannot_be(tmp_path):
    paths = diagrams.write(tmp_path / "new", SHAPES["toy"], "vi")
    assert [path.name for path in paths] == [
        "block.svg", "cache.svg", "attention.svg", "paged.svg", "heads.svg",
    ]  # fmt: skip
    assert paths[0].read_text(encoding="utf-8") == diagrams.block(SHAPES["toy"], "vi").svg
    (tmp_path / "file").write_text("")
    with pytest.raises(MinigptError, match="could not be written"):
        diagrams.write(tmp_path / "file" / "below", SHAPES["toy"])
    with pytest.raises(MinigptError, match="language is 'fr', needed one of en, vi, ko"):
        diagrams.block(SHAPES["toy"], "fr")
    with pytest.raises(MinigptError, match="needed 1 to 8 of each"):
        diagrams.cache_grid(SHAPES["toy"], steps=9)


@pytest.mark.parametrize("draw", diagrams.DIAGRAMS, ids=lambda draw: draw.__name__)
def test_the_committed_files_show_the_bundled_model(draw):
    diagram = draw(inspect(ROOT / "weights" / "toy").config, "en")
    committed = ROOT / "notebooks" / "images" / f"{diagram.name}.svg"
    assert committed.read_text(encoding="utf-8") == diagram.svg, "make images"
