"""Small problems with exact answers: learned from some questions, measured on others.

A task draws questions and answers, keeps the two sets apart for ever, makes batches, and counts
exact answers. It needs no files. How a model is trained on it is the training loop's business; each
task only suggests a model and a number of steps.

Letters as in `model.py`, and: `R` rows of a batch, `Q` and `A` characters of question and answer.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from minigpt.config import GPTConfig
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import CharTokenizer, Tokenizer
from minigpt.training.naming import LETTERS, any_name, suits

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.model import GPT

MODULUS = 61  # a prime whose residues are one character each
RESIDUES = (string.digits + string.ascii_letters)[:MODULUS]
PAIRS = {"(": ")", "[": "]", "{": "}"}
ROWS = 250  # problems answered side by side

Problem = tuple[str, str]  # a question, which ends in "=", and its answer


@dataclass(frozen=True)
class Recipe:
    """A model's shape, and AdamW's numbers, to start from."""

    n_layer: int
    n_embd: int
    n_head: int
    steps: int
    learning_rate: float = 1e-3
    batch_size: int = 256  # problems per step
    weight_decay: float = 0.1  # on matrices only


@dataclass(frozen=True)
class Task:
    """Problems of one kind; questions are all of one length, and so are answers.

    A row of a batch is one problem. Packed rows would carry the same number of answers per token,
    but each problem would then stand at other positions, and with GPT-2's learned positions the
    same skill has to be learned for each of them.
    """

    name: str
    description: str  # one line
    characters: str  # that questions and answers are made of
    draw: Callable[[random.Random], Problem]
    unseen_share: float  # of all questions, kept from training
    recipe: Recipe
    judge: Callable[[str, str], float] | None = None  # what an answer to a question is worth, from
    # 0 to 1 for a right one; None: 1 for the answer that was drawn, 0 for others

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        return CharTokenizer(self.characters)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        """Q and A, in characters."""
        question, answer = self.draw(random.Random(0))
        return len(question), len(answer)

    @property
    def context(self) -> int:
        """Positions that a model needs: Q + A."""
        return sum(self.lengths)

    def config(self) -> GPTConfig:
        """The recipe's model, without dropout: problems hardly ever come twice."""
        recipe, tokenizer = self.recipe, self.tokenizer
        return GPTConfig(
            tokenizer.n_vocab, self.context, recipe.n_embd, recipe.n_layer, recipe.n_head,
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, eos_token_id=tokenizer.eot_token,
            initializer_range=0.05,  # narrow models learn several times sooner than with 0.02
        )  # fmt: skip

    def is_unseen(self, question: str) -> bool:
        """Whether training never shows this question; decided by its hash, the same everywhere."""
        digest = hashlib.sha256(f"{self.name} {question}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.unseen_share * 2**64

    def problem(self, rng: random.Random, unseen: bool) -> Problem:
        """The next problem of one of the two sets."""
        while True:
            problem = self.draw(rng)
            if self.is_unseen(problem[0]) == unseen:
                return problem

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Training problems: question, answer and the end-of-text token in each row.

        Row r of a step is the same whoever asks for it, as with `data.windows`.

        Returns:
            inputs and targets, (R, Q + A) int64 each; only the targets of the answer and of the
            end after it count, the others are `IGNORED`.
        """
        return self.windows(self.problems(seed, step, rows))

    def problems(self, seed: int, step: int, rows: Sequence[int]) -> list[Problem]:
        """The training problems of some rows of a step, as in `batch`."""
        from minigpt.training.data import draws

        numbers = draws(seed, step, rows).tolist()
        return [self.problem(random.Random(number), unseen=False) for number in numbers]

    def windows(self, problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of problems, as in `batch`."""
        import torch  # here: the recipes name the tasks, and help names the recipes

        from minigpt.training.data import IGNORED

        end = self.tokenizer.eot_token
        listed = [[*self.tokenizer.encode(q + a), end] for q, a in problems]
        tokens = torch.tensor(listed)  # (R, Q + A + 1)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
        targets[:, : self.lengths[0] - 1] = IGNORED
        return inputs, targets

    def worth(self, problem: Problem, answer: str) -> float:
        """What an answer to a problem is worth, 1 if it is right."""
        question, drawn = problem
        return float(answer == drawn) if self.judge is None else self.judge(question, answer)

    def unseen(self, count: int, seed: int = 0) -> list[Problem]:
        """Different unseen problems, `count` of them or as many as there are to be found."""
        rng = random.Random(seed)
        found: dict[str, str] = {}
        for _ in range(20 * count):
            question, answer = self.problem(rng, unseen=True)
            found[question] = answer
            if len(found) == count:
                break
        return list(found.items())

    def accuracy(
        self,
        model: GPT,
        tokenizer: Tokenizer | None = None,
        count: int = 1000,
        seed: int = 0,
        use_cache: bool = True,
    ) -> float:
        """The share of unseen problems answered exactly, to the end-of-text token, greedily.

        Args:
            model: its mode is restored afterwards.
            tokenizer: the model's; None: this task's.
            count, seed: as for `unseen`.
            use_cache: False recomputes everything for every token.

        Raises:
            MinigptError: when the model's context or vocabulary is too small, or count is below 1.
        """
        import torch

        tokenizer = tokenizer or self.tokenizer
        count = whole("count", count)
        if model.config.n_positions < self.context:
            raise MinigptError(
                f"the model's context is {model.config.n_positions}, needed {self.context} for a "
                f"problem of {self.name}: make a model with a longer one"
            )
        if tokenizer.eot_token is None:
            raise MinigptError(
                f"the tokenizer has no end-of-text token, which the answers of {self.name} end "
                f"with: use the one that the model was trained with"
            )
        problems = self.unseen(count, seed)
        asked = torch.tensor([tokenizer.encode(question) for question, _ in problems])
        given: list[list[int]] = []
        for questions in asked.split(ROWS):
            given += continue_greedily(model, questions, self.lengths[1] + 1, use_cache).tolist()
        answers = [_until(tokenizer.eot_token, tokens) for tokens in given]
        right = [
            answer is not None and self.worth(problem, tokenizer.decode(answer)) == 1
            for problem, answer in zip(problems, answers, strict=True)
        ]
        return sum(right) / len(problems)


def _until(end: int, tokens: list[int]) -> list[int] | None:
    """The tokens before the first `end`; None without one."""
    return tokens[: tokens.index(end)] if end in tokens else None


def continue_greedily(model: GPT, tokens: Tensor, count: int, use_cache: bool = True) -> Tensor:
    """The likeliest next tokens of several texts of one length: (B, T) -> (B, count) on the CPU."""
    from minigpt.generation.continuation import choose_likeliest
    from minigpt.support.modes import evaluating

    length = tokens.shape[1] + count - 1  # the last token is not read again
    cache = model.new_cache(len(tokens), length) if use_cache else None
    with evaluating(model):
        return choose_likeliest(model.next_logits, tokens.to(model.device), count, cache).cpu()


def _addition(rng: random.Random) -> Problem:
    a, b = rng.randrange(1000), rng.randrange(1000)
    # Units first, as one adds by hand: each digit then needs only the carry of the one before.
    return f"{a:03}+{b:03}=", f"{a + b:04}"[::-1]


def _sorting(rng: random.Random) -> Problem:
    digits = rng.choices(string.digits, k=10)
    return "".join(digits) + "=", "".join(sorted(digits))


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=10))


def _reversing(rng: random.Random) -> Problem:
    letters = _letters(rng)
    return letters + "=", letters[::-1]


def _copying(rng: random.Random) -> Problem:
    letters = _letters(rng)
    return letters + "=", letters


def _brackets(rng: random.Random) -> Problem:
    text = _balanced(rng, pairs=6)
    if rng.random() < 0.5:
        return text + "=", "y"
    # One bracket changed, which counting reveals; or two exchanged, which only their order does.
    characters = list(text)
    one_changes = rng.random() < 0.5
    while is_balanced("".join(characters)):
        characters = list(text)
        i, j = rng.sample(range(len(text)), 2)
        if one_changes:
            characters[i] = rng.choice("()[]{}")
        else:
            characters[i], characters[j] = characters[j], characters[i]
    return "".join(characters) + "=", "n"


def _balanced(rng: random.Random, pairs: int) -> str:
    text, expected = "", ""  # the closing brackets still to come, the next one last
    while pairs or expected:
        if pairs and (not expected or rng.random() < 0.5):
            opening = rng.choice("([{")
            text, expected, pairs = text + opening, expected + PAIRS[opening], pairs - 1
        else:
            text, expected = text + expected[-1], expected[:-1]
    return text


def is_balanced(text: str) -> bool:
    """Whether every bracket is closed by its own kind, the last one opened first."""
    expected = ""
    for character in text:
        if character in PAIRS:
            expected += PAIRS[character]
        elif not expected.endswith(character):
            return False
        else:
            expected = expected[:-1]
    return not expected


def _modular(rng: random.Random) -> Problem:
    a, b = rng.randrange(MODULUS), rng.randrange(MODULUS)
    return f"{RESIDUES[a]}+{RESIDUES[b]}=", RESIDUES[(a + b) % MODULUS]


TASKS = {
    task.name: task
    for task in (
        Task(
            "addition", "two numbers of three digits: 047+985= is 2301, units first",
            string.digits + "+=", _addition, 0.1, Recipe(2, 128, 4, steps=500),
        ),
        Task(
            "sorting", "ten digits in order: 4902281730= is 0012234789",
            string.digits + "=", _sorting, 0.1, Recipe(2, 64, 4, steps=600),
        ),
        Task(
            "reversing", "ten letters backwards: helloworld= is dlrowolleh",
            string.ascii_lowercase + "=", _reversing, 0.1, Recipe(2, 64, 4, steps=300),
        ),
        Task(
            "copying", "ten letters once more: helloworld= is helloworld",
            string.ascii_lowercase + "=", _copying, 0.1, Recipe(2, 64, 4, steps=300),
        ),
        Task(
            "brackets", "are twelve brackets balanced? ([]{})(([]))= is y",
            "()[]{}=yn", _brackets, 0.1, Recipe(3, 64, 4, steps=2000),
        ),
        # Learned by heart long before it is understood (Power et al. 2022), given enough weight
        # decay: half of the table is all there is to learn from.
        Task(
            "modular", "a + b modulo 61, in the digits 0-9a-zA-Y: Y+2= is 1",
            RESIDUES + "+=", _modular, 0.5,
            Recipe(1, 128, 4, steps=4000, batch_size=512, weight_decay=1.0),
        ),
        # A start for learning from rewards: these answers have nothing to do with the questions.
        Task(
            "naming", "a name of three syllables that has three letters: kot= may be kotali",
            LETTERS + "=", any_name, 0.4, Recipe(2, 64, 4, steps=100, batch_size=64), suits,
        ),
    )
}  # fmt: skip
