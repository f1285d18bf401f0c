"""Runs side by side: what was asked for, and what came out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.training.curves import LOG, Log
from minigpt.training.places import RECIPE
from minigpt.training.recipes import TrainConfig
from minigpt.training.run_table import compare_runs, read_run, titles

pytestmark = pytest.mark.filterwarnings("error")
CONFIG = TrainConfig()


def made(directory, config=CONFIG, losses=(3.0, 1.5, 2.0)):
    """A run's directory, evaluated before its first step and after each of the others."""
    directory.mkdir(parents=True)
    (directory / RECIPE).write_text(config.to_toml(), encoding="utf-8")
    with Log(directory) as log:
        for step, loss in enumerate(losses):
            if step:
                log.append(step, loss=loss - 1, tokens_per_second=1000.0 * step)
            log.append(step, held_out=loss, bits_per_byte=loss / 2)
    return directory


@pytest.fixture
def table(tmp_path):
    one = made(tmp_path / "a")
    two = made(tmp_path / "b", replace(CONFIG, learning_rate=0.001, save_every=7), (3.0, 2.5, 2.25))
    return compare_runs([read_run(one), read_run(two)], width=200)


def test_fields_of_the_recipe_are_told_where_they_differ(table):
    assert "learning rate" in table
    assert "dropout" not in table
    assert "save every" not in table  # differs, and changes nothing


def test_results_are_those_of_the_lowest_held_out_loss(table):
    lines = [line.split() for line in table.splitlines()]
    assert ["held-out", "loss,", "lowest", "1.5000", "2.2500"] in lines
    assert ["…", "at", "step", "1", "2"] in lines
    assert ["bits", "per", "byte", "there", "0.7500", "1.1250"] in lines
    assert ["training", "loss,", "last", "20", "steps", "0.7500", "1.3750"] in lines


def test_what_was_learned_from_rewards_is_told_by_what_is_solved(tmp_path):
    with Log(tmp_path) as log:
        log.append(0, solved=0.1)
        for step, solved in ((1, 0.5), (2, 0.4)):
            log.append(step, loss=-0.1, reward=solved / 2, ratio_error=1e-6 * step)
            log.append(step, solved=solved)
    lines = [line.split() for line in compare_runs([read_run(tmp_path)]).splitlines()]
    assert ["…", "at", "step", "1"] in lines
    assert ["solved", "exactly,", "first", "10.0%"] in lines
    assert ["solved", "exactly", "there", "50.0%"] in lines
    assert ["reward,", "last", "20", "steps", "0.2250"] in lines
    assert ["ratio", "off", "by,", "at", "most", "2e-06"] in lines
    assert not any("loss," in line for line in lines)  # a reward's loss says nothing


def test_what_nobody_measured_has_no_row(table):
    assert "solved" not in table


def test_one_run_has_no_recipe_to_compare(tmp_path):
    lines = compare_runs([read_run(made(tmp_path / "a"))]).splitlines()
    assert "result" in lines
    assert "recipe" not in lines


def test_the_models_parameters_are_counted(tmp_path):
    place = made(tmp_path / "a")
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
    model.save_pretrained(place)
    count = sum(p.numel() for p in model.parameters())
    assert ["parameters", f"{count:,}"] in [
        s.split() for s in compare_runs([read_run(place)]).split("\n")
    ]


def test_runs_are_called_by_the_ends_of_their_paths_that_tell_them_apart(tmp_path, monkeypatch):
    runs = [made(tmp_path / place) for place in ("a/one", "b/one", "b/two")]
    monkeypatch.chdir(runs[0])
    assert titles([read_run(runs[0]), read_run(runs[2])]) == ["one", "two"]
    assert titles([read_run(".")]) == ["one"]
    assert titles([*map(read_run, runs)]) == ["a/one", "b/one", "b/two"]
    assert titles([read_run("."), read_run(".")]) == [".", "."]


def test_a_run_that_saved_nothing_yet_is_told_from_its_log(tmp_path):
    place = made(tmp_path / "a")
    (place / RECIPE).unlink()
    assert "held-out loss, lowest" in compare_runs([read_run(place)])


@pytest.mark.parametrize("name", ["nowhere", "x" * 5_000, "empty"])
def test_a_directory_without_a_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / LOG).write_text("")
    with pytest.raises(MinigptError, match="holds no run with a log.jsonl, needed"):
        read_run(tmp_path / name)
