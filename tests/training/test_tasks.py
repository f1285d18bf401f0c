"""What the tasks promise: right answers, unseen questions that stay unseen, and an exact count."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from minigpt import GPT, MinigptError, generate
from minigpt.tokenizer import CharTokenizer
from minigpt.training.data import IGNORED
from minigpt.training.tasks import RESIDUES, TASKS, Recipe, Task, continue_greedily, is_balanced

BIT = Task(  # learned in a second
    "bit", "is the first letter an a?", "ab=xy",
    lambda rng: (lambda q: (q + "=", "xy"[q < "b"]))("".join(rng.choices("ab", k=2))),
    0.0, Recipe(1, 16, 2, steps=60, learning_rate=1e-2, batch_size=16),
)  # fmt: skip


@pytest.fixture(params=TASKS.values(), ids=TASKS)
def task(request) -> Task:
    return request.param


def problems(task: Task, count: int = 400) -> list[tuple[str, str]]:
    rng = random.Random(1)
    return [task.draw(rng) for _ in range(count)]


def tiny(task: Task) -> GPT:
    torch.manual_seed(0)
    return GPT(task.config())


def learned(task: Task) -> GPT:
    model = tiny(task).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.recipe.learning_rate)
    for step in range(task.recipe.steps):
        inputs, targets = task.batch(0, step, range(task.recipe.batch_size))
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# --- right answers ---


def test_addition_adds_units_first():
    for question, answer in problems(TASKS["addition"]):
        a, b = re.fullmatch(r"(\d{3})\+(\d{3})=", question).groups()
        assert int(answer[::-1]) == int(a) + int(b)


def test_sorting_sorts():
    for question, answer in problems(TASKS["sorting"]):
        assert Counter(answer) == Counter(question[:-1])
        assert all(a <= b for a, b in pairwise(answer))


def test_reversing_reverses():
    assert all(q[:-1] == "".join(reversed(a)) for q, a in problems(TASKS["reversing"]))


def test_copying_copies():
    assert all(q == a + "=" for q, a in problems(TASKS["copying"]))


def test_brackets_are_balanced_when_removing_pairs_leaves_nothing():
    for question, answer in problems(TASKS["brackets"]):
        text = question[:-1]
        while text != (text := re.sub(r"\(\)|\[\]|\{\}", "", text)):
            pass
        assert answer == ("n" if text else "y")


def test_half_the_brackets_are_balanced():
    answers = Counter(answer for _, answer in problems(TASKS["brackets"], 2000))
    assert answers["y"] / 2000 == pytest.approx(0.5, abs=0.05)


def test_counting_brackets_is_not_enough():
    counts = lambda q: all(q.count(a) == q.count(b) for a, b in ("()", "[]", "{}"))  # noqa: E731
    assert sum(counts(q) and a == "n" for q, a in problems(TASKS["brackets"])) > 60


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("([]{})", True), ("([)]", False), ("((", False), ("]", False)],
)
def test_is_balanced(text, expected):
    assert is_balanced(text) is expected


def test_modular_arithmetic_adds_modulo_61():
    for question, answer in problems(TASKS["modular"]):
        total = RESIDUES.index(question[0]) + RESIDUES.index(question[2])
        assert RESIDUES.index(answer) == total % 61


def test_questions_have_one_length_and_so_have_answers(task):
    assert {(len(q), len(a)) for q, a in problems(task)} == {task.lengths}


def test_the_description_shows_a_problem_of_its_own_shape(task):
    if task.name in ("addition", "sorting", "reversing", "copying"):
        question, answer = re.search(r"(\S+=) is (\w+)", task.description).groups()
        assert (len(question), len(answer)) == task.lengths


# --- what is seen and what is not ---


def test_training_and_unseen_problems_never_meet(task):
    rng = random.Random(0)
    trained = {task.problem(rng, unseen=False)[0] for _ in range(3000)}
    assert trained.isdisjoint(question for question, _ in task.unseen(300))


def test_the_share_of_unseen_questions_is_the_tasks(task):
    found = sum(task.is_unseen(question) for question, _ in problems(task, 3000)) / 3000
    assert found == pytest.approx(task.unseen_share, abs=0.04)


def test_the_split_never_changes():
    unseen = [n for n in range(40) if TASKS["addition"].is_unseen(f"{n:03}+{n:03}=")]
    assert unseen == [12, 33]


def test_unseen_problems_are_all_different(task):
    questions = [question for question, _ in task.unseen(300)]
    assert len(set(questions)) == len(questions) == 300


def test_the_unseen_half_of_a_small_table_is_found_whole():
    questions = [f"{a}+{b}=" for a in RESIDUES for b in RESIDUES]
    unseen = {q for q in questions if TASKS["modular"].is_unseen(q)}
    assert {question for question, _ in TASKS["modular"].unseen(2000)} == unseen


# --- batches ---


def test_a_row_is_a_problem_and_its_end(task):
    inputs, targets = task.batch(seed=1, step=2, rows=range(5))
    question_length, answer_length = task.lengths
    assert inputs.shape == targets.shape == (5, task.context)
    for row in torch.cat((inputs, targets[:, -1:]), dim=1).tolist():
        text = task.tokenizer.decode(row)
        assert text.endswith("<|endoftext|>")
        assert text[question_length - 1] == "="
        assert len(text.removesuffix("<|endoftext|>")) == question_length + answer_length


def test_only_the_answer_and_the_end_count(task):
    inputs, targets = task.batch(1, 2, range(5))
    question_length, answer_length = task.lengths
    counted = targets != IGNORED
    assert not counted[:, : question_length - 1].any()
    assert torch.equal(targets[:, question_length - 1 : -1], inputs[:, question_length:])
    assert counted.sum() == 5 * (answer_length + 1)


def test_rows_do_not_depend_on_who_shares_them(task):
    everyone = task.batch(3, 4, range(6))[0]
    halves = [task.batch(3, 4, range(first, first + 3))[0] for first in (0, 3)]
    assert torch.equal(torch.cat(halves), everyone)


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_seeds_and_steps_have_other_problems(task, other):
    assert not torch.equal(task.batch(*other, range(9))[0], task.batch(0, 0, range(9))[0])


def test_the_first_batch_never_changes():
    row = TASKS["addition"].batch(seed=0, step=0, rows=range(1))[0][0]
    assert TASKS["addition"].tokenizer.decode(row) == "383+859=2421"


# --- accuracy ---


def test_a_model_that_has_learned_is_right_every_time():
    unseen = replace(BIT, unseen_share=1.0)  # measured on what it was trained on
    assert unseen.accuracy(learned(BIT), count=4) == 1.0


def test_a_model_that_has_not_is_not(task):
    assert task.accuracy(tiny(task), count=20) < 1.0


def test_accuracy_is_the_share_of_exact_answers(monkeypatch):
    task, model = TASKS["sorting"], tiny(TASKS["sorting"])
    wanted = dict(task.unseen(8))

    def answer(model, questions, count, use_cache):
        texts = [task.tokenizer.decode(row)[:-1] for row in questions]
        answers = [wanted[text + "="] for text in texts]
        answers[0] = answers[0][:-1] + "="  # one digit wrong
        listed = [[*task.tokenizer.encode(a), task.tokenizer.eot_token] for a in answers]
        listed[1][-1] = 0  # does not end
        return torch.tensor(listed)

    monkeypatch.setattr("minigpt.training.tasks.continue_greedily", answer)
    assert task.accuracy(model, count=8) == 6 / 8


def test_the_cache_changes_no_answer(task):
    model, count = tiny(task).eval(), task.lengths[1] + 1
    tokens = task.batch(0, 0, range(6))[0][:, : task.lengths[0]]
    cached, uncached = (continue_greedily(model, tokens, count, use) for use in (True, False))
    assert torch.equal(cached, uncached)


def test_answers_side_by_side_are_those_that_generate_gives():
    model = learned(BIT).eval()
    tokens = BIT.batch(0, 0, range(6))[0][:, :3]
    together = continue_greedily(model, tokens, 2)
    for row, answer in zip(tokens.tolist(), together.tolist(), strict=True):
        result = generate(model, row, max_new_tokens=5)
        assert [*result.tokens, BIT.tokenizer.eot_token] == answer
        assert result.finish_reason == "end_of_text"


def test_measuring_leaves_the_model_in_its_mode():
    model = tiny(BIT).train()
    replace(BIT, unseen_share=1.0).accuracy(model, count=2)
    assert model.training


def test_a_tokenizer_with_other_ids_is_used():
    model = tiny(BIT)
    shuffled = CharTokenizer("yx=ba")
    order = [shuffled.encode(c)[0] for c in "ab=xy"] + [5]
    with torch.no_grad():
        weight = model.wte.weight.clone()
        twin = tiny(BIT)
        twin.wte.weight[order] = weight
    unseen = replace(BIT, unseen_share=1.0)
    assert unseen.accuracy(twin, shuffled, count=4) == unseen.accuracy(model, count=4)


# --- mistakes ---


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_that_measures_nothing_is_an_error(count):
    with pytest.raises(MinigptError, match="needed a whole number of at least 1"):
        BIT.accuracy(tiny(BIT), count=count)


def test_a_model_with_too_short_a_context_is_an_error(task):
    model = GPT(replace(task.config(), n_positions=task.context - 1))
    with pytest.raises(MinigptError, match=f"needed {task.context} for a problem of {task.name}"):
        task.accuracy(model)


def test_a_tokenizer_without_the_tasks_characters_is_an_error():
    with pytest.raises(MinigptError, match="is not among the 3"):
        replace(BIT, unseen_share=1.0).accuracy(tiny(BIT), CharTokenizer("cde"))
