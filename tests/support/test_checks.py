"""Numbers: what counts as one, numpy's too, and the sentence for what does not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from minigpt import MinigptError
from minigpt.support.checks import is_number, is_whole, whole


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), 5 + 2**70])
def test_whole_numbers_may_be_numpys(value):
    assert is_whole(value)
    found = whole("n", value)
    assert type(found) is int
    assert found == value


@pytest.mark.parametrize("value", [True, np.True_, 5.0, "5", None, np.float64(5), [5]])
def test_what_only_looks_like_a_whole_number_is_none(value):
    assert not is_whole(value)
    with pytest.raises(MinigptError, match="^n is .*, needed a whole number of at least 1$"):
        whole("n", value)


@pytest.mark.parametrize("value", [0.7, np.float32(0.7), np.float16(1), 3, np.int32(3), 2**62])
def test_numbers_may_be_numpys(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [False, np.False_, "1", None, 1j, Fraction(1, 2), 2**63])
def test_what_no_tensor_could_hold_is_no_number(value):
    assert not is_number(value)


@pytest.mark.parametrize(
    ("limits", "value", "sentence"),
    [
        ((), 0, "n is 0, needed a whole number of at least 1"),
        ((0,), -1, "n is -1, needed a whole number of at least 0"),
        ((0, 9), 10, "n is 10, needed a whole number from 0 to 9"),
        ((0, 2**63 - 1), -1, "n is -1, needed a whole number from 0 to 2**63 - 1"),
        ((1, 4, "it has 4 rows"), 5, "n is 5, needed a whole number from 1 to 4: it has 4 rows"),
    ],
)
def test_a_whole_number_out_of_its_limits_is_told_with_them(limits, value, sentence):
    with pytest.raises(MinigptError) as told:
        whole("n", value, *limits)
    assert str(told.value) == sentence
