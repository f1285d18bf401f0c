"""Steps on the device give what calls of the model give; on a CPU a step is a plain call."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch

from minigpt import MinigptError, generate, stream
from minigpt.cache.kvcache import KVCache
from minigpt.cache.origin import Origin
from minigpt.config import GPTConfig
from minigpt.generation import decoding
from minigpt.generation.device_steps import DeviceSteps, _stamp, steps_for
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.recorder import recording

PROMPT = [5, 80, 200, 31, 7]
DTYPES = (torch.float32, torch.bfloat16)


def model_of(dtype: torch.dtype = torch.float32, numerics: str = "exact", **changes: int) -> GPT:
    shape = {"vocab_size": 301, "n_positions": 300, "n_embd": 48, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    config = GPTConfig(**{**shape, **changes}, initializer_range=0.2, eos_token_id=300)
    return GPT(config, numerics).eval().to(dtype)


def prefilled(model: GPT, rows: int, lengths: list[int]) -> KVCache:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(300, (rows, max(lengths)), generator=generator)
    cache = model.new_cache(rows)
    model.next_logits(tokens, cache=cache)
    cache.truncate(lengths)
    return cache


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths", [[3], [63], [64], [128], [200, 200], [1, 60, 126], [5, 127, 128, 255]], ids=str
)
def test_a_step_has_the_bits_of_a_call_and_leaves_the_same_cache(lengths, dtype, heads):
    model = model_of(dtype, n_kv_head=heads)
    cache = prefilled(model, len(lengths), lengths)
    other = cache.fork()
    steps = DeviceSteps(model, cache)
    for tokens in (list(range(7, 7 + len(lengths))), [9] * len(lengths)):
        want = model.next_logits(torch.tensor(tokens)[:, None], cache=other)
        assert torch.equal(steps.logits(tokens), want)
    assert cache.tokens == other.tokens
    assert cache.lengths == other.lengths
    for layer in range(2):
        for ours, theirs in zip(cache.layer(layer), other.layer(layer), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("lengths", [[3], [127, 127], [1, 60, 130]], ids=str)
def test_with_fast_numerics_a_step_is_a_call_but_for_rounding(lengths):
    model = model_of(numerics="fast")
    cache = prefilled(model, len(lengths), lengths)
    want = model.next_logits(torch.full((len(lengths), 1), 9), cache=cache.fork())
    got = DeviceSteps(model, cache).logits([9] * len(lengths))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_hidden_key_may_hold_anything():
    model = model_of()
    cache = prefilled(model, 1, [40])
    fork = cache.fork()
    fork._data[..., 60:, :] = 1e30
    assert torch.equal(DeviceSteps(model, cache).logits([1]), DeviceSteps(model, fork).logits([1]))


SAMPLERS = {
    "greedy": Sampler(),
    "warm": Sampler(1.0),
    "filtered": Sampler(0.8, top_k=40, top_p=0.9, min_p=0.01),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_choice_on_the_device_is_the_choice_of_the_sampler(sampler):
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(200, 301, generator=torch.Generator().manual_seed(0))
    want = [sampler.choose(row, one) for row in logits]
    noise = [sampler.noise(301, other) for _ in logits] if sampler.draws else None
    got = sampler.pick(logits, None if noise is None else torch.stack(noise))
    assert got.tolist() == want
    assert torch.equal(one.get_state(), other.get_state())


@pytest.fixture
def on_device(monkeypatch):
    """The texts of `generate` by steps, as a GPU would make them."""
    used = []

    def forced(model: GPT, cache: KVCache | None) -> DeviceSteps | None:
        steps = steps_for(model, cache, force=True)
        used.append(steps)
        return steps

    monkeypatch.setattr(decoding, "steps_for", forced)
    return used


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"top_log_probabilities": 2},
    {"stop_tokens": [17]}, {"policy": "reprefill", "max_new_tokens": 500},
    {"max_new_tokens": 500}, {"draft": "lookup"},
], ids=str)  # fmt: skip
def test_texts_are_those_of_calls(settings, on_device, monkeypatch):
    model = model_of()
    arguments = {"ids": PROMPT, "max_new_tokens": 150, **settings}
    caches = [model.new_cache(), model.new_cache()]
    ours = generate(model, cache=caches[0], **arguments)
    assert on_device
    monkeypatch.setattr(decoding, "steps_for", lambda *_: None)
    theirs = generate(model, cache=caches[1], **arguments)
    assert (ours.tokens, ours.finish_reason) == (theirs.tokens, theirs.finish_reason)
    assert ours.log_probabilities == theirs.log_probabilities
    assert caches[0].tokens == caches[1].tokens
    assert all(
        torch.equal(a, b) for a, b in zip(caches[0].layer(1), caches[1].layer(1), strict=True)
    )


@pytest.mark.parametrize("stop", range(0, 40, 3))
def test_a_text_that_ends_ahead_leaves_the_cache_at_its_end(stop, on_device, monkeypatch):
    model = model_of()
    whole = generate(model, PROMPT, 40, temperature=1.0).tokens
    caches = [model.new_cache(), model.new_cache()]
    ours = generate(model, PROMPT, 40, 1.0, stop_tokens=[whole[stop]], cache=caches[0])
    monkeypatch.setattr(decoding, "steps_for", lambda *_: None)
    theirs = generate(model, PROMPT, 40, 1.0, stop_tokens=[whole[stop]], cache=caches[1])
    assert ours.tokens == theirs.tokens
    assert caches[0].tokens == caches[1].tokens


def test_logits_that_are_no_numbers_are_blamed_at_the_token_where_they_came(on_device):
    model, came = model_of(), []
    with torch.no_grad():
        model.wpe.weight[30] = torch.nan
    with pytest.raises(MinigptError, match="first in wpe"):
        generate(model, PROMPT, 60, on_token=came.append)
    with pytest.raises(MinigptError, match="first in wpe"):
        generate(model, PROMPT, 60)  # which looks at 16 tokens at a time
    assert len(came) == 30 - len(PROMPT) + 1
    assert on_device


def test_a_stream_computes_no_token_before_it_is_wanted(on_device):
    model, cache = model_of(), model_of().new_cache()
    text = stream(model, PROMPT, 20, cache=cache)
    for count in range(5):
        next(text)
        assert len(cache) == len(PROMPT) + count


def test_a_recording_is_stale_once_weights_operations_or_precision_are_others():
    model = model_of()

    def stamp() -> object:
        return _stamp(Origin.of(model), list(model.modules()))

    stamps = [stamp()]
    assert stamp() == stamps[0]
    model.numerics = "fast"
    stamps.append(stamp())
    model.h[0].mlp.c_fc.weight = torch.nn.Parameter(model.h[0].mlp.c_fc.weight.clone())
    stamps.append(stamp())
    torch.set_float32_matmul_precision("high")
    try:
        stamps.append(stamp())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(a != b for n, a in enumerate(stamps) for b in stamps[:n])


def test_nothing_is_replayed_while_something_listens():
    model = model_of()
    with recording(model):
        assert _stamp(Origin.of(model), list(model.modules())) is None
    handle = model.h[1].register_forward_hook(lambda *_: None)
    assert _stamp(Origin.of(model), list(model.modules())) is None
    handle.remove()
    assert _stamp(Origin.of(model), list(model.modules())) is not None


def test_a_cache_and_its_recordings_go_when_nobody_holds_the_cache():
    model = model_of()
    cache = model.new_cache()
    steps = ref(steps_for(model, cache, force=True))
    assert steps() is steps_for(model, cache, force=True)
    gone = ref(cache)
    del cache
    gc.collect()
    assert (gone(), steps()) == (None, None)
