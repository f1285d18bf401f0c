"""The page in which the model runs: every control does what it says, for everyone."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from minigpt import GPT, Tokenizer
from minigpt.study.pages import sixteen_bits, write_live
from minigpt.study.tracing import trace
from tests.browser import DOWN, END, ENTER, HOME, LEFT, RIGHT, SHIFT, TAB, UP, Page
from tests.helpers import TOY

PROMPT = "The fox and the bear"
BUGS = ["position", "heads", "mask", "kept", "reorder", "window"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained(TOY)


@pytest.fixture(scope="module")
def given(tokenizer):
    """Tokens of the prompt."""
    return len(tokenizer.encode(PROMPT))


@pytest.fixture(scope="module")
def path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "live.html"
    write_live(GPT.from_pretrained(TOY), tokenizer, path, PROMPT, temperature=0.8, seed=3)
    return path


@pytest.fixture
def page(driver, path):
    page = Page(driver, path)
    page.open()
    return page


@pytest.fixture(scope="module")
def traced(tokenizer):
    """What the package says of the page's model: the same prompt, greedy."""
    model = GPT.from_pretrained(TOY)
    model = model.to(sixteen_bits(model)).float()
    found = trace(model, tokenizer, PROMPT, 6, rounds=1)
    return found


def text(page):
    return page.js("return source.tokens")


def address(page):
    parts = parse_qs(urlsplit(page.driver.current_url).fragment)
    return {name: values[0] for name, values in parts.items()}


def reopen(page):
    """The same address in a fresh page."""
    page.open("#" + urlsplit(page.driver.current_url).fragment)


def test_it_opens_without_a_complaint_and_fetches_nothing(page):
    page.complaints(), page.requests()  # of earlier tests
    page.open()
    page.click("#forward")
    page.choose("#bug", "kept")
    page.checked()
    assert page.complaints() == []
    asked = page.requests()
    assert page.path.as_uri() in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}


class TestTheFirstView:
    @pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
    def test_has_both_grids_and_their_counts_above_the_fold(self, page, width, height):
        page.open("#step=9", width=width, height=height)
        fold = page.one("nav").rect["y"]
        for part in ("#with-grid", "#without-grid", "#with-work", "#without-work"):
            rect = page.one(part).rect
            assert rect["y"] + rect["height"] <= fold
        side_by_side = page.one("#with").rect["y"] == page.one("#without").rect["y"]
        assert side_by_side == (width > 1000)

    def test_says_what_each_cell_is(self, page, given):
        page.click("#forward")
        L = page.js("return source.model.L")
        counts = {kind: page.cells("with", kind) // L for kind in ("kept", "now", "again")}
        assert counts == {"kept": given, "now": 1, "again": 0}
        counts = {kind: page.cells("without", kind) // L for kind in ("kept", "now", "again")}
        assert counts == {"kept": 0, "now": 1, "again": given}
        written = [label.text for label in page.all("#with-grid text")]
        assert f"{given} read from the cache" in written
        assert "1 computed now" in written
        assert f"{given} computed again" in [t.text for t in page.all("#without-grid text")]
        assert page.label("#with-grid").endswith(
            f": {given} positions read from the cache, 1 position computed now."
        )

    def test_has_the_text_as_its_axis(self, page, tokenizer):
        page.open("#step=4")
        titles = page.js(
            "return [...document.querySelectorAll('#with-grid .token title')]"
            ".map((title) => title.textContent)"
        )
        assert titles == [f"“{tokenizer.decode([token])}”" for token in text(page)]

    def test_moves_for_less_than_a_second(self, page):
        page.click("#forward")
        moving = """return document.getAnimations().filter((a) => a.effect.target.closest('svg'))
            .map((a) => a.effect.getComputedTiming().endTime)"""
        times = page.js(moving)
        assert len(times) > 20
        assert max(times) < 1000
        page.open(prefers_reduced_motion="reduce")
        page.click("#forward")
        assert page.js(moving) == []
        assert page.style(".bar i", "transition-duration") == "0s"


class TestSteps:
    def test_add_a_token_and_are_equal_without_a_cache(self, page, given):
        for count in range(1, 5):
            assert page.step == count
            assert page.js("return source.branch.cache.length") == given + count - 1
            assert len(text(page)) == given + count
            page.click("#forward")
        page.checked()
        assert "equal, bit for bit" in page.text("#answer")
        assert len(page.all("#steps .equal")) == 5
        fewer = re.search(r"for ([\d.]+) × fewer multiplications", page.text("#answer"))
        cached, uncached = page.js(
            "const f = source.frames.at(-1);"
            "return [f.cached.multiplications, f.uncached.multiplications]"
        )
        assert float(fewer[1]) == pytest.approx(uncached / cached, rel=0.06)

    def test_back_truncates_and_forward_draws_the_same(self, page, given):
        for _ in range(6):
            page.click("#forward")
        whole = text(page)
        for _ in range(3):
            page.click("#back")
        assert text(page) == whole[:-3]
        assert page.js("return source.branch.cache.length") == given + 3
        for _ in range(3):
            page.click("#forward")
        assert text(page) == whole
        page.checked()
        assert "equal, bit for bit" in page.text("#answer")

    def test_back_ends_at_the_prompt(self, page):
        assert not page.one("#back").is_enabled()
        page.press(LEFT)
        assert page.step == 1

    def test_play_goes_on_until_paused(self, page):
        page.click("#play")
        assert (page.text("#play"), page.one("#play").get_attribute("aria-pressed")) == (
            "Pause",
            "true",
        )
        page.wait("source.frames.length >= 3")
        page.click("#play")
        at = page.step
        assert page.text("#play") == "Play"
        assert page.js("return timer") is None
        assert page.step == at

    def test_by_keys(self, page):
        seen = []
        for key in (RIGHT, RIGHT, RIGHT, LEFT):
            page.press(key)
            seen.append(page.step)
        assert seen == [2, 3, 4, 3]

    def test_end_with_the_context(self, page, tokenizer):
        page.open("#step=100000&temperature=5")  # hot enough not to end its text
        if page.js("return source.tokens.length <= source.model.context"):
            pytest.skip("this model ends its text even so")
        assert not page.one("#forward").is_enabled()
        assert "The context is full." in page.text("#count")
        assert not page.one("#likeliest button").is_enabled()

    def test_end_with_the_text_and_go_on_with_another_token(self, page, given):
        eos = page.js("return source.config.eos_token_id")
        page.open(f"#step=9&picks={given + 2}.{eos}")
        assert text(page)[-1] == eos
        assert page.step == 3
        assert not page.one("#forward").is_enabled()
        assert "ended its text" in page.text("#count")
        other = next(
            option
            for option in page.all("#likeliest button")
            if option.get_attribute("data-id") != str(eos)
        )
        page.js("arguments[0].click()", other)
        assert page.step == 4
        assert page.one("#forward").is_enabled()


class TestThePrompt:
    def test_starts_a_text_of_its_own(self, page, tokenizer):
        page.write("#prompt", "A dog")
        page.click("#start")
        ids = tokenizer.encode("A dog")
        assert text(page)[: len(ids)] == ids
        assert page.step == 1

    def test_starts_with_enter_and_takes_line_breaks_with_shift(self, page, tokenizer):
        from selenium.webdriver.common.action_chains import ActionChains

        page.write("#prompt", "A dog")
        ActionChains(page.driver).key_down(SHIFT).send_keys(ENTER).key_up(SHIFT).perform()
        page.press("ran", ENTER)
        ids = tokenizer.encode("A dog\nran")
        assert text(page)[: len(ids)] == ids
        assert "↵" in page.text("#text")

    def test_may_be_empty(self, page):
        page.write("#prompt", "")
        page.click("#start")
        assert text(page)[0] == page.js("return source.config.eos_token_id")

    def test_too_long_is_refused_and_the_text_stays(self, page):
        before = text(page)
        page.js("document.getElementById('prompt').value = 'The cat sat. '.repeat(200)")
        page.click("#start")
        assert re.match(r"The prompt has \d+ tokens and the context", page.text("#problem"))
        assert text(page) == before
        page.write("#prompt", "A dog")
        page.click("#start")
        assert page.text("#problem") == ""

    def test_is_text_and_never_markup(self, page):
        page.write("#prompt", "</script><b id='evil'>x</b>")
        page.click("#start")
        assert page.all("#evil") == []
        assert page.text("#text").startswith("</script><b id='evil'>x</b>")

    def test_temperature_zero_is_greedy(self, page, traced):
        page.write("#temperature", "0")
        page.click("#start")
        for _ in range(5):
            page.click("#forward")
        assert text(page) == traced.tokens

    def test_another_seed_is_another_text(self, page):
        texts = set()
        for seed in ("1", "2", "3", "4", "1"):
            page.write("#seed", seed)
            page.write("#temperature", "2")
            page.click("#start")
            for _ in range(4):
                page.click("#forward")
            texts.add(tuple(text(page)))
        assert len(texts) == 4

    @pytest.mark.parametrize(("control", "value"), [("temperature", "-1"), ("seed", "1.5")])
    def test_beside_it_only_numbers_in_range_are_taken(self, page, control, value):
        page.write(f"#{control}", value)
        page.js("restart()")  # the form itself does not submit it
        assert "The temperature is a number from 0 to 5" in page.text("#problem")


class TestAlternatives:
    def test_are_those_of_the_package(self, page, traced):
        for step in range(4):
            page.open(f"#temperature=0&step={step + 1}")
            chosen = traced.steps[step].chosen
            shown = [int(o.get_attribute("data-id")) for o in page.all("#likeliest button")]
            assert shown == [token for token, _ in chosen.top]
            assert f"{page.text('#likeliest .chosen .quoted')}" in page.text("#summary")

    def test_fork_the_text_and_share_what_came_before(self, page, given):
        page.open("#step=3")
        before = text(page)
        other = page.all("#likeliest button:not(.chosen)")[1]
        token = int(other.get_attribute("data-id"))
        page.js("arguments[0].click()", other)
        assert text(page)[:-1] == [*before[:-1], token]
        assert page.step == 4
        shared = given + 2  # what was computed when the token was chosen
        assert page.js("return source.shared") == shared
        assert page.text("#shared").startswith(f"{shared} positions of this branch are another")
        assert len(page.all("#with-grid .dot")) == shared * page.js("return source.model.L")
        page.checked()
        assert "equal, bit for bit" in page.text("#answer")

    def test_leave_the_first_branch_as_it_was(self, page):
        page.open("#step=3")
        before = text(page)
        page.js("arguments[0].click()", page.all("#likeliest button:not(.chosen)")[0])
        page.click("#forward")
        forked = text(page)
        assert page.all("#branches button")[1].get_attribute("aria-pressed") == "true"
        page.click("#branches button:nth-child(1)")
        assert text(page) == before
        page.click("#forward")
        page.click("#branches button:nth-child(2)")
        assert text(page) == forked
        page.checked()
        assert "equal, bit for bit" in page.text("#answer")

    def test_that_were_chosen_anyway_are_the_next_step(self, page):
        page.click("#likeliest .chosen")
        assert page.step == 2
        assert page.all("#branches button") == []


class TestTheCache:
    def test_switched_off_brings_the_work_back(self, page, given):
        page.open("#step=5")
        before = text(page)
        page.click("#use-cache")
        assert text(page) == before
        assert page.text("#with-title") == "The cache is off"
        cells = [page.cells("with", kind) for kind in ("kept", "again")]
        assert cells == [0, (given + 3) * page.js("return source.model.L")]
        cached, uncached = page.js(
            "return ['cached', 'uncached'].map((way) => source.frames.at(-1)[way].positions)"
        )
        assert cached == uncached == given + 4
        page.click("#forward")
        assert page.js("return source.frames.at(-1).cached.positions") == given + 5
        page.click("#use-cache")
        assert page.js("return source.frames.at(-1).cached.positions") == 1
        assert page.text("#with-title") == "With the cache"

    @pytest.mark.parametrize("bug", BUGS)
    def test_broken_parts_from_the_truth_in_plain_view(self, page, bug):
        page.open("#step=8")
        page.checked()
        assert page.all("#with-grid .cross") == []
        page.choose("#bug", bug)
        page.checked()
        story = page.js("return BUGS[arguments[0]].story", bug)
        assert page.text("#bug-story") == story
        assert page.text("#with-title") == "With a broken cache"
        parted = int(re.search(r"they parted at step (\d+)", page.text("#answer"))[1])
        kinds = [item.get_attribute("class") for item in page.all("#steps li")]
        assert kinds.index("differ") == parted - 1
        crossed = page.js(
            "let n = 0;"
            "for (let layer = 0; layer < source.model.L; layer++)"
            "  for (let at = 0; at < source.branch.cache.length; at++)"
            "    n += source.wrong(layer, at);"
            "return n"
        )
        assert len(page.all("#with-grid .cross")) == crossed > 0
        page.choose("#bug", "")
        page.checked()
        assert "equal, bit for bit" in page.text("#answer")
        assert page.text("#bug-story") == ""

    def test_kept_between_prompts_is_that_of_the_prompt_before(self, page, tokenizer):
        page.choose("#bug", "kept")
        page.write("#prompt", "A dog")
        page.click("#start")
        assert page.js("return source.leftover") == tokenizer.encode(PROMPT)
        left = page.js("return source.weights(0, 0, 0)")
        assert left["from"] == -len(tokenizer.encode(PROMPT))
        assert page.cells("with", "left") > 0
        page.click("#all-weights summary")
        assert page.table("#weights")[0][1] == "left over"

    def test_out_of_the_window_is_not_read(self, page, given):
        page.open("#step=8&bug=window")
        assert page.cells("with", "unread") == (given + 7 - 8) * page.js("return source.model.L")
        assert "out of the window" in page.label("#with-grid")


class TestACloserLook:
    @pytest.fixture
    def at(self, page):
        page.open("#temperature=0&step=5&layer=1&head=2&token=4")
        return page

    def test_reads_what_the_package_reads(self, at, traced):
        at.click("#all-weights summary")
        for layer, head, token in ((1, 2, 4), (0, 1, 6), (3, 0, 2)):
            at.choose("#layer", layer)
            at.choose("#head", head)
            at.click(f"#token-{token}")
            shown = [float(row[2]) for row in at.table("#weights")]
            want = traced.attention[layer, head, token, : token + 1].tolist()
            assert shown == pytest.approx(want, abs=6e-4)
            most = max(range(len(want)), key=want.__getitem__)
            assert at.table("#most")[0][1] == str(most)

    def test_draws_a_line_to_each_key_that_is_read(self, at, traced):
        read = traced.attention[1, 2, 4, :5]
        lines = at.all("#lines path")
        assert len(lines) == int((read[:4] >= 0.02).sum())
        assert len(at.all("#lines circle")) == int(read[4] >= 0.02)
        end = at.js(
            "const box = document.getElementById('token-4').getBoundingClientRect();"
            "const from = document.getElementById('reading').getBoundingClientRect();"
            "return box.left + box.width / 2 - from.left"
        )
        for line in lines:
            assert float(re.match(r"M([\d.]+)", line.get_attribute("d"))[1]) == pytest.approx(
                end, abs=0.6
            )

    def test_outlines_the_token_that_is_looked_at(self, at):
        assert [span.get_attribute("id") for span in at.all("#text .current")] == ["token-4"]
        assert at.style("#text .current", "outline-style") == "solid"
        chosen = at.all("#text [aria-selected=true]")
        assert [span.get_attribute("id") for span in chosen] == ["token-4"]

    def test_by_keys_in_the_text(self, at):
        at.js("document.getElementById('text').focus()")
        seen = []
        for key in (LEFT, LEFT, RIGHT, HOME, LEFT, END, RIGHT):
            at.press(key)
            seen.append(at.js("return view.token"))
        last = at.js("return source.frames.at(-1).length - 1")
        assert seen == [3, 2, 3, 0, 0, last, last]
        assert at.step == 5  # these keys are the text's own here
        assert at.one("#text").get_attribute("aria-activedescendant") == f"token-{last}"

    def test_by_a_cell_of_the_picture(self, at):
        at.click('#without-grid [data-layer="3"][data-token="2"]')
        assert at.js("return [view.layer, view.token]") == [3, 2]
        assert at.one("#layer").get_attribute("value") == "3"
        assert len(at.all("#with-grid .picked")) == 1

    def test_by_the_small_pictures_of_all_heads(self, at):
        layers, heads = at.js("return [source.model.L, source.model.H]")
        thumbs = at.all(".thumb")
        assert len(thumbs) == layers * heads
        assert len({at.js("return arguments[0].firstChild.toDataURL()", t) for t in thumbs}) > 5
        at.click('.thumb[data-layer="3"][data-head="1"]')
        assert at.js("return [view.layer, view.head]") == [3, 1]
        at.js("document.querySelector('.thumb[aria-checked=true]').focus()")
        at.press(RIGHT, UP, LEFT, DOWN, DOWN)
        assert at.js("return [view.layer, view.head]") == [4, 1]
        assert at.js("return document.activeElement.ariaLabel") == "layer 4, head 1"

    def test_keys_and_values_are_the_packages(self, at, traced):
        at.click("#numbers summary")
        rows = [[float(cell.replace("−", "-")) for cell in row] for row in at.table("#vector")]
        for column, numbers in ((1, traced.inside.keys), (2, traced.inside.values)):
            assert [row[column] for row in rows] == pytest.approx(
                numbers[1, 2, 4].tolist(), abs=2e-4
            )

    def test_hovering_a_strip_reads_the_number(self, at, traced):
        from selenium.webdriver.common.action_chains import ActionChains

        at.js("document.getElementById('strips').scrollIntoView({block: 'center'})")
        strips, D = at.one("#strips"), at.js("return source.model.D")
        wide = (strips.size["width"] - 92 - 12) / (2 * D)
        for part, left, numbers in (
            ("Key", 92, traced.inside.keys),
            ("Value", 104 + D * wide, traced.inside.values),
        ):
            x, y = left + 5.5 * wide, 20 + 3.5 * 14  # number 5 of position 3
            x, y = round(x - strips.size["width"] / 2), round(y - strips.size["height"] / 2)
            ActionChains(at.driver).move_to_element_with_offset(strips, x, y).perform()
            told = at.text("#number")
            assert told.startswith(part)
            assert "(position 3), number 5: " in told
            value = float(told.rsplit(" ", 1)[1].replace("−", "-"))
            assert value == pytest.approx(float(numbers[1, 2, 3, 5]), abs=2e-4)

    def test_clicking_a_strip_looks_at_its_token(self, at):
        from selenium.webdriver.common.action_chains import ActionChains

        at.js("document.getElementById('strips').scrollIntoView({block: 'center'})")
        strips = at.one("#strips")
        y = round(20 + 2.5 * 14 - strips.size["height"] / 2)
        ActionChains(at.driver).move_to_element_with_offset(strips, 0, y).click().perform()
        assert at.js("return view.token") == 2

    def test_lens_and_norms_are_the_packages(self, at, traced):
        for row, want in zip(at.table("#norms"), traced.inside.norms[:, 4], strict=True):
            assert [float(cell) for cell in row[1:]] == pytest.approx(want.tolist(), abs=0.006)
        for row, said in zip(at.table("#lens"), traced.inside.lens, strict=True):
            assert row[1].startswith(f"“{traced.labels[said[4][0][0]]}”")

    @pytest.mark.parametrize("drawing", ["strips", "chart"])
    def test_drawings_follow_the_step(self, at, drawing):
        before = at.pixels(drawing)
        at.click("#forward")
        assert at.pixels(drawing) != before

    def test_the_work_of_all_steps_is_in_a_table(self, at, given):
        at.click("#all-steps summary")
        at.choose("#measure", "positions")
        at.checked()
        positions = [row[2:] for row in at.table("#step-table")]
        assert positions[0] == [str(given), str(given), "yes"]
        assert positions[4] == ["1", str(given + 4), "yes"]


class TestTheAddress:
    def test_leads_back_to_the_same_view(self, page):
        page.write("#prompt", 'She said: "Hé & 100% = #1"')
        page.write("#temperature", "1.5")
        page.write("#seed", "9")
        page.click("#start")
        page.click("#forward")
        page.js("arguments[0].click()", page.all("#likeliest button:not(.chosen)")[2])
        page.click("#forward")
        page.choose("#layer", 3)
        page.choose("#head", 1)
        page.click("#token-2")
        seen = page.js("return [source.tokens, view.layer, view.head, view.token]")
        assert address(page)["step"] == "4"
        reopen(page)
        assert page.js("return [source.tokens, view.layer, view.head, view.token]") == seen
        assert page.one("#prompt").get_attribute("value") == 'She said: "Hé & 100% = #1"'

    def test_has_the_cache_and_its_bug(self, page):
        page.choose("#bug", "mask")
        page.click("#use-cache")
        assert (address(page)["bug"], address(page)["cache"]) == ("mask", "off")
        reopen(page)
        assert not page.one("#use-cache").is_selected()
        assert page.one("#bug").get_attribute("value") == "mask"

    def test_may_change_under_an_open_page(self, page):
        page.js("location.hash = '#prompt=A+dog&step=3'")
        page.wait("source.settings.prompt === 'A dog'")
        assert page.step == 3

    @pytest.mark.parametrize(
        "fragment",
        [
            "#step=-3&layer=99&head=x&token=1e9",
            "#temperature=hot&seed=-1&bug=none&picks=1.2.3_x",
            "#picks=2.999999_-1.5",
            "#prompt=" + "word+" * 400,
            "#%%%",
        ],
    )
    def test_that_is_nonsense_still_shows_a_page(self, page, fragment):
        page.complaints()
        page.open(fragment)
        assert page.step == 1
        page.click("#forward")
        assert page.step == 2
        assert page.complaints() == []

    def test_is_copied(self, page):
        page.driver.execute_cdp_cmd(
            "Browser.grantPermissions",
            {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
        )
        page.click("#link")
        page.wait("document.getElementById('told').textContent")
        if page.text("#told") == "Copied.":
            copied = page.driver.execute_async_script(
                "navigator.clipboard.readText().then(arguments[0])"
            )
            assert copied == page.driver.current_url

    def test_can_be_copied_by_hand_where_the_clipboard_is_closed(self, page):
        page.js("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
        page.click("#link")
        page.wait("document.getElementById('told').textContent")
        assert page.one("#address").is_displayed()
        assert page.one("#address").get_attribute("value") == page.driver.current_url
        assert page.js("return getSelection().toString()") == page.driver.current_url


class TestEveryone:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("fragment", ["#step=1", "#step=12", "#step=6&bug=kept", "#cache=off"])
    def test_can_read_it(self, page, scheme, fragment):
        page.open(fragment, prefers_color_scheme=scheme)
        for details in page.all("summary"):
            details.send_keys(ENTER)
        page.checked()
        assert page.low_contrast() == []
        assert page.nameless() == []

    def test_sees_low_contrast_when_there_is_some(self, page):
        page.js("document.getElementById('summary').style.color = '#999'")
        assert len(page.low_contrast()) == 1

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_finds_nothing_wider_than_the_screen(self, page, width):
        for fragment in ("#step=1", "#step=60", "#step=9&bug=heads"):
            page.open(fragment, width=width, height=844)
            page.checked()
            assert page.js("return document.documentElement.scrollWidth") <= width
            assert page.small_controls() == []

    def test_gets_everything_in_the_dark(self, page):
        def look():
            return page.style("html", "background-color"), page.pixels("strips")

        light = look()
        page.open(prefers_color_scheme="dark")
        assert all(a != b for a, b in zip(light, look(), strict=True))

    def test_is_told_each_step_in_words(self, page, given):
        summary = page.one("#summary")
        assert summary.get_attribute("aria-live") == "polite"
        assert summary.text.startswith(f"The prompt’s {given} tokens are computed in one pass")
        page.press(RIGHT)
        assert f"reads {given + 1} keys: its own, and {given} from the cache" in summary.text

    def test_reaches_every_control_by_keyboard(self, page):
        page.open("#step=3")
        wanted = {
            "prompt", "temperature", "seed", "start", "use-cache", "bug", "layer", "head", "text",
            "measure", "strip-box", "back", "play", "forward", "link",
        }  # fmt: skip
        reached = set()
        for _ in range(50):
            page.press(TAB)
            reached.add(page.js("return document.activeElement.id"))
        assert wanted <= reached

    def test_sees_only_the_end_of_a_long_text_in_the_picture(self, page):
        page.open("#prompt=" + "The+cat+sat.+" * 12, width=390, height=844)
        columns = len(page.all('#with-grid [data-layer="0"]'))
        assert columns < page.js("return source.frames.at(-1).length")
        assert re.fullmatch(r"\d+ more", page.one("#with-grid .token").text)
        assert page.label("#with-grid").startswith("In each of")
