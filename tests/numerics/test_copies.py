"""Copies of weights: made once, kept to their weight whatever changes it, and done without where
there are none."""

from __future__ import annotations

import copy
import pickle
from functools import wraps
from typing import ClassVar

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.model import Block, Linear
from minigpt.numerics import certificates, row_ops
from minigpt.numerics.base import plain_linear, set_ops
from minigpt.numerics.changes import totals
from minigpt.numerics.copies import COPY_FROM, Bags, Chains, Copies, panel_width, recheck
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
    # Panels of 256 and of 208 columns; the weight as it is, for no panels fit or it is small.
    @pytest.mark.parametrize("columns", [1024, 1040, 1011, 48])
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


class TestPanels:
    """Torch gives each thread a run of bags: all of them shall have as much to do."""

    @pytest.mark.parametrize(
        "columns, blocks, threads, width",
        [
            (768, [512, 256], 1, 384),  # as wide as the registers hold
            (768, [512, 256], 2, 384),  # a panel for each thread
            (768, [512, 256], 4, 192),  # with 384 two threads would have the long blocks
            (2304, [512, 256], 2, 384),
            (768, [1024] * 3, 4, 192),
            (1011, [512], 2, 1011),  # nothing cuts it evenly
        ],
    )
    def test_are_as_wide_as_leaves_no_thread_behind(self, columns, blocks, threads, width):
        assert panel_width(columns, blocks, threads) == width


class TestAProductMadeReady:
    """... for the steps of decoding, which do not look at each weight again."""

    # Two of a layer's four weights are large enough to be copied.
    WIDE: ClassVar = {"n_embd": 96, "n_inner": 5600, "n_layer": 2}

    @staticmethod
    def decoded(model, tokens):
        """Logits of a prefill of 5, and steps."""
        with torch.inference_mode():
            cache, parts = model.new_cache(), tokens.split([5, 1, 1, 1], 1)
            return torch.cat([model(part, cache=cache) for part in parts], 1)

    @pytest.mark.parametrize("wide", [WIDE, {}], ids=["wide", "narrow"])
    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: layer.weight.data.mul_(2),
            lambda layer: _scale(layer.weight),
            lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
            lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight * 2)),
            lambda layer: layer.bias.data.mul_(2),
            lambda layer: setattr(layer, "bias", torch.nn.Parameter(layer.bias * 2)),
        ],
    )
    def test_is_not_used_for_another_weight(self, make_model, text, numerics, change, wide):
        model, tokens = make_model(numerics, **wide), text(1, 8)
        before = self.decoded(model, tokens)
        for layer in (model.h[0].mlp.c_fc, model.h[1].attn.c_proj):
            change(layer)
        want = self.decoded(copy.deepcopy(model), tokens)
        assert torch.equal(self.decoded(model, tokens), want)
        assert not torch.equal(want, before)

    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    @pytest.mark.parametrize("by", ["a hook", "a hook of all modules", "a method", "a class"])
    def test_is_not_used_where_somebody_changes_the_weight_on_the_way(
        self, make_model, text, numerics, by, monkeypatch, request
    ):
        model, tokens = make_model(numerics, **self.WIDE), text(1, 8)
        weight, was = model.h[0].mlp.c_fc.weight, model.h[0].mlp.c_fc.weight.data
        twice, passes = was * 2, []

        def change(module, *_):
            if module is model.h[0]:
                passes.append(1)
                weight.data = twice if len(passes) > 2 else was

        def restore(module, *_):
            weight.data = was if module is model.h[0] else weight.data

        forward = Block.forward

        @wraps(forward)  # which has it say that it comes from there
        def changing(block, *given):
            change(block)
            y = forward(block, *given)
            restore(block)
            return y

        if by == "a hook":
            model.h[0].register_forward_pre_hook(change)
            model.h[0].register_forward_hook(restore)
        elif by == "a hook of all modules":
            request.addfinalizer(register_module_forward_pre_hook(change).remove)
            request.addfinalizer(register_module_forward_hook(restore).remove)
        elif by == "a method":
            model.h[0].forward = changing.__get__(model.h[0])
        else:
            model.h[0].__class__ = type("Changing", (Block,), {"forward": changing})
        got = self.decoded(model, tokens)
        passes.clear()
        monkeypatch.setattr(Copies, "ready", lambda *_: None)
        assert torch.equal(got, self.decoded(model, tokens))
        assert len(passes) == 4

    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    def test_is_not_used_for_a_weight_that_is_no_parameter(self, make_model, text, numerics):
        model, tokens = make_model(numerics, **self.WIDE), text(1, 4)
        layer = model.h[0].mlp.c_proj
        weight = layer.weight.detach().clone()
        del layer.weight
        layer.weight = weight  # which no revision of the model looks at
        with torch.inference_mode():
            model(tokens, cache=model.new_cache())
            weight *= 2
            got = model(tokens, cache=model.new_cache())
            assert torch.equal(got, copy.deepcopy(model)(tokens, cache=model.new_cache()))

    @pytest.mark.parametrize("numerics", ["fast", "exact"])
    def test_is_not_used_for_as_many_rows_in_another_shape(self, make_model, text, numerics):
        model, tokens = make_model(numerics), text(1, 2)
        with torch.inference_mode():
            model(tokens, cache=model.new_cache())
            got = model(tokens.T, cache=model.new_cache(batch_size=2))
            torch.testing.assert_close(got, model(tokens.T))

    def test_is_not_used_by_other_numerics_or_in_another_place(self, make_model, text, threads):
        model, tokens = make_model(**self.WIDE), text(1, 8)
        results = []
        for numerics, count in [("fast", 1), ("exact", 1), ("fast", 2), ("exact", 2), ("fast", 1)]:
            threads(count)
            model.numerics = numerics
            twin = copy.deepcopy(model)
            results.append(self.decoded(model, tokens))
            assert torch.equal(results[-1], self.decoded(twin, tokens))
        assert torch.equal(results[1], results[3])

    def test_serves_every_step_of_decoding(self, make_model, text, monkeypatch):
        model = make_model("exact", **self.WIDE)
        asked = []
        get = Copies.get
        monkeypatch.setattr(
            Copies, "get", lambda self, *given: asked.append(given[1]) or get(self, *given)
        )
        cache, tokens = model.new_cache(), text(1, 8)
        with torch.inference_mode():
            for part in tokens.split([5, 1, 1, 1], 1):
                asked.clear()
                model(part, cache=cache)
        layers = 4 * model.config.n_layer
        assert len(asked) < layers / 2  # only the head, whose weight lies the other way, asks again


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


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_bias_alone_can_be_trained_beside_a_copied_weight(numerics):
    layer = Linear(LARGE[0], LARGE[1]).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    layer.bias.requires_grad_(True)
    set_ops(layer, row_ops(numerics))
    layer(torch.randn(1, 3, LARGE[0])).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full_like(layer.bias, 3))


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
