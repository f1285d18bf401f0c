"""A headless Chromium, and a page in it as one looks at it and touches it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LEFT, RIGHT, UP, DOWN = "\ue012", "\ue014", "\ue013", "\ue015"
HOME, END, ENTER, SHIFT, TAB, SPACE = "\ue011", "\ue010", "\ue007", "\ue008", "\ue004", "\ue00d"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a profile of its own."""
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


class Page:
    """One of our pages, open in Chromium."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path

    def open(
        self, address: str = "", width: int = 1280, height: int = 800, **features: str
    ) -> None:
        """Open it afresh; `prefers_color_scheme="dark"` and the like are what the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.get("about:blank")  # or another fragment alone would not load it again
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"prefers-color-scheme": "light", "prefers-reduced-motion": "no-preference"}
        wanted |= {name.replace("_", "-"): value for name, value in features.items()}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get(self.path.as_uri() + address)
        self.wait("document.readyState === 'complete' && typeof source !== 'undefined'")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def style(self, selector: str, name: str) -> str:
        return self.one(selector).value_of_css_property(name)

    def table(self, selector: str) -> list[list[str]]:
        """The body's rows, each a list of the cells' text (of hidden ones too)."""
        rows = f"[...document.querySelector('{selector}').tBodies[0].rows]"
        return self.js(
            f"return {rows}.map((row) => [...row.cells].map((cell) => cell.textContent))"
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        """As a pointer does, but wherever it is: a bar may lie over it."""
        self.js(
            "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))",
            self.one(selector),
        )

    def choose(self, selector: str, value: object) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_value(str(value))

    def write(self, selector: str, text: str) -> None:
        self.js("arguments[0].value = ''", self.one(selector))
        self.one(selector).send_keys(text)

    def pixels(self, name: str) -> str:
        return self.js(f"return document.getElementById('{name}').toDataURL()")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true; at most a minute."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.02).until(
            lambda _: self.js(f"return Boolean({condition})")
        )

    def checked(self) -> None:
        """Until every step is compared with the pass without a cache."""
        self.wait("source.frames.every((frame) => frame.equal !== null)")

    def cells(self, grid: str, kind: str) -> int:
        """Cells of a kind in the grid "with" or "without"."""
        return len(self.all(f"#{grid}-grid .cell.{kind}"))

    def label(self, selector: str) -> str:
        """What a screen reader says of it."""
        return self.one(selector).get_attribute("aria-label")

    @property
    def step(self) -> int:
        return self.js("return parseInt(document.getElementById('count').textContent.slice(5))")

    def complaints(self) -> list[str]:
        """What the browser's console has said since this was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """What has been asked for since this was asked last."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }

    def low_contrast(self) -> list[str]:
        """Texts in sight with less than 4.5:1 against what is behind them, controls that are
        switched off aside (as WCAG does)."""
        return self.js(CONTRAST)

    def nameless(self) -> list[str]:
        """Things to use or to look at that a screen reader could not name."""
        kinds = "button, select, input, textarea, canvas:not([aria-hidden]), section, nav, [role]"
        found = self.all(kinds)
        return [
            thing.get_attribute("outerHTML")[:90]
            for thing in found
            if thing.is_displayed() and not thing.accessible_name
            and thing.get_attribute("role") not in ("option", "alert", "status")
        ]  # fmt: skip

    def small_controls(self) -> list[str]:
        """Controls less than 44 pixels high or wide."""
        return self.js(
            "return [...document.querySelectorAll('button, select, input, textarea, summary')]"
            ".map((c) => [c.id || c.className || c.tagName, (c.closest('label.check') ?? c)"
            ".getBoundingClientRect()]).filter(([, r]) => r.width && "
            "Math.min(r.width, r.height) < 43.9).map(([name]) => name)"
        )


@pytest.fixture(scope="session")
def browse(driver: Any) -> Any:
    """browse(path): the page there, opened."""

    def go(path: Path, address: str = "", **settings: Any) -> Page:
        page = Page(driver, path)
        page.open(address, **settings)
        return page

    return go


CONTRAST = r"""
const numbers = (colour) => { // [r, g, b, a], from 0 to 1
  const found = colour.match(/[\d.e-]+/g).map(Number);
  const scale = colour.startsWith("color(") ? 1 : 255;
  return [...found.slice(0, 3).map((c) => c / scale), found[3] ?? 1];
};
const over = (top, below) => below.map((c, i) => c + (top[i] - c) * top[3]);
const behind = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement)
    layers.unshift(numbers(getComputedStyle(e).backgroundColor));
  return layers.reduce((below, layer) => over(layer, below), [1, 1, 1]);
};
const light = (rgb) => rgb.slice(0, 3)
  .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const low = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode, element = node.parentElement, style = getComputedStyle(element);
  const aside = element.closest("script, style, :disabled, title, defs");
  if (aside || !node.textContent.trim()) continue;
  if (!element.getClientRects().length || parseFloat(style.fontSize) < 2) continue;
  const ground = behind(element), svg = element instanceof SVGElement;
  const ink = over(numbers(svg ? style.fill : style.color), ground);
  const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) low.push(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return low;
"""
