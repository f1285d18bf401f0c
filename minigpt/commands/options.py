"""What several commands share: choosing a model and a device, and talking on stderr."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import torch

from minigpt.model import GPT
from minigpt.numerics import NUMERICS
from minigpt.support import checks
from minigpt.support.errors import MinigptError

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subcommands = object

SMALL = 10_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_options(command: argparse.ArgumentParser, model: str = "weights/toy") -> None:
    command.add_argument(
        "--model", default=model, metavar="SOURCE",
        help=f"directory, or a name such as gpt2 (default {model})",
    )  # fmt: skip
    command.add_argument("--numerics", choices=NUMERICS, default="exact", help="(default exact)")
    command.add_argument("--dtype", choices=DTYPES, help="default: what the checkpoint has")
    command.add_argument(
        "--weights", choices=["int8"], help="8-bit weights: quicker and smaller, other logits"
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps, ... (default cpu)")
    command.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default all; 1 for small models)"
    )


def load(options: argparse.Namespace) -> GPT:
    """The model that --model, --dtype, --weights, --device and --numerics name."""
    dtype = DTYPES[options.dtype] if options.dtype else None
    model = GPT.from_pretrained(
        options.model, dtype, device_named(options.device), options.numerics, options.weights
    )
    if options.threads is None and sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)  # its products are over before a second thread has begun
    return model


def load_draft(source: str, options: argparse.Namespace) -> str | GPT:
    """What --draft names: "lookup", or a model, which may be wrong and so runs in fast numerics."""
    if source == "lookup":
        return source
    return GPT.from_pretrained(source, None, device_named(options.device), "fast")


def device_named(name: str) -> torch.device:
    """What --device names; "meta" has no numbers to run a command on."""
    device = checks.device_named(name)
    if device.type == "meta":
        raise MinigptError(f"device {name!r} cannot be used here: it holds shapes without numbers")
    return device


def say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)


def status(line: str) -> None:
    """A line that the next one overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
