"""Exact numerics: rows keep their bits in any company, and the certificates can fail."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.numerics import certificates, exact, exact_product
from minigpt.numerics.base import KEY_BLOCK
from minigpt.numerics.certificates import SIZES, AttentionCalls, LinearCalls
from minigpt.numerics.place import Place
from minigpt.numerics.probe_numbers import Draw
from minigpt.training import lora

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def decoded(model, tokens, chunks, **options):
    """Logits (T, V) of one text, fed to a cache in chunks of these lengths."""
    cache = model.new_cache(**options)
    with torch.inference_mode():
        return torch.cat([model(part, cache=cache)[0] for part in tokens.split(chunks, dim=1)])


@pytest.fixture
def no_certificates(monkeypatch):
    """As on a machine where no probe passes: only what is exact by construction is left."""
    monkeypatch.setattr(exact_product, "certified_calls", lambda shape: LinearCalls("plain", {}))
    monkeypatch.setattr(exact, "rowwise_sizes", lambda shape: (1,))
    monkeypatch.setattr(exact, "attention_calls", lambda shape: AttentionCalls("plain", ()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [{}, {"n_kv_head": 1}])
def test_decoding_one_by_one_equals_the_uncached_pass(make_model, text, dtype, heads):
    model, tokens = make_model(numerics="exact", dtype=dtype, **heads), text(1, 160)
    assert torch.equal(decoded(model, tokens, [1] * 160), model(tokens)[0])


@pytest.mark.parametrize("chunks", [[159, 1], [1, 159], [127, 1, 32], [128, 32], [3, 130, 27]])
def test_every_chunking_equals_the_uncached_pass(exact, text, chunks):
    tokens = text(1, 160)
    assert torch.equal(decoded(exact, tokens, chunks), exact(tokens)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_holds_by_construction_alone(no_certificates, make_model, text, dtype):
    model, tokens = make_model(numerics="exact", dtype=dtype, n_kv_head=1), text(1, 140)
    want = model(tokens)[0]
    assert torch.equal(decoded(model, tokens, [100, 27, *[1] * 13]), want)
    batch = torch.cat([text(2, 140, seed=5), tokens])
    assert torch.equal(model(batch)[2], want)


def test_construction_and_certificates_give_the_same_bits(make_model, text, request):
    tokens = text(2, 60)
    certified = make_model(numerics="exact")(tokens)
    kernel = exact.attention_calls(certificates.AttentionShape(
        1, 3, 1, 128, 16, Place.here(torch.float32, torch.device("cpu"))
    )).kernel  # fmt: skip
    request.getfixturevalue("no_certificates")
    request.getfixturevalue("monkeypatch").setattr(
        exact, "attention_calls", lambda shape: AttentionCalls(kernel, ())
    )
    assert torch.equal(make_model(numerics="exact")(tokens), certified)


@pytest.mark.parametrize("capacity", [133, 140, 160])
def test_the_caches_capacity_does_not_matter(exact, text, capacity):
    tokens = text(1, 133)
    got = decoded(exact, tokens, [100, 30, 1, 1, 1], max_length=capacity)
    assert torch.equal(got, exact(tokens)[0])


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_number_of_threads_does_not_matter(make_model, text, threads, count):
    model, tokens = make_model(numerics="exact", n_inner=1000), text(1, 150)
    want = model(tokens)
    threads(count)
    assert torch.equal(model(tokens), want)
    assert torch.equal(decoded(model, tokens, [140, *[1] * 10]), want[0])


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("shape", [{}, {"n_embd": 96, "n_inner": 5600, "n_layer": 1}])
def test_a_cache_goes_on_under_another_number_of_threads(make_model, text, threads, shape, before):
    """Certificates compare with calls on one thread, so those of any two numbers agree."""
    model, tokens = make_model(numerics="exact", **shape), text(1, 150)
    threads(before)
    cache = model.new_cache()
    first = model(tokens[:, :120], cache=cache)
    threads(3 - before)
    rest = [model(token, cache=cache) for token in tokens[:, 120:].split(1, 1)]
    assert torch.equal(torch.cat([first, *rest], 1), model(tokens))
    threads(before)
    assert torch.equal(torch.cat([first, *rest], 1), model(tokens))


def test_changing_the_threads_asks_for_new_certificates(make_model, text, threads):
    model, tokens = make_model(numerics="exact", n_embd=51), text(1, 9)
    threads(2)
    model(tokens)
    probed = certificates.certified_calls.cache_info().misses
    model(tokens)
    assert certificates.certified_calls.cache_info().misses == probed
    threads(1)
    model(tokens)
    assert certificates.certified_calls.cache_info().misses > probed


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_less_precise_products_are_exact_too(exact, text, precision):
    tokens, before = text(1, 140), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(decoded(exact, tokens, [100, *[1] * 40]), exact(tokens)[0])
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch sets precision globally only"
)
def test_precision_set_for_one_backend_alone_is_exact_too(exact, text):
    settings, tokens = torch.backends.mkldnn.matmul, text(1, 140)
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        assert torch.equal(decoded(exact, tokens, [100, *[1] * 40]), exact(tokens)[0])
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 7, 9, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_models_are_exact(text, width, dtype):
    """Sums of two or three terms, where a kernel differs by when it adds the bias."""
    torch.manual_seed(width)
    heads = max(n for n in (1, 2, 3) if width % n == 0)
    config = GPTConfig(40, 40, width, 2, heads, initializer_range=1.0)
    model = GPT(config, numerics="exact").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    model, tokens = model.to(dtype), text(1, 40, vocab_size=40)
    assert torch.equal(decoded(model, tokens, [17, 2, *[1] * 21]), model(tokens)[0])


def test_gradient_mode_does_not_matter(exact, text):
    tokens = text(1, 50)
    with torch.inference_mode():
        want = exact(tokens)
    assert torch.equal(exact(tokens).detach(), want)


def test_autocast_is_refused(exact, text):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(MinigptError, match="autocast"):
        exact(text(1, 5))


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="no such switch")
def test_flushed_denormals_are_refused_beside_threads_that_may_keep_them(exact, text, threads):
    torch.set_flush_denormal(True)
    try:
        threads(2)
        with pytest.raises(MinigptError, match="denormal numbers are flushed to zero"):
            exact(text(1, 5))
        threads(1)
        assert torch.equal(decoded(exact, text(1, 20), [1] * 20), exact(text(1, 20))[0])
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.filterwarnings("ignore")
def test_compilation_is_refused(exact, text):
    compiled = torch.compile(exact, backend="eager")
    with pytest.raises(MinigptError, match=r"torch\.compile chooses kernels of its own"):
        compiled(text(1, 5))
    torch._dynamo.reset()


def test_probing_leaves_the_users_random_numbers_alone(make_model, text):
    model = make_model(numerics="exact", n_embd=57)
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    model(text(1, 5))
    assert torch.equal(torch.rand(3), want)


def test_a_batch_that_no_call_takes_whole_is_computed_row_by_row(monkeypatch, make_model, text):
    model, batch = make_model(numerics="exact"), text(3, 140)
    want = model(batch)
    certified = exact.attention_calls
    monkeypatch.setattr(
        exact,
        "attention_calls",
        lambda shape: certified(shape)._replace(
            sizes=certified(shape).sizes if shape.batch_size == 1 else ()
        ),
    )
    assert torch.equal(model(batch), want)


@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.parametrize("heads", [{}, {"n_kv_head": 1}])
def test_keys_after_all_queries_may_be_left_out_or_masked(
    monkeypatch, make_model, text, certified, heads
):
    if not certified:
        monkeypatch.setattr(
            exact,
            "attention_calls",
            lambda shape: (
                AttentionCalls("plain", ())
                if shape.keys % KEY_BLOCK
                else certificates.attention_calls(shape)
            ),
        )
    model, batch = make_model(numerics="exact", **heads), text(3, 140)
    got = torch.stack(
        [decoded(model, part, [20, 2, 9, 1, 1, 97, *[1] * 10]) for part in batch.split(1)]
    )
    cache = model.new_cache(3)
    chunks = batch.split([20, 2, 9, 1, 1, 97, *[1] * 10], dim=1)
    together = torch.cat([model(part, cache=cache) for part in chunks], 1)
    assert torch.equal(together, model(batch))
    assert torch.equal(got, together)


class TestPlan:
    """Rows are cut into calls of allowed sizes, and each row is in exactly one."""

    @pytest.mark.parametrize("rows", [1, 3, 16, 17, 100, 1000, 1500])
    @pytest.mark.parametrize("allowed", [set(), {1}, {16}, {2, 16, 128}, set(SIZES)])
    def test_every_row_is_taken_once_in_an_allowed_size(self, rows, allowed):
        cuts = exact.plan(rows, tuple(allowed))
        assert sum(take for take, _ in cuts) == rows
        assert all(take <= size for take, size in cuts)
        assert {size for _, size in cuts} <= (allowed or {certificates.TILE})

    def test_with_nothing_allowed_each_row_goes_alone(self):
        assert exact.plan(3, ()) == [(1, certificates.TILE)] * 3

    def test_a_few_rows_are_padded_and_many_are_not(self):
        assert exact.plan(5, (1, 8, 16)) == [(5, 8)]
        assert exact.plan(600, (8, 64, 512, 1024)) == [(512, 512), (64, 64), (24, 64)]


def test_a_row_so_wide_that_threads_share_it_has_the_bits_of_its_neighbours(threads):
    threads(2)
    place, name = Place.here(torch.float32, torch.device("cpu")), "gelu_new"
    rows = Draw(place).telling(certificates.ACTIVATION[name], 3 * 40_001).view(3, -1)
    ops = exact.ExactOps()
    together = ops.activation(rows, name)
    assert torch.equal(torch.cat([ops.activation(row, name) for row in rows.split(1)]), together)
    threads(1)
    assert torch.equal(ops.activation(rows, name), together)


@pytest.mark.parametrize("layer", ["ln_1", "attn.c_attn", "attn", "mlp.c_fc", "mlp", "ln_2"])
def test_how_numbers_lie_in_memory_does_not_matter(exact, text, layer):
    tokens = text(1, 140)
    want = exact(tokens)
    hook = (
        exact.h[0]
        .get_submodule(layer)
        .register_forward_hook(lambda module, inputs, output: output.mT.contiguous().mT)
    )
    assert torch.equal(exact(tokens), want)
    assert torch.equal(decoded(exact, tokens, [100, *[1] * 40]), want[0])
    hook.remove()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("heads", [{}, {"n_kv_head": 1}])
def test_what_is_no_number_reaches_no_earlier_position(make_model, text, number, heads):
    model, tokens = make_model(numerics="exact", **heads), text(3, 150)
    tokens[tokens == 7] = 8
    tokens[0, 139] = tokens[1, 10] = tokens[1, 60] = 7
    with torch.no_grad():
        clean = model(tokens)
        model.wte.weight[7] = number
        model.lm_head.weight = torch.nn.Parameter(model.wte.weight.clone())
        model.lm_head.weight[7] = 0
    got = model(tokens)
    usual = [column for column in range(211) if column != 7]
    for row, first in ((0, 139), (1, 10), (2, 150)):
        assert torch.equal(got[row, :first, usual], clean[row, :first, usual])
        assert not got[row, first:, usual].isfinite().any()
        assert torch.equal(
            decoded(model, tokens[row : row + 1], [first, *[1] * (150 - first)])[:first],
            got[row, :first],
        )


def test_adapted_models_are_exact(make_model, text):
    model, tokens = make_model(numerics="exact"), text(1, 60)
    lora.adapt(model, ["attn.c_attn", "mlp.c_proj"], rank=8, scale=0.5)
    for name, parameter in model.named_parameters():
        if ".lora_b" in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(decoded(model, tokens, [40, *[1] * 20]), model(tokens)[0])


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("numerics", "most"), [("fast", 245), ("exact", 358)])
def test_a_step_of_twelve_layers_takes_few_operations(numerics, most):
    """Small models are nothing but calls: what is not needed at every step is not done in it."""
    model = GPT(GPTConfig(500, 128, 192, 12, 6), numerics=numerics).eval()
    cache, token = model.new_cache(), torch.tensor([[3]])
    with torch.inference_mode():
        model.next_logits(token, cache)
        with Counting() as counted:
            model.next_logits(token, cache)  # which finds views to be others, and copies again
            counted.calls.clear()
            model.next_logits(token, cache)
    assert not counted.calls["dropout"]
    assert counted.calls["copy_"] == 2 * 12
    assert sum(counted.calls.values()) <= most, counted.calls
