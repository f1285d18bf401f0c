"""The plain training loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, Tokenizer, generate
from minigpt.stories import stories
from minigpt.tokenizer import train_bpe
from minigpt.train import (
    TrainConfig,
    baselines,
    evaluate,
    rate,
    tokenize,
    train,
    train_toy,
    windows,
)

QUICK = TrainConfig(preset="nano", stories=60, held_out=20, steps=60, batch_size=8, warmup=5)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Models this small gain nothing from more, and lose much on a busy machine."""
    threads(1)


def tiny(vocab_size: int = 7) -> GPT:
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size, 8, 16, 1, 2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    return GPT(shape)


def counting(length: int) -> torch.Tensor:
    return torch.arange(length) % 7


def test_a_model_learns_to_count():
    config = TrainConfig(steps=150, batch_size=8, warmup=5, learning_rate=1e-2)
    result = train(tiny(), counting(500), counting(100), config)
    assert result.loss < 0.1 < result.unigram


def test_a_model_learns_more_from_stories_than_how_often_letters_occur():
    tokenizer = train_bpe(stories(1, 50), 257)  # bytes, and the end of text
    training, held_out = (
        tokenize(tokenizer, stories(seed, 20 * n)) for seed, n in ((1, 15), (2, 1))
    )
    torch.manual_seed(0)
    model = GPT(replace(GPTConfig.preset("nano"), n_positions=32, initializer_range=0.1))
    config = TrainConfig(steps=60, batch_size=8, warmup=10, learning_rate=1e-2)
    result = train(model, training, held_out, config)
    assert result.loss < result.unigram - 0.4


def test_the_reported_loss_is_that_of_the_trained_weights():
    model = tiny()
    result = train(model, counting(500), counting(100), TrainConfig(steps=20, batch_size=8))
    fresh = tiny()
    fresh.load_state_dict(model.state_dict())
    assert result.loss == pytest.approx(evaluate(fresh, counting(100)), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    models = [tiny(), tiny()]
    for model in models:
        train(model, counting(300), counting(50), TrainConfig(steps=10, batch_size=4))
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_the_toy_recipe_saves_a_model_and_its_tokenizer(tmp_path):
    result = train_toy(tmp_path, QUICK)
    model, tokenizer = GPT.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    assert result.loss < math.log(257)
    assert model.config.eos_token_id == tokenizer.eot_token
    assert generate(model, tokenizer.encode("Once"), 5).tokens


def test_the_toy_recipe_makes_the_same_files_again(tmp_path):
    for name in ("one", "two"):
        train_toy(tmp_path / name, replace(QUICK, steps=5))
    for file in ("model.safetensors", "config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_another_seed_makes_another_model(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        train_toy(tmp_path / name, replace(QUICK, steps=1, seed=seed))
    one, two = (GPT.from_pretrained(tmp_path / name).wte.weight for name in ("one", "two"))
    assert not torch.equal(one, two)


def test_a_place_that_cannot_be_written_is_refused_before_any_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MinigptError, match="cannot save in .*file.*: choose another place"):
        train_toy(tmp_path / "file", QUICK, report=lambda line: pytest.fail("began"))


def test_progress_is_reported_at_each_evaluation_and_at_the_end():
    lines = []
    config = TrainConfig(steps=5, batch_size=2, evaluate_every=2)
    train(tiny(), counting(100), counting(50), config, lines.append)
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 5"]


def test_weight_decay_is_for_matrices_only(monkeypatch):
    seen, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda groups, **rest: seen.extend(groups) or adamw(groups, **rest)
    )
    train(tiny(), counting(100), counting(50), TrainConfig(steps=1, batch_size=2))
    decayed = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in seen}
    assert decayed == {0.1: {2}, 0.0: {1}}
    assert sum(len(group["params"]) for group in seen) == len(list(tiny().parameters()))


def test_an_end_of_text_token_stands_before_each_text():
    tokenizer = train_bpe(["ab"], 257)
    a, b, c = (tokenizer.encode(letter) for letter in "abc")
    end = [tokenizer.eot_token]
    assert tokenize(tokenizer, ["ab", "c"]).tolist() == end + a + b + end + c


def test_windows_reach_from_the_first_token_to_the_last():
    inputs, targets = windows(torch.arange(12), 8, 500, torch.Generator().manual_seed(0))
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3}
    assert targets.max() == 11


def test_windows_are_followed_by_their_targets():
    inputs, targets = windows(torch.arange(50), 8, 4, torch.Generator().manual_seed(0))
    assert torch.equal(inputs + 1, targets)
    assert inputs.shape == (4, 8)


def test_the_rate_warms_up_and_falls_to_a_tenth():
    config = TrainConfig(steps=100, warmup=10)
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(10, config) == pytest.approx(1.0)
    assert rate(100, config) == pytest.approx(0.1)


def test_the_rate_is_half_way_down_in_the_middle():
    config = TrainConfig(steps=110, warmup=10)
    assert rate(60, config) == pytest.approx((1 + 0.1) / 2)
    assert [rate(step, config) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_a_run_without_warm_up_starts_at_the_full_rate():
    assert rate(0, TrainConfig(warmup=0)) == 1


def test_baselines_by_hand():
    training, held_out = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 1])
    unigram, bigram = baselines(training, held_out, 2)
    # Counts plus one: 4 and 2 of 6; after a 0: 2 and 2 of 4. Held out: 0 after 0, 1 after 0.
    assert unigram == pytest.approx(-(math.log(4 / 6) + math.log(2 / 6)) / 2)
    assert bigram == pytest.approx(-2 * math.log(2 / 4) / 2)


def test_a_bigram_is_the_token_given_the_one_before_and_not_the_other_way_round():
    training = torch.tensor([0, 1, 0, 2] * 1000)  # after 0 one of two; after 1 and 2 always 0
    _, bigram = baselines(training, torch.tensor([1, 0, 2, 0]), 3)
    assert bigram == pytest.approx(math.log(2) / 3, abs=0.01)


def test_an_evaluation_is_the_mean_over_whole_windows():
    model, text = tiny().eval(), counting(8 * 5 + 4)
    losses = []
    for start in range(0, 40, 8):
        logits = model(text[None, start : start + 8])[0].double().log_softmax(-1)
        losses += [-logits[i, text[start + i + 1]].item() for i in range(8)]
    for rows in (1, 2, 64):
        assert evaluate(model, text, rows) == pytest.approx(sum(losses) / 40, rel=1e-6)


def test_an_evaluation_is_without_dropout():
    model = GPT(replace(tiny().config, resid_pdrop=0.5)).train()
    assert evaluate(model, counting(50)) == evaluate(model, counting(50))


def test_an_evaluation_that_fails_leaves_the_training_mode_too():
    model = tiny().train()
    with pytest.raises(MinigptError, match="token 99 is outside"):
        evaluate(model, torch.full((50,), 99))
    assert all(module.training for module in model.modules())


def test_baselines_are_the_entropies_of_the_counts():
    text = torch.tensor([0, 1] * 5000)
    unigram, bigram = baselines(text, text, 2)
    assert unigram == pytest.approx(math.log(2), abs=1e-3)
    assert bigram == pytest.approx(0.0, abs=1e-3)


def test_an_evaluation_leaves_the_training_mode():
    model = tiny().train()
    evaluate(model, counting(50))
    assert model.training


@pytest.mark.parametrize("length", [0, 8])
def test_a_text_shorter_than_a_context_is_refused(length):
    with pytest.raises(MinigptError, match=f"the training text has {length} tokens, needed more"):
        train(tiny(), counting(length), counting(100), QUICK)
    with pytest.raises(MinigptError, match="the held-out text .* more than one context of 8"):
        train(tiny(), counting(100), counting(length), QUICK)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"stories": 0},
        {"batch_size": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(MinigptError, match="needed"):
        TrainConfig(**change)
