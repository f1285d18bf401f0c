"""What a run learns from: windows that depend on the step's number alone, and a model that fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.documents import named_sources
from minigpt.training.recipes import preset
from minigpt.training.sources import Mixture, Problems, Text, open_source, starting_model
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


class TestAMixture:
    """One text of ones, and one of twos that is four times as long."""

    @pytest.fixture
    def parts(self) -> list[Text]:
        corpora = [
            Corpus(byte_tokenizer(), np.full(n, n // 1000, np.uint16), np.full(90, 3), 90)
            for n in (1000, 4000)
        ]
        return [Text(corpus, 8, seed=1) for corpus in corpora]

    def share(self, mixture) -> float:
        """Of the first of the two texts."""
        inputs, targets = mixture.batch(5, range(4000))
        assert ((inputs == inputs[:, :1]) & (targets == inputs)).all()  # no window has both
        return (inputs[:, 0] == 1).double().mean().item()

    def test_draws_each_text_by_its_weight(self, parts):
        assert self.share(Mixture.of(parts, [3.0, 1.0], 1)) == pytest.approx(0.75, abs=0.03)
        assert self.share(Mixture.of(parts, [3.0, None], 1)) == pytest.approx(0.75, abs=0.03)

    def test_draws_each_as_often_as_it_is_long_without_weights(self, parts):
        assert self.share(Mixture.of(parts, [None, None], 1)) == pytest.approx(0.2, abs=0.03)

    def test_has_rows_that_do_not_depend_on_who_asks(self, parts):
        mixture = Mixture.of(parts, [1.0, 1.0], 1)
        rows = [mixture.batch(7, [row])[0] for row in range(20)]
        assert torch.equal(torch.cat(rows), mixture.batch(7, range(20))[0])

    def test_holds_out_some_of_each(self, parts):
        mixture = Mixture.of(parts, [3.0, 1.0], 1)
        assert sum(len(x) for x, _ in mixture.held_out()) == 2 * 11
        assert [len(x) for x, _ in mixture.held_out(8)] == [6, 2]

    def test_is_another_with_other_weights(self, parts):
        one, two = (Mixture.of(parts, [w, 1.0], 1).fingerprint() for w in (1.0, 2.0))
        assert one != two

    def test_is_opened_with_one_tokenizer(self, tmp_path):
        for name, letters in (("a.txt", "abc "), ("b.txt", "xyz ")):
            (tmp_path / name).write_text(letters * 100)
        named = f"{tmp_path / 'a.txt'}:2\n{tmp_path / 'b.txt'}:1"
        config = replace(preset("laptop"), data=named, n_positions=8)
        source = open_source(config, tmp_path / "cache")
        assert source.tokenizer.n_vocab == 6 + 1 + 1  # letters, the space, and the end of text
        assert source.shares.tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("data", "expected"),
    [("a.txt", [("a.txt", None)]), ("a.txt:2\nb/:.5", [("a.txt", 2.0), ("b/", 0.5)]),
     ("stories:100", [("stories:100", None)]), ("stories:100:3", [("stories:100", 3.0)]),
     ("a b.txt:1", [("a b.txt", 1.0)]), ("a:b", [("a:b", None)])],
)  # fmt: skip
def test_what_data_names_and_how_often(data, expected):
    assert named_sources(data) == expected


def test_a_file_may_be_called_like_a_weight(tmp_path):
    (tmp_path / "a:2").write_text("x")
    assert named_sources(str(tmp_path / "a:2")) == [(str(tmp_path / "a:2"), None)]


@pytest.mark.parametrize("weight", ["x", "-1", "nan", ""])
def test_what_is_no_weight_of_a_source_that_is_there_is_told(tmp_path, weight):
    (tmp_path / "a").write_text("x")
    with pytest.raises(MinigptError, match=f"the weight of .*a is '{weight}', needed a number"):
        named_sources(f"{tmp_path / 'a'}:{weight}")


@pytest.mark.parametrize("data", ["", "\n", "a:0\nb:0"])
def test_nothing_to_learn_from_is_refused(data):
    with pytest.raises(MinigptError, match="needed a text file, folder or JSONL file"):
        named_sources(data)
