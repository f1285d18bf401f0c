"""Changes of weights: which are seen at a glance, and a checksum that shows all the others."""

from __future__ import annotations

import copy

import pytest
import torch

from minigpt.numerics.changes import PAGE, Glance, Sample, checksum, weights_in


def test_the_weights_of_a_model_are_its_parameters_and_buffers(model):
    model.register_buffer("mask", torch.ones(3))
    model.h[0].nothing = None
    want = {id(weight) for weight in [*model.parameters(), *model.buffers()]}
    assert {id(weight) for weight in weights_in(model)} == want


class TestAGlance:
    @pytest.fixture
    def changed(self, model):
        """changed(how): do it to the model; was it seen?"""
        before = Glance(weights_in(model))
        assert before.still_holds(weights_in(model))

        def change(how):
            how(model)
            return not before.still_holds(weights_in(model))

        return change

    @pytest.mark.parametrize(
        "how",
        [
            lambda m: m.h[1].mlp.c_fc.weight[3].mul_(2),
            lambda m: m.load_state_dict(copy.deepcopy(m).state_dict()),
            lambda m: m.load_state_dict(copy.deepcopy(m).state_dict(), assign=True),
            lambda m: setattr(m.h[0].ln_1, "weight", torch.nn.Parameter(torch.ones(48))),
            lambda m: setattr(m, "ln_f", copy.deepcopy(m.ln_f)),
            lambda m: m.half().float(),
            lambda m: m.h.append(copy.deepcopy(m.h[0])),
            lambda m: m.h[0].register_buffer("more", torch.ones(1)),
        ],
        ids=["row", "load", "assign", "parameter", "layer", "and back", "append", "buffer"],
    )
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_sees_it(self, changed, how, mode):
        with mode():
            assert changed(how)

    @pytest.mark.parametrize("fused", [False, True])
    def test_sees_a_training_step(self, model, changed, fused):
        def step(model):
            model(torch.tensor([[1, 2]])).sum().backward()
            torch.optim.AdamW(model.parameters(), fused=fused).step()

        assert changed(step)

    def test_sees_no_change_in_another_models_training(self, make_model, changed):
        def step(_):
            other = make_model()
            other(torch.tensor([[1, 2]])).sum().backward()
            torch.optim.AdamW(other.parameters(), fused=True).step()

        assert not changed(step)

    def test_sees_that_memory_was_given_back_and_taken_again(self, model):
        """Same place, same count of changes, other numbers: what .data = does."""
        weight = model.h[0].mlp.c_fc.weight
        before, place = Glance([weight]), weight.data_ptr()
        for _ in range(100):
            weight.data = torch.empty(0)
            weight.data = torch.ones(48, 192)
            if weight.data_ptr() == place:
                break
        assert not before.still_holds([weight])

    def test_sees_a_whole_tensor_change_that_torch_does_not_count(self):
        with torch.inference_mode():
            weight = torch.randn(300, 7)
            before = Glance([weight])
            weight[:, 0] = torch.nan
            after = Glance([weight])
            assert not before.still_holds([weight])
            assert after.still_holds([weight])  # nan or not


class TestTheChecksum:
    @pytest.mark.parametrize("count", [1, 3, 8, 5000, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE + 7])
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


SHAPES = [(768, 2304), (768, 768), (3072, 768), (1031, 48), (96, 96), (5, 300), (3, 7), (1, 1)]


class TestASample:
    """A few dozen numbers of a weight, looked at before every pass."""

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("lies", ["by rows", "by columns", "within a larger one"])
    def test_shows_a_change_of_all_of_it_made_behind_torchs_back(self, shape, lies):
        rows, columns = shape
        weight = torch.randn(rows, columns)
        if lies == "by columns":
            weight = torch.randn(columns, rows).T
        if lies == "within a larger one":
            weight = torch.randn(rows + 2, columns + 2)[1:-1, 1:-1]
        sample = Sample(weight)
        assert sample.still_holds()
        weight.data.mul_(-1)
        assert not sample.still_holds()
        weight.data.mul_(-1)
        assert sample.still_holds()

    @pytest.mark.parametrize("by_column", [False, True])
    @pytest.mark.parametrize("head", range(12))
    def test_shows_a_change_of_one_head(self, head, by_column):
        own = slice(64 * head, 64 * head + 64)
        for shape, part in {(768, 2304): (slice(None), own), (768, 768): (own,)}.items():
            weight = torch.randn(*shape[::-1]).T if by_column else torch.randn(shape)
            sample = Sample(weight)
            weight.data[part] = 0
            assert not sample.still_holds()

    def test_of_half_precision_too(self):
        weight = torch.randn(40, 30, dtype=torch.bfloat16)
        sample = Sample(weight)
        weight.data.add_(1)
        assert not sample.still_holds()
