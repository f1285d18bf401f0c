"""The program that runs the lessons: it lets a sound one pass, and catches what can go wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs pip install minigpt[notebooks]")
pytest.importorskip("nbclient", reason="needs pip install minigpt[notebooks]")
pytest.importorskip("ipykernel", reason="needs pip install minigpt[notebooks]")

CHECK = "print('right!' if answer == 4 else 'not yet')"
ANSWER = "<summary>Solution</summary>\n\n```python\nanswer = {}\n```\n"


@pytest.fixture
def program(monkeypatch) -> ModuleType:
    path = ROOT / "notebooks" / "check.py"
    monkeypatch.syspath_prepend(path.parent)  # where it finds translate.py, as a program does
    spec = importlib.util.spec_from_file_location("check_notebooks", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    monkeypatch.setattr(module.translate, "FIRST_CODE", "pass")
    return module


@pytest.fixture
def here(program, monkeypatch) -> None:
    """No wheel is built: most of what the program does is the same without."""
    monkeypatch.setattr(program, "installed", lambda folder: ROOT)


@pytest.fixture
def lesson(tmp_path: Path) -> Callable[..., Path]:
    """lesson(first="...", solution=4): a notebook of one cell and one exercise, never run."""

    def make(first: str = "print(6 * 7)", solution: int = 4, stub: str = "answer = None") -> Path:
        new = nbformat.v4.new_code_cell
        cells = [
            new(first, id="first"),
            new(stub, id="stub", metadata={"tags": ["exercise"]}),
            new(CHECK, id="check", metadata={"tags": ["check"]}),
            nbformat.v4.new_markdown_cell(
                ANSWER.format(solution), id="answer", metadata={"tags": ["answer"]}
            ),
            new("print(answer)", id="last"),
        ]
        path = tmp_path / "lesson.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return make


def outputs(path: Path) -> dict[str, str]:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return {cell.id: "".join(output.text for output in cell.outputs) for cell in cells}


@pytest.mark.usefixtures("here")
def test_a_lesson_that_was_written_passes_until_an_output_changes(program, lesson, capsys):
    path = lesson()
    assert program.main(["--write", str(path)]) == 0
    # the solution was tried and has left no trace
    said = {"begin": "", "first": "42\n", "stub": "", "check": "not yet\n", "last": "None\n"}
    assert outputs(path) == said
    assert program.main([str(path)]) == 0

    path.write_text(path.read_text().replace("42", "43"))
    assert program.main([str(path)]) == 1
    said = capsys.readouterr().out
    assert "first: stale output" in said and "-43" in said and "+42" in said


@pytest.mark.usefixtures("here")
def test_a_cell_that_raises_is_named_and_nothing_is_written(program, lesson, capsys):
    path = lesson(first="1 / 0")
    before = path.read_text()
    assert program.main(["--write", str(path)]) == 1
    said = capsys.readouterr().out
    assert "first: " in said and "ZeroDivisionError" in said
    assert path.read_text() == before


@pytest.mark.usefixtures("here")
def test_an_exercise_must_accept_its_solution_and_not_its_stub(program, lesson, capsys):
    assert program.main(["--write", str(lesson(solution=5, stub="answer = 4"))]) == 1
    said = capsys.readouterr().out
    assert "check: says right! to the stub" in said
    assert "check: does not accept the solution" in said


def test_a_lesson_runs_in_an_empty_folder_with_what_the_wheel_holds(program, lesson):
    pytest.importorskip("hatchling", reason="builds the wheel; the notebooks extra brings it")
    path = lesson(
        first=f"import os, minigpt\nprint(os.listdir(), {str(ROOT)!r} in minigpt.__file__)"
    )
    assert program.main(["--write", str(path)]) == 0
    assert outputs(path)["first"] == "[] False\n"
    assert program.main(["--write", "--here", str(path)]) == 0
    assert outputs(path)["first"] == "['lesson.ipynb'] True\n"


def test_a_file_that_is_not_there_is_a_mistake_in_the_input(program, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main([str(tmp_path / "none.ipynb")])
    assert stopped.value.code == 2
    assert "none.ipynb" in capsys.readouterr().err
