"""The learner's GPT-2 and caches: the real model's numbers, and the text of the lesson."""

from __future__ import annotations

import ast
import json

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.study import by_hand
from tests.helpers import ROOT

CONFIG = GPTConfig(vocab_size=97, n_positions=48, n_embd=24, n_layer=3, n_head=4)


@pytest.fixture
def real() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def caches() -> list[by_hand.Cache | by_hand.PreallocatedCache]:
    return [by_hand.Cache(3), by_hand.PreallocatedCache(3, 2, 4, 30, 6)]


@torch.inference_mode()
def test_it_computes_what_the_real_model_does(real):
    mine = by_hand.GPT(CONFIG)
    mine.load_state_dict(by_hand.weights_of(real))
    tokens = torch.randint(97, (2, 30))
    # other kernels add up in another order: a few units in the last place of numbers around 1
    torch.testing.assert_close(mine(tokens), real(tokens), rtol=0, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(
        real(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(by_hand.loss(real(tokens), tokens), loss)


@torch.inference_mode()
@pytest.mark.parametrize("cache", caches(), ids=lambda cache: type(cache).__name__)
def test_cut_in_any_way_it_computes_the_same_with_a_cache(real, cache):
    mine, cached = by_hand.GPT(CONFIG), by_hand.CachedGPT(CONFIG)
    for gpt in (mine, cached):
        gpt.load_state_dict(by_hand.weights_of(real))
    tokens = torch.randint(97, (2, 30))
    want, start = mine(tokens), 0
    assert cache.get(0) is None
    for length in (7, 1, 1, 13, 1, 7):
        logits = cached(tokens[:, start : start + length], cache)
        torch.testing.assert_close(logits, want[:, start : start + length], rtol=0, atol=1e-5)
        start += length
        keys, values = cache.get(2)
        assert keys.shape == values.shape == (2, 4, start, 6)


def test_the_preallocated_cache_takes_no_memory_later():
    cache = by_hand.PreallocatedCache(1, 1, 2, 8, 3)
    place = cache.keys.data_ptr()
    for _ in range(4):
        keys, values = cache.update(0, torch.ones(1, 2, 2, 3), torch.ones(1, 2, 2, 3))
        assert (keys.data_ptr(), values.data_ptr()) == (place, cache.values.data_ptr())


def test_rotary_positions_are_those_of_llama():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=99)
    q, k = torch.randn(2, 1, 4, 7, 16)  # (B, H, T, D) each
    positions = torch.arange(30, 37)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions[None])
    turned = llama.apply_rotary_pos_emb(q, k, cos, sin)
    for mine, theirs in zip((q, k), turned, strict=True):
        torch.testing.assert_close(by_hand.rotate(mine, positions), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 16, 50, 64])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_the_online_softmax_is_softmax(block, size):
    q, keys, values = torch.randn(16), torch.randn(50, 16), torch.randn(50, 16)
    keys = size * keys[(keys @ q).argsort()]  # rising scores: the maximum moves in every block
    mine, whole = by_hand.attend_online(q, keys, values, block), by_hand.attend(q, keys, values)
    torch.testing.assert_close(mine, whole, rtol=0, atol=1e-5)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    want = sdpa(q[None, None], keys[None], values[None])[0, 0]
    torch.testing.assert_close(whole, want, rtol=0, atol=1e-5)


def plain(source: str) -> list[str]:
    """The classes and functions of a text without docstrings and types."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
    return [
        ast.unparse(node) for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]


def test_the_lessons_one_cell_is_this_module():
    cells = json.loads((ROOT / "notebooks" / "00-build-gpt2.ipynb").read_text())["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == "one-cell-gpt"]
    module = (ROOT / "minigpt" / "study" / "by_hand.py").read_text().split("# --- lesson 2")[0]
    assert plain("".join(cell["source"])) == plain(module)[: len(plain("".join(cell["source"])))]
    lines = [line for line in cell["source"] if line.strip()]
    assert len(lines) <= 70
