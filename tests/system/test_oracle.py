"""Random shapes, texts, chunks, caches and numerics, against a reference of another hand."""

from __future__ import annotations

import os

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import GPT, GPTConfig
from minigpt.cache.kinds import LOSSLESS
from tests.reference import reference_logits

EXAMPLES = int(os.environ.get("MINIGPT_EXAMPLES", "25"))


@st.composite
def models(draw) -> GPT:
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    groups = draw(st.sampled_from([g for g in range(1, heads + 1) if heads % g == 0]))
    config = GPTConfig(
        vocab_size=draw(st.integers(2, 40)),
        n_positions=draw(st.integers(2, 24)),
        n_embd=heads * draw(st.integers(1, 9)),
        n_layer=draw(st.integers(1, 3)),
        n_head=heads,
        n_kv_head=groups,
        initializer_range=draw(st.sampled_from([0.02, 0.3, 1.0])),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])),
        tie_word_embeddings=draw(st.booleans()),
        scale_attn_weights=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
    )
    torch.manual_seed(draw(st.integers(0, 10**6)))
    model = GPT(config, numerics=draw(st.sampled_from(["fast", "exact"]))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
@torch.no_grad()
def test_any_model_any_chunks_any_cache_give_the_references_logits(data):
    model = data.draw(models())
    config = model.config
    tokens = data.draw(
        st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=config.n_positions)
    )
    want = reference_logits(model.state_dict(), config, tokens)
    rows = data.draw(st.integers(1, 3))
    cache = data.draw(st.sampled_from([None, *LOSSLESS]), label="cache")
    batch = torch.tensor([tokens]).expand(rows, -1)
    if cache is None:
        got = model(batch)
    else:
        held, at, parts = model.new_cache(rows, kind=cache), 0, []
        while at < len(tokens):
            count = data.draw(st.integers(1, len(tokens) - at), label="chunk")
            parts.append(model(batch[:, at : at + count], cache=held))
            at += count
            if data.draw(st.booleans(), label="fork"):
                held = held.fork()
            if data.draw(st.booleans(), label="detour"):
                back = data.draw(st.integers(0, at), label="back to")
                held.truncate(back)
                model(batch[:, back:at], cache=held) if back < at else None
        got = torch.cat(parts, 1)
        if model.numerics == "exact":
            assert torch.equal(got, model(batch))
    for row in got:
        # float32 against float64: errors grow with the size of the numbers that are added up.
        assert torch.allclose(row.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
