"""What the system tells of memory follows what is done."""

from __future__ import annotations

import pytest
import torch

from minigpt.support import memory


def test_memory_in_use_grows_with_what_is_held():
    before = memory.process_memory()
    if before is None:
        pytest.skip("this system does not tell")
    held = torch.ones(2**24)  # 64 MiB
    assert memory.process_memory() - before > 0.9 * held.nbytes
    now = memory.process_memory()
    assert memory.process_memory(peak=True) >= now
    assert memory.available_memory(torch.device("cpu")) > 0
