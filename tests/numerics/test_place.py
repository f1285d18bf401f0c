"""A place: equal ones are one object, and whatever chooses kernels makes another."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from minigpt.numerics import exact_product
from minigpt.numerics.place import Place, noted, one_place

CPU = torch.device("cpu")


def here():
    return Place.here(torch.float32, CPU)


def test_the_same_place_is_one_object():
    assert here() is here()
    assert Place.of(torch.ones(2)) is here()


def test_another_dtype_or_number_of_threads_is_another(threads):
    before = here()
    assert Place.here(torch.bfloat16, CPU) is not before
    threads(torch.get_num_threads() + 1)
    assert here() is not before


@pytest.mark.parametrize(
    "switch",
    [
        lambda on: setattr(torch.backends.mkldnn, "enabled", on),
        lambda on: torch.use_deterministic_algorithms(not on),
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_math_sdp,
        lambda on: torch.set_float32_matmul_precision("highest" if on else "high"),
        pytest.param(
            lambda on: torch.set_flush_denormal(not on),
            marks=pytest.mark.skipif(not torch.set_flush_denormal(False), reason="no such switch"),
        ),
    ],
)
def test_every_switch_that_chooses_kernels_counts(switch):
    before = here()
    switch(False)
    try:
        assert here() is not before
    finally:
        switch(True)
    assert here() is before


CUDA_SWITCHES = [
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
]


@pytest.mark.parametrize(
    ("home", "name"),
    CUDA_SWITCHES,
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_every_switch_of_cuda_counts_there_and_not_on_the_cpu(home, name):
    """Asked without a GPU: a place is what is set, whoever computes."""
    cuda = partial(Place.here, torch.bfloat16, torch.device("cuda"))
    before, on_cpu, value = cuda(), here(), getattr(home, name)
    setattr(home, name, not value)
    try:
        assert cuda() is not before
        assert here() is on_cpu
    finally:
        setattr(home, name, value)
    assert cuda() is before


def test_another_setting_asks_for_new_certificates(exact, text, monkeypatch):
    asked = []
    certify = exact_product.certified_calls

    def spy(shape):
        asked.append(shape.place)
        return certify(shape)

    monkeypatch.setattr(exact_product, "certified_calls", spy)
    exact(text(1, 20))
    before, on = set(asked), torch.backends.mkldnn.enabled
    asked.clear()
    torch.backends.mkldnn.enabled = not on
    try:
        exact(text(1, 20))
    finally:
        torch.backends.mkldnn.enabled = on
    assert before
    assert asked
    assert not before & set(asked)


def test_a_pass_asks_once_and_each_thread_for_itself(threads):
    elsewhere = []
    with one_place(torch.float32, CPU) as place:
        threads(torch.get_num_threads() + 1)
        assert Place.of(torch.ones(2)) is place
        assert Place.of(torch.ones(2).double()) is not place
        other = threading.Thread(target=lambda: elsewhere.append(Place.of(torch.ones(2))))
        other.start()
        other.join()
    assert elsewhere[0] is not place
    assert Place.of(torch.ones(2)) is not place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_switching_mkldnn_between_a_cached_and_an_uncached_pass_is_exact(make_model, text, dtype):
    """Each place has its bits; the model asks for new certificates, and both are exact."""
    model, tokens = make_model(numerics="exact", dtype=dtype), text(1, 40)
    for enabled in (False, True):
        torch.backends.mkldnn.enabled = enabled
        try:
            with torch.inference_mode():
                cache = model.new_cache()
                parts = [model(part, cache=cache) for part in tokens.split([30, *[1] * 10], 1)]
                assert torch.equal(torch.cat(parts, 1), model(tokens))
        finally:
            torch.backends.mkldnn.enabled = True


def test_what_every_layer_would_find_out_again_is_noted_for_one_pass():
    found = iter(range(10))
    find = lambda: next(found)  # noqa: E731
    assert [noted("size", find), noted("size", find)] == [0, 1]  # outside of a pass nothing is kept
    with one_place(torch.float32, CPU):
        assert [noted("size", find), noted("size", find), noted("mask", find)] == [2, 2, 3]
        with one_place(torch.float32, CPU):
            assert noted("size", find) == 4
        assert noted("size", find) == 2
    with one_place(torch.float32, CPU):
        assert noted("size", find) == 5
