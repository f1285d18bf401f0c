"""The lessons as files: complete, the same in every language, and fit to be run elsewhere.

Nothing is run here; that the outputs are true is the business of `notebooks/check.py`.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
translate = importlib.import_module("translate")

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


def tree(text: str) -> str:
    """Python without its comments and docstrings."""
    module = ast.parse(text)
    for node in ast.walk(module):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(module)


def not_yet(path: Path) -> str:
    """How a check begins to say that an answer is wrong."""
    english = "not yet: {hint}"
    return translate.PHRASES.get(path.parent.name, {}).get(english, english).format(hint="")


def silent(text: str) -> str:
    """Python with nothing in its strings; what stands in the fields of one stays, in any order."""
    module = ast.parse(text)
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            fields = [part for part in node.values if isinstance(part, ast.FormattedValue)]
            node.values = sorted(fields, key=ast.dump)
        elif isinstance(node, ast.Constant):
            text = str(node.value)
            if translate.MESSAGE.search(text) or not text.isascii():
                node.value = ""
    return ast.dump(module)


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
        assert shown.startswith(not_yet(path)), f"{check['id']} accepts its stub"
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
def test_a_translation_is_one(path):
    pairs = zip(read(path), read(NOTEBOOKS / path.name), strict=True)
    prose = [(mine, theirs) for mine, theirs in pairs if mine["cell_type"] == "markdown"]
    assert [mine["id"] for mine, theirs in prose if source(mine) == source(theirs)] == []


@every_translation
def test_a_translation_has_the_code_and_the_outputs_of_the_original_but_for_hints(path):
    for mine, theirs in zip(code(path), code(NOTEBOOKS / path.name), strict=True):
        if mine["id"] == "begin":
            assert source(mine) == source(theirs).replace('"en"', f'"{path.parent.name}"')
        elif tags(mine) == ["check"]:
            assert silent(source(mine)) == silent(source(theirs))
        else:
            assert mine == theirs


@every_translation
def test_the_hints_of_a_translation_are_translated(path):
    for mine, theirs in zip(code(path), code(NOTEBOOKS / path.name), strict=True):
        if tags(mine) == ["check"]:
            assert set(translate.hints(mine)) & set(translate.hints(theirs)) == set()
            shown, english = ("".join(cell["outputs"][0]["text"]) for cell in (mine, theirs))
            assert shown.removeprefix(not_yet(path)) != english.removeprefix("not yet: ")


@every_lesson
def test_a_lesson_begins_by_installing_what_is_missing(path):
    first = code(path)[0]
    assert first["id"] == "begin"
    assert first["outputs"] == []  # nothing is missing here
    language = "en" if path.parent == NOTEBOOKS else path.parent.name
    assert source(first) == source(translate.begin(language))


@pytest.mark.parametrize("language", sorted(translate.PHRASES))
def test_every_translated_hint_is_one_of_a_lesson(language):
    cells = [cell for path in NOTEBOOKS.glob("*.ipynb") for cell in code(path)]
    said = {hint for cell in cells if tags(cell) == ["check"] for hint in translate.hints(cell)}
    known = translate.phrases(NOTEBOOKS / "any.ipynb", language).keys()
    assert known - translate.PHRASES[language].keys() - said == set()


@every_translation
def test_a_translation_is_what_its_catalogue_makes_of_the_english_lesson(path):
    assert path.with_suffix(".md").exists()
    assert translate.stale(NOTEBOOKS / path.name) == []


@pytest.mark.parametrize("page", sorted(NOTEBOOKS.glob("*/README.md")), ids=name)
def test_the_first_page_of_a_language_lists_its_lessons_by_their_titles(page):
    titles = {path.name: prose(path).splitlines()[0] for path in page.parent.glob("*.ipynb")}
    listed = re.findall(r"^- \[(.+?)\]\((.+?)\)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {link: f"# {title}" for title, link in listed} == titles
    assert [link for _, link in listed] == sorted(titles), "in the order to read them in"


def test_solutions_are_the_same_but_for_their_comments():
    solution = re.compile(r"```python\n(.*?)```", re.DOTALL)
    for path in TRANSLATIONS:
        mine, theirs = (
            [tree(text) for text in solution.findall(prose(file))]
            for file in (path, NOTEBOOKS / path.name)
        )
        assert mine == theirs


class TestCatalogues:
    """What `translate.py` says and writes, on a lesson of four cells in a folder of its own."""

    CATALOGUE = """\
<!-- title {title} -->
# 2. Tựa đề

Xem [bài 1](01-next.ipynb).

<!-- answer {answer} -->
Lời giải:

```python
{{code}}```

<!-- comments -->
a guess => đoán thử
"""

    def lesson(self, folder: Path, title: str = "# 2. Title\n\nSee [1](01-next.ipynb).") -> Path:
        answer = "Solution:\n\n```python\nx = 2  # a guess\ny = x  # (B, T)\n```"
        texts = {"title": title, "count": "print(2)", "answer": answer}
        cells = [
            {"id": name, "cell_type": "code" if name == "count" else "markdown", "source": [text]}
            for name, text in texts.items()
        ]
        cells[1]["outputs"] = [{"text": ["2\n"]}]
        path = folder / "02-lesson.ipynb"
        path.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")
        return path

    def catalogue(self, lesson: Path) -> Path:
        marks = {cell["id"]: translate.mark(source(cell)) for cell in read(lesson)}
        path = lesson.parent / "vi" / "02-lesson.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.CATALOGUE.format(**marks), encoding="utf-8")
        return path

    def test_markdown_is_replaced_and_code_copied(self, tmp_path):
        lesson = self.lesson(tmp_path)
        self.catalogue(lesson)
        assert translate.write(lesson) == []
        title, languages, begin, count, answer = read(tmp_path / "vi" / lesson.name)
        assert source(title).startswith("# 2. Tựa đề")
        assert source(languages) == "[English](../02-lesson.ipynb) · **Tiếng Việt**"
        assert source(begin).endswith('lessons.speak("vi")')
        assert count == read(lesson)[3]
        assert "x = 2  # đoán thử\ny = x  # (B, T)\n```" in source(answer)

    def check(self, folder: Path) -> Path:
        """The lesson, with one check more that has said its hint."""
        lesson = self.lesson(folder)
        self.catalogue(lesson)
        notebook = translate.load(lesson)
        text = '@lessons.check\ndef _():\n    assert x == "né", f"that is {x:.1f}, not {len(y)}"'
        said = ["not yet: that is {x:.1f}, not {len(y)}\n"]
        cell = {"id": "check", "cell_type": "code", "metadata": {"tags": ["check"]}}
        outputs = [{"output_type": "stream", "text": said}]
        notebook["cells"].append({**cell, "source": [text], "outputs": outputs})
        lesson.write_text(json.dumps(notebook), encoding="utf-8")
        return lesson

    def test_hints_are_translated_in_the_check_and_in_what_it_said(self, tmp_path):
        lesson = self.check(tmp_path)
        hint = "that is {x:.1f}, not {len(y)} => không phải {len(y)} mà là {x:.1f}\n"
        (tmp_path / "vi" / "messages.md").write_text(f"<!-- 02 -->\n{hint}", encoding="utf-8")
        assert translate.write(lesson) == []
        check = read(tmp_path / "vi" / lesson.name)[-1]
        assert source(check).endswith('x == "né", f"không phải {len(y)} mà là {x:.1f}"')
        assert check["outputs"][0]["text"] == ["chưa đúng: không phải {len(y)} mà là {x:.1f}\n"]

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("", "does not say what 'that is {x:.1f}, not {len(y)}' is"),
            ("that is {x:.1f}, not {len(y)} => {x:.1f}", "does not have the fields of 'that is {x"),
        ],
    )
    def test_a_hint_without_its_translation_is_refused(self, tmp_path, line, problem):
        lesson = self.check(tmp_path)
        (tmp_path / "vi" / "messages.md").write_text(line, encoding="utf-8")
        assert [said for said in translate.write(lesson) if problem in said]

    def test_english_leads_to_the_translations(self, tmp_path):
        lesson = self.lesson(tmp_path)
        self.catalogue(lesson)
        for _ in range(2):  # the second time, the line is there already
            translate.write(lesson)
            assert [cell["id"] for cell in read(lesson)].count("languages") == 1
            assert source(read(lesson)[1]) == "**English** · [Tiếng Việt](vi/02-lesson.ipynb)"

    def test_a_link_leads_to_a_translation_where_there_is_one(self, tmp_path):
        lesson = self.lesson(tmp_path)
        self.catalogue(lesson)
        translate.write(lesson)
        assert "](../01-next.ipynb)" in source(read(tmp_path / "vi" / lesson.name)[0])
        (tmp_path / "vi" / "01-next.md").touch()
        translate.write(lesson)
        assert "](01-next.ipynb)" in source(read(tmp_path / "vi" / lesson.name)[0])

    @pytest.mark.parametrize(
        ("page", "there"), [("README.md", "README.md"), ("../README.md", "../../README.md")]
    )
    def test_the_list_of_lessons_is_the_language_s_own_the_project_s_page_is_not(
        self, tmp_path, page, there
    ):
        lesson = self.lesson(tmp_path, f"# 2. Title\n\nSee [this]({page}).")
        path = self.catalogue(lesson)
        text = path.read_text(encoding="utf-8").replace("01-next.ipynb", page)
        path.write_text(text, encoding="utf-8")
        (tmp_path / "vi" / "README.md").touch()
        assert translate.write(lesson) == []
        assert f"]({there})" in source(read(tmp_path / "vi" / lesson.name)[0])

    def test_a_changed_english_cell_is_refused_until_its_new_hash_is_there(self, tmp_path):
        self.catalogue(self.lesson(tmp_path))
        changed = "# 2. Another title\n\nSee [1](01-next.ipynb)."
        lesson = self.lesson(tmp_path, changed)
        (problem,) = translate.write(lesson)
        assert problem.startswith("vi/02-lesson.md: title has changed in English")
        assert translate.mark(changed) in problem
        self.catalogue(lesson)
        assert translate.write(lesson) == []

    @pytest.mark.parametrize(
        ("before", "after", "problem"),
        [
            ("<!-- title", "<!-- other", "other is no Markdown cell of the lesson"),
            ("<!-- answer", "<!-- other", "answer is missing"),
            ("](01-next.ipynb)", "](02-lesson.ipynb)", "title does not have the links"),
            ("{code}", "x = 3\n", "answer and the English text do not both have {code}"),
            ("a guess =>", "guess =>", "comments does not say what 'a guess' in answer is"),
        ],
    )
    def test_a_catalogue_that_does_not_fit_is_refused(self, tmp_path, before, after, problem):
        lesson = self.lesson(tmp_path)
        path = self.catalogue(lesson)
        path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
        assert any(problem in said for said in translate.write(lesson))

    def test_a_notebook_changed_by_hand_is_found(self, tmp_path):
        lesson = self.lesson(tmp_path)
        self.catalogue(lesson)
        translate.write(lesson)
        assert translate.stale(lesson) == []
        notebook = tmp_path / "vi" / lesson.name
        notebook.write_text(notebook.read_text(encoding="utf-8").replace("Tựa", "Đầu"), "utf-8")
        (problem,) = translate.stale(lesson)
        assert problem.startswith("vi/02-lesson.ipynb: not what translate.py makes")
