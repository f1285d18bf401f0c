"""Copies of weights: made once, kept to their weight whatever changes it, and done without where
there are none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.numerics import certificates
from minigpt.numerics.base import plain_linear
from minigpt.numerics.changes import totals
from minigpt.numerics.copies import COPY_FROM, Bags, Chains, Copies, recheck
from minigpt.numerics.fast import FastOps
from minigpt.numerics.place import Place, tied_to_threads

LARGE = (1040, 512)  # enough numbers to be copied


def products(copies, weight, x):
    """By every copy that there is."""
    packed = copies.packed(weight)
    ways = [copies.bags(weight, Chains(weight.shape[0]))(x, None)]
    return [*ways, packed(x, None)] if packed is not None else ways


def test_a_copy_is_made_once():
    copies, weight = Copies(), torch.randn(LARGE)
    assert copies.packed(weight) is copies.packed(weight)
    assert copies.bags(weight, Chains(8)) is copies.bags(weight, Chains(8))


def test_copies_are_neither_copied_nor_pickled():
    copies, weight = Copies(), torch.randn(32, 48)
    copies.packed(weight)
    for twin in (copy.deepcopy(copies), pickle.loads(pickle.dumps(copies))):
        assert not twin._made


def test_where_nothing_can_be_packed_the_plain_product_serves(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(3, 600), torch.randn(600, 500)
    assert Copies().packed(weight) is None
    got = FastOps().linear(x, weight, None, Copies())
    assert torch.equal(got, plain_linear(x, weight, None))


class TestBags:
    @pytest.mark.parametrize(
        "columns", [512, 520, 48]
    )  # panels of 256, of 208; the weight as it is
    @pytest.mark.parametrize("chains", [Chains(520), Chains(200), Chains(100, True), Chains(70)])
    def test_give_the_product(self, columns, chains):
        x, weight, bias = torch.randn(520), torch.randn(520, columns), torch.randn(columns)
        got = Bags(weight, chains)(x[None], bias)[0]
        want = x.double() @ weight.double() + bias
        torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=1e-5)  # 520 terms

    def test_add_in_chains_of_fused_multiply_adds(self):
        """Their order of summation step by step: float64 holds a product of float32 exactly."""
        x, weight, bias = torch.randn(500), torch.randn(500, 7), torch.randn(7)
        sums = []
        for start in range(0, 500, 200):
            chain = torch.zeros(7)
            for k in range(start, min(start + 200, 500)):
                chain = (chain.double() + x[k].double() * weight[k].double()).float()
            sums.append(chain)
        want = ((sums[0] + sums[1]) + sums[2]) + bias
        got = Bags(weight, Chains(200))(x[None], bias)[0]
        # The float64 sum is rounded once more, which shows once in hundreds of millions of steps.
        assert torch.equal(got, want)


def _merge(weight):
    weight.data += torch.randn(LARGE[0], 4) @ torch.randn(4, LARGE[1]) * 1e-3


def _exchange(weight):
    weight.data = torch.randn(LARGE)


def _scale(weight):
    with torch.no_grad():
        weight.mul_(2)


def _silence_a_head(weight):
    weight.data[:, 64:128] = 0


def _silence_some_rows(weight):
    weight.data[100:140] = 0


class TestAChangedWeight:
    """... is copied anew, by whatever way it changed."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda weight: weight.data.zero_(),
            lambda weight: weight.data.copy_(torch.randn(LARGE)),
            _merge, _exchange, _scale, _silence_a_head, _silence_some_rows,
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_as_a_whole_is_noticed_at_once(self, change, dtype):
        copies, x = Copies(), torch.ones(1, LARGE[0], dtype=dtype)
        weight = torch.nn.Parameter(torch.randn(LARGE, dtype=dtype))
        products(copies, weight, x)
        change(weight)
        weight.data = weight.data.to(dtype)
        for got in products(copies, weight, x):
            torch.testing.assert_close(got, x @ weight, atol=2e-1, rtol=1e-2)

    def test_made_in_inference_mode_is_noticed_too(self):
        with torch.inference_mode():
            copies, weight, x = Copies(), torch.randn(LARGE), torch.ones(1, LARGE[0])
            products(copies, weight, x)
            weight.mul_(2)
            for got in products(copies, weight, x):
                torch.testing.assert_close(got, x @ weight, atol=1e-3, rtol=1e-4)

    def test_by_a_fused_optimizer_is_noticed(self):
        copies, x = Copies(), torch.ones(1, LARGE[0])
        weight = torch.nn.Parameter(torch.randn(LARGE))
        with torch.no_grad():
            products(copies, weight, x)
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], 0.1, fused=True).step()
        with torch.no_grad():
            for got in products(copies, weight, x):
                torch.testing.assert_close(got, x @ weight, atol=1e-3, rtol=1e-4)

    def test_in_one_number_is_noticed_when_all_of_it_is_read(self, make_model, text):
        model = make_model(numerics="exact", n_embd=159, n_inner=3400, n_layer=1)
        weight = model.h[0].mlp.c_fc.weight
        assert weight.numel() >= COPY_FROM
        with torch.no_grad():
            model(text(1, 5))
            weight.data[77, 1234] = 50.0
            recheck(model)
            got = model(text(1, 5))
            twin = copy.deepcopy(model)
            assert torch.equal(got, twin(text(1, 5)))


class TestFewerThreadsThanAskedFor:
    """As under OMP_THREAD_LIMIT: the packed kernel leaves a part of its result undone."""

    @pytest.fixture
    def half_done(self, monkeypatch):
        def pack(weight):
            def kernel(x, bias):
                y = torch.full((*x.shape[:-1], weight.shape[1]), torch.nan, dtype=x.dtype)
                half = weight.shape[1] // 2
                y[..., :half] = x @ weight[:, :half]
                return y if bias is None else y + bias

            return kernel

        monkeypatch.setattr(certificates, "pack", pack)
        monkeypatch.setattr("minigpt.numerics.copies.pack", pack)
        self.forget()
        yield
        self.forget()

    def forget(self):
        certificates.certified_calls.cache_clear()
        certificates.packed_works.cache_clear()
        tied_to_threads().clear()

    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    def test_is_not_trusted(self, half_done, make_model, text, numerics):
        model = make_model(numerics=numerics, n_embd=96, n_inner=5600, n_layer=1)
        with torch.inference_mode():
            cache = model.new_cache()
            cached = [model(part, cache=cache) for part in text(1, 9).split([6, 1, 1, 1], 1)]
            want = model(text(1, 9))
        torch.testing.assert_close(torch.cat(cached, 1), want, atol=1e-3, rtol=1e-3)
        assert want.isfinite().all()

    def test_gets_no_certificate(self, half_done):
        shape = certificates.LinearShape(
            *LARGE, False, True, Place.here(torch.float32, torch.device("cpu"))
        )
        assert certificates.certified_calls(shape).reference == "plain"


def test_float64_is_refused_by_exact_numerics_with_the_reason():
    model = GPT(GPTConfig(40, 16, 8, 1, 1), numerics="exact").eval().double()
    with pytest.raises(MinigptError, match="float64 .* number of threads: exact numerics needs"):
        model(torch.tensor([[1, 2]]))
    model.numerics = "fast"
    assert model(torch.tensor([[1, 2]])).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 61), (512, 520), (3, 1)])
def test_one_number_changed_shows_in_the_totals(dtype, shape):
    weight = torch.randn(shape).to(dtype)
    for way in (weight, weight.mT, weight[1:]):
        before = totals(way)
        for place in (0, way.numel() // 2, way.numel() - 1):
            at = divmod(place, way.shape[1])
            kept = way[at].clone()
            way[at] *= -1
            assert totals(way) != before
            way[at] = kept
            assert totals(way) == before
