"""From options to what they name: models, tokenizers, devices.

A source is what `GPT.from_pretrained` takes, or "random:" and a preset's name: a model of that
shape with random weights, for measuring and trying out what is not at hand.
"""

from __future__ import annotations

import argparse
import math

import torch

from minigpt.checkpoint.pretrained import quantize
from minigpt.commands.options import say
from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.support import checks
from minigpt.support.errors import MinigptError
from minigpt.support.memory import MODEL_ADVICE, require_memory
from minigpt.support.wording import counted
from minigpt.tokenizer import Tokenizer, byte_tokenizer

RANDOM = "random:"
SMALL = 10_000_000  # parameters


def load(options: argparse.Namespace) -> GPT:
    """The model that --model, --dtype, --weights, --device and --numerics name."""
    dtype = getattr(torch, options.dtype) if options.dtype else None
    device = device_named(options.device)
    if options.model.startswith(RANDOM):
        model = random_model(options.model, dtype, device, options.numerics, options.weights)
    else:
        model = GPT.from_pretrained(options.model, dtype, device, options.numerics, options.weights)
    one_thread_if_small(model, options.threads)
    return model


def one_thread_if_small(model: GPT, asked_for: int | None) -> None:
    """Unless some number was asked for, a small model's products have no use for a second thread:
    they are over before it has begun."""
    if asked_for is None and sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)


def random_model(
    source: str,
    dtype: torch.dtype | None,
    device: torch.device,
    numerics: str,
    weights: str | None = None,
) -> GPT:
    """The model of "random:PRESET", in evaluation mode; its weights are the same every time."""
    config = GPTConfig.preset(source.removeprefix(RANDOM))
    count = sum(map(math.prod, config.tensors().values()))
    require_memory(count * (dtype or torch.float32).itemsize, device, source, MODEL_ADVICE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT(config, numerics).to(device, dtype or torch.float32)
    if weights == "int8":
        quantize(model)
    return model.eval()


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of what --model names; of a random model, the one its preset is made for."""
    if not source.startswith(RANDOM):
        return Tokenizer.from_pretrained(source)
    preset = source.removeprefix(RANDOM)
    return byte_tokenizer() if preset == "nano" else Tokenizer.from_pretrained(preset)


def tell_padding(model: GPT, tokenizer: Tokenizer) -> None:
    """Say, if so, that the model's vocabulary has ids without text."""
    ids = tokenizer.without_text(model.config.vocab_size)
    if ids:
        say(
            f"{counted(len(ids), 'id')} of the model's {model.config.vocab_size:,} have no text "
            f"(the first is {ids[0]}): they are never drawn"
        )


def load_draft(source: str, options: argparse.Namespace) -> str | GPT:
    """What --draft names: "lookup", or a model, which may be wrong and so runs in fast numerics."""
    if source == "lookup":
        return source
    device = checks.device_named(options.device)  # which `load` has told
    if source.startswith(RANDOM):
        return random_model(source, None, device, "fast")
    return GPT.from_pretrained(source, None, device, "fast")


def device_named(name: str) -> torch.device:
    """What --device names; "meta" has no numbers to run a command on.

    What "auto" has found is told, where it is not the CPU.
    """
    device = checks.device_named(name)
    if device.type == "meta":
        raise MinigptError(f"device {name!r} cannot be used here: it holds shapes without numbers")
    if name == checks.AUTO and device.type != "cpu":
        say(f"(on {device}, {torch.cuda.get_device_name(device)}; --device cpu for the CPU)")
    return device
