"""A model's fingerprint: equal for equal bits, another for any other weight, and quickly had."""

from __future__ import annotations

import copy

import pytest
import torch

from minigpt import GPT
from minigpt.checkpoint import fingerprint as module
from minigpt.checkpoint.fingerprint import PAGE, checksum, fingerprint


class TestTheFingerprint:
    def test_is_the_same_for_a_copy(self, model):
        assert fingerprint(copy.deepcopy(model)) == fingerprint(model)

    def test_is_the_same_for_the_model_loaded_from_disk(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert fingerprint(GPT.from_pretrained(tmp_path)) == fingerprint(model)

    def test_is_another_for_another_configuration(self, make_model):
        changed = make_model(layer_norm_epsilon=1e-6)
        assert fingerprint(changed) != fingerprint(make_model())

    @pytest.mark.parametrize("name", ["wte", "wpe", "h.1.attn.c_attn", "h.0.mlp.c_proj", "ln_f"])
    def test_follows_one_number_of_a_weight_changed_in_place(self, model, name):
        before = fingerprint(model)
        with torch.no_grad():
            model.get_submodule(name).weight.flatten()[7] += 1e-6
        assert fingerprint(model) != before

    def test_follows_two_rows_that_change_places(self, model):
        before = fingerprint(model)
        with torch.no_grad():
            model.wte.weight[[3, 90]] = model.wte.weight[[90, 3]]
        assert fingerprint(model) != before

    def test_follows_a_conversion_there_and_back(self, model):
        before = fingerprint(model)
        model.bfloat16().float()
        assert fingerprint(model) != before

    def test_follows_a_training_step(self, model, text):
        before = fingerprint(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        model(text(1, 9)).sum().backward()
        optimizer.step()
        assert fingerprint(model) != before

    def test_reads_the_weights_once_while_they_stay_as_they_are(self, model, monkeypatch):
        before = fingerprint(model)
        monkeypatch.setattr(module, "checksum", None)  # whoever calls it now fails
        assert fingerprint(model) == before


class TestTheChecksum:
    @pytest.mark.parametrize("count", [1, 3, 8, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE + 7])
    def test_shows_every_bit_of_every_part(self, count):
        x = torch.zeros(count, dtype=torch.float32)
        before = checksum(x)
        for place in {0, count // 2, count - 1}:
            for bit in range(32):
                changed = x.clone()
                changed.view(torch.int32)[place] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
                assert checksum(changed) != before

    @pytest.mark.parametrize("apart", [1, 7, 257, 5 * 257, PAGE - 1, PAGE + 1])
    def test_shows_two_numbers_that_change_places(self, apart):
        x = torch.arange(2 * PAGE)
        swapped = x.clone()
        swapped[[5, 5 + apart]] = x[[5 + apart, 5]]
        assert checksum(swapped) != checksum(x)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
    def test_does_not_depend_on_where_the_numbers_lie(self, dtype):
        x = torch.arange(1000).to(dtype)
        for start in (1, 2, 3):
            shifted = torch.cat([x[:start], x])[start:]
            assert checksum(shifted) == checksum(x)
        assert checksum(x.repeat(2, 1).T[:, 1]) == checksum(x)

    def test_does_not_depend_on_the_number_of_threads(self, threads):
        x = torch.randn(3 * PAGE + 5, generator=torch.Generator().manual_seed(0))
        threads(1)
        alone = checksum(x)
        threads(3)
        assert checksum(x) == alone

    def test_of_nothing(self):
        assert checksum(torch.empty(2, 0)) != checksum(torch.ones(1))
