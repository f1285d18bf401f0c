"""Steps on the device give what calls of the model give; on a CPU a step is a plain call."""

from __future__ import annotations

import gc
from functools import partial
from itertools import pairwise
from weakref import ref

import pytest
import torch
from torch import Tensor

from minigpt import MinigptError, generate, generate_batch, stream
from minigpt.cache.kvcache import KVCache
from minigpt.cache.origin import Origin
from minigpt.config import GPTConfig
from minigpt.generation import batch, decoding, device_steps
from minigpt.generation.device_caches import side_by_side
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


def prefilled(model: GPT, lengths: list[int], kind: str = "static") -> KVCache:
    """Rows of these lengths; of a paged cache, each begins with pages that it shares."""
    tokens = torch.randint(300, (1, max(lengths)), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(kind=kind)
    model.next_logits(tokens, cache=cache)
    cache = cache.expand(len(lengths))
    cache.truncate(lengths)
    return cache


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths", [[3], [63], [64], [128], [200, 200], [1, 60, 126], [5, 127, 128, 255]], ids=str
)
def test_a_step_has_the_bits_of_a_call_and_leaves_the_same_cache(lengths, dtype, heads, kind):
    model = model_of(dtype, n_kv_head=heads)
    cache = prefilled(model, lengths, kind)
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
    cache = prefilled(model, lengths)
    want = model.next_logits(torch.full((len(lengths), 1), 9), cache=cache.fork())
    got = DeviceSteps(model, cache).logits([9] * len(lengths))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_hidden_key_may_hold_anything():
    model = model_of()
    cache = prefilled(model, [40])
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
    """The texts of `generate` and `generate_batch` by steps, as a GPU would make them."""
    used = []

    def forced(model: GPT, cache: KVCache | None) -> DeviceSteps | None:
        steps = steps_for(model, cache, force=True)
        used.append(steps)
        return steps

    monkeypatch.setattr(decoding, "steps_for", forced)
    monkeypatch.setattr(batch, "steps_for", forced)
    return used


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"top_log_probabilities": 2},
    {"stop_tokens": [17]}, {"policy": "reprefill", "max_new_tokens": 500},
    {"max_new_tokens": 500}, {"draft": "lookup"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["static", "paged"])
def test_texts_are_those_of_calls(settings, kind, on_device, monkeypatch):
    model = model_of()
    arguments = {"ids": PROMPT, "max_new_tokens": 150, **settings}
    caches = [model.new_cache(kind=kind), model.new_cache(kind=kind)]
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


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("lengths", [[3], [120, 120], [1, 60, 122], [5, 122, 128, 255]], ids=str)
def test_a_recorded_step_serves_every_position_of_its_blocks(lengths, kind, numerics, tapes):
    model = model_of(numerics=numerics, n_kv_head=2)
    cache, other = (prefilled(model, lengths, kind) for _ in range(2))
    steps, plain = DeviceSteps(model, cache), DeviceSteps(model, other)
    plain._can_record = lambda: False
    for n in range(12):
        tokens = [(37 * n + 5 * row) % 300 for row in range(len(lengths))]
        want = plain.logits(tokens)
        assert torch.equal(steps.logits(tokens), want)
    assert cache.tokens == other.tokens
    assert all(torch.equal(a, b) for a, b in zip(cache.layer(1), other.layer(1), strict=True))
    assert 1 <= len(tapes) <= 2  # for the blocks at first, and those that some row comes into


def test_with_fast_numerics_only_the_longest_row_decides_which_recording_serves(tapes):
    model = model_of(numerics="fast")
    cache = prefilled(model, [100, 120, 200])
    steps = DeviceSteps(model, cache)
    for _ in range(30):  # two rows come into the second block
        steps.logits([1] * 3)
    assert len(tapes) == 1


@pytest.mark.usefixtures("on_device")
def test_a_stream_is_recorded_too_though_each_token_is_looked_at(tapes):
    model = model_of()
    text = list(stream(model, PROMPT, 40, temperature=1.0))
    assert len(tapes) == 1
    assert tapes[0].replays == 39
    assert text == generate(model, PROMPT, 40, temperature=1.0, use_cache=False).tokens


def test_only_so_many_recordings_are_kept_and_the_longest_unused_goes(tapes, monkeypatch):
    monkeypatch.setattr(device_steps, "KEPT", 2)
    model = model_of()
    cache = prefilled(model, [40])
    steps = DeviceSteps(model, cache)
    for name in ("warm", "greedy", "warm", "filtered", "warm"):
        sampler = SAMPLERS[name]
        steps.advance([1], 1, sampler, lambda: torch.ones(1, 301), more=20)
    assert len(tapes) == 3  # "greedy" went
    assert [sampler for _, sampler in steps._recorded] == [SAMPLERS["filtered"], SAMPLERS["warm"]]


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.0, "top_p": 0.9, "stop_tokens": list(range(0, 300, 40))},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"policy": "reprefill", "max_new_tokens": 300},
], ids=str)  # fmt: skip
@pytest.mark.usefixtures("on_device")
def test_a_batch_replays_its_steps(settings, kind, tapes, monkeypatch):
    model, arguments = model_of(), {"max_new_tokens": 60, **settings}
    ours = generate_batch(model, PROMPTS, kind=kind, **arguments)
    assert len(tapes) > 1  # before and after the end of a block
    assert sum(tape.replays for tape in tapes) > 30
    monkeypatch.setattr(batch, "steps_for", lambda *_: None)
    theirs = generate_batch(model, PROMPTS, kind=kind, **arguments)
    assert [text.tokens for text in ours] == [text.tokens for text in theirs]


def test_what_comes_after_a_texts_end_may_be_no_numbers_and_costs_no_draws(on_device):
    model = model_of()
    whole = generate(model, PROMPT, 40, temperature=1.0).tokens
    with torch.no_grad():
        model.wpe.weight[len(PROMPT) + 23] = torch.nan
    text = generate(model, PROMPT, 40, temperature=1.0, stop_tokens=[whole[21]])
    assert text.tokens == whole[: whole.index(whole[21])]
    assert len(text.tokens) > 17  # the end lies in a row of tokens that was given up
    assert on_device


def test_a_stream_computes_no_token_before_it_is_wanted(on_device):
    model, cache = model_of(), model_of().new_cache()
    text = stream(model, PROMPT, 20, cache=cache)
    for count in range(5):
        next(text)
        assert len(cache) == len(PROMPT) + count


PROMPTS = [PROMPT, [9] * 120, list(range(40)), [7]]


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.7, "top_p": 0.9, "n": 3},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"top_log_probabilities": 2},
    {"temperature": 1.0, "stop_tokens": list(range(0, 300, 12))},
    {"temperature": 1.0, "stop_tokens": list(range(0, 300, 12)), "min_new_tokens": 20},
    {"logits_processor": lambda text, logits: logits.roll(text.shape[1])},
    {"policy": "reprefill", "max_new_tokens": 400}, {"max_new_tokens": 400},
    {"policy": "reprefill", "max_new_tokens": 400, "kind": "paged"}, {"kind": "growing"},
], ids=lambda settings: "-".join(settings) or "plain")  # fmt: skip
def test_each_text_of_a_batch_is_the_one_it_would_be_alone(settings, on_device, monkeypatch):
    model = model_of()
    ours = generate_batch(model, PROMPTS, **{"max_new_tokens": 40, **settings})
    assert any(on_device) == (settings.get("kind") != "growing")
    monkeypatch.setattr(decoding, "steps_for", lambda *_: None)
    n, others = settings.get("n", 1), {"kind", "n"}
    alone = {"max_new_tokens": 40, **{k: v for k, v in settings.items() if k not in others}}
    for number, text in enumerate(ours):
        alone["seed"] = settings.get("seed", 0) + number
        want = generate(model, PROMPTS[number // n], **alone)
        assert (text.tokens, text.finish_reason) == (want.tokens, want.finish_reason)
        assert text.log_probabilities == want.log_probabilities


@pytest.mark.parametrize("kind", ["static", "paged"])
def test_with_fast_numerics_too_but_for_rounding_that_seldom_matters(kind, on_device, monkeypatch):
    model = model_of(numerics="fast")
    ours = generate_batch(model, PROMPTS, 20, 1.0, kind=kind)
    assert all(on_device)
    monkeypatch.setattr(decoding, "steps_for", lambda *_: None)
    alone = [generate(model, prompt, 20, 1.0, seed=n) for n, prompt in enumerate(PROMPTS)]
    assert [text.tokens for text in ours] == [text.tokens for text in alone]


def test_rows_that_ended_leave_once_they_are_half_of_the_batch(on_device):
    model, ends = model_of(), list(range(0, 300, 40))
    texts = generate_batch(model, [[n] for n in range(8)], 150, 1.0, stop_tokens=ends)
    lengths = [len(text.tokens) for text in texts]
    assert len(set(lengths)) > 4  # most end alone
    sizes = list(dict.fromkeys(len(steps.state.tokens) for steps in on_device))
    assert len(sizes) > 2  # and not a size for every row that ends
    assert sizes[0] == 8
    assert all(2 * after <= before for before, after in pairwise(sizes))


def test_a_batch_looks_at_several_tokens_at_once_unless_somebody_waits(on_device, monkeypatch):
    model, counts, advance = model_of(), [], DeviceSteps.advance

    def counted(self, tokens, count, *rest):
        counts.append(count)
        return advance(self, tokens, count, *rest)

    monkeypatch.setattr(DeviceSteps, "advance", counted)
    whole = generate_batch(model, PROMPTS, 40)
    assert counts == [16, 16, 7]  # after the first, which comes from the prompt
    counts.clear()
    told: dict[int, list[int]] = {}
    generate_batch(model, PROMPTS, 40, on_token=lambda n, t: told.setdefault(n, []).append(t))
    assert counts == [1] * 39
    assert told == {number: text.tokens for number, text in enumerate(whole)}


def test_the_row_of_a_batch_whose_logits_are_no_numbers_is_blamed_when_it_comes_there(on_device):
    model = model_of()
    with torch.no_grad():
        model.wpe.weight[60] = torch.nan
    texts = generate_batch(model, [PROMPT, [7] * 50], 11)  # which come to position 59, no further
    assert [len(text.tokens) for text in texts] == [11, 11]
    with pytest.raises(MinigptError, match="first in wpe"):
        generate_batch(model, [PROMPT, [7] * 50], 13)


def test_rows_of_other_blocks_change_no_bits_when_one_comes_into_the_next():
    model = model_of(torch.bfloat16)
    cache = prefilled(model, [126, 125, 200])
    other, steps = cache.fork(), DeviceSteps(model, cache)
    for token in range(6):
        want = model.next_logits(torch.full((3, 1), token), cache=other)
        assert torch.equal(steps.logits([token] * 3), want)


def test_keys_and_values_of_attention_lie_side_by_side_and_others_are_brought_together():
    qkv = torch.randn(2, 1, 12, 8).transpose(1, 2)  # (B, H + 2G, T, D)
    _, k, v = qkv.split_with_sizes((4, 4, 4), 1)
    both = side_by_side(k, v)
    assert both.data_ptr() == k.data_ptr()
    for one, other in ((k, v), (v, k), (k.clone(), v), (k, v.clone()), (k[:1], v[1:])):
        assert torch.equal(side_by_side(one, other), torch.stack((one, other)))


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


def test_pages_keep_their_recordings_whatever_cache_they_are_in_until_they_move():
    model = model_of()
    cache = prefilled(model, [20, 20], "paged")
    steps = steps_for(model, cache, force=True)
    fork = cache.fork()
    assert steps_for(model, fork, force=True) is steps
    assert steps.cache is fork
    assert steps_for(model, cache.select([0]), force=True) is not steps
    steps.logits([1, 2])
    before = steps._stamp
    cache.pool.grow(100, cache)
    steps.logits([1, 2])
    assert steps._stamp != before


def test_a_cache_and_its_recordings_go_when_nobody_holds_the_cache():
    model = model_of()
    cache = model.new_cache()
    steps = ref(steps_for(model, cache, force=True))
    assert steps() is steps_for(model, cache, force=True)
    gone = ref(cache)
    del cache
    gc.collect()
    assert (gone(), steps()) == (None, None)


def test_pages_that_have_moved_to_where_others_were_are_recorded_anew(tapes, monkeypatch):
    """A pool that grows twice may come to lie where it was at first: its address says little."""
    model = model_of(torch.float32)
    prompts = [[1, 2, 3], [4, 5]]
    alone = [generate(model, ids, 100).tokens for ids in prompts]
    monkeypatch.setattr("minigpt.generation.batch.steps_for", partial(steps_for, force=True))
    monkeypatch.setattr(Tensor, "data_ptr", lambda _: 0)
    texts = generate_batch(model, prompts, 100, kind="paged")
    assert [text.tokens for text in texts] == alone
    assert len(tapes) > 4
