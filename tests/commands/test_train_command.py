"""`minigpt train` with rewards: from a trained model, resumed, told, and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minigpt import GPT
from minigpt.commands.cli import main
from minigpt.training.curves import read
from minigpt.training.tasks import TASKS

FEW = ("--steps", "2", "--batch-size", "16", "--save-every", "1", "--threads", "1")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The directory of a small model for names, which knows none."""
    directory, task = tmp_path_factory.mktemp("start"), TASKS["naming"]
    GPT(replace(task.config(), n_layer=1, n_embd=16, n_head=2)).save_pretrained(directory)
    task.tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def learn(start, tmp_path, capsys):
    """learn("--kl", "1", ...): two steps from there, by rewards."""

    def run(*options: str, method: str = "grpo") -> tuple[int, str, str]:
        code = main([
            "train", "--task", "naming", "--method", method, "--from", start, *FEW,
            "--out", str(tmp_path / "out"), *options,
        ])  # fmt: skip
        return code, *capsys.readouterr()

    return run


def test_learns_from_rewards_and_tells_how_far_sampler_and_trainer_are_apart(learn, tmp_path):
    code, out, err = learn()
    assert code == 0
    assert "equal to the bit in every batch (exact numerics)" in out
    assert "step 2: solves" in err
    assert [row["ratio_error"] for row in read(tmp_path / "out") if "reward" in row] == [0, 0]
    assert GPT.from_pretrained(tmp_path / "out").config.n_embd == 16
    assert f"minigpt curves {tmp_path / 'out'}" in out.split("\nnext\n")[1]


def test_the_picture_of_rewards_is_there_after_curves_too(learn, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    place = tmp_path / "out"
    learn()
    drawn = (place / "curves.svg").read_bytes()
    (place / "curves.svg").unlink()
    assert main(["curves", str(place)]) == 0
    assert "reward, last 20 steps" in capsys.readouterr().out
    assert (place / "curves.svg").read_bytes() == drawn


def test_with_fast_numerics_it_tells_the_difference(learn):
    assert "ratio off by up to" in learn("--numerics", "fast", "--batch-size", "64")[1]


def test_resumes(learn, tmp_path, capsys):
    learn("--steps", "1")
    assert main(["train", "--resume", str(tmp_path / "out"), "--steps", "2", "--threads", "1"]) == 0
    assert [row["step"] for row in read(tmp_path / "out") if "reward" in row] == [1, 2]


def test_reinforce_takes_one_update_of_each_batch(learn):
    code, _, err = learn("--updates", "2", method="reinforce")
    assert (code, "updates is 2, needed 1 with method reinforce" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--task", "naming", "--method", "grpo"], "method grpo needs --from: a model that is"),
        (["--from", "toy", "--method", "grpo"], "method grpo needs --task: one of addition"),
        (["--task", "naming", "--kl", "1"], "--kl would be ignored, as method supervised"),
        (["--task", "naming", "--method", "ppo"], "invalid choice: 'ppo'"),
    ],
)
def test_what_is_missing_or_without_effect_is_told(options, sentence, tmp_path, capsys):
    try:
        code = main(["train", *options, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert sentence in capsys.readouterr().err
