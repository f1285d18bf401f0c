"""What is told around a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from minigpt.commands.run_story import told_of_data, what_next
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Mixture, Text


def test_what_is_next_can_be_typed_whatever_the_names():
    told = what_next(Path("my runs/it's"), "\n'O' $HOME\nx", 5)
    commands = [shlex.split(line) for line in told]
    assert commands[0] == [
        "minigpt",
        "generate",
        "--model",
        "my runs/it's",
        "--prompt",
        "'O' $HOME",
    ]
    assert commands[1] == ["minigpt", "train", "--resume", "my runs/it's", "--steps", "10"]
    assert all("my runs/it's" in words for words in commands)


@pytest.fixture
def text() -> Text:
    tokens = np.zeros(1000, np.uint16)
    return Text(Corpus(byte_tokenizer(), tokens, tokens, 1000, documents=3), 8, seed=1)


def test_a_text_is_told_with_its_documents(text):
    config = TrainConfig(data="a.txt")
    assert told_of_data(config, text) == [
        "a.txt: 3 documents (<|endoftext|> ends one inside a file)"
    ]


def test_several_are_told_with_how_often_each_is_drawn(text):
    lines = told_of_data(
        TrainConfig(data="a.txt:3\nb/:1"), Mixture.of([text, text], [3.0, 1.0], seed=1)
    )
    assert lines[0].startswith("a.txt: 3 documents, 1,000 tokens to train on, 75.0% of the windows")
    assert lines[1] == "b/: 3 documents, 1,000 tokens to train on, 25.0% of the windows"
