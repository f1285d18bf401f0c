"""Answers that a model gives: the sampler's log-probabilities are the trainer's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, generate
from minigpt.tokenizer import CharTokenizer
from minigpt.training.answers import Questions, recomputed, sample
from minigpt.training.tasks import TASKS

NAMING = Questions.of(TASKS["naming"])


def tiny(numerics: str = "exact", questions: Questions = NAMING) -> GPT:
    torch.manual_seed(0)
    vocabulary, end = questions.tokenizer.n_vocab, questions.tokenizer.eot_token
    shape = GPTConfig(vocabulary, 40, 32, 2, 2, eos_token_id=end, initializer_range=0.3)
    return GPT(replace(shape, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0), numerics).eval()


def answered(model: GPT, questions: Questions = NAMING, group: int = 4):
    asked = [question for question, _ in questions.unseen[:5]]
    return sample(model, questions, asked, range(group * len(asked)), group)


def test_sampler_and_trainer_have_the_same_log_probabilities_bit_for_bit():
    model = tiny()
    answers = answered(model)
    again = recomputed(model, answers)
    assert again.requires_grad
    assert torch.equal(again.detach(), answers.log_probabilities)
    assert torch.equal((again - answers.log_probabilities).exp(), torch.ones(len(again)))


def test_fast_numerics_do_not_have_them_and_are_near():
    model = tiny("fast")
    answers = answered(model)
    off = (recomputed(model, answers) - answers.log_probabilities).abs().max()
    assert 0 < off < 1e-4


def test_questions_of_different_lengths_go_together():
    asked = [("kot=", ""), ("a=", ""), ("lmnr=", "")]
    questions = replace(NAMING, unseen=asked)
    model = tiny()
    answers = sample(model, questions, [q for q, _ in asked], range(6), 2)
    assert torch.equal(recomputed(model, answers).detach(), answers.log_probabilities)


def test_an_empty_question_is_the_token_that_texts_begin_with():
    asked = ["", "kot="]
    model = tiny()
    answers = sample(model, NAMING, asked, range(4), 2)
    assert torch.equal(recomputed(model, answers).detach(), answers.log_probabilities)
    assert answers.tokens[0, 0] == NAMING.tokenizer.eot_token
    assert replace(NAMING, unseen=[("", "")]).width == NAMING.longest + 1


def test_an_answer_is_the_text_that_generate_samples_with_its_seed():
    model = tiny()
    answers, tokenizer = answered(model, group=1), NAMING.tokenizer
    for seed, (question, _) in enumerate(NAMING.unseen[:5]):
        alone = generate(model, tokenizer.encode(question), 7, 1.0, seed=seed)
        assert answers.texts[seed] == tokenizer.decode(alone.tokens)
        assert answers.complete[seed] == (alone.finish_reason == "end_of_text")


def test_the_token_that_ends_an_answer_counts_and_the_question_does_not():
    answers = answered(tiny())
    end, tokenizer = NAMING.tokenizer.eot_token, NAMING.tokenizer
    for row, chosen, text, complete in zip(
        answers.tokens, answers.sampled, answers.texts, answers.complete, strict=True
    ):
        assert row[1:][chosen].tolist() == tokenizer.encode(text) + [end] * complete
    assert {True, False} == set(answers.complete)  # both kinds are among them


class TestRewards:
    def test_a_task_pays_what_an_answer_is_worth_to_it(self):
        answers = answered(tiny())
        answers.texts[:2], answers.complete[:2] = ["kotali", "kotali"], [True, False]
        problems = [("kon=", "")] * len(answers.texts)
        assert NAMING.judged(problems, answers)[:2].tolist() == [pytest.approx(2 / 3), 0]

    def test_addition_pays_for_the_sum_only(self):
        addition = Questions.of(TASKS["addition"])
        assert addition.reward(("047+985=", "2301"), "2301") == 1
        assert addition.reward(("047+985=", "2301"), "2302") == 0

    def test_a_reward_may_be_a_function_of_ones_own(self):
        questions = Questions.of(TASKS["naming"], lambda problem, text: text.count("a"))
        assert questions.reward(("kot=", ""), "kalana") == 3

    @pytest.mark.parametrize("bad", [None, "1", float("nan")])
    def test_a_reward_that_is_no_number_is_told(self, bad):
        questions = replace(NAMING, reward=lambda problem, text: bad)
        answers = answered(tiny())
        answers.complete[0] = True
        with pytest.raises(MinigptError, match="needed a number: mend the function"):
            questions.judged([("kot=", "")] * len(answers.texts), answers)


def test_a_vocabulary_of_ones_own_will_do():
    tokenizer = CharTokenizer("ab?")
    questions = Questions(
        tokenizer, lambda rng: ("a?", ""), [("b?", "")], lambda problem, text: 1.0, 3
    )
    assert len(answered(tiny(questions=questions), questions).texts) == 4
    assert questions.width == 5
