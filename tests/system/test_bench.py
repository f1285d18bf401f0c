"""The bench: turns are really taken, ratios are of pairs, and every section measures something."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.bench import contest, entrants, lineup, machine
from minigpt.bench.contest import Contest
from minigpt.bench.measure import interleave, ratios
from minigpt.bench.sections import SECTIONS, choose_sections, measure_sections
from minigpt.commands.cli import main


@pytest.fixture
def table(capsys):
    """table("--only", ...): what a quick run on the smallest preset wrote as JSON."""

    def run(*arguments: str) -> dict:
        status = main(["bench", "--model", "random:nano", "--quick", "--json", *arguments])
        assert status == 0
        return json.loads(capsys.readouterr().out)

    return run


def by_name(table: dict) -> dict[str, dict]:
    return {row["name"]: row for section in table["sections"] for row in section["rows"]}


def test_interleave_alternates_and_counts():
    order: list[str] = []
    contenders = {name: lambda name=name: lambda: order.append(name) for name in "AB"}
    samples = interleave(contenders, rounds=3)
    assert order == ["A", "B"] * 4  # a warm-up, then three rounds
    assert {name: len(seconds) for name, seconds in samples.items()} == {"A": 3, "B": 3}


def test_interleave_does_not_time_the_preparation():
    def prepare():
        time.sleep(0.05)
        return lambda: None

    assert max(interleave({"A": prepare}, rounds=1)["A"]) < 0.05


def test_ratios_are_taken_within_each_turn():
    assert ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]  # a slow second turn cancels


def test_every_section_measures_something(table):
    found = table()
    assert [section["name"] for section in found["sections"]] == list(SECTIONS)
    for name, row in by_name(found).items():
        assert row["samples"], name
        if not name.endswith(("extra", "memory to load", "in memory")):  # differences
            assert min(row["samples"]) > 0, name


def test_the_three_agree_on_what_they_compute(table):
    notes = table("--only", "decode")["sections"][0]["notes"]
    assert any("tokens in float32: the same from minigpt fast, minigpt exact" in n for n in notes)


def test_tokens_that_differ_are_reported(tmp_path, monkeypatch):
    GPT(GPTConfig.preset("nano")).save_pretrained(tmp_path)
    wrong = replace(entrants.minigpt_entrant(GPT.from_pretrained(tmp_path), "fast"), name="wrong")
    wrong.next_logits = lambda tokens, cache: torch.zeros(len(tokens), 256)
    right = contest.load_entrants

    monkeypatch.setattr(contest, "load_entrants", lambda *source: [*right(*source)[:2], wrong])
    found = measure_sections(
        Contest(GPT.from_pretrained(tmp_path), tmp_path, quick=True), ["decode"]
    )
    assert "OTHERS from wrong" in str(found)


def test_cost_of_exact_is_the_ratio_of_paired_samples(table):
    rows = by_name(table("--only", "decode,exact"))
    fast = rows["batch 1      minigpt fast"]["samples"]
    exact = rows["batch 1      minigpt exact"]["samples"]
    want = [e / f for e, f in zip(exact, fast, strict=True)]
    assert rows["decode, batch 1"]["samples"] == pytest.approx(want)


def test_everyone_decodes_what_transformers_decodes(tmp_path):
    """Also the programs that are timed through an interface of their own."""
    GPT(GPTConfig.preset("nano")).save_pretrained(tmp_path)
    rivals = lineup.load_entrants(GPT.from_pretrained(tmp_path), tmp_path)
    tokens = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(0))
    found = {rival.name: (rival.prefill(tokens)(), rival.decode(tokens, 5)()) for rival in rivals}
    assert "transformers static" in found
    assert ("CTranslate2" in found) == bool(entrants.installed("ctranslate2"))
    for name, (first, rest) in found.items():
        assert (first, rest) == found["transformers"], name
        assert [len(row) for row in rest] == [5, 5]


def test_steps_are_timed_without_the_prefill(tmp_path):
    """What is timed takes up one token after another, from where the prompt was prefilled."""
    GPT(GPTConfig.preset("nano")).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    entrant, seen = entrants.minigpt_entrant(model, "fast"), []
    entrant.next_logits = lambda tokens, cache: (
        seen.append(tokens.shape[1]) or model.next_logits(tokens, cache)
    )
    timed = entrant.decode(torch.zeros(1, 20, dtype=torch.int64), 3)
    assert seen == [20]
    timed()
    assert seen == [20, 1, 1, 1]


def test_markdown_has_a_row_for_each_of_the_table(table, capsys):
    assert (
        main(["bench", "--model", "random:nano", "--quick", "--only", "limits", "--markdown"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "|  | median | min .. max |" in lines
    assert sum(line.startswith("| memory read | ") for line in lines) == 1


def test_more_rounds_are_more_samples(table):
    assert len(by_name(table("--only", "limits", "--rounds", "5"))["memory read"]["samples"]) == 5


def test_without_transformers_it_says_how_to_install_it(table, monkeypatch):
    known = entrants.installed
    for module in (machine, entrants, lineup):
        monkeypatch.setattr(
            module, "installed", lambda n: None if n == "transformers" else known(n)
        )
    found = table("--only", "prefill")
    assert not any("transformers" in name for name in by_name(found))
    assert any("pip install 'minigpt[bench]'" in note for note in found["sections"][0]["notes"])


def test_grouped_heads_are_measured_without_transformers(tmp_path):
    GPT(GPTConfig.preset("nano", n_kv_head=1)).save_pretrained(tmp_path)
    found = measure_sections(
        Contest(GPT.from_pretrained(tmp_path), tmp_path, quick=True), ["prefill"]
    )
    assert "no grouped heads" in str(found)


def test_the_dtype_is_that_of_the_weights(table):
    found = table("--only", "limits", "--dtype", "bfloat16")
    assert found["about"]["dtype"] == "bfloat16"


def test_the_text_fits_a_terminal(capsys):
    arguments = ["--only", "decode,prefill,exact,cache,limits", "--threads", "1"]
    assert main(["bench", "--model", "random:nano", "--quick", *arguments]) == 0
    text = capsys.readouterr().out
    assert "decode: " in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_unknown_section_is_refused():
    with pytest.raises(MinigptError, match="no section 'decoding'.*needed some of decode, prefill"):
        choose_sections("decoding")


@pytest.mark.parametrize(
    "arguments", [["--only", "speed"], ["--rounds", "0"], ["--model", "random:gpt5"]]
)
def test_a_mistake_is_one_sentence(arguments, capsys):
    assert main(["bench", "--model", "random:nano", "--quick", *arguments]) == 2
    assert capsys.readouterr().err.startswith("minigpt: ")
