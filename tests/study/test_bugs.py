"""The patients of lesson 2b: each is wrong in its own way, and in no other."""

from __future__ import annotations

import pytest
import torch

from minigpt.cache.lossy import WindowCache
from minigpt.generation.continuation import generate
from minigpt.model import GPT
from minigpt.study import bugs
from minigpt.study.verification import Report, verify
from minigpt.support.errors import MinigptError

TEXT = list(range(3, 51))  # 48 tokens


def report(model: GPT, name: str) -> Report:
    return verify(bugs.patient(model, bugs.DIAGNOSES[name]), TEXT)


def wrong(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.equal}


@pytest.fixture
def healthy(make_model) -> GPT:
    model = make_model(n_positions=64)
    model.numerics = "exact"
    return model


def test_the_letters_and_the_words_name_the_same_six():
    assert set(bugs.CASES.values()) == set(bugs.DIAGNOSES.values())
    assert len(bugs.CASES) == len(bugs.DIAGNOSES) == 6


@pytest.mark.parametrize("case", bugs.CASES)
def test_a_patient_writes_as_many_tokens_as_the_sound_model_and_raises_nothing(healthy, case):
    tokens = generate(bugs.patient(healthy, case), TEXT[:10], 40, stop_tokens=()).tokens
    assert len(tokens) == 40


def test_a_sound_cache_is_no_patient(healthy):
    assert verify(bugs.patient(healthy, bugs.Sound), TEXT).equal


def test_the_model_itself_stays_sound(healthy):
    bugs.patient(healthy, "A")
    assert verify(healthy, TEXT).equal


def test_position_is_wrong_before_any_attention_right_after_the_prompt(healthy):
    found = report(healthy, "position")
    assert found.diagnosis.operation == "h.0.ln_1"
    assert found.checks[0].first == 2


def test_window_is_wrong_before_any_attention_once_it_is_full(healthy):
    found = report(healthy, "window")
    assert found.diagnosis.operation == "h.0.ln_1"
    assert found.checks[0].first == 24 + 4 + 1


def test_heads_are_wrong_where_a_chunk_comes_after_others(healthy):
    found = report(healthy, "heads")
    assert found.diagnosis is None
    assert "random chunks" in wrong(found)
    assert not {"decoding one by one", "prompts of every edge length"} & wrong(found)


def test_the_mask_is_wrong_in_any_chunk(healthy):
    found = report(healthy, "mask")
    assert found.diagnosis is None
    assert {"random chunks", "prompts of every edge length"} <= wrong(found)
    assert found.checks[1].first == 0
    assert found.checks[0].equal


def test_the_second_prompt_begins_with_the_first(healthy):
    sick = bugs.patient(healthy, "F")
    for expected in (True, False):
        logits = sick(torch.tensor([TEXT]), cache=sick.new_cache())
        assert torch.equal(logits, healthy(torch.tensor([TEXT]))) is expected
    assert report(healthy, "prompts").diagnosis.operation == "h.0.attn"


def test_patients_do_not_share_what_they_keep(healthy):
    for _ in range(2):
        sick = bugs.patient(healthy, "F")
        logits = sick(torch.tensor([TEXT]), cache=sick.new_cache())
        assert torch.equal(logits, healthy(torch.tensor([TEXT])))


def test_reordered_rows_have_each_others_values(healthy):
    sick = bugs.patient(healthy, "D")
    cache = sick.new_cache(batch_size=2)
    sick(torch.tensor([TEXT[:9], TEXT[9:18]]), cache=cache)
    moved = cache.select([1, 0])
    (keys, values), (old_keys, old_values) = moved.layer(0), cache.layer(0)
    assert torch.equal(keys, old_keys[[1, 0]])
    assert torch.equal(values, old_values)
    assert report(healthy, "rows").equal  # verify reorders nothing


def test_a_sound_window_is_wrong_in_attention_first(healthy):
    class Small(WindowCache):
        def __init__(self, spec, batch_size, capacity):
            super().__init__(spec, batch_size, capacity, window=24, sinks=4)

        def _empty(self, batch_size, capacity):
            return type(self)(self.spec, batch_size, capacity)

    assert verify(bugs.patient(healthy, Small), TEXT).diagnosis.operation == "h.0.attn"


def test_a_case_that_is_not_there_is_named(healthy):
    with pytest.raises(MinigptError, match="there is no case 'G', needed one of A, B, C, D, E, F"):
        bugs.patient(healthy, "G")
