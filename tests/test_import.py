"""Importing minigpt: quick, and nothing heavy comes along."""

from __future__ import annotations

import subprocess
import sys

import minigpt

HEAVY = ("transformers", "tokenizers", "matplotlib", "huggingface_hub", "tiktoken", "tqdm",
         "psutil", "torch._dynamo", "torch._inductor")  # fmt: skip


def test_import_brings_in_nothing_heavy():
    code = (
        "import torch, sys; before = set(sys.modules); import minigpt; "
        f"print(*[m for m in {HEAVY} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    assert all(hasattr(minigpt, name) for name in minigpt.__all__)
