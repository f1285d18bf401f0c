"""Importing minigpt: at once, complete, and nothing heavy comes along."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt

HEAVY = ("transformers", "tokenizers", "matplotlib", "huggingface_hub", "tiktoken", "tqdm",
         "psutil", "torch._dynamo", "torch._inductor")  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_alone_loads_nothing_but_itself():
    code = (
        "import sys; before = set(sys.modules); import minigpt; print(*set(sys.modules) - before)"
    )
    assert python(code).split() == ["minigpt"]


def test_all_that_is_public_brings_in_nothing_heavy():
    code = (
        "import torch, sys; before = set(sys.modules); from minigpt import *; "
        f"print(*[m for m in {HEAVY} if m in set(sys.modules) - before], GPT.__name__)"
    )
    assert python(code).split() == ["GPT"]


def test_every_public_name_is_there():
    assert all(hasattr(minigpt, name) for name in minigpt.__all__)
    assert set(minigpt.__all__) <= set(dir(minigpt))


def test_names_that_editors_see_are_those_that_python_finds():
    tree = ast.parse(Path(minigpt.__file__).read_text(encoding="utf-8"))
    [seen] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {alias.name: node.module for node in seen.body for alias in node.names}
    assert imports == minigpt._HOMES
    assert sorted(imports) == sorted(minigpt.__all__)


def test_another_name_is_refused_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'minigpt' has no attribute 'nothing'"):
        _ = minigpt.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from minigpt import nothing  # noqa: F401
