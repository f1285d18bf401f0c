"""On a GPU: the same bits from the cache and without, from recorded steps and from calls."""

from __future__ import annotations

import gc

import pytest
import torch

from minigpt import GPT, Engine, GPTConfig, generate, generate_batch, verify
from minigpt.commands.cli import main
from minigpt.generation.device_steps import DeviceSteps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA can use"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPT = [5, 80, 200, 31, 7]


@pytest.fixture(params=DTYPES, ids=str)
def on_gpu(request) -> GPT:
    torch.manual_seed(0)
    shape = {"vocab_size": 301, "n_positions": 300, "n_embd": 192, "n_layer": 2, "n_head": 6}
    return GPT(GPTConfig(**shape, initializer_range=0.2), "exact").eval().to("cuda", request.param)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 50, "seed": 3}], ids=str)
def test_a_text_is_the_same_with_the_cache_and_without(on_gpu, settings):
    cached = generate(on_gpu, PROMPT, 150, **settings)
    assert cached.tokens == generate(on_gpu, PROMPT, 150, use_cache=False, **settings).tokens


def test_every_way_of_cutting_the_work_has_the_same_bits(on_gpu):
    report = verify(on_gpu)
    assert report.equal, str(report)


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("lengths", [[3], [126], [200, 200], [1, 60, 126], [5, 130, 255]], ids=str)
def test_steps_recorded_as_graphs_have_the_bits_of_calls(on_gpu, lengths, kind):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(300, (1, max(lengths)), generator=generator).cuda()
    with torch.inference_mode():
        cache = on_gpu.new_cache(kind=kind)
        on_gpu.next_logits(tokens, cache=cache)
        cache = cache.expand(len(lengths))  # of pages, each row begins with the same ones
        cache.truncate(lengths)
        other = cache.fork()
        steps = DeviceSteps(on_gpu, cache)
        for n in range(6):
            fed = [n + 7] * len(lengths)
            want = on_gpu.next_logits(torch.tensor(fed, device="cuda")[:, None], cache=other)
            assert torch.equal(steps.logits(fed), want)
    assert steps._recorded  # or calls were compared with calls


HOWS = [
    {}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.0, "stop_tokens": list(range(0, 300, 30))},
    {"temperature": 1.0, "repetition_penalty": 1.3}, {"policy": "reprefill"},
]  # fmt: skip
PROMPTS = [PROMPT, [9] * 120, list(range(40)), [7]]


@pytest.fixture
def recorded(monkeypatch) -> list[DeviceSteps]:
    """Whose steps were recorded; without any, calls were compared with calls."""
    seen, record = [], DeviceSteps._record

    def counted(self, run):
        seen.append(self)
        return record(self, run)

    monkeypatch.setattr(DeviceSteps, "_record", counted)
    return seen


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("how", HOWS, ids=str)
def test_each_text_of_a_batch_is_the_one_it_would_be_alone(on_gpu, how, kind, recorded):
    texts = generate_batch(on_gpu, PROMPTS, 140, kind=kind, **how)
    assert recorded
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        its = {**how, "seed": how.get("seed", 0) + number}
        alone = generate(on_gpu, prompt, 140, use_cache=False, **its)
        assert (text.tokens, text.finish_reason) == (alone.tokens, alone.finish_reason)


def test_each_text_of_an_engine_is_the_one_it_would_be_alone(on_gpu, recorded):
    engine = Engine(on_gpu, batch=3, chunk=50)
    requests = [engine.submit(PROMPTS[n % 4], 100, **how) for n, how in enumerate(HOWS)]
    engine.run()
    assert recorded
    for number, (how, request) in enumerate(zip(HOWS, requests, strict=True)):
        alone = generate(on_gpu, PROMPTS[number % 4], 100, use_cache=False, **how)
        assert (request.tokens, request.finish_reason) == (alone.tokens, alone.finish_reason)


def test_recordings_go_with_their_cache(on_gpu):
    def allocated() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    seen = []
    for _ in range(6):
        generate_batch(on_gpu, PROMPTS, 60)
        seen.append(allocated())
    assert seen[-1] == seen[1]  # the first one also makes certificates


def test_a_command_says_that_it_chose_the_gpu(capsys):
    assert main(["generate", "--model", "random:nano", "--prompt", "x", "--temperature", "0"]) == 0
    assert f"(on cuda, {torch.cuda.get_device_name()}" in capsys.readouterr().err
