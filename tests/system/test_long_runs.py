"""Long runs: what is made on the way is gone when it is no longer needed, however long it goes on.

Memory is counted, not guessed: the objects alive and the bytes of all tensors there are, after a
while and after a longer while. MINIGPT_EXAMPLES=100 makes the runs a hundred times as long.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, generate, generate_batch, stream
from minigpt.cache.kinds import KINDS, LOSSLESS
from minigpt.commands.session import Session
from minigpt.generation.text import stream_text
from minigpt.numerics.exact import _mask
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.loop import train
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text

TIMES = int(os.environ.get("MINIGPT_EXAMPLES", "1"))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return GPT(GPTConfig(257, 64, 16, 1, 2, initializer_range=0.3)).eval()


class Alive(NamedTuple):
    objects: int
    tensors: int
    bytes: int  # of the tensors' storages, each counted once


def alive() -> Alive:
    _mask.cache_clear()  # a table of bounded length, of masks of any sizes
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [tensor for tensor in tensors if not tensor.is_mkldnn]  # packed: no storage to ask
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    sizes = sum(storage.nbytes() for storage in storages.values())
    return Alive(len(objects), len(tensors), sizes)


def assert_flat(work: Callable[[], object], times: int) -> None:
    """Does working `times` times leave no more behind than working a few times?"""
    for _ in range(3):  # tables, certificates and packed weights are made once
        work()
    before = alive()
    for _ in range(times):
        work()
    after = alive()
    assert (after.tensors, after.bytes) == (before.tensors, before.bytes)
    assert after.objects - before.objects < times / 2 + 20  # not one for each; Python keeps some


def test_a_text_far_longer_than_the_context_takes_the_memory_of_a_short_one(tiny):
    """Only its ids stay: the cache is emptied and filled again every 33 tokens."""
    moments = [(2 + turns * TIMES) * 33 for turns in (0, 30, 60)]
    text = stream(tiny, [1, 2, 3], moments[-1] + 1, 1.0, policy="reprefill", stop_tokens=())
    early, later, last = [alive() for number, _ in enumerate(text) if number in moments]
    assert text.result.prefills > 60 * TIMES
    assert early[1:] == later[1:] == last[1:]
    # What the rest of the process imports on the way comes once; what a token leaves comes twice.
    assert min(later.objects - early.objects, last.objects - later.objects) < 50


@pytest.mark.parametrize(
    ("kind", "times"), [(kind, 200 if kind in LOSSLESS else 20) for kind in KINDS]
)
def test_hundreds_of_forks_and_drops(tiny, text, kind, times):
    parent = tiny.new_cache(kind=kind)
    tiny(text(1, 20), cache=parent)

    def branch():
        twins = parent.fork().expand(2)
        tiny(text(2, 20), cache=twins)
        twins.truncate([21, 22])

    branch()
    pages = len(parent.pool.owners) if kind == "paged" else 0
    assert_flat(branch, times * TIMES)
    if kind == "paged":
        assert len(parent.pool.owners) == pages
        assert sum(owners > 0 for owners in parent.pool.owners) == 1 + 2  # of zeros, and its own


def test_batches_drafts_and_texts_without_a_cache(tiny, text):
    prompts = text(2, 6).tolist()

    def write():
        generate_batch(tiny, prompts, 6, n=2, temperature=1.0, kind="paged")
        generate(tiny, prompts[0], 6, draft="lookup")
        generate(tiny, prompts[0], 6, draft=tiny)
        generate(tiny, prompts[0], 6, use_cache=False)

    assert_flat(write, 8 * TIMES)


def test_streams_left_half_way(tiny):
    def leave():
        text = stream(tiny, [1, 2, 3], 20)
        next(text), next(text)

    assert_flat(leave, 40 * TIMES)


@pytest.mark.parametrize(
    "begin",
    [
        lambda model: stream(model, [1, 2, 3], 20),
        lambda model: stream_text(model, byte_tokenizer(), "abc", max_new_tokens=20),
    ],
    ids=["ids", "text"],
)
def test_a_stream_left_half_way_lets_go_of_its_cache_at_once(begin):
    torch.manual_seed(0)
    ascii_only = GPT(GPTConfig(128, 64, 16, 1, 2, initializer_range=0.3)).eval()
    made, new_cache = [], ascii_only.new_cache

    def noted(*args, **settings):
        cache = new_cache(*args, **settings)
        made.append(weakref.ref(cache))
        return cache

    ascii_only.new_cache = noted
    text = begin(ascii_only)
    next(text)
    gc.disable()  # at once: not when the collector comes round
    try:
        assert made[0]() is not None
        del text
        assert made[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_passes_that_fail(tiny, text, kind):
    def interrupt(*_):
        raise KeyboardInterrupt

    def fail():
        cache = tiny.new_cache(kind=kind)
        hook = tiny.h[0].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny(text(1, 5), cache=cache)
        hook.remove()
        with pytest.raises(MinigptError):
            tiny(text(1, 65), cache=cache)

    assert_flat(fail, 20 * TIMES)


def test_a_cache_is_gone_with_its_last_name_also_after_a_failure(tiny, text):
    cache = tiny.new_cache()
    with pytest.raises(MinigptError):
        tiny(text(1, 65), cache=cache)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_an_evening_of_play(tiny):
    session = Session(tiny, byte_tokenizer(), max_new_tokens=4, temperature=1.0)

    def turns():
        list(session.turn("ab"))
        session.branch("here")
        next(session.turn("cd"), None)  # left half way
        session.go("here")
        list(session.turn("ef"))
        session.rewind(len(session.turns))

    assert_flat(turns, 15 * TIMES)
    assert len(session.branches) == 1


def test_a_model_is_gone_with_its_last_name(text):
    model = GPT(GPTConfig(257, 64, 16, 1, 2)).eval()
    model(text(1, 5), cache=model.new_cache())
    generate(model, [1, 2], 4, draft="lookup")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_training_steps_leave_nothing_behind(tmp_path):
    numbers = np.arange(500, dtype=np.uint16) % 7
    source = Text(Corpus(byte_tokenizer(), numbers, numbers[:100], 100), 8, seed=1)
    counts = []

    def counted(model, tokens, _):
        if len(counts) < 120 * TIMES:
            counts.append(0)
        if len(counts) in (40, 120 * TIMES - 10):
            counts[-1] = counts[-1] or alive().bytes

    config = TrainConfig(
        n_layer=1, n_head=2, n_embd=16, n_positions=8, steps=120 * TIMES, batch_size=4, warmup=5,
        evaluate_every=60 * TIMES, save_every=60 * TIMES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config.shape(257, None))
    hook = model.register_forward_hook(counted)
    train(model, source, config, tmp_path)
    hook.remove()
    early, late = [count for count in counts if count]
    assert late == early
