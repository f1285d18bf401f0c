"""The pages: every block of Python and every command in them runs, and shows what they say.

A page's blocks run in their order, in one folder, as a reader would run them. What differs: gpt2
and gpt2-xl are small models with random weights, downloaded from a hub that is imitated here;
training ends after two steps and takes no GPU, and the bench measures quickly. Of what a block
shows, the names in its tables must be there; numbers and stories differ from one machine to the
next.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from minigpt import GPT, GPTConfig, Tokenizer
from minigpt.checkpoint.hub import PINNED, Pin
from minigpt.commands.cli import main
from minigpt.training.grammar import stories
from tests.fake_hub import COMMIT, FakeHub
from tests.helpers import ROOT, TOY

PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("minigpt/**/*.md"), *ROOT.glob("[nw]*/README.md")]
)
WEIGHTS = "model.safetensors"
LESS = {  # what is appended to a command, so that it ends soon
    "train": "--steps 2",
    "train --preset toy": "--device cpu --no-compile --data stories:300 --tokenizer byte",
    "train --preset toy --out": "--batch-size 2",
    "bench": "--quick --model random:nano",
}
NOT_RUN = {
    "git clone … && cd minigpt",
    "make notebooks",  # opens Jupyter
    "make gpu-check",  # eight minutes of a GPU; test_gpu_check.py runs what it runs
}
every_page = pytest.mark.parametrize("page", PAGES, ids=str)


class Block(NamedTuple):
    kind: str  # python, console, or nothing
    text: str


def blocks(page: Path) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)]


def labels(shown: str) -> set[str]:
    """The first column of each row of a table, and remarks in brackets, whatever their numbers."""
    rows = re.findall(r"^ *([^\s$>].*?) {2,}\S|^ {2}(\(.*\))$", shown, re.M)
    return {re.sub(r"\d[\d.,]*", "N", row or remark) for row, remark in rows}


@pytest.fixture
def folder(tmp_path: Path, fake_hub: FakeHub, monkeypatch) -> Path:
    """Where the reader is: the bundled model, texts of their own, and a hub with two models."""
    shutil.copytree(TOY, tmp_path / "weights" / "toy")
    text = "\n\n".join(stories(seed=1, count=100))
    (tmp_path / "shakespeare.txt").write_text(text)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text(text)
    torch.manual_seed(0)
    small = GPTConfig(Tokenizer.from_pretrained(TOY).n_vocab, 256, 32, 2, 2)
    for name in ("gpt2", "gpt2-xl"):
        GPT(small).save_pretrained(tmp_path / "weights" / name)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(TOY / file, tmp_path / "weights" / name)
    made = {file.name: file.read_bytes() for file in (tmp_path / "weights" / "gpt2").iterdir()}
    fake_hub.files["openai-community/gpt2"] = made
    size, sha256 = len(made[WEIGHTS]), hashlib.sha256(made[WEIGHTS]).hexdigest()
    monkeypatch.setitem(PINNED, "gpt2", Pin("openai-community/gpt2", COMMIT, size, sha256))
    return tmp_path


def commands(line: str) -> Iterator[list[str]]:
    """What a line of a page runs, in words; of `make` what its recipe runs of minigpt."""
    words = shlex.split(line, comments=True)
    if words[0] != "make":
        yield words
        return
    recipe = subprocess.run(
        ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    found = [shlex.split(line) for line in recipe.splitlines() if "bin/minigpt " in line]
    assert found, f"{line} runs nothing of minigpt"
    yield from (["minigpt", *words[1:]] for words in found)


def run(words: list[str], expected: int) -> None:
    at = words.index("minigpt")
    if words[at + 1] == "download":
        shutil.rmtree(Path("weights", words[at + 2]))
    for start, more in LESS.items():
        if " ".join(words[at + 1 :]).startswith(start):
            words = [*words, *more.split()]
    if words[at + 1 : at + 3] == ["train", "--steps"]:  # the default: 20,000 stories, a minute
        words += ["--data", "stories:300"]
    if words[0] == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        done = subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    else:
        done = main(words[1:])
    assert done == expected, shlex.join(words)


@every_page
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_what_a_page_says_runs_and_shows_what_it_says(page, folder, capfd, monkeypatch):
    names: dict[str, object] = {}
    said = ""
    for block in blocks(page):
        shown = block.text
        if block.kind == "python":
            exec(compile(block.text, str(page), "exec"), names)
            shown = ""
        elif block.kind == "console":
            lines = re.findall(r"^\$ (.*)", block.text, re.M)
            assert lines, block.text
            for line in lines:
                if line not in NOT_RUN:
                    for words in commands(line):
                        run(words, expected=int("logits equal: no" in shown))
        elif block.text.startswith("> "):  # a session of play
            typed = re.findall(r"^> (.*)", block.text, re.M)
            monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed) + "\n"))
            run(["minigpt", "play"], expected=0)
        elif "┌" in block.text:  # a drawing
            continue
        said += "".join(capfd.readouterr())
        assert labels(shown) - labels(said) == set()


def test_every_target_of_the_makefile_has_one_recipe():
    told = subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")


def test_pages_are_found_and_their_blocks_too():
    assert {"README.md", "weights/README.md", "minigpt/numerics/README.md"} <= set(map(str, PAGES))
    text = "".join((ROOT / page).read_text("utf-8") for page in PAGES)
    assert text.count("```") == 2 * sum(len(blocks(page)) for page in PAGES)


@every_page
def test_what_it_points_to_is_there(page):
    text = (ROOT / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text.replace("\n", "")):
        file, _, part = link.partition("#")
        if "://" not in link:
            there = ROOT / page.parent / file if file else ROOT / page
            assert there.exists(), link
            assert not part or part in anchors(there), link


def anchors(page: Path) -> set[str]:
    """A heading's name in a link: small letters, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_extras_and_targets_it_names_exist(page):
    text = (ROOT / page).read_text("utf-8")
    project, makefile = (ROOT / name for name in ("pyproject.toml", "Makefile"))
    for extra in re.findall(r"minigpt\[([\w,]+)\]", text):
        assert re.search(rf"^{extra} = \[", project.read_text("utf-8"), re.M), extra
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile.read_text("utf-8"), re.M), target


@every_page
def test_commands_it_names_exist(page, capsys):
    text = (ROOT / page).read_text("utf-8")
    for command in sorted(set(re.findall(r"(?:`|\$ )minigpt ([a-z]+)", text))):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, command
