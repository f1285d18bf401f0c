"""What models write before and after training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.sources import Beginning, Problems, Text
from minigpt.training.tasks import TASKS
from minigpt.training.writing import BEFORE, before_and_after, continue_beginning

TEXT = "One two three four five six seven."


def source(texts: list[str], width: int = 64) -> Text:
    tokenizer = byte_tokenizer()
    end = [tokenizer.eot_token]
    tokens = np.array(sum((tokenizer.encode(t) + end for t in texts), end), np.uint16)
    return Text(Corpus(tokenizer, tokens, tokens, 1), width, seed=1)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(257, 8, 16, 1, 2, eos_token_id=None)).eval()


def test_a_text_begins_with_the_first_words_of_one_held_out():
    tokenizer = byte_tokenizer()
    found = source([TEXT, "Short.", TEXT[4:]]).beginnings(3)
    assert [tokenizer.decode(b.tokens) for b in found] == [
        "One two three four ", "Short.", "two three four five ",
    ]  # fmt: skip


def test_a_beginning_takes_half_of_the_context_at_most():
    assert len(source([TEXT], width=8).beginnings(1)[0].tokens) == 4


def test_a_text_goes_on_beyond_the_context(model):
    text = continue_beginning(model, source([TEXT]), Beginning([65], ""), 40, seed=1)
    assert len(text.encode()) >= 40


def test_a_problem_is_answered_within_the_context_and_the_answer_is_there_to_compare():
    task = TASKS["copying"]
    model, problems = GPT(task.config()).eval(), Problems(task, 1)
    [one, two] = before_and_after(model, model, problems, 400, count=2)
    assert one.prompt != two.prompt
    assert one.wanted + "=" == one.prompt
    assert one.before == one.after
    assert len(one.after) <= task.context
    assert f"wanted '{one.wanted}'" in str(one)


def test_both_models_go_on_from_the_same_beginning(model):
    torch.manual_seed(1)
    [told] = before_and_after(model, GPT(model.config).eval(), source([TEXT], width=8), 120)
    assert told.before != told.after
    assert len(told.before.encode()) >= BEFORE  # as many tokens; some bytes are no character
    assert str(told).count(told.prompt) == 2
