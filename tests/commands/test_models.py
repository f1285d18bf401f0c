"""From --device to a device: which one is chosen, what is said of it, and when it is too small."""

from __future__ import annotations

import pytest
import torch

from minigpt import GPT, MinigptError
from minigpt.commands import models
from minigpt.commands.cli import main, out_of_memory, parse
from minigpt.support import memory
from minigpt.training.loop import Run
from minigpt.training.recipes import preset
from minigpt.training.sources import open_source, starting_model

SMALL = ["--model", "random:nano"]


@pytest.mark.parametrize("command", ["generate", "play", "verify", "bench", "trace", "score"])
def test_every_command_that_runs_a_model_chooses_by_itself(command):
    options = parse([command, *(["file"] if command == "score" else [])])
    assert options.device == "auto"
    assert preset("stories").device == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_auto_is_the_cpu_where_no_gpu_is_and_nothing_is_said(capsys):
    assert models.device_named("auto") == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_auto_is_a_gpu_where_one_is_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert models.device_named("auto") == torch.device("cuda")
    assert capsys.readouterr().err == "(on cuda, NVIDIA H100; --device cpu for the CPU)\n"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this is such a Mac")
def test_mps_off_a_mac_is_refused_in_one_sentence(capsys):
    assert main(["verify", *SMALL, "--device", "mps"]) == 2
    assert capsys.readouterr().err == (
        "minigpt: device 'mps' cannot be used here: it is the GPU of a Mac with Apple's own chip, "
        "and needs macOS 12.3 or newer\n"
    )


class TestTooLittleMemory:
    """What is there is made small; what is needed is counted."""

    @pytest.fixture
    def free(self, monkeypatch):
        def set_free(count):
            monkeypatch.setattr(memory, "available_memory", lambda device: count)

        return set_free

    def test_for_random_weights(self, free, capsys):
        need = 4 * sum(p.numel() for p in GPT.from_pretrained("toy").parameters())
        free(need)
        memory.require_memory(need, torch.device("cpu"), "this", "do that")
        free(10)
        with pytest.raises(
            MinigptError, match=r"this needs 11 bytes, and cpu has 10 free: do that"
        ):
            memory.require_memory(11, torch.device("cpu"), "this", "do that")
        assert main(["verify", *SMALL, "--device", "cpu"]) == 2
        bytes_needed = 4 * sum(
            p.numel() for p in models.random_model(*self.nano(free)).parameters()
        )
        assert f"random:nano needs {bytes_needed:,} bytes, and cpu has 10 free: " in (
            capsys.readouterr().err
        )

    @staticmethod
    def nano(free):
        free(None)
        return "random:nano", None, torch.device("cpu"), "fast"

    def test_for_training(self, free, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(Run, "step", None)  # it is not reached
        monkeypatch.chdir(tmp_path)
        config = preset("addition")
        model = starting_model(config, open_source(config, tmp_path))
        count = sum(p.numel() for p in model.parameters())
        free(10 * count)  # enough for the weights alone
        assert main(["train", "--task", "addition", "--device", "cpu", "--out", "run"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(
            f"minigpt: training {count:,} parameters (before what a batch takes)"
        )
        assert f"needs {16 * count:,} bytes, and cpu has {10 * count:,} free" in last

    def test_that_only_shows_on_the_way(self, monkeypatch, capsys):
        def full(*arguments, **settings):
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
                "79.10 GiB of which 1.25 GiB is free. Including non-PyTorch memory, ..."
            )

        monkeypatch.setattr(GPT, "next_logits", full)
        assert main(["generate", *SMALL, "--device", "cpu", "--prompt", "x"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            "minigpt: the device's memory is full (2.50 GiB more were needed, 1.25 GiB free): take "
            "a smaller model, batch or dtype (--dtype bfloat16), or --device cpu"
        )
        assert "(more was needed, too little free)" in out_of_memory("out of memory")
