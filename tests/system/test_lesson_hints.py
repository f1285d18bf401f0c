"""Typical mistakes in the exercises of the lessons, and the hint that each of them must get.

The code cells of a lesson run up to an exercise, in one namespace, as a reader runs them; then each
wrong answer takes the stub's place and the check speaks. Cells that no exercise builds on are left
out.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from functools import cache
from typing import Any

import pytest
import torch

from tests.helpers import ROOT
from tests.system.lesson_mistakes import MISTAKES, STAND_INS

NOTEBOOKS = ROOT / "notebooks"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
EXERCISES = [(lesson, exercise) for lesson in MISTAKES for exercise in MISTAKES[lesson]]
WRONG = [
    pytest.param(lesson, exercise, wrong, hint, id=f"{lesson}-{exercise}-{n}")
    for lesson, exercise in EXERCISES
    for n, (wrong, hint) in enumerate(MISTAKES[lesson][exercise])
]


@pytest.fixture(autouse=True)
def no_lasting_settings():
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients)


@cache
def cells(lesson: str) -> dict[str, tuple[str, list[str]]]:
    """Source and tags by the cell's name."""
    (path,) = NOTEBOOKS.glob(f"{lesson}-*.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return {c["id"]: ("".join(c["source"]), c["metadata"].get("tags", []), c["cell_type"])
            for c in notebook["cells"]}  # fmt: skip


@cache
def reader(lesson: str) -> dict[str, dict[str, Any]]:
    """What a reader who solves nothing has at each exercise: names and values."""
    names: dict[str, Any] = {}
    at: dict[str, dict[str, Any]] = {}
    wanted = needed(lesson)
    for name, (source, tags, _) in cells(lesson).items():
        exec(STAND_INS.get((lesson, name), ""), names)
        if "exercise" in tags:
            at[exercise_of(name)] = dict(names)
        if name in wanted and "check" not in tags:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(plain(source), f"{lesson} {name}", "exec"), names)
    return at


def needed(lesson: str) -> set[str]:
    """The code cells that an exercise or its check builds on, those before them, and so on.

    Those whose outputs vary measure or train; what exercises take from one is in `STAND_INS`.
    """
    found: set[str] = set()
    used: set[str] = set()
    for name, (source, tags, kind) in reversed(cells(lesson).items()):
        if {"exercise", "check"} & set(tags):
            text = source
        elif "answer" in tags:
            text = solution(lesson, exercise_of(name))
        elif kind == "code" and "varies" not in tags:
            text = plain(source)
        else:
            continue
        made, read = named(text)
        if tags or name in ("begin", "imports") or made & used:
            found.add(name)
            used |= read
    return found


def named(source: str) -> tuple[set[str], set[str]]:
    """The names that Python code makes or changes, and all that it mentions."""
    made, read = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.Name):
            read.add(node.id)
            if isinstance(node.ctx, ast.Store):
                made.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            root = node.value
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            made |= {root.id} if isinstance(root, ast.Name) else set()
    return made, read


def plain(source: str) -> str:
    """Python without the lines that only a notebook understands."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))


def exercise_of(name: str) -> str:
    """ "ex1" of its cells ex1-stub, ex1-check, ex1-answer."""
    return re.sub("-(answer|stub|check|solution)$", "", name)


def verdict(lesson: str, exercise: str, answer: str) -> str:
    """What the check says to an answer, given that all earlier exercises are solved."""
    names = dict(reader(lesson)[exercise])
    for earlier in reader(lesson):
        if earlier == exercise:
            break
        exec(solution(lesson, earlier), names)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.no_grad():
        exec(answer, names)
        exec(cells(lesson)[f"{exercise}-check"][0], names)
    return said.getvalue()


def solution(lesson: str, exercise: str) -> str:
    (text,) = (
        source
        for name, (source, tags, _) in cells(lesson).items()
        if "answer" in tags and name in (f"{exercise}-solution", f"{exercise}-answer")
    )
    found = SOLUTION.search(text)
    assert found, exercise
    return found[1]


@pytest.mark.parametrize(("lesson", "exercise", "wrong", "hint"), WRONG)
def test_a_mistake_gets_the_hint_that_it_deserves(lesson, exercise, wrong, hint):
    """A wrong answer is a whole one, or what to put in place of what in the solution."""
    if isinstance(wrong, tuple):
        right = solution(lesson, exercise)
        assert wrong[0] in right, "the solution has changed"
        wrong = right.replace(*wrong)
    assert verdict(lesson, exercise, wrong).splitlines()[-1] == f"not yet: {hint}"


@pytest.mark.parametrize(("lesson", "exercise"), EXERCISES)
def test_the_solution_is_right(lesson, exercise):
    said = verdict(lesson, exercise, solution(lesson, exercise))
    assert said.splitlines()[-1] == "right!"


@pytest.mark.parametrize("lesson", MISTAKES)
def test_every_exercise_has_three_typical_mistakes(lesson):
    exercises = {
        exercise_of(name) for name, (_, tags, _) in cells(lesson).items() if "exercise" in tags
    }
    assert exercises == set(MISTAKES[lesson])
    assert [name for name, wrong in MISTAKES[lesson].items() if len(wrong) < 3] == []
