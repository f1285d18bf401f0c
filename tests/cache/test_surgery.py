"""Cutting, branching and joining caches: whatever was done, decoding equals uncached decoding.

The model of a cache is a list of token lists; every operation is done to both.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minigpt import GPT, GPTConfig, KVCache, MinigptError
from minigpt.cache.kinds import KINDS, LOSSLESS

CONTEXT, VOCABULARY, ROWS = 160, 31, 5


def small_model() -> GPT:
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "initializer_range": 0.4}
    return GPT(GPTConfig(VOCABULARY, CONTEXT, **shape), numerics="exact").eval()


class Surgery(RuleBasedStateMachine):
    """Random operations on a few caches at a time, and on the texts that they stand for."""

    kind = "static"

    def __init__(self):
        super().__init__()
        self.model = small_model()
        self.caches: list[tuple[KVCache, list[list[int]]]] = []

    @initialize(rows=st.integers(1, 3))
    def start(self, rows):
        self.caches.append((self.model.new_cache(rows, kind=self.kind), [[] for _ in range(rows)]))

    @rule(data=st.data(), count=st.sampled_from([1, 1, 2, 5, 40, 127]))
    def extend(self, data, count):
        cache, texts = self.pick(data)
        if len(cache) + count > CONTEXT:
            return
        seed = data.draw(st.integers(0, 99))
        new = torch.randint(
            VOCABULARY, (len(texts), count), generator=torch.Generator().manual_seed(seed)
        )
        got = self.model(new, cache=cache)
        for text, row in zip(texts, new.tolist(), strict=True):
            text += row
        self.compare(got, texts, count)

    @rule(data=st.data())
    def truncate(self, data):
        cache, texts = self.pick(data)
        if data.draw(st.booleans()):
            length = data.draw(st.integers(0, len(cache)))
            lengths = [min(length, len(text)) for text in texts]
            cache.truncate(length)
        else:
            lengths = [data.draw(st.integers(0, len(text))) for text in texts]
            cache.truncate(lengths)
        texts[:] = [text[:length] for text, length in zip(texts, lengths, strict=True)]

    @rule(data=st.data())
    def fork(self, data):
        cache, texts = self.pick(data)
        self.add(cache.fork(), texts)

    @rule(data=st.data())
    def select(self, data):
        cache, texts = self.pick(data)
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=ROWS))
        self.add(cache.select(rows), [texts[row] for row in rows])

    @rule(data=st.data(), count=st.integers(1, 3))
    def expand(self, data, count):
        cache, texts = self.pick(data)
        if len(texts) == 1:
            self.add(cache.expand(count), texts * count)

    @precondition(lambda self: len(self.caches) > 1)
    @rule(data=st.data())
    def concat(self, data):
        (one, some), (other, more) = self.pick(data), self.pick(data)
        if len(some) + len(more) <= ROWS:
            self.add(KVCache.concat([one, other]), some + more)

    @precondition(lambda self: len(self.caches) > 1)
    @rule(data=st.data())
    def adopt(self, data):
        (one, some), (other, more) = self.pick(data), self.pick(data)
        if one is not other and len(more) == 1:
            rows = data.draw(st.lists(st.integers(0, len(some) - 1), max_size=2))
            one.adopt(rows, other)
            for row in rows:
                some[row] = list(more[0])

    @rule(data=st.data())
    def reset(self, data):
        cache, texts = self.pick(data)
        cache.reset()
        texts[:] = [[] for _ in texts]

    @precondition(lambda self: len(self.caches) > 1)
    @rule(data=st.data())
    def drop(self, data):
        self.caches.pop(data.draw(st.integers(0, len(self.caches) - 1)))

    @invariant()
    def every_cache_knows_its_text(self):
        for cache, texts in self.caches:
            assert cache.lengths == [len(text) for text in texts]
            assert cache.tokens == texts

    def teardown(self):
        """Whatever happened: one more token for every cache, each at its own position."""
        for cache, texts in self.caches:
            if len(cache) < CONTEXT:
                new = [[(7 * row + len(text)) % VOCABULARY] for row, text in enumerate(texts)]
                got = self.model(torch.tensor(new), cache=cache)
                self.compare(got, [text + one for text, one in zip(texts, new, strict=True)], 1)

    def pick(self, data):
        return self.caches[data.draw(st.integers(0, len(self.caches) - 1))]

    def add(self, cache, texts):
        self.caches.append((cache, [list(text) for text in texts]))
        self.caches = self.caches[-4:]

    def compare(self, got, texts, count):
        for row, text in enumerate(texts):
            want = self.model(torch.tensor([text]))[0, -count:]
            assert torch.equal(got[row], want)


def machine(name: str) -> type:
    surgery = type(f"Surgery_{name}", (Surgery,), {"kind": name})
    case = surgery.TestCase
    examples = int(os.environ.get("MINIGPT_EXAMPLES", "8"))
    case.settings = settings(max_examples=examples, stateful_step_count=20, deadline=None)
    return case


TestStatic = machine("static")
TestGrowing = machine("growing")
TestPaged = machine("paged")


@pytest.fixture(params=KINDS)
def ragged(request, exact, text):
    """Rows of 5, 20 and 12 positions, of every kind."""
    cache = exact.new_cache(3, kind=request.param)
    exact(text(3, 20), cache=cache)
    cache.truncate([5, 20, 12])
    return cache


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("count", [1, 4])
def test_rows_of_different_lengths_go_on_as_each_would_alone(
    make_model, text, numerics, kind, count
):
    model, lengths = make_model(numerics, n_positions=300), [3, 140, 126, 250]
    tokens, more = text(4, 250), text(4, count, seed=2)
    cache = model.new_cache(4, kind=kind)
    model(tokens, cache=cache)
    cache.truncate(lengths)
    got = model(more, cache=cache)
    for row, length in enumerate(lengths):
        alone = torch.cat([tokens[row, :length], more[row]])[None]
        want = model(alone)[0, length:]
        assert (
            torch.equal(got[row], want)
            if numerics == "exact"
            else (
                torch.allclose(got[row], want, atol=1e-4)  # sums in another order
            )
        )


def test_tensors_of_rows_and_lengths_will_do(ragged):
    ragged.truncate(torch.tensor([5, 4, 3]))
    assert ragged.select(torch.tensor([2, 0])).lengths == [3, 5]


def test_a_deep_copy_is_a_fork(ragged):
    twin = copy.deepcopy(ragged)
    assert twin.origin == ragged.origin is not None
    twin.reset()
    assert ragged.lengths == [5, 20, 12]


def test_a_single_number_truncates_only_the_rows_that_are_longer(ragged):
    ragged.truncate(10)
    assert ragged.lengths == [5, 10, 10]


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        (lambda c: c.truncate(21), "cannot truncate to 21: this cache holds 20 positions"),
        (lambda c: c.truncate([5, 21, 1]), "cannot truncate to 21: this cache holds 20 positions"),
        (lambda c: c.truncate([6, 1, 1]), "cannot truncate to 6: this cache holds 5 positions"),
        (lambda c: c.truncate([5, 5]), "length has 2 numbers for 3 rows"),
        (lambda c: c.select([0, 3]), "cannot select row 3: this cache has rows 0 to 2"),
        (lambda c: c.select([-1]), "cannot select row -1"),
        (lambda c: c.select([]), "no rows were selected"),
        (lambda c: c.select(0), "found a int, needed a list"),
        (lambda c: c.concat([c, 3]), "concat was given a int, needed caches"),
        (lambda c: c.concat(c.lengths[0]), "found a int, needed a list"),
        (lambda c: c.layer(2), "there is no layer 2, needed one of 0 to 1"),
        (lambda c: c.layer("a"), "there is no layer 'a'"),
        (lambda c: c.truncate("abc"), "cannot truncate to 'abc'"),
        (lambda c: c.expand(2), "has 3 rows and only a single one can be expanded"),
        (lambda c: c.select([0]).expand(0), "number of rows to expand to is 0, needed"),
        (lambda c: KVCache.concat([]), "no caches were given to concat"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(ragged, operation, sentence):
    before = [tensor.clone() for tensor in ragged.layer(1)]
    with pytest.raises(MinigptError, match=sentence):
        operation(ragged)
    assert ragged.lengths == [5, 20, 12]
    assert all(torch.equal(a, b) for a, b in zip(before, ragged.layer(1), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_expanding_beyond_memory_is_refused_with_an_estimate(exact, text, kind):
    cache = exact.new_cache(kind=kind)
    exact(text(1, 5), cache=cache)
    with pytest.raises(MinigptError, match=r"needs [\d,]+ bytes, which cpu does not have"):
        cache.expand(10**8)
    assert cache.lengths == [5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_adopt_another_caches_and_the_others_go_on(exact, text, kind):
    cache, other = exact.new_cache(3, kind=kind), exact.new_cache(kind=kind)
    exact(text(3, 20), cache=cache)
    exact(text(1, 9, seed=1), cache=other)
    want = KVCache.concat([cache.select([0]), other, cache.select([2])])
    cache.adopt([1], other)
    assert (cache.lengths, cache.tokens) == (want.lengths, want.tokens)
    new = text(3, 4, seed=2)
    assert torch.equal(exact(new, cache=cache), exact(new, cache=want))
    assert other.lengths == [9]
    assert kind != "paged" or [len(table) for table in cache.tables] == [2, 1, 2]  # of 16 each


@pytest.mark.parametrize(
    ("adopt", "sentence"),
    [
        (lambda c: c.adopt([3], c.select([0])), "cannot select row 3"),
        (lambda c: c.adopt([0], c.select([0, 1])), "cannot be adopted, needed another cache, of"),
        (lambda c: c.adopt([0], 3), "3 cannot be adopted, needed another cache"),
        (lambda c: c.adopt([0], c), "cannot be adopted, needed another cache"),
    ],
)
def test_what_cannot_be_adopted_is_refused(ragged, adopt, sentence):
    with pytest.raises(MinigptError, match=sentence):
        adopt(ragged)
    assert ragged.lengths == [5, 20, 12]


def test_a_row_longer_than_there_is_room_for_is_not_adopted(exact, text):
    cache, other = exact.new_cache(2, max_length=8), exact.new_cache()
    exact(text(1, 9), cache=other)
    with pytest.raises(MinigptError, match="has room for 8"):
        cache.adopt([0], other)


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"n_layer": 3}, {"n_kv_head": 1}])
def test_caches_of_different_models_or_dtypes_do_not_mix(make_model, change):
    caches = [make_model().new_cache(), make_model(**change).new_cache()]
    with pytest.raises(MinigptError, match="these caches do not belong together"):
        KVCache.concat(caches)


def test_caches_of_different_kinds_or_settings_do_not_mix(exact):
    for one, other in [
        (exact.new_cache(), exact.new_cache(kind="growing")),
        (exact.new_cache(kind="paged"), exact.new_cache(kind="paged", page=32)),
    ]:
        with pytest.raises(MinigptError, match="these caches do not belong together"):
            KVCache.concat([one, other])
