"""What pip installs: the package with its bundled model, usable from any directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT

TOY = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="builds the wheel; the test extra brings it")
    place = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = place.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """installed(program, ...): what it prints, with the wheel and far from the checkout."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--target", site, wheel],
        check=True,
    )  # fmt: skip

    def call(program, *arguments):
        program = {"minigpt": [site / "bin" / "minigpt"], "python": ["-c"]}[program]
        done = subprocess.run(
            [sys.executable, *program, *arguments], cwd=elsewhere, check=True, text=True,
            env={**os.environ, "PYTHONPATH": str(site)}, stdout=subprocess.PIPE,
        )  # fmt: skip
        return done.stdout

    assert installed_in(call) == site / "minigpt"
    return call


def installed_in(call):
    return Path(call("python", "import minigpt; print(minigpt.__file__)").strip()).parent


def test_holds_every_file_of_the_package_and_the_bundled_model_as_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in (ROOT / "minigpt").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in names
        for name in TOY:
            there = archive.read(f"minigpt/weights/toy/{name}")
            assert there == (ROOT / "weights" / "toy" / name).read_bytes()
    assert sum("/weights/" in name for name in names) == len(TOY)


def test_writes_a_story_where_no_checkout_is_near(installed):
    text = installed("minigpt", "generate", "--prompt", "Once upon a time", "--max-new-tokens", "9")
    assert text.startswith("Once upon a time")
    assert len(text) > len("Once upon a time\n")


def test_has_the_bundled_model_and_its_tokenizer(installed):
    code = (
        "import minigpt; model = minigpt.GPT.from_pretrained('toy'); "
        "print(model.config.n_layer, minigpt.Tokenizer.from_pretrained('toy').n_vocab)"
    )
    assert installed("python", code).split() == ["5", "2048"]


def test_the_first_cell_of_a_lesson_installs_it_where_it_is_missing_and_says_so(wheel, tmp_path):
    pytest.importorskip("IPython", reason="runs a lesson's cell; the notebooks extra brings it")
    lesson = json.loads((ROOT / "notebooks" / "01-attention.ipynb").read_text("utf-8"))
    cell = next("".join(cell["source"]) for cell in lesson["cells"] if cell["id"] == "begin")
    hidden = "import sys\nfrom pathlib import Path\n" + (
        "sys.path[:] = [place for place in sys.path if not (Path(place) / 'minigpt').is_dir()]\n"
    )
    empty, site = tmp_path / "empty", tmp_path / "site"
    for folder in (empty, site):
        folder.mkdir()
    env = {**os.environ, "PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    env["IPYTHONDIR"] = str(tmp_path / "ipython")

    def run() -> tuple[str, str]:
        program = empty / "lesson.ipy"
        shown = "print(lessons.find('toy'))"
        program.write_text(f"{hidden}sys.path.append({str(site)!r})\n{cell}\n{shown}\n", "utf-8")
        line = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", program]
        done = subprocess.run(line, cwd=empty, env=env, capture_output=True, text=True)
        return done.stdout, done.stderr + done.stdout

    assert "put its wheel (`make wheel`) beside this notebook" in run()[1]
    copied = shutil.copy(wheel, empty)
    said = run()[0]
    assert f"minigpt is not installed here: installing it from {copied}" in said
    assert said.splitlines()[-1] == str(site / "minigpt" / "weights" / "toy")


def test_draws_a_page_which_takes_files_that_are_no_modules(installed):
    assert installed("minigpt", "trace", "--prompt", "x", "--max-new-tokens", "1") == "trace.html\n"
