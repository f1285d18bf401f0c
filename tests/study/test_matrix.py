"""The invariance matrix: every cell is equal, and no row of it is blind to what it varies.

Here the small models in float32; the cells of all others are in `tests/system/test_matrix.py`.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from minigpt.numerics.base import KEY_BLOCK, set_ops
from minigpt.numerics.exact import ExactOps
from minigpt.study.matrix import (
    COLUMNS,
    DTYPES,
    POSITIONS,
    ROWS,
    WIDTHS,
    Column,
    cell,
    render,
    start,
)

TOY = Column(torch.float32, False, "toy")
GROUPED_TOY = Column(torch.float32, True, "toy")


@lru_cache(maxsize=1)
def ways_of(column):
    return start(column.model())


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", [TOY, GROUPED_TOY], ids=str)
def test_the_logits_are_equal_bit_for_bit(column, row):
    assert cell(ways_of(column), row) == "equal"


def test_the_columns_are_every_dtype_head_layout_and_width():
    assert {(c.dtype, c.grouped, c.width) for c in COLUMNS} == {
        (dtype, grouped, width) for dtype in DTYPES for grouped in (0, 1) for width in WIDTHS
    }
    assert len(COLUMNS) == 3 * 2 * 3


@pytest.mark.parametrize("column", COLUMNS[-3:], ids=str)
def test_a_column_is_a_model_of_its_kind(column):
    model = column.model()
    assert model.dtype == column.dtype
    assert (model.config.n_embd, model.config.n_head, model.config.kv_heads) == (1600, 25, 5)
    assert model.config.n_positions == POSITIONS > 2 * KEY_BLOCK
    assert model.numerics == "exact"


def test_making_a_column_leaves_the_users_random_numbers_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    TOY.model()
    assert torch.equal(torch.rand(3), want)


# What each row varies, as a condition on the arguments of an operation that it alone meets.
BROKEN = {
    "decoding one by one": ("linear", lambda x, *_: x.shape[1] == 1),
    "chunks of 2 to 128": ("linear", lambda x, *_: x.shape[1] == 17),
    "batches of 2 to 8, any place": ("linear", lambda x, *_: x.shape[0] == 5),
    "ragged rows": ("linear", lambda x, *_: x.shape[0] == 4),
    "kinds of cache": ("attention", lambda q, k, *_: k.shape[2] == 77),
    "threads 1, 2, 3, 5, 7, 8, 16": ("linear", lambda *_: torch.get_num_threads() == 7),
    "cache capacity": ("attention", lambda q, k, *_: k.shape[2] == 200),
    "prompt length at block edges": ("linear", lambda x, *_: x.shape[1] == 129),
    "context full": ("attention", lambda q, k, v, starts, *_: starts[0] == POSITIONS - 1),
}


def broken(row):
    """A toy model that differs only under what this row varies."""
    kind, when = BROKEN[row]

    def operation(self, *arguments):
        y = getattr(ExactOps, kind)(self, *arguments)
        return y * (1 + 1e-6) if when(*arguments) else y

    model = TOY.model()
    ops = type("Broken", (ExactOps,), {kind: operation})()
    set_ops(model, ops)
    return model


@pytest.mark.parametrize("row", ROWS)
def test_a_row_notices_a_difference_in_what_it_varies(row):
    unequal, of, compared, differ = cell(start(broken(row)), row).split()
    assert (of, differ) == ("of", "differ")
    assert 0 < int(unequal) <= int(compared)


def test_decoding_one_by_one_compares_every_position():
    row = "decoding one by one"
    assert cell(start(broken(row)), row) == f"{POSITIONS} of {POSITIONS} differ"


def test_threads_are_as_many_as_before(threads):
    threads(2)
    cell(ways_of(TOY), "threads 1, 2, 3, 5, 7, 8, 16")
    assert torch.get_num_threads() == 2


def test_what_cannot_be_computed_is_refused_with_the_reason():
    ways = ways_of(TOY)
    with torch.autocast("cpu", torch.bfloat16):
        got = cell(ways, "context full")
    assert got.startswith("refused: autocast picks a dtype call by call")


def test_a_model_that_gives_nan_is_refused():
    model = TOY.model(positions=20)
    with torch.no_grad():
        model.ln_f.bias.fill_(torch.nan)
    assert cell(start(model), "context full") == "refused: the model's logits are NaN"


class TestRender:
    @pytest.fixture
    def results(self):
        return {(row, str(column)): "equal" for column in COLUMNS for row in ROWS}

    def test_counts_the_equal_cells(self, results):
        assert render(results).splitlines()[-1] == "162 of 162 cells equal, bit for bit"

    def test_shows_every_cell(self, results):
        assert render(results).count(" equal") == 162 + 1  # and in the count
        assert all(str(column) in render(results) for column in COLUMNS)

    def test_shows_how_much_differs(self, results):
        results["ragged rows", "toy MHA float32"] = "32 of 2884 differ"
        lines = render(results).splitlines()
        row = next(line for line in lines if line.startswith("ragged rows"))
        assert row.split()[:6] == ["ragged", "rows", "32", "of", "2884", "differ"]
        assert set(row.split()[6:]) == {"equal"}
        assert lines[-1] == "161 of 162 cells equal, bit for bit"

    def test_gives_the_reason_of_a_refusal_once(self, results):
        for column in ("toy MHA float32", "toy GQA float32"):
            results["context full", column] = "refused: no such thing here"
        text = render(results)
        assert text.splitlines()[-2:] == [
            "refused: no such thing here", "160 of 162 cells equal, bit for bit",
        ]  # fmt: skip

    def test_fits_a_terminal(self, results):
        results["ragged rows", "toy MHA float32"] = "2884 of 2884 differ"
        results["context full", "XL GQA float16"] = f"refused: {'very ' * 50}long"
        lines = render(results).splitlines()
        assert max(len(line) for line in lines if not line.startswith("refused")) <= 100
