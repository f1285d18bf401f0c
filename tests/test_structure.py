"""How the house is built: which way imports go, who knows which package, how long a file may be.

Every import in a module's text counts, also inside a function or for type checkers only.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.helpers import ROOT

FLOORS = [  # what is further down imports from what is further up; `minigpt` is its __init__.py
    {"support"}, {"config", "numerics", "tokenizer_settings"}, {"cache"}, {"model"},
    {"checkpoint"}, {"tokenizer"}, {"generation"}, {"training", "study", "hf"},
    {"bench"}, {"minigpt"}, {"commands"}, {"__main__"},
]  # fmt: skip
DOORS = {("minigpt.model", "minigpt.checkpoint.pretrained")}  # GPT's two *_pretrained
KNOWN_IN = {  # a package, and the rooms and modules that import it
    "argparse": {"commands", "bench.gpu_check"},  # which is a script of its own
    "huggingface_hub": {"checkpoint.hub"},
    "matplotlib": {"study.style", "training.curves"},
    "safetensors": {"checkpoint", "training.state"},
    "tiktoken": {"tokenizer"},
    "transformers": {"hf", "bench"},
}
LINES = {"README.md": 200, "minigpt/model.py": 280, "minigpt/cache/plain.py": 150}


@cache
def modules() -> dict[str, str]:
    """The text of every module by its dotted name, that of `__init__.py` by its room's."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in ROOT.glob("minigpt/**/*.py")}
    names = {".".join(path.parts).removesuffix(".__init__"): path for path in paths}
    return {name: paths[path].read_text("utf-8") for name, path in sorted(names.items())}


@cache
def imports(name: str) -> set[str]:
    """What a module imports: ours by their full names, others as they stand."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else str(node.module) for name in names}
    return found


def ours(name: str) -> set[str]:
    return imports(name) & modules().keys()


def last(name: str) -> str:
    return name.rpartition(".")[2]


def room(name: str) -> str:
    return ".".join(name.split(".")[1:2]) or name


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def within(name: str, place: str) -> bool:
    return f"{name}.".startswith(f"minigpt.{place}.")


def test_imports_go_up_the_list_but_for_the_two_doors_of_the_model():
    arrows = {(a, b) for a in modules() for b in ours(a) if room(a) != room(b)}
    assert {(a, b) for a, b in arrows if floor(a) <= floor(b)} == DOORS


def test_imports_are_written_as_imports_where_the_way_matters():
    hidden = {n for n, text in modules().items() if re.search(r"__import__|import_module", text)}
    assert {n for n in hidden if room(n) not in ("minigpt", "commands")} == set()


def test_no_circle():
    arrows = {name: ours(name) - {b for a, b in DOORS if a == name} for name in modules()}
    TopologicalSorter(arrows).prepare()


@pytest.mark.parametrize("package", KNOWN_IN)
def test_a_package_is_known_where_it_is_needed_and_nowhere_else(package):
    users = [name for name in modules() if package in {i.split(".")[0] for i in imports(name)}]
    assert {u for u in users if not any(within(u, place) for place in KNOWN_IN[package])} == set()
    assert {p for p in KNOWN_IN[package] if not any(within(u, p) for u in users)} == set()


def test_no_two_modules_share_a_name():
    names = Counter(map(last, modules()))
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_module_and_function_share_a_name():
    nodes = {node for text in modules().values() for node in ast.parse(text).body}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert {name for name in modules() if last(name) in functions} == set()


@pytest.mark.parametrize("file", LINES)
def test_what_is_read_first_is_short(file):
    lines = len((ROOT / file).read_text("utf-8").splitlines())
    assert lines <= LINES[file]


def test_a_module_of_more_than_350_lines_says_why_in_its_first_sentence():
    first = {name: re.split(r"\.\s", text)[0] for name, text in modules().items()}
    long = {name for name, text in modules().items() if text.count("\n") > 350}
    assert {name for name in long if "because" not in first[name]} == set()
