"""What a run learns from: windows that depend on the step's number alone, and a model that fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.training.data import Corpus, byte_tokenizer
from minigpt.training.recipes import preset
from minigpt.training.sources import Problems, Text, open_source, starting_model
from minigpt.training.tasks import TASKS


@pytest.fixture
def text() -> Text:
    tokens = (np.arange(1000) % 251).astype(np.uint16)
    return Text(Corpus(byte_tokenizer(), tokens, tokens[:90], 90), 8, seed=1)


@pytest.fixture
def problems() -> Problems:
    return Problems(TASKS["copying"], seed=1)


@pytest.mark.parametrize("source", ["text", "problems"])
def test_a_steps_windows_do_not_depend_on_what_was_asked_before(source, request):
    source = request.getfixturevalue(source)
    first = source.batch(7, range(4))[0]
    source.batch(3, range(4))
    assert torch.equal(source.batch(7, range(4))[0], first)
    assert torch.equal(torch.cat([source.batch(7, [row])[0] for row in range(4)]), first)


def test_held_out_windows_follow_one_another(text):
    [(inputs, targets)] = text.held_out()
    assert torch.equal(inputs.flatten(), torch.arange(88))
    assert torch.equal(targets.flatten(), torch.arange(1, 89))


def test_held_out_windows_of_documents_begin_where_one_begins(text):
    end = text.tokenizer.eot_token
    tokens = np.array([end, *[1, 2, 3, 4, end] * 10], np.uint16)
    documents = replace(text, corpus=replace(text.corpus, held_out=tokens), openings=True)
    [(inputs, _)] = documents.held_out()
    assert inputs.tolist() == [[end, 1, 2, 3, 4, end, 1, 2]] * 6
    assert len(next(documents.held_out(2))[0]) == 2


def test_held_out_problems_are_unseen_and_count_their_answers_only(problems):
    for inputs, targets in problems.held_out(50):
        for row, target in zip(inputs.tolist(), targets, strict=True):
            question = problems.tokenizer.decode(row)[: problems.task.lengths[0]]
            answer = target[target != -100].tolist()
            assert problems.task.is_unseen(question)
            assert problems.tokenizer.decode(answer) == question[:-1] + "<|endoftext|>"


def test_other_data_have_another_fingerprint(text):
    other = text.corpus.training.copy()
    other[5] += 1
    changed = replace(text, corpus=replace(text.corpus, training=other))
    assert text.fingerprint() == replace(text).fingerprint() != changed.fingerprint()


def test_a_task_comes_with_a_recipe_of_its_size(tmp_path):
    config = preset("addition")
    source = open_source(config, tmp_path)
    model = starting_model(config, source)
    assert model.config == TASKS["addition"].config()


def test_the_seed_decides_the_new_weights(text):
    config = replace(preset("stories"), n_positions=8)
    one, two, other = (
        starting_model(replace(config, seed=seed), text).wte.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_checkpoint_is_continued_with_the_dropout_asked_for_and_its_files_stay(text, tmp_path):
    GPT(GPTConfig(257, 16, 16, 1, 2)).save_pretrained(tmp_path)
    model = starting_model(replace(preset("stories"), start=str(tmp_path), dropout=0.3), text)
    with torch.no_grad():
        model.wte.weight.zero_()
    assert model.config.resid_pdrop == 0.3
    assert GPT.from_pretrained(tmp_path).wte.weight.any()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((100, 16, 16, 1, 2), "a vocabulary of 100 and the data need one of 257"),
     ((257, 4, 16, 1, 2), "a context of 4 and the data need one of 8")],
)  # fmt: skip
def test_a_checkpoint_that_is_too_small_is_refused(text, tmp_path, shape, sentence):
    GPT(GPTConfig(*shape)).save_pretrained(tmp_path)
    with pytest.raises(MinigptError, match=f"the model has {sentence}"):
        starting_model(replace(preset("stories"), start=str(tmp_path)), text)
