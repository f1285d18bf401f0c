"""The page of a recording in a real browser: it shows the trace's numbers, to everyone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from minigpt import GPT, Tokenizer
from minigpt.study.tracing import trace, write_html
from tests.browser import DOWN, END, ENTER, HOME, LEFT, RIGHT, Page
from tests.helpers import TOY

PROMPT = "</script><b id='evil'>\"Hé\" 🦊 & co"
STEPS = 5


@pytest.fixture(scope="module")
def traced():
    """A trace of the bundled model. The whole prompt stands at its first token and is the name of
    the first one chosen; the third step says that its logits differ."""
    model, tokenizer = GPT.from_pretrained(TOY), Tokenizer.from_pretrained(TOY)
    found = trace(model, tokenizer, PROMPT, STEPS, rounds=1)
    steps = list(found.steps)
    steps[2] = replace(steps[2], equal=False, max_difference=3.14e-6)
    pieces = [PROMPT, *[""] * (found.prompt - 1), *found.pieces[found.prompt :]]
    labels = found.labels | {steps[0].chosen.token: PROMPT}
    return replace(found, steps=steps, pieces=pieces, labels=labels)


@pytest.fixture(scope="module")
def path(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "trace.html"
    write_html(traced, path)
    return path


@pytest.fixture
def page(driver, path):
    page = Page(driver, path)
    page.open()
    return page


def test_it_opens_without_a_complaint_and_fetches_nothing(page):
    page.complaints(), page.requests()  # of earlier tests
    page.open()
    page.press(END, HOME)
    assert page.step == 1
    assert page.complaints() == []
    asked = page.requests()
    assert page.path.as_uri() in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}


def test_a_text_is_text_and_never_markup(page):
    page.press(END)
    shown = page.js("return document.getElementById('text').textContent")
    assert shown.startswith(PROMPT)
    assert page.all("#evil") == []
    assert len(page.all("script")) == 3


def test_nothing_is_offered_that_only_a_live_page_can_do(page):
    for control in page.all(".live, #likeliest button, #branches button"):
        assert not control.is_displayed()


class TestScrubbing:
    def test_by_keys(self, page):
        seen = [page.step]
        for key in (RIGHT, RIGHT, LEFT, END, RIGHT, HOME, LEFT):
            page.press(key)
            seen.append(page.step)
        assert seen == [1, 2, 3, 2, STEPS, STEPS, 1, 1]  # the ends hold

    def test_by_buttons(self, page):
        seen = []
        for name in ("forward", "forward", "back"):
            page.click(f"#{name}")
            seen.append(page.step)
        assert seen == [2, 3, 2]
        page.click("#back")
        assert not page.one("#back").is_enabled()
        page.press(END)
        assert not page.one("#forward").is_enabled()
        assert not page.one("#play").is_enabled()

    def test_by_the_slider(self, page):
        page.one("#slider").send_keys(RIGHT + RIGHT)
        assert page.step == 3
        assert page.one("#slider").get_attribute("aria-valuetext") == f"Step 3 of {STEPS}"

    def test_by_itself_to_the_end(self, page):
        page.click("#play")
        assert page.text("#play") == "Pause"
        page.wait(f"source.frames.length === {STEPS}")
        assert page.text("#play") == "Play"
        assert "The recording ends here." in page.text("#count")

    def test_leaves_the_arrow_keys_to_a_list(self, page):
        page.one("#layer").send_keys(DOWN)
        assert page.step == 1
        page.one("#layer").send_keys(RIGHT)
        assert page.step == 1

    def test_is_in_the_address(self, page):
        page.press(RIGHT, RIGHT)
        page.choose("#head", 2)
        page.open(page.driver.current_url.removeprefix(page.path.as_uri()))
        assert page.step == 3
        assert page.js("return [view.layer, view.head]") == [0, 2]


class TestNumbers:
    def test_are_those_of_every_step(self, page, traced):
        for number, step in enumerate(traced.steps, 1):
            assert page.step == number
            for grid, work in (("with", step.cached), ("without", step.uncached)):
                written = page.text(f"#{grid}-work")
                positions = "1 position " if work.positions == 1 else f"{work.positions} positions "
                assert positions in written
                assert written.startswith(f"{work.multiplications / 1e6:.3g} million")
            fresh, kept = step.cached.positions, step.length - step.cached.positions
            told = f"{fresh} position{'s' * (fresh > 1)} computed now"
            if kept:
                told = f"{kept} positions read from the cache, {told}"
            assert page.label("#with-grid") == f"In each of {traced.config.n_layer} layers: {told}."
            page.click("#forward")

    def test_are_drawn_as_cells(self, page, traced):
        assert page.cells("with", "now") == page.cells("without", "now") > 100
        page.press(RIGHT)
        assert page.cells("with", "now") == page.cells("without", "now") == traced.config.n_layer
        assert page.cells("with", "kept") == page.cells("without", "again") > 100

    def test_of_all_steps_are_in_a_table(self, page, traced):
        page.click("#all-steps summary")
        page.press(END)
        for measure in ("positions", "keys"):
            page.choose("#measure", measure)
            assert [row[2:4] for row in page.table("#step-table")] == [
                [str(getattr(step.cached, measure)), f"{getattr(step.uncached, measure):,}"]
                for step in traced.steps
            ]
        page.choose("#measure", "seconds")
        for row, step in zip(page.table("#step-table"), traced.steps, strict=True):
            took = [1000 * step.cached.seconds, 1000 * step.uncached.seconds]
            shown = [float(cell.replace(",", "")) for cell in row[2:4]]
            assert shown == pytest.approx(took, rel=0.02)

    def test_show_the_likeliest_tokens_and_the_chosen_one(self, page, traced):
        chosen = traced.steps[0].chosen
        rows = [item.text.split("\n") for item in page.all("#likeliest li")]
        assert len(rows) == len(chosen.top)
        for (name, shown), (token, log) in zip(rows, chosen.top, strict=True):
            assert name == f"“{traced.labels[token]}”"
            assert ("✓" in shown) == (token == chosen.token)
            if 1e-5 < math.exp(log) < 0.999:
                assert float(shown.split()[0]) == pytest.approx(100 * math.exp(log), rel=0.05)

    def test_say_whether_logits_are_equal(self, page):
        assert "equal, bit for bit" in page.text("#answer")
        page.press(RIGHT, RIGHT)
        assert "The logits differ, by up to 0.0000031" in page.text("#answer")
        assert [len(page.all(f"#steps .{kind}")) for kind in ("equal", "differ")] == [2, 1]


class TestACloserLook:
    def test_weights_are_those_of_the_head(self, page, traced):
        page.click("#all-weights summary")
        for layer, head in ((3, 1), (4, 2), (0, 0)):
            page.choose("#layer", layer)
            page.choose("#head", head)
            length = traced.steps[0].length
            want = traced.attention[layer, head, length - 1, :length]
            shown = [float(row[2]) for row in page.table("#weights")]
            assert shown == pytest.approx(want.tolist(), abs=6e-4)

    def test_keys_and_values_are_the_caches(self, page, traced):
        page.one("#numbers summary").send_keys(ENTER)
        page.choose("#layer", 2)
        page.choose("#head", 1)
        page.click("#token-3")
        rows = [[float(cell.replace("−", "-")) for cell in row] for row in page.table("#vector")]
        for column, numbers in ((1, traced.inside.keys), (2, traced.inside.values)):
            want = numbers[2, 1, 3].tolist()
            assert [row[column] for row in rows] == pytest.approx(want, rel=1e-3, abs=1e-3)  # half

    def test_norms_and_lens_are_the_positions(self, page, traced):
        page.click("#token-2")
        shown = [[float(cell) for cell in row] for row in page.table("#norms")]
        for layer, row in enumerate(shown):
            assert row[1:] == pytest.approx(traced.inside.norms[layer, 2].tolist(), abs=0.006)
        for row, said in zip(page.table("#lens"), traced.inside.lens, strict=True):
            for cell, (token, _) in zip(row[1:], said[2], strict=True):
                assert cell.startswith(f"“{traced.labels[token]}”".replace("\n", "↵"))

    def test_without_numbers_says_so(self, driver, traced, tmp_path):
        inside = replace(traced.inside, keys=None, values=None)
        write_html(replace(traced, inside=inside), tmp_path / "trace.html")
        page = Page(driver, tmp_path / "trace.html")
        page.open()
        assert "too large to keep the numbers" in page.text("#held")
        assert not page.one("#strips").is_displayed()

    def test_of_a_deep_model_shows_the_heads_of_one_layer(self, driver, make_model, tmp_path):
        from minigpt.tokenizer import byte_tokenizer

        model = make_model(vocab_size=257, n_layer=12, n_head=12)
        write_html(trace(model, byte_tokenizer(), "Hello", 3, rounds=1), tmp_path / "trace.html")
        page = Page(driver, tmp_path / "trace.html")
        page.open()
        page.choose("#layer", 7)
        assert len(page.all(".thumb")) == 12
        assert page.one(".thumb").get_attribute("aria-label") == "layer 7, head 0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(page, scheme):
    page.open("#step=3", prefers_color_scheme=scheme)
    for details in page.all("summary"):
        details.send_keys(ENTER)
    assert page.low_contrast() == []
    assert page.nameless() == []


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_wider_than_the_screen(page, width):
    page.open(width=width, height=844)
    for key in (HOME, END):
        page.press(key)
        assert page.js("return document.documentElement.scrollWidth") <= width
    assert page.small_controls() == []
