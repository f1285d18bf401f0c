"""The configuration of a run: what may be set, and that it is told and read back exactly."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, replace

import pytest

from minigpt import GPT, GPTConfig, MinigptError, Tokenizer
from minigpt.training.recipes import PRESETS, TrainConfig, configure, differences, preset, read_toml
from tests.helpers import TOY


def test_every_field_says_what_it_is_for():
    assert all(len(field.metadata["about"]) > 8 for field in fields(TrainConfig))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")
@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_is_read_back_from_its_file(name, tmp_path):
    config = replace(preset(name), data='a "quoted" Zoë\\path')
    (tmp_path / "train.toml").write_text(config.to_toml(), encoding="utf-8")
    assert configure(TrainConfig(), read_toml(tmp_path / "train.toml"), "the file") == config


def test_toy_is_the_recipe_of_the_bundled_model():
    model, tokenizer = GPT.from_pretrained(TOY), Tokenizer.from_pretrained(TOY)
    shape = preset("toy").shape(tokenizer.n_vocab, tokenizer.eot_token)
    assert shape == GPTConfig.preset("toy") == model.config
    assert preset("toy").tokenizer == f"bpe:{tokenizer.n_vocab}"


def test_fields_that_change_nothing_learned_may_differ_when_a_run_is_resumed():
    later = TrainConfig(keep=9, save_every=3, sample_every=5, shard=True, steps=9, device="cuda")
    assert differences(TrainConfig(), later) == []
    assert differences(TrainConfig(), TrainConfig(seed=3)) == ["seed was 1 and is 3"]


def test_a_whole_number_will_do_where_a_fraction_may_stand():
    assert configure(TrainConfig(), {"clip": 2}, "the file") == TrainConfig(clip=2.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps is 0, needed a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size is -1, needed a whole number of at least 1"),
        ({"warmup": -1}, "warmup is -1, needed a whole number of at least 0"),
        ({"steps": 1.5}, "steps is 1.5, needed a int"),
        ({"compile": 1}, "compile is 1, needed a bool"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, needed a positive number"),
        ({"learning_rate": math.nan}, "learning_rate is nan, needed a positive number"),
        ({"clip": -1.0}, "clip is -1.0, needed a number from 0 on"),
        ({"beta2": 1.0}, "beta2 is 1.0, needed between 0 and 1"),
        ({"held_out": 0.0}, "held_out is 0.0, needed between 0 and 1"),
        ({"seed": -1}, "seed is -1, needed a whole number"),
        ({"seed": 2**64}, "seed is 18446744073709551616, needed"),
        ({"precision": "int8"}, "precision is 'int8', needed one of float32, bfloat16, float16"),
        ({"schedule": "linear"}, "schedule is 'linear', needed one of cosine, constant"),
        ({"lora_on": "attn.c_atn"}, "lora_on names 'attn.c_atn', needed some of attn.c_attn"),
        ({"task": "knitting"}, "task is 'knitting', needed one of addition"),
        ({"n_head": 3}, "n_embd is 160 and n_head is 3"),
        ({"dropout": 1.0}, "embd_pdrop is 1.0, needed a probability"),
        ({"group": 1}, "group is 1, needed a whole number of at least 2"),
        ({"clip_ratio": 0.0}, "clip_ratio is 0.0, needed a positive number"),
        ({"kl": -1.0}, "kl is -1.0, needed a number from 0 on"),
        ({"method": "ppo"}, "method is 'ppo', needed one of supervised, grpo, reinforce"),
        ({"stepz": 1}, "the file sets 'stepz', needed one of data, task"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(change, sentence):
    with pytest.raises(MinigptError, match=sentence.replace("(", r"\(")):
        configure(TrainConfig(), change, "the file")


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    (tmp_path / "my.toml").write_text("steps: 3")
    with pytest.raises(MinigptError, match="my.toml cannot be read as TOML|from 3.11 on"):
        read_toml(tmp_path / "my.toml")


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(
        MinigptError, match="no recipe is called 'huge', needed one of toy, stories, laptop"
    ):
        preset("huge")
