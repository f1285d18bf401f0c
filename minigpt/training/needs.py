"""What a run needs of the machine, asked before it begins: room, and a compiler if it compiles."""

from __future__ import annotations

import time
from functools import cache

import torch

from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.support.memory import require_memory

BYTES_OF_A_PARAMETER = 16  # itself, its gradient and AdamW's two moments, in float32


def require_room(model: GPT, device: torch.device, parts: int) -> None:
    """Refuse weights whose training does not fit, whatever the batch.

    Args:
        parts: devices that the weights are shared out to.
    """
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    require_memory(
        BYTES_OF_A_PARAMETER * count // parts,
        device,
        f"training {count:,} parameters (before what a batch takes)",
        "take a smaller model, another device, or shard it over several",
    )


@cache
def require_compiler(device: torch.device) -> None:
    """Compile something small, as training will compile blocks: a few seconds, mostly imports.

    Raises:
        MinigptError: where that fails: no C++ compiler, on a GPU no Triton, a platform without.
    """
    new = time.time_ns() / 1e9  # a number that was never compiled in, so that nothing is cached
    try:
        torch.compile(lambda x: x * new)(torch.zeros(1, device=device))
    except Exception as error:  # many kinds, by what is missing, and by version
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        needed = (
            "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        )
        raise MinigptError(
            f"compile does not work here ({reason}), needed {needed}: install it, or leave out "
            f"compile"
        ) from error
