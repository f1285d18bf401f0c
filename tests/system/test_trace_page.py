"""The page of a trace in a real browser: it shows the trace's numbers, to everyone, from a file."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch

from minigpt import GPT, Tokenizer
from minigpt.study.tracing import trace, write_html
from tests.helpers import TOY

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PROMPT = "</script><b id='evil'>\"Hé\" 🦊 & co"
STEPS = 5


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A headless Chromium with a profile of its own."""
    missing = []
    try:
        from selenium import webdriver
    except ImportError:
        missing.append("selenium")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    missing += [] if binary else ["chromium"]
    missing += [] if chromedriver else ["chromedriver"]
    if missing:
        reason = f"{' and '.join(missing)} not found, needed to open the page"
        if os.environ.get("MINIGPT_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    chromium = webdriver.Chrome(options=options, service=service)
    yield chromium
    chromium.quit()


@pytest.fixture(scope="module")
def traced():
    """A trace of the bundled model. The whole prompt stands at its first token and is the name of
    the first one chosen; the third step says that its logits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, tokenizer = GPT.from_pretrained(TOY), Tokenizer.from_pretrained(TOY)
    found = trace(model, tokenizer, PROMPT, STEPS, rounds=1)
    torch.set_num_threads(threads)
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


class Page:
    """The page as one looks at it and touches it."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path

    def open(self, width=1280, **features):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"prefers-color-scheme": "light", "prefers-reduced-motion": "no-preference"}
        wanted |= {name.replace("_", "-"): value for name, value in features.items()}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(self.path.as_uri())

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return self.all(selector)[0].text

    def style(self, selector, name):
        return self.all(selector)[0].value_of_css_property(name)

    def table(self, selector):
        """The body's rows, each a list of the cells' text (of hidden ones too)."""
        rows = f"[...document.querySelector('{selector}').tBodies[0].rows]"
        return self.driver.execute_script(
            f"return {rows}.map((row) => [...row.cells].map((cell) => cell.textContent))"
        )

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, name):
        self.driver.execute_script("arguments[0].click()", self.all(f"#{name}")[0])

    def choose(self, name, value):
        from selenium.webdriver.support.ui import Select

        Select(self.all(f"#{name}")[0]).select_by_value(str(value))

    def pixels(self, name):
        return self.driver.execute_script(f"return document.getElementById('{name}').toDataURL()")

    @property
    def step(self):
        return int(self.text("#count").split()[1])


@pytest.fixture
def page(driver, path):
    page = Page(driver, path)
    page.open()
    return page


def test_it_opens_without_a_complaint_and_fetches_nothing(page):
    for kind in ("browser", "performance"):
        page.driver.get_log(kind)  # of earlier tests
    page.open()
    page.press("\ue010", "\ue011")  # End, Home
    assert page.step == 1
    assert page.driver.get_log("browser") == []
    events = [
        json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")
    ]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert page.path.as_uri() in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


def test_a_text_is_text_and_never_markup(page):
    page.press("\ue010")
    shown = page.driver.execute_script("return document.getElementById('text').textContent")
    assert shown.startswith(PROMPT)
    assert page.all("#evil") == []
    assert len(page.all("script")) == 2


class TestScrubbing:
    def test_by_keys(self, page):
        seen = [page.step]
        for key in ("\ue014", "\ue014", "\ue012", "\ue010", "\ue014", "\ue011", "\ue012"):
            page.press(key)
            seen.append(page.step)
        # Right, right, left, End, right, Home, left: the ends hold
        assert seen == [1, 2, 3, 2, STEPS, STEPS, 1, 1]

    def test_by_buttons(self, page):
        seen = []
        for name in ("forward", "forward", "back", "last", "first"):
            page.click(name)
            seen.append(page.step)
        assert seen == [2, 3, 2, STEPS, 1]
        assert not page.all("#back")[0].is_enabled()
        assert page.all("#forward")[0].is_enabled()

    def test_by_the_slider(self, page):
        page.all("#slider")[0].send_keys("\ue014\ue014")
        assert page.step == 3
        assert page.all("#slider")[0].get_attribute("aria-valuetext") == f"3 of {STEPS}"

    def test_leaves_the_arrow_keys_to_a_list(self, page):
        page.all("#layer")[0].send_keys("\ue015")  # down
        assert page.step == 1
        page.all("#layer")[0].send_keys("\ue014")
        assert page.step == 1


class TestNumbers:
    def test_are_those_of_every_step(self, page, traced):
        done = [0, 0]
        for number, step in enumerate(traced.steps, 1):
            assert page.step == number
            rows = page.table("#step-work")
            assert [row[1:] for row in rows[:2]] == [
                [str(step.cached.positions), str(step.uncached.positions)],
                [f"{step.cached.keys:,}", f"{step.uncached.keys:,}"],
            ]
            took = [1000 * step.cached.seconds, 1000 * step.uncached.seconds]
            assert [float(cell.replace(",", "")) for cell in rows[3][1:]] == pytest.approx(
                took, rel=0.02
            )
            done = [done[0] + step.cached.positions, done[1] + step.uncached.positions]
            assert page.table("#total-work")[0][1:] == [str(count) for count in done]
            held = step.length * traced.bytes_per_token
            assert f"{held:,} bytes in use of {traced.cache_bytes:,}" in page.text("#held")
            page.click("forward")

    def test_show_the_multiplications_in_three_digits(self, page, traced):
        page.click("last")
        shown = page.table("#step-work")[2][1:]
        work = traced.steps[-1]
        for cell, count in zip(shown, (work.cached, work.uncached), strict=True):
            assert cell == f"{count.multiplications / 1e6:.3g} M"

    def test_show_the_likeliest_tokens_and_the_chosen_one(self, page, traced):
        rows = page.table("#likeliest")
        chosen = traced.steps[0].chosen
        assert len(rows) == len(chosen.top)
        for (name, shown), (token, log) in zip(rows, chosen.top, strict=True):
            assert name.startswith(f"“{traced.labels[token]}”")
            assert ("chosen" in name) == (token == chosen.token)
            if math.exp(log) > 1e-5:
                assert float(shown[:-2]) == pytest.approx(100 * math.exp(log), rel=0.05)

    def test_say_whether_logits_are_equal(self, page):
        assert page.text("#answer") == "yes, bit for bit"
        page.press("\ue014", "\ue014")
        assert page.text("#answer") == "no, by up to 0.0000031"
        assert "Equal so far: 2 of 3" in page.text("#equal")
        assert "logits differ" in page.text("#summary")

    def test_show_the_cache_by_layer(self, page, traced):
        page.press("\ue014")
        kept = str(traced.steps[0].length)
        assert [row[:3] for row in page.table("#layers")] == [
            [str(layer), kept, "1"] for layer in range(5)
        ]


class TestAttention:
    def test_is_that_of_the_layer_and_head_chosen(self, page, traced):
        page.all("#all-weights summary")[0].send_keys("\ue007")  # Enter
        for layer, head in ((3, 1), (4, 4), (0, 0)):
            page.choose("layer", layer)
            page.choose("head", head)
            length = traced.steps[0].length
            want = traced.attention[layer, head, length - 1, :length]
            shown = [float(row[2]) for row in page.table("#weights")]
            assert shown == pytest.approx(want.tolist(), abs=6e-4)

    @pytest.mark.parametrize("drawing", ["strip", "map"])
    def test_is_drawn_for_the_head_chosen(self, page, drawing):
        before = page.pixels(drawing)
        page.choose("head", 2)
        assert page.pixels(drawing) != before

    def test_shades_the_text(self, page, traced):
        row = traced.attention[0, 0, traced.steps[0].length - 1]
        most, least = int(row[: traced.prompt].argmax()), int(row[: traced.prompt].argmin())
        shades = [span.get_attribute("style") for span in page.all("#text span")]
        assert "color-mix" in shades[most]
        assert shades[most] != shades[least]


@pytest.mark.parametrize("drawing", ["cells", "chart"])
def test_the_other_drawings_follow_the_step(page, drawing):
    before = page.pixels(drawing)
    page.press("\ue014")
    assert page.pixels(drawing) != before


class TestEveryone:
    @pytest.mark.parametrize("width", [320, 390])
    def test_on_a_phone_nothing_is_wider_than_the_screen(self, page, width):
        page.open(width)
        for key in ("\ue011", "\ue010"):
            page.press(key)
            wide = page.driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width

    def test_on_a_phone_everything_is_large_enough_to_touch(self, page):
        page.open(390)
        controls = page.all("button, select, input, summary")
        assert len(controls) == 11
        for control in controls:
            assert min(control.rect["height"], control.rect["width"]) >= 44, control.tag_name

    def test_in_the_dark_page_and_drawings_are_dark(self, page):
        def look():
            return (
                page.style("html", "background-color"),
                page.style("html", "color"),
                page.pixels("map"),
            )

        light = look()
        page.open(prefers_color_scheme="dark")
        assert all(a != b for a, b in zip(light, look(), strict=True))

    def test_motion_is_reduced_where_asked(self, page):
        assert page.style(".bar i", "transition-duration") == "0.15s"
        page.open(prefers_reduced_motion="reduce")
        assert page.style(".bar i", "transition-duration") == "0s"

    def test_a_screen_reader_is_told_the_step_in_words(self, page, traced):
        summary = page.all("#summary")[0]
        assert summary.get_attribute("aria-live") == "polite"
        assert f"prompt’s {traced.prompt} tokens" in summary.text
        page.press("\ue014")
        assert f"Only position {traced.prompt}" in summary.text

    def test_everything_has_a_name_and_a_place(self, page):
        for thing in page.all("button, select, input, canvas, section, nav"):
            assert thing.accessible_name, thing.get_attribute("outerHTML")[:80]
        roles = {thing.aria_role for thing in page.all("header, main, nav, footer")}
        assert roles >= {"banner", "main", "navigation", "contentinfo"}
