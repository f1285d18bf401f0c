"""Is there what `torch.compile` needs? Asked before a run, for it is told in 100 lines during one."""

from __future__ import annotations

import time
from functools import cache

import torch

from minigpt.support.errors import MinigptError


@cache
def require_compiler(device: torch.device) -> None:
    """Compile something small, as training will compile blocks: a few seconds, most of them imports.

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
