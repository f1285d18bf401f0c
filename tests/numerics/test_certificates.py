"""Certificates: a kernel whose bits depend on company, however slightly, is refused one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minigpt.numerics import certificates, exact_product
from minigpt.numerics.base import ACTIVATION, plain_linear
from minigpt.numerics.certificates import AttentionShape, LinearShape, RowwiseShape
from minigpt.numerics.copies import Bags, Chains
from minigpt.numerics.place import Place, tied_to_threads
from minigpt.support.errors import MinigptError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLACE = Place(torch.float32, torch.device("cpu"), 2, "highest")


class TestACertificate:
    """... is refused to a kernel whose bits depend on company, however slightly."""

    SHAPE = LinearShape(96, 64, by_column=False, has_bias=True, place=PLACE)

    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch):
        monkeypatch.setattr(certificates, "pack", lambda weight: None)
        self.forget()
        yield
        self.forget()

    def forget(self):
        certificates.certified_calls.cache_clear()
        certificates.rowwise_sizes.cache_clear()
        certificates.attention_calls.cache_clear()
        tied_to_threads().clear()

    @staticmethod
    def split_sum(x, weight, bias):
        """The product with its sum cut in two: the same number, other last bits."""
        half = x.shape[-1] // 2
        first = plain_linear(x[..., :half], weight[:half], bias)
        return first + plain_linear(x[..., half:], weight[half:], None)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_for_another_order_of_summation_in_wide_calls(self, monkeypatch, dtype):
        def plain(x, weight, bias):
            wide = x.shape[0] >= 64
            return self.split_sum(x, weight, bias) if wide else plain_linear(x, weight, bias)

        place = Place(dtype, torch.device("cpu"), 2, "highest")
        monkeypatch.setattr(certificates, "plain_linear", plain)
        sizes = certificates.certified_calls(self.SHAPE._replace(place=place)).sizes
        assert 16 in sizes
        assert not {64, 128, 256} & set(sizes)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_for_a_bias_that_is_added_at_another_place_of_the_sum(self, monkeypatch, dtype):
        def plain(x, weight, bias):
            if x.shape[0] < 64:
                return plain_linear(x, weight, None) + bias
            start = torch.addmm(bias.float(), x[:, :1].float(), weight[:1].float())
            return (start + x[:, 1:].float() @ weight[1:].float()).to(x.dtype)

        place = Place(dtype, torch.device("cpu"), 2, "highest")
        monkeypatch.setattr(certificates, "plain_linear", plain)
        sizes = certificates.certified_calls(self.SHAPE._replace(place=place)).sizes
        assert 16 in sizes
        assert not {64, 128, 256} & set(sizes)

    def test_for_one_place_of_a_wide_call_that_is_treated_differently(self, monkeypatch):
        def plain(x, weight, bias):
            y = plain_linear(x, weight, bias)
            if x.shape[0] == 128:
                y[77] = self.split_sum(x[77:78], weight, bias)[0]
            return y

        monkeypatch.setattr(certificates, "plain_linear", plain)
        assert 128 not in certificates.certified_calls(self.SHAPE).sizes

    def test_for_rows_that_see_their_neighbours(self, monkeypatch):
        def plain(x, weight, bias):
            return plain_linear(x, weight, bias) + 1e-6 * x.mean()

        monkeypatch.setattr(certificates, "plain_linear", plain)
        assert certificates.certified_calls(self.SHAPE).sizes == ()

    def test_for_places_that_are_not_alike_even_in_the_reference_call(self, monkeypatch):
        def plain(x, weight, bias):
            y = plain_linear(x, weight, bias)
            y[3] = self.split_sum(x[3:4], weight, bias)[0]
            return y

        monkeypatch.setattr(certificates, "plain_linear", plain)
        assert certificates.certified_calls(self.SHAPE).sizes == ()

    def test_for_an_activation_with_other_code_at_the_end_of_a_call(self, monkeypatch):
        def gelu(x):
            y = F.gelu(x, approximate="tanh")
            if x.ndim == 2 and x.shape[0] > 4:
                y[-1, -1] = torch.nextafter(y[-1, -1], torch.tensor(torch.inf))
            return y

        monkeypatch.setitem(ACTIVATION, "gelu_new", gelu)
        assert certificates.rowwise_sizes(RowwiseShape("gelu_new", 96, PLACE)) == (
            1,
            2,
            4,
        )

    def test_for_attention_whose_sums_are_cut_by_the_number_of_queries(self, monkeypatch):
        def mix(weights, v):
            half = 37  # no kernel cuts its sums there of its own accord
            if weights.shape[1] < 8:
                return plain_mix(weights[..., :half], v[:, :half]) + plain_mix(
                    weights[..., half:], v[:, half:]
                )
            return plain_mix(weights, v)

        plain_mix = certificates.attention_mix
        monkeypatch.setattr(certificates, "attention_mix", mix)
        monkeypatch.setattr(certificates, "ATTENTION", {"plain": certificates.plain_attention})
        shape = AttentionShape(1, 2, 1, 256, 32, PLACE)
        sizes = certificates.attention_calls(shape).sizes
        assert 4 not in sizes
        assert 16 in sizes

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_for_fused_attention_that_depends_on_the_number_of_queries(self, monkeypatch, dtype):
        """Its scores in wide calls are added up in two parts."""

        def cheating(q, k, v, mask, scale):
            if q.shape[2] < 64:
                return honest(q, k, v, mask, scale)
            half = q.shape[3] // 2
            parts = (q[..., :half].float() @ k[..., :half].float().mT) + (
                q[..., half:].float() @ k[..., half:].float().mT
            )
            weights = (parts * scale + mask).softmax(-1).to(v.dtype)
            return weights @ v

        def honest(q, k, v, mask, scale):
            scores = torch.stack([row.float() @ k.float().mT for row in q.split(1, 2)], 2)
            weights = (scores[:, :, :, 0] * scale + mask).softmax(-1).to(v.dtype)
            return torch.cat([row @ v for row in weights.split(1, 2)], 2)

        monkeypatch.setitem(certificates.ATTENTION, "fused", cheating)
        place = Place(dtype, torch.device("cpu"), 1, "highest")
        calls = certificates.attention_calls(AttentionShape(1, 2, 1, 128, 32, place))
        assert calls.kernel == "fused"
        assert 16 in calls.sizes
        assert not {64, 128} & set(calls.sizes)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_for_fused_attention_that_mixes_values_in_another_order(self, monkeypatch, dtype):
        def cheating(q, k, v, mask, scale):
            weights = (q.float() @ k.float().mT * scale + mask).softmax(-1)
            if q.shape[2] < 64:
                return torch.cat([row @ v.float() for row in weights.split(1, 2)], 2).to(v.dtype)
            half = k.shape[2] // 2
            first = weights[..., :half] @ v[:, :, :half].float()
            return (first + weights[..., half:] @ v[:, :, half:].float()).to(v.dtype)

        monkeypatch.setitem(certificates.ATTENTION, "fused", cheating)
        place = Place(dtype, torch.device("cpu"), 1, "highest")
        calls = certificates.attention_calls(AttentionShape(1, 2, 1, 128, 32, place))
        assert not (calls.kernel == "fused" and {64, 128} & set(calls.sizes))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("honest", [True, False])
    def test_for_fewer_keys_where_their_number_cuts_the_sums(self, monkeypatch, dtype, honest):
        def attention(q, k, v, mask, scale):
            scores = torch.stack([row.float() @ k.float().mT for row in q.split(1, 2)], 2)
            scores = scores[:, :, :, 0] * scale + mask
            weights = (scores - scores.amax(-1, keepdim=True)).exp().unbind(-1)
            pairs = list(zip(weights, v.float().unbind(2), strict=True))
            cut = 0 if honest else len(pairs) // 2
            parts = [sum(w[..., None] * row[:, :, None] for w, row in part)
                     for part in (pairs[:cut], pairs[cut:])]  # fmt: skip
            return ((parts[0] + parts[1]) / sum(weights)[..., None]).to(v.dtype)

        monkeypatch.setitem(certificates.ATTENTION, "fused", attention)
        place = Place(dtype, torch.device("cpu"), 1, "highest")
        whole = AttentionShape(2, 2, 1, 128, 32, place)
        assert 16 in certificates.attention_calls(whole).sizes
        fewer = certificates.attention_calls(whole._replace(keys=96))
        assert bool(fewer.sizes) == honest

    def test_for_bags_a_term_too_long_or_too_short(self):
        place = Place.here(torch.float32, torch.device("cpu"))
        shape = LinearShape(768, 64, by_column=False, has_bias=True, place=place)
        probe = certificates._LinearProbe(shape, certificates.Draw(place))
        for length in (128, 192, 768):

            def in_chains(rows, length=length):
                bags = Bags(probe.weight, Chains(length))
                return torch.cat([bags(row[None], probe.bias) for row in rows])

            probe.calls["plain"] = in_chains
            assert probe.refer_to("plain")
            assert probe.has_order(Chains(length))
            for wrong in (length - 1, length + 1, length // 2):
                if wrong < 768:
                    assert not probe.has_order(Chains(wrong))
            if length < 768:
                assert not probe.has_order(Chains(length, bias_first=True))
                assert certificates._certified_chains(shape, [probe]) == Chains(length)

    @pytest.mark.parametrize("by_column", [False, True])
    def test_for_a_row_that_goes_with_itself_to_a_kernel_of_another_order(
        self, monkeypatch, by_column
    ):
        shape = self.SHAPE._replace(by_column=by_column)
        honest = certificates.paired_linear

        def cheating(x, stack, bias):
            return honest(x[..., :48], stack[:, :48], bias) + x[..., 48:] @ stack[:, 48:]

        assert certificates.certified_calls(shape).in_pairs
        self.forget()
        monkeypatch.setattr(certificates, "paired_linear", cheating)
        assert not certificates.certified_calls(shape).in_pairs

    def by_threads(self, x, weight, bias):
        if torch.get_num_threads() == 1:
            return plain_linear(x, weight, bias)
        return self.split_sum(x, weight, bias)

    @pytest.mark.parametrize("counts", [(1, 2), (2, 1), (3, 2)])
    def test_for_other_numbers_of_threads_and_a_cache_is_not_continued_there(
        self, monkeypatch, make_model, text, threads, counts
    ):
        for module in (certificates, exact_product):
            monkeypatch.setattr(module, "plain_linear", self.by_threads)
        model, tokens = make_model(numerics="exact"), text(1, 30)
        threads(counts[0])
        want, cache = model(tokens), model.new_cache()
        model(tokens[:, :20], cache=cache)
        for others in counts[1], counts[1]:  # before and after it is known what happens there
            threads(others)
            with pytest.raises(MinigptError, match=f"threads {counts[0]} and now there is"):
                model(tokens[:, 20:], cache=cache)
        threads(counts[0])
        assert torch.equal(model(tokens[:, 20:], cache=cache), want[:, 20:])
        assert not certificates.certified_calls(
            self.SHAPE._replace(place=PLACE._replace(threads=counts[0]))
        ).any_threads

    def test_and_the_model_is_exact_all_the_same(self, monkeypatch, make_model, text):
        def plain(x, weight, bias):
            few = x.shape[0] in (1, 2, 4, 32)
            return self.split_sum(x, weight, bias) if few else plain_linear(x, weight, bias)

        for module in (certificates, exact_product):
            monkeypatch.setattr(module, "plain_linear", plain)
        model, tokens = make_model(numerics="exact"), text(1, 50)
        cache = model.new_cache()
        cached = [model(part, cache=cache) for part in tokens.split([20, *[1] * 30], dim=1)]
        assert torch.equal(torch.cat(cached, 1), model(tokens))
