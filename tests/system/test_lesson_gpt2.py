"""What lessons 6 and 8 do with GPT-2, done with a checkpoint that lies where GPT-2 would.

It is the bundled model, rewritten as GPT-2's own file is: names without a prefix, and causal masks
among the weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minigpt.checkpoint import weights
from minigpt.study import lessons
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("gradients_as_before")

NEEDED = {  # the cells that the last one builds on
    "06-load-gpt2": ["imports", "header", "mistakes", "load-model", "damage", "against-itself",
                     "texts", "real-gpt2"],
    "08-inside": ["imports", "model", "sink", "sink-gpt2"],
}  # fmt: skip


@pytest.fixture
def in_its_place(tmp_path, monkeypatch) -> Path:
    """weights/gpt2 in the working directory."""
    place = tmp_path / "weights" / "gpt2"
    shutil.copytree(lessons.find("toy"), place)
    tensors = safetensors.torch.load_file(place / weights.WEIGHTS)
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(5):
        renamed[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
    safetensors.torch.save_file(renamed, place / weights.WEIGHTS)
    monkeypatch.chdir(tmp_path)
    return place


def run(lesson: str) -> None:
    cells = json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text("utf-8"))["cells"]
    sources = {cell["id"]: cell["source"] for cell in cells if cell["cell_type"] == "code"}
    names: dict[str, object] = {}
    for name in NEEDED[lesson]:
        source = "".join(line for line in sources[name] if not line.startswith("%"))
        exec(compile(source, f"{lesson} {name}", "exec"), names)


@pytest.mark.parametrize("lesson", NEEDED)
def test_every_check_holds_for_what_lies_there(lesson, in_its_place, capsys):
    run(lesson)
    said = capsys.readouterr().out
    assert "GPT-2\n" in said
    assert "bundled model" not in said.split("GPT-2\n")[1]
    if lesson == "06-load-gpt2":
        assert "69 tensors, 5 masks\ncached equals uncached: True\n" in said


def test_a_tensor_too_many_is_refused(in_its_place, capsys):
    tensors = safetensors.torch.load_file(in_its_place / weights.WEIGHTS)
    tensors["h.0.ln_3.weight"] = torch.zeros(192)
    safetensors.torch.save_file(tensors, in_its_place / weights.WEIGHTS)
    with pytest.raises(Exception, match="ln_3"):
        run("06-load-gpt2")


@pytest.mark.parametrize("lesson", NEEDED)
def test_without_it_the_same_is_done_with_the_bundled_model(lesson, tmp_path, monkeypatch, capsys):
    toy = lessons.find("toy").resolve()
    monkeypatch.setattr(lessons, "find", lambda name: toy if name == "toy" else None)
    monkeypatch.chdir(tmp_path)
    run(lesson)
    assert "in its place, the bundled model" in capsys.readouterr().out
