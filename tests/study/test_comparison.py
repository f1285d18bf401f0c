"""The table of what each kind of cache costs: its numbers mean what their names say."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from minigpt import MinigptError
from minigpt.cache.kinds import KINDS, LOSSLESS, LOSSY
from minigpt.study.comparison import compare_caches


@pytest.fixture
def ids(text):
    return text(1, 70)[0].tolist()


@pytest.fixture
def costs(exact, ids):
    return {cost.kind: cost for cost in compare_caches(exact, ids).kinds}


def test_has_a_row_for_each_kind(costs):
    assert list(costs) == list(KINDS)
    assert [kind for kind, cost in costs.items() if cost.lossy] == list(LOSSY)


def test_lossless_kinds_differ_in_nothing(costs):
    for kind in LOSSLESS:
        cost = costs[kind]
        assert (cost.max_difference, cost.mean_difference) == (0.0, 0.0)
        assert (cost.loss_change, cost.greedy_changed) == (0.0, 0)


def test_a_window_as_long_as_the_text_differs_in_nothing(exact, ids):
    window, short = compare_caches(
        exact, ids, [("window", {"window": 70}), ("window", {"window": 8})]
    ).kinds
    assert window.max_difference == 0.0
    assert short.max_difference > 0.0


@torch.inference_mode()
def test_differences_are_those_of_decoding_token_by_token(exact, ids):
    cost = compare_caches(exact, ids, ["quantized"], prompt=40).kinds[0]
    tokens = torch.tensor([ids])
    want, cache = exact(tokens)[0, 40:], exact.new_cache(kind="quantized")
    exact(tokens[:, :40], cache=cache)
    got = torch.cat([exact(tokens[:, t : t + 1], cache=cache)[0] for t in range(40, 70)])
    assert cost.max_difference == float((got - want).abs().max())
    assert cost.mean_difference == float((got - want).abs().mean())
    assert cost.greedy_changed == int((got.argmax(-1) != want.argmax(-1)).sum())
    assert cost.loss == float(F.cross_entropy(got[:-1], tokens[0, 41:]))


def test_the_loss_is_that_of_the_decoded_tokens(exact, ids):
    comparison = compare_caches(exact, ids, ["static"], prompt=40)
    want = F.cross_entropy(exact(torch.tensor([ids]))[0, 40:-1], torch.tensor(ids[41:])).detach()
    assert comparison.loss == float(want)
    assert (comparison.prompt, comparison.decoded) == (40, 30)


def test_memory_is_that_of_the_caches(exact, ids, costs):
    static = exact.new_cache(max_length=len(ids))
    assert costs["static"].nbytes == static.nbytes
    assert costs["static"].ratio == 1.0
    assert costs["quantized"].bytes_per_token < static.bytes_per_token() / 2
    assert costs["window"].nbytes == costs["growing"].nbytes  # a text shorter than the window


def test_the_text_is_an_aligned_table(exact, ids, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")  # a terminal that holds all columns
    comparison = compare_caches(exact, ids, ["static", ("window", {"window": 8, "sinks": 2})])
    about, *lines = str(comparison).splitlines()
    assert about.startswith("35 tokens decoded after a prompt of 35, exact numerics in float32")
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("static ")
    assert lines[2].startswith("window (window 8, sinks 2) ")


def test_a_notebook_gets_the_same_cells(exact, ids):
    comparison = compare_caches(exact, ids, ["static", "quantized"])
    shown = comparison._repr_html_()
    assert shown.count("<tr>") == 3
    for cell in str(comparison).splitlines()[2].split():
        assert f"<td>{cell}</td>" in shown


def test_goes_into_json(exact, ids):
    comparison = compare_caches(exact, ids, [("window", {"window": 8})])
    found = json.loads(json.dumps(comparison.to_dict()))
    assert found["kinds"][0]["kind"] == "window"
    assert found["kinds"][0]["settings"] == {"window": 8}
    assert found["loss"] == comparison.loss


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ids": [1, 2]}, "the text to compare on has 2 tokens, needed 3 to 160"),
        ({"ids": [1] * 161}, "the text to compare on has 161 tokens"),
        (
            {"prompt": 0},
            "prompt is 0, needed a whole number from 1 to 68: two of the",
        ),
        ({"prompt": 69}, "prompt is 69, needed a whole number from 1 to 68"),
        ({"kinds": ["static", "magic"]}, "cache kind is 'magic'"),
        ({"kinds": [("window", {"page": 1})]}, "a window cache has no setting 'page'"),
    ],
)
def test_a_mistake_is_refused_before_any_work(exact, ids, monkeypatch, changes, sentence):
    monkeypatch.setattr(exact, "forward", None)
    with pytest.raises(MinigptError, match=sentence):
        compare_caches(exact, **{"ids": ids, **changes})
