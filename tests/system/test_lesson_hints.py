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
from tests.system.lesson_mistakes import ALSO_RIGHT, MISTAKES, STAND_INS

pytestmark = pytest.mark.usefixtures("gradients_as_before")
NOTEBOOKS = ROOT / "notebooks"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
EXERCISES = [(lesson, exercise) for lesson in MISTAKES for exercise in MISTAKES[lesson]]
SCOPES = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.comprehension, ast.ListComp, ast.SetComp,
          ast.DictComp, ast.GeneratorExp)  # fmt: skip
WRONG = [
    pytest.param(lesson, exercise, wrong, hint, id=f"{lesson}-{exercise}-{n}")
    for lesson, exercise in EXERCISES
    for n, (wrong, hint) in enumerate(MISTAKES[lesson][exercise])
]

OTHER = [
    pytest.param(lesson, exercise, answer, id=f"{lesson}-{exercise}-{n}")
    for lesson, answers in ALSO_RIGHT.items()
    for exercise, these in answers.items()
    for n, answer in enumerate(these)
]


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
        source = STAND_INS.get((lesson, name), source)
        if "exercise" in tags:
            at[exercise_of(name)] = dict(names)
        if name in wanted and not {"check", "answer"} & set(tags):
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
        elif (lesson, name) in STAND_INS:
            text = STAND_INS[lesson, name]
        elif kind == "code" and "varies" not in tags:
            text = plain(source)
        else:
            continue
        made, changed, read = named(text)
        if tags or name in ("begin", "imports") or (made | changed) & used:
            found.add(name)
            used = used - made | read
    return found


def named(source: str) -> tuple[set[str], set[str], set[str]]:
    """Global names that Python code makes, those that it changes, and those that it needs."""
    made: set[str] = set()
    changed: set[str] = set()
    needed: set[str] = set()

    def visit(node: ast.AST, own: frozenset[str] = frozenset()) -> None:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.For)):  # first what is on the right
            first = node.iter if isinstance(node, ast.For) else node.value
            rest = [child for child in ast.iter_child_nodes(node) if child is not first]
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                changed.add(node.target.id)
            for child in (first, *rest):
                visit(child, own)
            return
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load) and node.id not in made | own:
                needed.add(node.id)
            elif isinstance(node.ctx, ast.Store) and node.id not in own:
                made.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            changed.update(n.id for n in ast.walk(node.value) if isinstance(n, ast.Name))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        if isinstance(node, SCOPES):
            names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
            own |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
            own |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        for child in ast.iter_child_nodes(node):
            visit(child, own)

    visit(ast.parse(source))
    return made, changed, needed


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
        exec(stub(lesson, exercise), names)
        exec(answer, names)
        exec(cells(lesson)[f"{exercise}-check"][0], names)
    return said.getvalue()


def stub(lesson: str, exercise: str) -> str:
    (text,) = (
        source
        for name, (source, tags, _) in cells(lesson).items()
        if "exercise" in tags and exercise_of(name) == exercise
    )
    return text


def solution(lesson: str, exercise: str) -> str:
    (text,) = (
        source
        for name, (source, tags, _) in cells(lesson).items()
        if "answer" in tags and exercise_of(name) == exercise
    )
    found = SOLUTION.search(text)
    assert found, exercise
    return found[1]


@pytest.mark.parametrize(("lesson", "exercise", "wrong", "hint"), WRONG)
def test_a_mistake_gets_the_hint_that_it_deserves(lesson, exercise, wrong, hint):
    """A wrong answer is a whole one, or what to put in place of what in the solution."""
    said = verdict(lesson, exercise, whole(lesson, exercise, wrong))
    assert said.splitlines()[-1] == f"not yet: {hint}"


@pytest.mark.parametrize(("lesson", "exercise", "answer"), OTHER)
def test_a_right_answer_in_another_style_is_right(lesson, exercise, answer):
    said = verdict(lesson, exercise, whole(lesson, exercise, answer))
    assert said.splitlines()[-1] == "right!"


def whole(lesson: str, exercise: str, answer: str | tuple[str, str]) -> str:
    """An answer as it stands, or the solution with one thing changed."""
    if isinstance(answer, str):
        return answer
    right = solution(lesson, exercise)
    assert answer[0] in right, "the solution has changed"
    return right.replace(*answer)


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
