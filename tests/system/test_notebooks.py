"""The lessons as files: complete, the same in every language, and fit to be run elsewhere.

Nothing is run here; that the outputs are true is the business of `notebooks/check.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

NOTEBOOKS = ROOT / "notebooks"
FILES = sorted(NOTEBOOKS.glob("**/*.ipynb"))
TRANSLATIONS = [path for path in FILES if path.parent != NOTEBOOKS]
ABSOLUTE = re.compile(r"""(?:^|[\s"'(=])(?:/[\w.-]+/[\w.-]|[A-Z]:\\)""", re.MULTILINE)

Cell = dict[str, Any]


def name(path: Path) -> str:
    return str(path.relative_to(NOTEBOOKS))


def number(path: Path) -> str:
    """ "2" of 02-kv-cache.ipynb, "2b" of 02b-find-the-bug.ipynb."""
    return path.name.split("-")[0].removeprefix("0")


def read(path: Path) -> list[Cell]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def tags(cell: Cell) -> list[str]:
    return cell["metadata"].get("tags", [])


def code(path: Path) -> list[Cell]:
    return [cell for cell in read(path) if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    return "\n".join(source(cell) for cell in read(path) if cell["cell_type"] == "markdown")


every_lesson = pytest.mark.parametrize("path", FILES, ids=name)
every_translation = pytest.mark.parametrize("path", TRANSLATIONS, ids=name)


@every_lesson
def test_a_lesson_says_what_it_is_and_needs_no_particular_python(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert source(notebook["cells"][0]).startswith(f"# {number(path)}. ")


@every_lesson
def test_cells_have_names_that_last(path):
    names = [cell["id"] for cell in read(path)]
    assert len(set(names)) == len(names)
    assert [cell for cell in names if not re.fullmatch(r"[a-z][a-z0-9-]+", cell)] == []


@every_lesson
def test_every_cell_has_been_run_in_order_without_an_error(path):
    cells = code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@every_lesson
def test_what_a_cell_prints_or_draws_is_there(path):
    shows = re.compile(r"^(?:print\(|plot\.|@lessons\.check)", re.MULTILINE)
    cells = [cell for cell in code(path) if shows.search(source(cell))]
    assert cells
    assert [cell["id"] for cell in cells if not cell["outputs"]] == []


@every_lesson
def test_an_exercise_is_a_question_a_stub_a_check_and_an_answer(path):
    cells = read(path)
    stubs = [n for n, cell in enumerate(cells) if "exercise" in tags(cell)]
    assert 2 <= len(stubs) <= 7
    for n in stubs:
        question, stub, check, answer = cells[n - 1 : n + 3]
        assert re.match(r"### .+ \d: ", source(question)), question["id"]
        assert (stub["cell_type"], check["cell_type"]) == ("code", "code")
        assert (tags(check), tags(answer)) == (["check"], ["answer"])
        assert source(check).startswith("@lessons.check\ndef _():\n"), check["id"]
        shown = "".join("".join(output["text"]) for output in check["outputs"])
        assert shown.startswith("not yet: "), f"{check['id']} accepts its stub"
        assert len(re.findall("<details><summary>", source(answer))) == 2
        assert re.search(r"</summary>\n\n```python\n.+\n```\n\n</details>$", source(answer), re.S)
    marked = [cell["id"] for cell in cells if {"check", "answer"} & set(tags(cell))]
    assert len(marked) == 2 * len(stubs)


@every_lesson
def test_nothing_points_to_a_place_on_one_machine(path):
    texts = [source(cell) for cell in read(path)]
    for cell in code(path):
        for output in cell["outputs"]:
            data = output.get("data", {})
            texts += [
                "".join(shown) for shown in (output.get("text", []), data.get("text/plain", []))
            ]
    assert [text for text in texts if ABSOLUTE.search(text)] == []


@every_lesson
def test_files_it_links_to_are_there(path):
    links = re.findall(r"\]\(([^)#\s]+)", prose(path))
    local = [link for link in links if "://" not in link]
    assert local, "a lesson leads to the next"
    assert [link for link in local if not (path.parent / link).exists()] == []


@every_lesson
def test_a_lesson_is_small_enough_to_clone(path):
    assert path.stat().st_size < 600_000


@every_translation
def test_a_translation_has_the_code_and_the_outputs_of_the_original(path):
    assert code(path) == code(NOTEBOOKS / path.name)


@every_translation
def test_a_translation_has_the_cells_of_the_original_in_their_order(path):
    def places(path: Path) -> list[tuple[str, str, list[str]]]:
        return [(cell["id"], cell["cell_type"], tags(cell)) for cell in read(path)]

    assert places(path) == places(NOTEBOOKS / path.name)


@every_translation
def test_a_translation_shows_the_same_solutions(path):
    solution = re.compile(r"```python\n(.*?)```", re.DOTALL)
    assert solution.findall(prose(path)) == solution.findall(prose(NOTEBOOKS / path.name))


@every_translation
def test_a_translation_is_one(path):
    pairs = zip(read(path), read(NOTEBOOKS / path.name), strict=True)
    prose = [(mine, theirs) for mine, theirs in pairs if mine["cell_type"] == "markdown"]
    assert [mine["id"] for mine, theirs in prose if source(mine) == source(theirs)] == []
