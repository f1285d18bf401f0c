"""What the limits read and multiply is what they are said to."""

from __future__ import annotations

import pytest
import torch

from minigpt.bench.machine import prepare_read


@pytest.mark.parametrize("nbytes", [400_000, 5_340_000, 2**25])
def test_as_many_bytes_are_read_as_often_as_asked(nbytes, monkeypatch):
    read, product = [], torch.mv

    def counted(matrix, vector):
        read.append(matrix.nbytes)
        return product(matrix, vector)

    monkeypatch.setattr(torch, "mv", counted)
    prepare_read(torch.device("cpu"), nbytes, times=3)()
    assert sum(read) == pytest.approx(3 * nbytes, rel=1e-3)
    assert len(read) == 3
