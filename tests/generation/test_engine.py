"""The engine: whoever shares a text's batch, pages or beginning, it is what it would be alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minigpt import GPT, Engine, GPTConfig, MinigptError, generate
from minigpt.cache.paged import following
from minigpt.generation import engine
from minigpt.generation.device_steps import DeviceSteps, steps_for
from minigpt.generation.sampling import Sampler

SAMPLING = {"temperature": 0.9, "top_k": 50}


@lru_cache
def tiny() -> GPT:
    """A few thousand parameters, with room for 24 positions, in which token 0 ends a text."""
    torch.manual_seed(1)
    shape = {"vocab_size": 13, "n_positions": 24, "n_embd": 8, "n_layer": 2, "n_head": 2}
    model = GPT(GPTConfig(**shape, eos_token_id=0), numerics="exact").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


@contextmanager
def every_choice(seen):
    """Append the logits of each choice to `seen`."""
    choose = Sampler.choose

    def spy(self, logits, *rest):
        seen.append(logits.clone())
        return choose(self, logits, *rest)

    Sampler.choose = spy
    try:
        yield
    finally:
        Sampler.choose = choose


def solo(model, ids, **how):
    """A text computed alone, without any cache, and the logits its tokens were chosen from."""
    seen = []
    with every_choice(seen):
        return generate(model, ids, use_cache=False, **how), seen


def submitted(engine, ids, **how):
    """A request, and the list that its logits go to."""
    seen = []
    return engine.submit(ids, on_logits=lambda logits: seen.append(logits.clone()), **how), seen


def assert_same(request, seen, ids, how, model):
    want, logits = solo(model, ids, **how)
    assert (request.tokens, request.finish_reason) == (want.tokens, want.finish_reason)
    assert len(seen) == len(logits)
    assert all(torch.equal(a, b) for a, b in zip(seen, logits, strict=True))


def count_pages(engine):
    """Every page is held by as many tables as it says, or free, or kept for later; never two."""
    pool = engine._pool
    tables = [cache.tables for cache in caches(engine)]
    held = Counter(page for rows in tables for table in rows for page in table)
    assert {page: n for page, n in enumerate(pool.owners) if n and page} == held
    assert not held.keys() & (set(pool.free) | set(pool.idle))
    assert sorted([*held, *pool.free, *pool.idle]) == list(range(1, engine.pages + 1))
    assert pool.data.shape[3] == engine.pages + 1  # it never grew
    for page in pool.idle:
        assert pool.known[pool.names[page]] == page
    assert not pool.names.keys() & set(pool.free)


def count_shared(engine):
    """Rows share pages only where all they hold up to there is the same, which names tell too."""
    first = {}
    for cache in caches(engine):
        for table, tokens in zip(cache.tables, cache.tokens, strict=True):
            for n, page in enumerate(table):
                beginning = tokens[: (n + 1) * cache.page]
                assert first.setdefault(page, beginning) == beginning
                name = b""
                for end in range(cache.page, len(beginning) + 1, cache.page):
                    name = following(name, beginning[end - cache.page : end])
                full = len(beginning) == (n + 1) * cache.page
                assert engine._pool.names.get(page) == (name if full else None)


def caches(engine):
    own = [request.cache for request in engine.running if request.cache is not None]
    return own + [engine._cache] * (engine._cache is not None)


SETTINGS = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.3, "top_k": 5, "repetition_penalty": 1.2},
    {"policy": "reprefill", "stop_tokens": ()},
    {"temperature": 0.7, "policy": "reprefill", "stop_tokens": (), "seed": 8},
]
BEGINNINGS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 9, 9, 9, 9], [5] * 12]


class Traffic(RuleBasedStateMachine):
    """Requests come, share beginnings, are put back and leave; each is checked when it ends."""

    @initialize(
        pages=st.integers(6, 14), batch=st.integers(1, 4), chunk=st.integers(1, 9),
        page=st.sampled_from([1, 2, 4]),
    )  # fmt: skip
    def start(self, pages, batch, chunk, page):
        self.model = tiny()
        pages = pages * 4 // page
        memory = pages * page * self.model.cache_spec.bytes_per_token
        self.engine = Engine(self.model, memory, batch, chunk, page)
        self.going = []

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        cut=st.integers(0, 12),
        rest=st.lists(st.integers(1, 12), max_size=4),
        count=st.integers(0, 20),
        how=st.sampled_from(SETTINGS),
    )
    def submit(self, beginning, cut, rest, count, how):
        ids, how = beginning[:cut] + rest, {**how, "max_new_tokens": count}
        longest = min(max(1, len(ids)) + count - 1, self.model.config.n_positions)
        if -(-longest // self.engine._page) > self.engine.pages:
            with pytest.raises(MinigptError, match="ask for fewer tokens"):
                self.engine.submit(ids, **how)
            return
        self.going.append((*submitted(self.engine, ids, **how), ids, how))

    @rule(times=st.integers(1, 6))
    def step(self, times):
        for _ in range(times):
            self.engine.step()
            self.pages_are_counted()

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def cancel(self, data):
        request, *_ = self.going.pop(data.draw(st.integers(0, len(self.going) - 1)))
        was_done, came = request.done, list(request.tokens)
        self.engine.cancel(request)
        assert request.done and request.tokens == came
        assert was_done or request.finish_reason == "cancelled"

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def raise_in_a_hook(self, data):
        request, *_ = self.going.pop(data.draw(st.integers(0, len(self.going) - 1)))
        if not request.done:

            def fail(logits):
                raise ValueError("no")

            request.on_logits = fail
            list_of = self.engine.stream(request)
            with pytest.raises(ValueError, match="no"):
                list(list_of)
            assert request.finish_reason == "error"

    @precondition(lambda self: self.engine.running)
    @rule()
    def put_back(self):
        self.engine._put_back(self.engine.running[-1])

    @invariant()
    def pages_are_counted(self):
        count_pages(self.engine)
        count_shared(self.engine)
        numbers = [r.number for r in (*self.engine.running, *self.engine.waiting)]
        assert numbers == sorted(numbers)

    @invariant()
    def finished_texts_are_what_they_are_alone(self):
        for request, seen, ids, how in [each for each in self.going if each[0].done]:
            assert_same(request, seen, ids, how, self.model)
        self.going = [each for each in self.going if not each[0].done]

    def teardown(self):
        if hasattr(self, "engine"):
            self.engine.run()
            self.finished_texts_are_what_they_are_alone()
            count_pages(self.engine)
            assert not self.going
            assert self.engine._pool.available == self.engine.pages


class TrafficByRecordedSteps(Traffic):
    """The same by steps that live on the device, as a GPU would replay them."""

    @initialize()
    def force_steps(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(engine, "steps_for", forced)

    def teardown(self):
        try:
            super().teardown()
        finally:
            if hasattr(self, "patch"):
                self.patch.undo()


def forced(model, cache):
    return steps_for(model, cache, force=True)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(
    max_examples=30,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestTrafficByRecordedSteps = TrafficByRecordedSteps.TestCase
TestTrafficByRecordedSteps.settings = settings(TestTraffic.settings, max_examples=10)


@pytest.fixture
def prompts(text):
    return [text(1, length, seed=length)[0].tolist() for length in (3, 40, 1, 126, 17)]


@pytest.mark.parametrize("sampling", [{}, SAMPLING])
@pytest.mark.parametrize("chunk", [5, 128])
def test_texts_side_by_side_are_each_what_they_are_alone(exact, prompts, sampling, chunk):
    engine = Engine(exact, batch=3, chunk=chunk)
    how = {"max_new_tokens": 12, **sampling}
    requests = [(*submitted(engine, ids, **how), ids, how, exact) for ids in prompts]
    engine.run()
    for each in requests:
        assert_same(*each)


def test_a_request_may_come_at_any_time(exact, prompts):
    engine = Engine(exact)
    first = engine.submit(prompts[1], 20)
    for _ in range(5):
        engine.step()
    second = engine.submit(prompts[0], 20)
    engine.run()
    assert first.tokens == generate(exact, prompts[1], 20).tokens
    assert second.tokens == generate(exact, prompts[0], 20).tokens


def test_a_long_prompt_holds_nobody_up_for_more_than_a_chunk(exact, prompts):
    engine = Engine(exact, chunk=10)
    short = engine.submit(prompts[0], 30)
    engine.step()
    engine.submit(prompts[3], 2)
    while not short.done:
        before = len(short.tokens)
        engine.step()
        assert len(short.tokens) == before + 1
    in_step = Counter()
    for work in engine.record:
        in_step[work.step] += work.tokens * (work.what == "prefill")
    assert max(in_step.values()) == 10
    assert sum(in_step.values()) == len(prompts[0]) + len(prompts[3]) - 2


def test_a_shared_beginning_is_computed_once(exact, prompts):
    engine = Engine(exact)
    ids = prompts[3]  # 126 tokens: 7 whole pages, and 13 more before the last
    requests = [engine.submit([*ids, n], 3) for n in range(4)]
    engine.run()
    assert [request.result.reused for request in requests] == [0, 112, 112, 112]
    assert engine.counts.prefilled == 126 + 3 * 14
    assert engine.counts.hit_rate == 336 / (336 + 168)
    for n, request in enumerate(requests):
        assert request.tokens == generate(exact, [*ids, n], 3).tokens


def test_a_beginning_is_found_again_after_its_text_has_ended(exact, prompts):
    engine = Engine(exact)
    first = engine.submit(prompts[3], 10)
    engine.run()
    longer = prompts[3] + first.tokens
    second = engine.submit(longer, 5)
    engine.run()
    assert second.result.reused == len(longer[:-1]) // 16 * 16
    assert second.tokens == generate(exact, longer, 5).tokens


def test_what_is_longest_unused_is_forgotten_first(exact, text):
    page = 16 * exact.cache_spec.bytes_per_token
    engine = Engine(exact, memory=6 * page)
    old, new, other = (text(1, 33, seed=seed)[0].tolist() for seed in range(3))

    def reused(ids):
        request = engine.submit(ids, 1)
        engine.run()
        return request.result.reused

    assert [reused(old), reused(new)] == [0, 0]  # two pages of each are kept now
    assert reused(old) == 32  # now `new` is the one that was longest unused
    assert reused(other) == 0
    assert reused(old) == 32
    assert reused(new) < 32  # and its end went first


def test_without_enough_pages_the_youngest_is_put_back_and_computed_again(exact, text):
    page = 16 * exact.cache_spec.bytes_per_token
    engine = Engine(exact, memory=8 * page)
    how = {"max_new_tokens": 60, "temperature": 1.0, "stop_tokens": ()}
    prompts = [text(1, 30, seed=seed)[0].tolist() for seed in range(3)]
    requests = [(*submitted(engine, ids, **how), ids, how, exact) for ids in prompts]
    engine.run()
    assert engine.counts.preemptions
    assert requests[0][0].preemptions == 0
    for each in requests:
        assert_same(*each)


def test_the_oldest_come_first(exact, prompts):
    engine = Engine(exact, batch=2)
    requests = [engine.submit(prompts[n % 5], 8, stop_tokens=()) for n in range(6)]
    ended = []
    while engine.step():
        ended += [r.number for r in requests if r.done and r.number not in ended]
    assert ended == [0, 1, 2, 3, 4][: len(ended)]


def test_a_text_that_can_never_fit_is_refused_when_it_is_submitted(exact, prompts):
    page = 16 * exact.cache_spec.bytes_per_token
    engine = Engine(exact, memory=3 * page)
    engine.submit(prompts[1], 9)  # 48 positions: the last token has none
    with pytest.raises(MinigptError, match="may take 49 positions, which are 4 pages, but .* 3:"):
        engine.submit(prompts[1], 10)


def test_cancelling_frees_pages_at_once(exact, prompts):
    engine = Engine(exact)
    kept, cancelled = engine.submit(prompts[1], 8), engine.submit(prompts[3], 30)
    waiting = engine.submit(prompts[0], 8)
    for _ in range(3):
        engine.step()
    engine.cancel(cancelled)
    assert not cancelled.row.left and cancelled.finish_reason == "cancelled"
    assert engine.pages - engine._pool.available == sum(
        -(-request.held // 16) for request in (kept, waiting)
    )
    engine.run()
    assert kept.tokens == generate(exact, prompts[1], 8).tokens
    count_pages(engine)
    with pytest.raises(MinigptError, match="is not one of this engine's"):
        Engine(exact).cancel(engine.submit(prompts[0]))


def test_a_callback_may_submit_and_cancel_but_not_step(exact, prompts):
    engine = Engine(exact)
    later = []

    def meddle(token):
        if not later:
            engine.cancel(other)
            later.append(engine.submit(prompts[0], 4))

    first = engine.submit(prompts[2], 6, on_token=meddle)
    other = engine.submit(prompts[4], 6)
    third = engine.submit(prompts[4], 6, on_token=lambda token: engine.step())
    engine.run()
    assert other.finish_reason == "cancelled" and other.tokens == []
    assert first.tokens == generate(exact, prompts[2], 6).tokens
    assert later[0].tokens == generate(exact, prompts[0], 4).tokens
    assert third.finish_reason == "error" and "in the middle of a step" in str(third.error)


@pytest.fixture
def by_recorded_steps(monkeypatch):
    """Steps that live on the device, as on a GPU: how many rows each had."""
    used, logits = [], DeviceSteps.logits

    def counted(self, tokens):
        used.append(len(tokens))
        return logits(self, tokens)

    monkeypatch.setattr(DeviceSteps, "logits", counted)
    monkeypatch.setattr(engine, "steps_for", forced)
    return used


HOWS = [
    {}, {}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_p": 1},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"top_log_probabilities": 1},
    {"temperature": 1.0, "min_new_tokens": 12}, {"stop_tokens": list(range(0, 200, 9))},
]  # fmt: skip


@pytest.mark.parametrize("device", [True, False])
def test_everyone_chooses_in_a_way_of_its_own(exact, prompts, device, request, monkeypatch):
    used = request.getfixturevalue("by_recorded_steps") if device else []
    places, choose = [], Sampler.choose

    def counted(self, *rest):
        places.append(self)
        return choose(self, *rest)

    monkeypatch.setattr(Sampler, "choose", counted)
    texts = Engine(exact, batch=4, chunk=50)
    requests = [texts.submit(prompts[n % 5], 14, **how) for n, how in enumerate(HOWS)]
    texts.run()
    if device:  # the choices of those alone for which the logits are not all
        assert {sampler.forgets for sampler in places} == {True, False}
        assert len(places) < sum(used)
    monkeypatch.undo()
    for n, (how, text) in enumerate(zip(HOWS, requests, strict=True)):
        alone = generate(exact, prompts[n % 5], 14, **how)
        assert (text.tokens, text.finish_reason) == (alone.tokens, alone.finish_reason)
        assert text.result.log_probabilities == alone.log_probabilities


def test_steps_are_recorded_once_for_a_number_of_rows(exact, prompts, by_recorded_steps, tapes):
    texts = Engine(exact, batch=4, chunk=50)
    requests = [texts.submit(prompts[n % 5], 20, temperature=1.0, seed=n) for n in range(9)]
    texts.run()
    for n, text in enumerate(requests):
        assert text.tokens == generate(exact, prompts[n % 5], 20, temperature=1.0, seed=n).tokens
    assert 1 <= len(tapes) <= 8  # 1 to 4 rows, before and after the block's end
    assert len(by_recorded_steps) > 40


@pytest.mark.usefixtures("by_recorded_steps")
def test_logits_that_are_no_numbers_end_the_request_that_comes_to_them(exact, prompts):
    with torch.no_grad():
        exact.wpe.weight[45] = torch.nan
    texts = Engine(exact)
    bad, good = texts.submit(prompts[1], 20), texts.submit(prompts[0], 20)
    texts.run()
    assert (bad.finish_reason, len(bad.tokens), len(good.tokens)) == ("error", 45 - 40 + 1, 20)
    assert "wpe" in str(bad.error)


@pytest.mark.parametrize("where", ["on_token", "on_logits", "logits_processor"])
def test_an_exception_in_a_callback_ends_its_request_only(exact, prompts, where):
    def fail(*_):
        raise RuntimeError("mine")

    engine = Engine(exact)
    bad, good = engine.submit(prompts[1], 8, **{where: fail}), engine.submit(prompts[4], 8)
    engine.run()
    assert (bad.finish_reason, str(bad.error)) == ("error", "mine")
    assert good.tokens == generate(exact, prompts[4], 8).tokens
    with pytest.raises(RuntimeError, match="mine"):
        list(engine.stream(bad))


def test_a_hook_changes_the_logits_of_its_own_request_only(exact, prompts):
    engine = Engine(exact)
    seven = engine.submit(prompts[0], 3, on_logits=lambda logits: logits[7].fill_(1e9))
    other = engine.submit(prompts[0], 3)
    engine.run()
    assert seven.tokens == [7, 7, 7]
    assert other.tokens == generate(exact, prompts[0], 3).tokens


@pytest.mark.parametrize("device", [True, False])
def test_ctrl_c_between_two_tokens_loses_nothing(exact, prompts, device, request):
    if device:
        request.getfixturevalue("by_recorded_steps")
    engine, pressed = Engine(exact, batch=11, chunk=400), []

    def press(token):
        pressed.append(token)
        if len(pressed) in (1, 4):
            raise KeyboardInterrupt

    how = {"max_new_tokens": 8, "temperature": 1.0}
    engine.submit(prompts[0], on_token=press, **how)
    others = [(*submitted(engine, ids, **how), ids, how, exact) for ids in prompts]
    unseen = [engine.submit(ids, **how) for ids in prompts]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            engine.run()
    engine.run()
    for each in others:
        assert_same(*each)
    assert [one.tokens for one in unseen] == [each[0].tokens for each in others]


def test_a_request_may_have_a_limit_of_time(exact, prompts):
    engine = Engine(exact)
    late, other = engine.submit(prompts[0], 50, max_seconds=1e-9), engine.submit(prompts[1], 5)
    engine.run()
    assert (late.finish_reason, late.tokens) == ("time", [])
    assert other.tokens == generate(exact, prompts[1], 5).tokens


def test_tokens_stream_as_they_come_and_others_go_on_meanwhile(exact, prompts):
    engine = Engine(exact)
    first, second = engine.submit(prompts[1], 10), engine.submit(prompts[4], 10)
    stream = engine.stream(first)
    came = [next(stream) for _ in range(4)]
    assert len(second.tokens) >= 3
    assert came + list(stream) == generate(exact, prompts[1], 10).tokens
    assert list(engine.stream(second)) == generate(exact, prompts[4], 10).tokens


def test_streams_can_be_awaited_side_by_side(exact, prompts):
    engine, order = Engine(exact), []

    async def read(ids):
        request = engine.submit(ids, 8)
        async for _ in engine.stream(request):
            order.append(request.number)
        return request.tokens

    async def everyone():
        return await asyncio.gather(*map(read, prompts))

    got = asyncio.run(everyone())
    assert got == [generate(exact, ids, 8).tokens for ids in prompts]
    assert order != sorted(order)  # they took turns


def test_other_numerics_or_weights_are_noticed_between_two_steps(make_model, prompts):
    model = make_model("fast")
    engine = Engine(model)
    engine.submit(prompts[3], 20)
    for _ in range(4):
        engine.step()
    model.numerics = "exact"
    how = {"max_new_tokens": 6}
    request, seen = submitted(engine, prompts[3], **how)
    engine.run()
    assert_same(request, seen, prompts[3], how, model)
    with torch.no_grad():
        model.wte.weight.add_(0.1)
    request, seen = submitted(engine, prompts[3], **how)
    engine.run()
    assert request.result.reused == 0
    assert_same(request, seen, prompts[3], how, model)


def test_log_probabilities_and_times_come_along(exact, prompts):
    engine = Engine(exact)
    request = engine.submit(prompts[1], 5, top_log_probabilities=2)
    engine.run()
    want = generate(exact, prompts[1], 5, top_log_probabilities=2)
    assert request.result.log_probabilities == want.log_probabilities
    assert request.times == sorted(request.times) and len(request.times) == 5
    assert request.result.prefill_seconds == request.times[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch": 0}, "batch is 0, needed"),
        ({"chunk": 0}, "chunk is 0, needed"),
        ({"memory": 5}, "memory is 5, needed a whole number of at least"),
        ({"memory": 2**60}, "the engine was to keep .* are free: give a smaller memory"),
        ({"page": 3}, "page is 3, needed a divisor or a multiple of 64"),
    ],
)
def test_sizes_out_of_range_are_refused(exact, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        Engine(exact, **arguments)


def test_arguments_out_of_range_are_refused_when_submitted(exact):
    engine = Engine(exact)
    for arguments, sentence in [
        ({"temperature": -1}, "temperature is -1"),
        ({"max_seconds": 0}, "max_seconds is 0, needed a positive number"),
    ]:
        with pytest.raises(MinigptError, match=sentence):
            engine.submit([1], **arguments)
    with pytest.raises(MinigptError, match="the prompt holds 'a'"):
        engine.submit(["a"])
    assert not engine.waiting
