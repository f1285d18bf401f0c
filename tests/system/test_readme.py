"""The README's Python runs, from top to bottom, as it stands there."""

from __future__ import annotations

import re

import pytest
import torch

from tests.helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_every_block_of_python_runs(monkeypatch, tmp_path, capsys):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)  # where it may leave files
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) >= 4
    assert names["text"] == names["same"]  # with and without the cache, in transformers
    assert torch.is_tensor(names["keys"])
    assert "KVCache(static" in capsys.readouterr().out


def test_files_it_points_to_are_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_commands_it_names_exist(capsys):
    from minigpt.commands.cli import main

    for command in sorted(set(re.findall(r"(?:`|\$ )minigpt ([a-z]+)", README))):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, command
