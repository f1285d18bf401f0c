"""The rest of the invariance matrix: wide models and half precision.

What is small and in float32, and whether the matrix sees anything at all, is in
`tests/study/test_matrix.py`.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from minigpt.numerics import certificates
from minigpt.numerics.base import KEY_BLOCK
from minigpt.study import matrix
from minigpt.study.matrix import COLUMNS, POSITIONS, ROWS, cell, start

# One key block and the start of a second are enough for the wide ones here, and three times as
# quick; `minigpt verify --matrix` takes all of them over three blocks.
POSITIONS_OF = {"toy": POSITIONS, "124M": 2 * KEY_BLOCK + 4, "XL": 2 * KEY_BLOCK + 4}
HERE = [column for column in COLUMNS if (column.width, column.dtype) != ("toy", torch.float32)]


@pytest.fixture(autouse=True)
def certificates_for_calls_that_are_made(column, monkeypatch):
    """A processor without float16 takes minutes to certify wide calls that no text here needs."""
    if column.dtype == torch.float16 and column.width != "toy":
        sizes = tuple(size for size in certificates.SIZES if size <= KEY_BLOCK)
        monkeypatch.setattr(certificates, "SIZES", sizes)


@pytest.fixture(autouse=True)
def fewer_threads_for_the_widest(column, monkeypatch):
    """Each number of threads is a place with certificates of its own: a minute for all seven."""
    if column.width == "XL":
        monkeypatch.setattr(matrix, "THREADS", (1, 2, 5))


@lru_cache(maxsize=1)
def ways_of(column):
    return start(column.model(positions=POSITIONS_OF[column.width]))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", HERE, ids=str)
def test_the_logits_are_equal_bit_for_bit(column, row):
    assert cell(ways_of(column), row) == "equal"
