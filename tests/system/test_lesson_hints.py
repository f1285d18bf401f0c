"""Typical mistakes in the exercises of the lessons, and the hint that each of them must get.

The code cells of a lesson run up to an exercise, in one namespace, as a reader runs them; then each
wrong answer takes the stub's place and the check speaks. Cells that only measure are left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from functools import cache
from typing import Any

import pytest
import torch

from tests.helpers import ROOT
from tests.system.lesson_mistakes import MISTAKES

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
    names: dict[str, Any] = {"plt": None}
    at: dict[str, dict[str, Any]] = {}
    timed: set[str] = set()
    for name, (source, tags, kind) in cells(lesson).items():
        if kind != "code" or "varies" in tags or ("plot." in source and "import" not in source):
            timed |= set(re.findall(r"^(\w+)(?:, \w+)* =", source, re.MULTILINE))
            continue
        if "exercise" in tags:
            at[name.removesuffix("-answer")] = dict(names)
        if "check" in tags or any(re.search(rf"\b{word}\b", source) for word in timed):
            continue
        code = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"{lesson} {name}", "exec"), names)
    return at


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
    found = SOLUTION.search(cells(lesson)[f"{exercise}-solution"][0])
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
    exercises = {name.removesuffix("-answer") for name, (_, tags, _) in cells(lesson).items()
                 if "exercise" in tags}  # fmt: skip
    assert exercises == set(MISTAKES[lesson])
    assert [name for name, wrong in MISTAKES[lesson].items() if len(wrong) < 3] == []
