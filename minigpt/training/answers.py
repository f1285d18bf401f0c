"""Questions to put to a model, what it answers, and how likely each token was: twice.

The sampler notes the log-probability of each token as it draws it, decoding with a cache;
`recomputed` asks again, of whole answers at once and with gradients. With exact numerics both are
the same numbers. What is learned from them is in `policy.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.generation.batch import generate_batch
from minigpt.model import GPT
from minigpt.support.checks import is_number
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer
from minigpt.training.tasks import Problem, Task

UNSEEN = 100  # problems in an evaluation, at most ...
SHOWN = 1  # ... drawn, and answered, from this seed


@dataclass(frozen=True)
class Questions:
    """What is asked, and what an answer is worth: nobody need know a right one.

    Letters: `N` answers sampled in a step, `T` tokens of the longest with its question, `M` tokens
    that were sampled, in all answers together.
    """

    tokenizer: Tokenizer
    draw: Callable[[random.Random], Problem]  # a question to learn from; its answer may be ""
    unseen: Sequence[Problem]  # others, to measure on
    reward: Callable[[Problem, str], float]  # of an answer, from 0 to 1 for a solution
    longest: int  # tokens of an answer, with the one that ends it
    name: str = "questions"

    @classmethod
    def of(cls, task: Task, reward: Callable[[Problem, str], float] | None = None) -> Questions:
        """A task's own problems; the reward is what an answer is worth to it, unless given."""
        return cls(
            task.tokenizer,
            lambda rng: task.problem(rng, unseen=False),
            task.unseen(UNSEEN, SHOWN),
            reward or task.worth,
            task.lengths[1] + 1,
            task.name,
        )

    def judged(self, problems: Sequence[Problem], answers: Answers) -> Tensor:
        """What each answer is worth, (N,); one that was cut off is worth nothing.

        Raises:
            MinigptError: for a reward that is no number.
        """
        worth = []
        for problem, text, complete in zip(problems, answers.texts, answers.complete, strict=True):
            found = self.reward(problem, text) if complete else 0.0
            if not isinstance(found, bool) and not (is_number(found) and math.isfinite(found)):
                raise MinigptError(
                    f"the reward of {text!r}, an answer to {problem[0]!r}, is {found!r}, needed a "
                    f"number: mend the function that judges"
                )
            worth.append(float(found))
        return torch.tensor(worth)

    @property
    def width(self) -> int:
        return self.longest + max(len(self.tokenizer.encode(q)) or 1 for q, _ in self.unseen)

    def fingerprint(self) -> str:
        return f"{self.name}-rewards-{self.tokenizer.fingerprint[:16]}"


@dataclass(frozen=True)
class Answers:
    """What a model answered, and how likely it found each token."""

    tokens: Tensor  # (N, T) int64: question, answer, the end if it came; zeros behind
    sampled: Tensor  # (N, T - 1) bool: the targets that the model chose
    log_probabilities: Tensor  # (M,) float32, nats, as the sampler had them, row after row
    texts: list[str]
    complete: list[bool]  # did it end by itself?


def sample(
    model: GPT, questions: Questions, asked: Sequence[str], seeds: Sequence[int], group: int
) -> Answers:
    """`group` answers to each question, drawn from the model's own distribution.

    Temperature 1 and no filter: a token that was drawn from anything else has another probability
    than the one whose gradient is taken.
    """
    tokenizer = questions.tokenizer
    end = model.config.eos_token_id
    start = [] if end is None else [end]  # of what has no question: it counts as one
    prompts = [tokenizer.encode(question) or start for question in asked]
    made = generate_batch(
        model, prompts, questions.longest, 1.0, seed=seeds, n=group, top_log_probabilities=0
    )
    chosen = [[*one.log_probabilities, *filter(None, [one.ending])] for one in made]
    width = max(len(one.prompt) + len(ours) for one, ours in zip(made, chosen, strict=True))
    tokens = torch.zeros(len(made), width, dtype=torch.int64)
    sampled = torch.zeros(len(made), width, dtype=torch.bool)
    for row, (one, ours) in enumerate(zip(made, chosen, strict=True)):
        first, end = len(one.prompt), len(one.prompt) + len(ours)
        tokens[row, :end] = torch.tensor([*one.prompt, *(token.token for token in ours)])
        sampled[row, first:end] = True
    return Answers(
        tokens,
        sampled[:, 1:],
        torch.tensor([token.log_probability for ours in chosen for token in ours]),
        [tokenizer.decode(one.tokens) for one in made],
        [one.finish_reason == "end_of_text" for one in made],
    )


def recomputed(model: GPT, answers: Answers) -> Tensor:
    """How likely a model finds each token that was sampled, without a cache: (M,) nats, float32.

    The sampler chooses on the CPU in float32, and so the softmax is computed there as well.
    """
    logits = model(answers.tokens[:, :-1].to(model.device))  # (N, T - 1, V)
    scores = model.ops.log_softmax(logits[answers.sampled.to(model.device)].float().cpu())
    return scores.gather(-1, answers.tokens[:, 1:][answers.sampled][:, None])[:, 0]
