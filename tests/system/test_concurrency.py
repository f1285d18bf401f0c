"""Threads, tasks and processes: each text comes out as it would alone, or is refused in a sentence.

Threads are made to change places as often as Python lets them, so that what may go wrong does.
"""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minigpt import GPT, GPTConfig, KVCache, MinigptError, generate, save_cache, stream
from minigpt.cache.kinds import KINDS, LOSSLESS
from minigpt.numerics.certificates import attention_calls, certified_calls, rowwise_sizes
from minigpt.numerics.exact import _mask, _masks

SHARED = "in use by another pass, which has not ended: wait for it, or give each thread a cache"


@pytest.fixture(autouse=True)
def hurried(threads):
    """One CPU thread for each Python thread, and these take turns after every few lines."""
    threads(1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def side_by_side(work: Callable[[int], Any], count: int) -> list[Any]:
    """work(0), work(1), ... at once, each in a thread of its own; what they return, or raised."""
    gate, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        torch.set_num_threads(1)
        gate.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    workers = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def decoded(model: GPT, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """A prompt of 10 and the rest one by one: logits of all of them."""
    parts = tokens.split([10] + [1] * (tokens.shape[1] - 10), 1)
    return torch.cat([model(part, cache=cache) for part in parts], 1)


class TestOneModelInSeveralThreads:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_with_its_own_cache_has_the_logits_it_has_alone(self, exact, text, kind):
        def alone(seed):
            return decoded(exact, text(1, 24, seed), exact.new_cache(kind=kind))

        want = [alone(seed) for seed in range(4)]
        assert all(map(torch.equal, side_by_side(alone, 4), want))

    def test_may_be_the_first_to_use_it(self, make_model, text):
        """Certificates, packed weights and small tables are then made by several at once."""
        wide = {"n_embd": 96, "n_inner": 5632, "n_layer": 1}  # its MLP is packed
        model = make_model("exact", **wide)
        want = [model(text(1, 24, seed)) for seed in range(4)]
        for remembered in (certified_calls, attention_calls, rowwise_sizes, _mask, _masks):
            remembered.cache_clear()
        model = make_model("exact", **wide)
        got = side_by_side(lambda n: decoded(model, text(1, 24, n), model.new_cache()), 4)
        assert all(map(torch.equal, got, want))

    def test_may_each_have_another_number_of_threads(self, exact, text):
        want = exact(text(1, 24))

        def work(number):
            torch.set_num_threads(1 + number)  # a wish: another thread's probe may come between
            return decoded(exact, text(1, 24), exact.new_cache())

        for logits in side_by_side(work, 3):
            assert torch.equal(logits, want)

    def test_draw_the_same_text_as_alone(self, exact, text):
        def write(number):
            ids = text(1, 5, number)[0].tolist()
            return generate(exact, ids, 20, temperature=1.0, seed=number).tokens

        want = [write(number) for number in range(4)]
        assert side_by_side(write, 4) == want

    def test_may_go_on_with_forks_of_one_paged_cache(self, exact, text):
        """They share its pages, copy what they write, make more of them and give them back."""
        parent = exact.new_cache(kind="paged")
        exact(text(1, 30), cache=parent)
        forks = [parent.fork() for _ in range(4)]

        def work(number):
            cache, rest = forks[number], text(1, 30, 1 + number)
            logits = []
            for place in range(30):
                logits.append(exact(rest[:, place : place + 1], cache=cache))
                cache.fork().truncate(20)
            return torch.cat(logits, 1)

        for number, logits in enumerate(side_by_side(work, 4)):
            whole = torch.cat([text(1, 30), text(1, 30, 1 + number)], 1)
            assert torch.equal(logits, exact(whole)[:, 30:])
        forks.clear()
        assert sum(owners > 0 for owners in parent.pool.owners) == 1 + 2  # of zeros, and its own


def model_of(cache: KVCache) -> GPT:
    """The one that filled it."""
    return cache.origin.weights.model


class TestOneCacheInSeveralHands:
    @pytest.fixture(params=LOSSLESS)
    def filled(self, request, exact, text):
        cache = exact.new_cache(kind=request.param)
        exact(text(1, 10), cache=cache)
        return cache

    @pytest.fixture
    def during(self, exact, text, filled):
        """during(change): make it in another thread, in the midst of a pass; what came of it."""

        def make(change):
            caught = []

            def elsewhere(*_):
                hook.remove()  # the change may be a pass
                (result,) = side_by_side(lambda _: change(filled), 1)
                caught.append(result)

            hook = exact.h[1].register_forward_hook(elsewhere)
            logits = exact(text(1, 6, seed=1), cache=filled)
            assert torch.equal(
                logits, exact(torch.cat([text(1, 10), text(1, 6, seed=1)], 1))[:, 10:]
            )
            return caught[0]

        return make

    @pytest.mark.parametrize(
        "change",
        [
            lambda cache: model_of(cache)(torch.tensor([[1]]), cache=cache),
            lambda cache: cache.truncate(5),
            lambda cache: cache.fork(),
            lambda cache: KVCache.concat([model_of(cache).new_cache(kind=cache.kind), cache]),
            lambda cache: save_cache(cache, os.devnull),
        ],
        ids=["pass", "truncate", "fork", "concat", "save"],
    )
    def test_a_second_use_is_refused_and_the_first_goes_on(self, filled, during, change):
        error = during(change)
        assert isinstance(error, MinigptError)
        assert SHARED in str(error)
        assert len(filled) == 16

    def test_it_is_free_again_when_the_pass_has_failed(self, exact, text, filled):
        def interrupt(*_):
            raise KeyboardInterrupt

        hook = exact.h[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            exact(text(1, 5), cache=filled)
        hook.remove()
        assert torch.equal(
            exact(text(1, 5), cache=filled), exact(torch.cat([text(1, 10), text(1, 5)], 1))[:, 10:]
        )

    def test_threads_that_share_one_are_refused_or_right(self, exact, text, filled):
        def work(number):
            for token in text(1, 20, number)[0]:
                exact(token.view(1, 1), cache=filled)

        errors = [error for error in side_by_side(work, 3) if error is not None]
        assert all(SHARED in str(error) for error in errors)
        assert len(filled) == len(filled.tokens[0])
        keys = exact.new_cache()
        exact(torch.tensor(filled.tokens), cache=keys)
        assert torch.equal(filled.layer(1)[0], keys.layer(1)[0])

    def test_texts_written_into_one_by_turns_are_as_they_would_be_alone(self, exact, filled):
        prompts = [filled.tokens[0] + [7], filled.tokens[0] + [8]]
        both = zip(*(stream(exact, ids, 12, cache=filled) for ids in prompts), strict=True)
        assert list(zip(*both, strict=True)) == [
            tuple(generate(exact, ids, 12, use_cache=False).tokens) for ids in prompts
        ]

    def test_a_text_whose_cache_another_thread_wrote_into_is_not_gone_on_with(
        self, exact, filled, monkeypatch
    ):
        computed = type(exact).next_logits

        def then_disturbed(model, tokens, cache=None):
            logits = computed(model, tokens, cache)
            computed(model, tokens[:, :1], cache)
            return logits

        monkeypatch.setattr(type(exact), "next_logits", then_disturbed)
        with pytest.raises(MinigptError, match="another thread wrote into the cache of this text"):
            generate(exact, filled.tokens[0], 3, cache=filled)


def test_streams_by_turns_in_one_thread_are_as_they_would_be_alone(exact, text):
    prompts = text(3, 5).tolist()
    turns = zip(*(stream(exact, ids, 15, temperature=1.0) for ids in prompts), strict=True)
    want = [tuple(generate(exact, ids, 15, temperature=1.0).tokens) for ids in prompts]
    assert list(zip(*turns, strict=True)) == want


def test_tasks_that_generate_in_threads_are_as_they_would_be_alone(exact, text):
    def write(ids):
        return generate(exact, ids, 15, temperature=1.0).tokens

    async def all_of(prompts):
        return await asyncio.gather(*(asyncio.to_thread(write, ids) for ids in prompts))

    prompts = text(4, 5).tolist()
    assert asyncio.run(all_of(prompts)) == [write(ids) for ids in prompts]


# --- processes --------------------------------------------------------------------------------


def answer(model: GPT, tokens: torch.Tensor, connection: Any) -> None:
    """What a child process does: logits, as numbers that any process can read."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        connection.send(model(tokens).flatten().tolist())


def asked(method: str, model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=answer, args=(model, tokens, theirs), daemon=True)
    child.start()
    theirs.close()
    numbers = ours.recv()
    child.join()
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            "fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
        ),
        "spawn",
    ],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_gets_the_model_and_the_same_bits(make_model, text, method):
    model = make_model("exact", n_layer=1, n_embd=96, n_inner=5632)
    want = model(text(1, 6)).flatten()  # used before: packed, certified
    assert torch.equal(asked(method, model, text(1, 6)), want)


def test_a_pickled_model_has_the_same_bits_and_numerics(exact, text):
    want = exact(text(1, 20))
    twin = pickle.loads(pickle.dumps(exact))
    assert torch.equal(twin(text(1, 20)), want)
    assert twin.numerics == "exact"


def test_a_model_in_shared_memory_has_the_same_bits(text):
    torch.manual_seed(0)
    config = GPTConfig(211, 160, 96, 1, 3, n_inner=5632)
    model = GPT(config).eval()
    want = model(text(1, 20))
    model.share_memory()
    assert torch.equal(decoded(model, text(1, 20), model.new_cache()), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_is_not_pickled(exact, kind):
    with pytest.raises(MinigptError, match="cannot be pickled.*write it to a file with save"):
        pickle.dumps(exact.new_cache(kind=kind))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_copied_cache_is_a_fork(exact, text, kind):
    cache = exact.new_cache(kind=kind)
    exact(text(1, 20), cache=cache)
    twin = copy.copy(cache)
    exact(text(1, 5, seed=1), cache=twin)
    rest = text(1, 5, seed=2)
    want = exact(torch.cat([text(1, 20), rest], 1))[:, 20:]
    assert torch.equal(exact(rest, cache=cache), want)
