"""8-bit weights: the sums are those of whole numbers, so rows cannot tell what they came with."""

import pytest
import torch

import minigpt
from minigpt.numerics import int8
from minigpt.numerics.int8 import CHUNK, LEVELS, Int8Linear
from minigpt.training.grammar import stories

SHAPES = [(3, 5), (64, 64), (160, 480), (1030, 7), (CHUNK, 9), (3 * CHUNK + 1, 33)]


def whole(*shape, seed=0):
    drawn = torch.randint(-LEVELS, LEVELS + 1, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.int8)


def products(weight, scale):
    """Every way there is here to compute the product, by name."""
    found = {"anywhere": int8._anywhere(weight, scale)}
    if int8._fbgemm_levels() == LEVELS:
        found["fbgemm"] = int8._fbgemm(weight, scale)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_integers(shape):
    rows, weight, scale = whole(37, shape[0]), whole(*shape, seed=1), torch.rand(shape[1]) + 0.1
    sums = rows.long() @ weight.long()  # 64-bit integers: no rounding anywhere
    for name, product in products(weight, scale).items():
        assert torch.equal(product(rows.float()), sums.float() * scale), name


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_are_right_where_every_number_is_as_large_as_it_can_be(sign):
    weight = torch.full((4096, 16), LEVELS, dtype=torch.int8)
    rows = torch.full((2, 4096), sign * float(LEVELS))
    for name, product in products(weight, torch.ones(16)).items():
        assert product(rows).unique().tolist() == [sign * 4096 * LEVELS**2], name


def test_a_longer_chunk_would_round():
    """The bound is the largest: one term more, and float32 has no room for every sum."""
    assert CHUNK * LEVELS**2 <= 2**24 < (CHUNK + 1) * LEVELS**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_has_the_same_bits_in_any_company(dtype, threads):
    layer = Int8Linear(torch.randn(96, 200), torch.randn(200))
    rows = torch.randn(300, 96).to(dtype)
    together = layer(rows)
    for count in (1, 2, 3):
        threads(count)
        alone = torch.cat([layer(row) for row in rows[:64].split(1)])
        assert torch.equal(alone, together[:64])
        assert torch.equal(layer(rows[40:77].flip(0)).flip(0), together[40:77])


def test_the_result_is_close_to_that_of_the_weights():
    weight, bias, rows = torch.randn(256, 64), torch.randn(64), torch.randn(20, 256)
    error = Int8Linear(weight, bias)(rows) - (rows @ weight + bias)
    # Each product is off by up to half a step of either side, at random: sqrt(256) of them.
    assert error.abs().max() < 16 * 4 * (3.5 / 127)
    assert error.abs().max() > 0


def test_zeros_stay_zeros_and_what_is_no_number_stays_visible():
    layer = Int8Linear(torch.randn(8, 4), None)
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 4))
    assert not layer(torch.tensor([[torch.nan] + [1.0] * 7])).isfinite().any()
    assert not layer(torch.tensor([[torch.inf] + [1.0] * 7])).isfinite().any()


@pytest.mark.parametrize("bias", [None, torch.ones(40)])
def test_a_call_converts_nothing(bias):
    """A constant in Python would be made a tensor of the right dtype again and again."""
    layer, row = Int8Linear(torch.randn(64, 40), bias), torch.randn(1, 1, 64)
    layer.product = lambda rows: rows[..., :40].contiguous()
    with torch.autograd.profiler.profile() as seen:
        layer(row)
    names = [event.name for event in seen.function_events]
    assert "aten::amax" in names
    assert "aten::_to_copy" not in names


@pytest.fixture(scope="module")
def int8_model():
    return minigpt.GPT.from_pretrained("weights/toy", weights="int8")


def test_cached_and_uncached_logits_are_equal_in_exact_numerics(int8_model):
    report = minigpt.verify(int8_model, list(range(5, 77)))
    assert report.equal


@pytest.fixture(scope="module")
def toy():
    return minigpt.GPT.from_pretrained("weights/toy")


def test_a_story_is_hardly_less_likely(int8_model, toy):
    """The model is another one, and as good: within a hundredth of a nat per token."""
    story = "\n\n".join(stories(seed=7, count=3))
    ids = minigpt.Tokenizer.from_pretrained("weights/toy").encode(story)[:250]
    plain, rounded = (minigpt.score(m, ids).loss for m in (toy, int8_model))
    assert plain != rounded
    assert abs(plain - rounded) < 0.01


def test_the_weights_take_a_quarter(int8_model):
    linear = int8_model.h[0].mlp.c_fc
    assert isinstance(linear, Int8Linear)
    assert not list(linear.parameters())
    assert {name for name, _ in linear.named_buffers()} == {"scale", "bias", "seal"}


def test_it_is_another_model_to_a_saved_cache(int8_model, toy, tmp_path):
    cache = toy.new_cache()
    toy(torch.tensor([[5, 6, 7]]), cache=cache)
    minigpt.save_cache(cache, tmp_path / "cache.safetensors")
    with pytest.raises(minigpt.MinigptError, match="another model"):
        minigpt.load_cache(tmp_path / "cache.safetensors", int8_model)


def test_saving_refuses_and_says_what_to_save(int8_model, tmp_path):
    with pytest.raises(minigpt.MinigptError, match="int8 weights.*save the model that"):
        int8_model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_there_are_no_gradients_to_record(int8_model):
    assert not int8_model(torch.tensor([[5, 6]])).requires_grad
    with pytest.raises(minigpt.MinigptError, match="int8 weights have no gradients"):
        int8_model.lm_head(torch.zeros(1, 160, requires_grad=True))


def test_another_name_is_refused():
    with pytest.raises(minigpt.MinigptError, match="weights is 'int4', needed 'int8'"):
        minigpt.GPT.from_pretrained("weights/toy", weights="int4")


def test_kernels_that_overflow_get_smaller_numbers_or_none(monkeypatch):
    """CPUs that add pairs in 16 bits are right up to half the range; a broken one is not used."""

    def saturating(weight, scale):
        def product(rows):
            pairs = (rows[:, :, None] + 128) * weight  # unsigned bytes, as the kernels keep rows
            pairs = pairs.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
            return pairs.sum(1) - 128 * weight.float().sum(0)

        return product

    for kernel, levels in ((saturating, {0, 63}), (lambda w, s: lambda rows: rows, {0})):
        monkeypatch.setattr(int8, "_fbgemm", kernel)
        int8._fbgemm_levels.cache_clear()
        assert int8._fbgemm_levels() in levels
    int8._fbgemm_levels.cache_clear()
