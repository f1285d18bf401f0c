"""On a GPU: the same bits from the cache and without, from recorded steps and from calls."""

from __future__ import annotations

import pytest
import torch

from minigpt import GPT, GPTConfig, generate, verify
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


@pytest.mark.parametrize("lengths", [[3], [126], [200, 200], [1, 60, 126]], ids=str)
def test_steps_recorded_as_graphs_have_the_bits_of_calls(on_gpu, lengths):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(300, (len(lengths), max(lengths)), generator=generator).cuda()
    with torch.inference_mode():
        cache = on_gpu.new_cache(len(lengths))
        on_gpu.next_logits(tokens, cache=cache)
        cache.truncate(lengths)
        other = cache.fork()
        steps = DeviceSteps(on_gpu, cache)
        for n in range(6):
            fed = [n + 7] * len(lengths)
            want = on_gpu.next_logits(torch.tensor(fed, device="cuda")[:, None], cache=other)
            assert torch.equal(steps.logits(fed), want)
    assert steps._recorded  # or calls were compared with calls


def test_a_command_says_that_it_chose_the_gpu(capsys):
    assert main(["generate", "--model", "random:nano", "--prompt", "x", "--temperature", "0"]) == 0
    assert f"(on cuda, {torch.cuda.get_device_name()}" in capsys.readouterr().err
