"""Attention of which the host knows no position: that of the formula, and of exact numerics."""

from __future__ import annotations

import pytest
import torch

from minigpt.numerics import device_attention
from minigpt.numerics.base import KEY_BLOCK, attend
from minigpt.numerics.device_attention import DeviceStarts, exactly, quickly
from minigpt.numerics.exact import ExactOps

H, D = 4, 16
LENGTHS = [[0], [5, 90], [63, 64], [3, 130, 127, 300]]


def starts_of(lengths: list[int], dtype: torch.dtype = torch.float32) -> DeviceStarts:
    blocks = sorted({length // KEY_BLOCK + 1 for length in lengths})
    numbers = torch.arange(6 * KEY_BLOCK)
    return DeviceStarts(blocks, torch.tensor(lengths), numbers, dtype)


def queries_and_keys(rows: int, heads: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, H, 1, D), (rows, heads, 6 * KEY_BLOCK, D), (rows, heads, 6 * KEY_BLOCK, D)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("attention", [quickly, exactly])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_is_the_formula(lengths, attention, heads):
    q, k, v = queries_and_keys(len(lengths), heads)
    got = attention(q, k, v, starts_of(lengths), 0.3)
    torch.testing.assert_close(got, attend(q, k, v, lengths, 0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_exactly_has_the_bits_of_exact_numerics(lengths, dtype):
    q, k, v = queries_and_keys(len(lengths), H, dtype)
    want = ExactOps().attention(q, k, v, lengths, 0.3, 0.0)
    assert torch.equal(exactly(q, k, v, starts_of(lengths, dtype), 0.3), want)


def test_exactly_gives_each_row_as_many_keys_as_its_position_says(monkeypatch):
    def number_of_keys(calls, q, k, v, mask, scale):
        return torch.full_like(q, k.shape[2])

    monkeypatch.setattr(device_attention, "_one_query", number_of_keys)
    lengths = [300, 3, 130, 127, 128]
    q, k, v = queries_and_keys(5, H)
    got = exactly(q, k, v, starts_of(lengths), 1.0)
    assert got[:, 0, 0, 0].tolist() == [320, 64, 192, 128, 192]


def test_exactly_takes_rows_one_by_one_where_a_batch_has_other_bits(monkeypatch):
    calls = device_attention.attention_calls

    def none_in_batches(shape):
        found = calls(shape)
        return found if shape.batch_size == 1 else found._replace(sizes=())

    q, k, v = queries_and_keys(3, H)
    starts = starts_of([3, 130, 40])
    want, rows, one_query = exactly(q, k, v, starts, 0.3), [], device_attention._one_query

    def counted(its, q, *rest):
        rows.append(len(q))
        return one_query(its, q, *rest)

    monkeypatch.setattr(device_attention, "attention_calls", none_in_batches)
    monkeypatch.setattr(device_attention, "_one_query", counted)
    assert torch.equal(exactly(q, k, v, starts, 0.3), want)
    assert rows == [1] * 6  # three rows, in each of two blocks


def test_a_cache_without_room_for_whole_blocks_is_read_as_one_with():
    q, k, v = queries_and_keys(2, H)
    starts = starts_of([260, 299])
    k[:, :, 300:], v[:, :, 300:] = 0, 0
    want = exactly(q, k, v, starts, 0.3)
    assert torch.equal(exactly(q, k[:, :, :300], v[:, :, :300], starts, 0.3), want)
    got = quickly(q, k[:, :, :300], v[:, :, :300], starts, 0.3)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
