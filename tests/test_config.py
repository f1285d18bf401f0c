"""The shape of a model: its limits, GPT-2's published values, and `config.json`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from minigpt.config import PRESETS, GPTConfig
from minigpt.support.errors import MinigptError

# As published with openai-community/gpt2, less the keys of other tasks.
GPT2_JSON: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("distilgpt2", 81_912_576),
    ],
)
def test_a_preset_has_as_many_parameters_as_the_published_model(name: str, count: int) -> None:
    shapes = GPTConfig.preset(name).tensors()

    assert sum(math.prod(shape) for shape in shapes.values()) == count


def test_a_preset_can_be_changed_by_keyword() -> None:
    assert GPTConfig.preset("nano", n_layer=1) == dataclasses.replace(PRESETS["nano"], n_layer=1)


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(MinigptError, match="'gpt3', needed one of gpt2, "):
        GPTConfig.preset("gpt3")


def test_what_may_be_left_out_follows_from_the_rest() -> None:
    config = GPTConfig(n_embd=48, n_head=3)

    assert (config.head_dim, config.kv_heads, config.inner) == (16, 3, 192)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 10**12),
        ("n_positions", -1),
        ("n_positions", "1024"),
        ("n_embd", 768.0),
        ("n_layer", True),
        ("n_layer", 10**6),
        ("n_head", 0),
        ("n_head", 7),
        ("n_kv_head", 5),
        ("n_inner", 0),
        ("activation_function", "silu"),
        ("embd_pdrop", 1.0),
        ("attn_pdrop", -0.1),
        ("resid_pdrop", "0.1"),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", math.nan),
        ("initializer_range", math.inf),
        ("scale_attn_weights", 1),
        ("tie_word_embeddings", "no"),
        ("eos_token_id", "<|endoftext|>"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(MinigptError) as caught:
        GPTConfig(**{name: value})

    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


# --- config.json ------------------------------------------------------------------------------


def test_the_published_file_gives_the_preset() -> None:
    assert GPTConfig.from_dict(GPT2_JSON) == GPTConfig.preset("gpt2")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_inner": 40},
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
    ],
)
def test_a_key_that_changes_the_mathematics_is_read(changes: dict[str, Any]) -> None:
    assert GPTConfig.from_dict({**GPT2_JSON, **changes}) == GPTConfig.preset("gpt2", **changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_a_key_that_cannot_be_honoured_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(MinigptError, match=f"sets {key} to"):
        GPTConfig.from_dict({**GPT2_JSON, key: value})


def test_a_key_that_changes_the_precision_alone_is_ignored() -> None:
    assert GPTConfig.from_dict({**GPT2_JSON, "reorder_and_upcast_attn": True}) == GPTConfig.preset(
        "gpt2"
    )


def test_several_tokens_may_end_a_text() -> None:
    config = GPTConfig.from_dict({"vocab_size": 61, "eos_token_id": [60, 5, 50256]})

    assert (config.eos_token_id, config.stop_tokens) == (60, (60, 5))
    assert config.to_dict()["eos_token_id"] == [60, 5]
    assert GPTConfig.from_dict(config.to_dict()) == config


def test_the_keys_of_the_published_file_are_all_written() -> None:
    assert (
        GPT2_JSON.keys() - {"bos_token_id", "task_specific_params"}
        <= GPTConfig.preset("gpt2").to_dict().keys()
    )


@pytest.mark.parametrize("elsewhere", [50256, -1, [61], "0", []])
def test_an_end_of_text_outside_the_vocabulary_is_none(elsewhere: object) -> None:
    config = GPTConfig.from_dict({"vocab_size": 61, "eos_token_id": elsewhere})

    assert config.eos_token_id is None


def test_null_means_the_default() -> None:
    assert GPTConfig.from_dict({"n_inner": None, "layer_norm_epsilon": None}) == GPTConfig()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("n_ctx", "n_positions"),
        ("max_position_embeddings", "n_positions"),
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
)
def test_a_size_may_go_by_its_second_name(alias: str, name: str) -> None:
    assert GPTConfig.from_dict({alias: 24}) == GPTConfig(**{name: 24})


def test_two_names_of_one_size_must_agree() -> None:
    with pytest.raises(MinigptError, match="n_ctx 512 and n_positions 1024"):
        GPTConfig.from_dict({**GPT2_JSON, "n_ctx": 512})


def test_another_family_is_refused() -> None:
    with pytest.raises(MinigptError, match="model_type 'llama', needed 'gpt2'"):
        GPTConfig.from_dict({"model_type": "llama"})


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_reads_back(name: str) -> None:
    config = GPTConfig.preset(name)

    assert GPTConfig.from_dict(config.to_dict()) == config


def test_grouped_heads_read_back_too() -> None:
    config = GPTConfig(n_kv_head=4)

    assert GPTConfig.from_dict(config.to_dict()) == config


def test_grouped_heads_do_not_pass_for_plain_gpt2() -> None:
    assert GPTConfig(n_kv_head=4).to_dict()["model_type"] == "minigpt"


def test_as_many_groups_as_heads_is_plain_gpt2() -> None:
    assert GPTConfig(n_kv_head=12).to_dict() == GPTConfig().to_dict()


def test_a_size_may_come_from_numpy_and_is_written_as_any_other():
    config = GPTConfig(n_layer=np.int64(3), n_kv_head=np.int32(4))
    assert json.loads(json.dumps(config.to_dict())) == GPTConfig(n_layer=3, n_kv_head=4).to_dict()
