"""Learning from rewards: the ratio that is 1, the objective, and a run that resumes to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minigpt import GPT, MinigptError
from minigpt.training.answers import Questions
from minigpt.training.curves import read
from minigpt.training.parallel import Processes
from minigpt.training.policy import PolicyRun, advantages, divergence, improve, objective
from minigpt.training.recipes import TrainConfig
from minigpt.training.tasks import Recipe, Task

SPEAK = Task(  # say the letter that was asked for
    "speak", "a= is a", "abc=", lambda rng: rng.choice([("a=", "a"), ("b=", "b"), ("c=", "c")]),
    0.0, Recipe(1, 16, 2, steps=0),
)  # fmt: skip
ASKED = [(f"{letter}=", letter) for letter in "abc"]
QUESTIONS = replace(Questions.of(replace(SPEAK, unseen_share=0.5)), unseen=ASKED)
CONFIG = TrainConfig(
    method="grpo", steps=4, batch_size=16, group=4, learning_rate=1e-2, warmup=0,
    schedule="constant", weight_decay=0.0, evaluate_every=2, save_every=2, device="cpu",
)  # fmt: skip


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(SPEAK.config())


def improved(directory, config=CONFIG, **settings) -> GPT:
    model = tiny()
    improve(model, QUESTIONS, config, directory, **settings)
    return model


def told(directory, name: str) -> list[float]:
    return [row[name] for row in read(directory) if name in row]


def same(one: GPT, two: GPT) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class TestTheRatio:
    def test_is_1_to_the_bit_and_the_divergence_0_in_every_batch(self, tmp_path):
        improved(tmp_path)
        assert told(tmp_path, "ratio_error") == [0.0] * 4
        assert told(tmp_path, "sampler_kl") == [0.0] * 4

    def test_is_not_with_fast_numerics(self, tmp_path):
        improved(tmp_path, replace(CONFIG, numerics="fast", batch_size=64))
        assert max(told(tmp_path, "ratio_error")) > 0
        assert max(told(tmp_path, "sampler_kl")) > 0

    def test_moves_with_the_second_update(self, tmp_path):
        alone, config = Processes(torch.device("cpu")), replace(CONFIG, batch_size=64)
        run = PolicyRun(tiny(), QUESTIONS, config, tmp_path, alone, resume=False)
        before, update = [], run.update
        run.update = lambda *given: before.append(update(*given)) or dict(before[-1])
        run.step()
        assert before[0]["ratio_error"] == 0 < before[1]["ratio_error"]


class TestTheObjective:
    def test_grows_with_the_ratio_until_it_is_clipped(self):
        old, advantage = torch.zeros(3), torch.ones(3)
        new = torch.tensor([0.5, 1.1, 1.5]).log()
        assert objective(new, old, advantage, 0.2).tolist() == pytest.approx([0.5, 1.1, 1.2])

    def test_of_a_worse_answer_is_clipped_on_the_other_side(self):
        new = torch.tensor([0.5, 0.9, 1.5]).log()
        found = objective(new, torch.zeros(3), -torch.ones(3), 0.2)
        assert found.tolist() == pytest.approx([-0.8, -0.9, -1.5])

    def test_has_the_gradient_of_reinforce_where_the_ratio_is_1(self):
        new = torch.tensor([-0.3, -2.0], requires_grad=True)
        advantage = torch.tensor([1.5, -0.5])
        objective(new, new.detach(), advantage, 0.2).sum().backward()
        assert torch.equal(new.grad, advantage)

    def test_advantages_are_against_the_group(self):
        rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        assert advantages(rewards, normalised=False).tolist() == [[0.5, -0.5], [0.0, 0.0]]
        assert advantages(rewards, normalised=True)[0].tolist() == pytest.approx([1, -1], abs=1e-3)

    def test_the_divergence_is_0_only_where_nothing_differs(self):
        assert divergence(torch.zeros(3)) == 0
        assert divergence(torch.tensor([1e-6, -1e-6]).double()) > 0


class TestARun:
    def test_learns_what_is_rewarded(self, tmp_path):
        questions = replace(QUESTIONS, reward=lambda problem, text: text == "c")
        config = replace(CONFIG, steps=16, batch_size=64, updates=4, evaluate_every=16)
        lines = []
        improve(tiny(), questions, config, tmp_path, report=lines.append)
        assert told(tmp_path, "reward")[0] < 0.2
        assert told(tmp_path, "solved")[-1] == 1
        assert "solves 100.0% of unseen problems" in lines[-1]

    def test_reinforce_does_too(self, tmp_path):
        config = replace(CONFIG, method="reinforce", steps=16, batch_size=64, learning_rate=3e-2)
        improved(tmp_path, replace(config, updates=1, evaluate_every=16, save_every=16))
        assert told(tmp_path, "reward")[-1] > 2 * told(tmp_path, "reward")[0]

    @pytest.mark.parametrize("kl", [0.0, 0.5])
    def test_resumed_it_ends_with_the_same_weights_bit_for_bit(self, tmp_path, kl):
        config = replace(CONFIG, kl=kl)
        whole = improved(tmp_path / "whole", config)
        improved(tmp_path / "parts", replace(config, steps=2))
        assert same(improved(tmp_path / "parts", config, resume=True), whole)
        assert told(tmp_path / "parts", "reward") == told(tmp_path / "whole", "reward")

    def test_keeps_to_the_model_that_it_started_from_if_asked_to(self, tmp_path):
        free = replace(CONFIG, steps=10, kl=1e-9, evaluate_every=10)
        improved(tmp_path / "free", free)
        improved(tmp_path / "held", replace(free, kl=2.0))
        assert told(tmp_path / "held", "kl")[0] == 0
        assert told(tmp_path / "held", "kl")[-1] < told(tmp_path / "free", "kl")[-1]

    def test_the_best_model_is_kept(self, tmp_path):
        improved(tmp_path)
        assert GPT.from_pretrained(tmp_path).config.vocab_size == SPEAK.tokenizer.n_vocab


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "supervised"}, "method is 'supervised', needed grpo or reinforce"),
        ({"dropout": 0.1}, "dropout is 0.1, needed 0.0 with method grpo"),
        ({"precision": "bfloat16"}, "precision is bfloat16, needed float32"),
        ({"batch_size": 10}, r"batch_size is 10 answers, needed a multiple of group \(4\)"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path, change, told):
    with pytest.raises(MinigptError, match=told):
        improved(tmp_path, replace(CONFIG, **change))


def test_a_context_that_is_too_short_is_refused(tmp_path):
    questions = replace(QUESTIONS, longest=9)
    with pytest.raises(MinigptError, match="the model's context is 3, needed 10"):
        improve(tiny(), questions, CONFIG, tmp_path)
