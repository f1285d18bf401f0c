"""verify: yes where it is so, no with figures where it is not, and NaN is neither."""

from __future__ import annotations

import json

import pytest
import torch

from minigpt import MinigptError, verify
from minigpt.numerics.base import set_ops
from minigpt.numerics.exact import ExactOps
from minigpt.study.ways import FARTHEST, Check, ulp_distance

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class FewRowsDiffer(ExactOps):
    """Products of fewer than 4 rows come out a little larger; nothing else depends on anything."""

    name = "broken"

    def linear(self, x, weight, bias, packed):
        y = super().linear(x, weight, bias, packed)
        return y * (1 + 2e-6) if x.shape[1] < 4 else y


class BatchesDiffer(ExactOps):
    """The same, for batches instead."""

    name = "broken"

    def linear(self, x, weight, bias, packed):
        y = super().linear(x, weight, bias, packed)
        return y * (1 + 2e-6) if x.shape[0] > 1 else y


@pytest.fixture
def running(make_model):
    """running(ops): the small model with these row operations."""

    def make(ops):
        model = make_model()
        set_ops(model, ops)
        return model

    return make


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [{}, {"n_kv_head": 1}])
def test_exact_numerics_are_found_equal(make_model, dtype, heads):
    report = verify(make_model(numerics="exact", dtype=dtype, **heads))
    assert report.equal is True
    assert report.diagnosis is None
    assert all(check.compared > 0 for check in report.checks)


def test_every_way_of_computing_is_checked(exact):
    report = verify(exact, list(range(140)))
    edges = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 139, 140]
    assert {check.name: check.compared for check in report.checks} == {
        "decoding one by one": 140,
        "random chunks": 3 * 140,
        "prompts of every edge length": len(edges) * 3 - 3,  # at most three new tokens after each
        "uncached prefixes": sum(edges),
        "one row of a batch of 4": 2 * 140,
        "after truncate": report.checks[5].compared,  # from where is random
        "after fork": 70,
        "growing and paged caches": 2 * 140,
        "rows at different positions": report.checks[8].compared,  # as far as the context goes
    }
    assert report.positions == 140
    assert report.comparisons == sum(check.compared for check in report.checks)


class TestADifference:
    @pytest.fixture
    def report(self, running):
        return verify(running(FewRowsDiffer()), list(range(40)))

    def test_is_reported(self, report):
        assert report.equal is False

    def test_is_counted(self, report):
        one_by_one = report.checks[0]
        assert one_by_one.unequal == one_by_one.compared == 40
        assert one_by_one.first == 0

    def test_is_only_where_it_is(self, report):
        by_name = {check.name: check for check in report.checks}
        # Prefixes of 1, 2 and 3 positions are the only ones with fewer than 4 rows.
        assert by_name["uncached prefixes"].unequal == 1 + 2 + 3
        assert by_name["uncached prefixes"].first == 0

    def test_has_a_size_in_value_and_in_units_in_the_last_place(self, report):
        worst = report.checks[0]
        assert 1e-7 < worst.max_difference < 1e-3
        assert 1 < worst.median_ulp < 1000

    def test_is_diagnosed(self, report):
        assert report.diagnosis.operation == "h.0.attn.c_attn"
        assert "row count" in report.diagnosis.causes[0]

    def test_is_told_in_words(self, report):
        text = str(report)
        unequal = sum(check.unequal for check in report.checks)
        assert f"logits equal: no, {unequal:,} of {report.comparisons:,} comparisons" in text
        assert "first to differ: h.0.attn.c_attn" in text


def test_a_difference_that_only_batches_have_names_no_operation(running):
    report = verify(running(BatchesDiffer()), list(range(20)))
    unequal = {check.name for check in report.checks if check.unequal}
    assert unequal == {"one row of a batch of 4", "rows at different positions"}
    assert report.diagnosis is None
    assert "there is no operation to name" in str(report)


def test_a_changed_greedy_choice_is_counted():
    check = Check("by hand")
    want = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0]])
    check.compare(torch.tensor([[1.0, 2.0], [2.5, 2.0], [3.5, 2.0]]), want, start=10)
    assert (check.compared, check.unequal, check.greedy_changed, check.first) == (3, 2, 1, 11)
    assert check.max_difference == 1.5


def test_one_unequal_position_in_a_million_is_not_equal():
    check = Check("by hand", compared=10**6, unequal=1)
    assert check.equal is False
    check.unequal = 0
    assert check.equal is True


def test_the_median_distance_is_over_all_unequal_logits():
    check = Check("by hand")
    one = torch.tensor(1.0)
    near = one + torch.finfo(torch.float32).eps * torch.arange(8)  # 0, 1, ..., 7 units from 1
    check.compare(near[None, :4], one.expand(1, 4))  # 1, 2, 3
    check.compare(near[None, 4:], one.expand(1, 4))  # 4, 5, 6, 7
    assert check.median_ulp == 4


def test_a_logit_near_zero_does_not_spoil_the_median():
    check = Check("by hand")
    want = torch.tensor([[1.0, 2.0, 1e-9]])
    check.compare(torch.nextafter(want, torch.tensor(9.0)) - torch.tensor([0, 0, 2e-9]), want)
    assert check.median_ulp == 1
    lone = Check("by hand")
    lone.compare(torch.tensor([[-1e-9]]), torch.tensor([[1e-9]]))
    assert lone.median_ulp == FARTHEST


def test_nan_is_reported_as_nan_and_not_as_a_mismatch(exact):
    with torch.no_grad():
        exact.wpe.weight[150:, 0] = torch.nan
    report = verify(exact, [1] * 160)
    assert report.nan_positions == exact(torch.ones(1, 160).long()).isnan().any(-1).sum() > 0
    assert report.equal is False
    assert report.checks == []
    assert report.diagnosis is None
    assert f"cannot say, the model gives NaN at {report.nan_positions} of 160" in str(report)


def test_a_check_that_compared_nothing_is_not_equal():
    assert not Check("nothing").equal


def test_the_text_can_be_a_list_or_a_row(exact, text):
    tokens = text(1, 20)
    texts = [tokens[0].tolist(), tokens[0], tokens]
    assert len({str(verify(exact, given)) for given in texts}) == 1


def test_random_tokens_fit_a_short_context(make_model):
    assert verify(make_model(numerics="exact", n_positions=9)).positions == 9


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([], "has 0 tokens, needed 2 to 160"),
        ([5], "has 1 token, needed 2 to 160"),
        ([5] * 161, "has 161 tokens, needed 2 to 160"),
        ([5, 211], "token 211 is outside the vocabulary"),
        ([0.5, 1.5], "tokens are torch.float32"),
        (["a", "b"], "needed a list of token ids"),
        (torch.zeros(2, 3, dtype=torch.long), "shape \\(2, 3\\), needed the tokens of one text"),
        (torch.tensor(3), "shape \\(\\), needed the tokens of one text"),
    ],
)
def test_a_text_that_cannot_be_checked_is_refused(exact, ids, sentence):
    with pytest.raises(MinigptError, match=sentence):
        verify(exact, ids)


def test_the_model_is_evaluated_and_then_as_it_was(make_model):
    model = make_model(numerics="exact", resid_pdrop=0.5).train()
    assert verify(model, [1, 2, 3]).equal
    assert all(module.training for module in model.modules())


def test_progress_names_every_check(exact):
    names = []
    report = verify(exact, [1, 2, 3], progress=names.append)
    assert names[1:] == [check.name for check in report.checks]


def test_the_same_seed_makes_the_same_report(exact):
    assert str(verify(exact, seed=3)) == str(verify(exact, seed=3))


@pytest.mark.parametrize("equal", [True, False])
def test_the_report_is_json(exact, running, equal):
    model = exact if equal else running(FewRowsDiffer())
    report = verify(model, [1, 2, 3, 4, 5])
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["equal"] is equal
    assert read["comparisons"] == report.comparisons
    assert read["checks"][0]["name"] == "decoding one by one"
    assert read["checks"][0]["median_ulp"] == report.checks[0].median_ulp
    assert (read["diagnosis"] is None) is equal


class TestTheTable:
    def test_ends_with_the_answer(self, exact):
        report = verify(exact)
        assert str(report).endswith(
            f"logits equal: yes, bit for bit (160 positions, {report.comparisons:,} comparisons)"
        )

    def test_fits_a_terminal(self, running):
        lines = str(verify(running(FewRowsDiffer()), [1] * 40)).splitlines()
        assert max(map(len, lines)) <= 90

    def test_keeps_its_columns_apart_whatever_the_numbers(self, exact, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")
        report = verify(exact, [1, 2, 3])
        for check in report.checks:
            check.compared = check.unequal = 10**12
            check.median_ulp, check.max_difference = FARTHEST, 1.2e-38
        rows = str(report).splitlines()[3 : 3 + len(report.checks)]
        for check, row in zip(report.checks, rows, strict=True):
            numbers = row.removeprefix(f"  {check.name}").split()
            assert numbers == ["1,000,000,000,000", "1,000,000,000,000", "65,535", "1.2e-38"]


class TestUlpDistance:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_counts_steps_from_one_number_to_the_next(self, dtype):
        values = torch.tensor([1.0, -1.0, 0.1, 2.0, 100.0], dtype=dtype)
        steps = values
        for distance in range(4):
            assert ulp_distance(steps, values).tolist() == [distance] * 5
            steps = torch.nextafter(steps, torch.full_like(steps, 1000))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_counts_through_zero(self, dtype):
        smallest = torch.tensor([1], dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
        smallest = smallest.view(dtype)  # the number after 0
        assert ulp_distance(smallest, -smallest).item() == 2
        assert ulp_distance(-smallest, torch.zeros(1, dtype=dtype)).item() == 1

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_0_between_the_two_zeros(self, dtype):
        zero = torch.zeros(1, dtype=dtype)
        assert ulp_distance(zero, -zero).item() == 0

    @pytest.mark.parametrize(
        ("dtype", "steps"), [(torch.float32, 2**23), (torch.bfloat16, 2**7), (torch.float16, 2**10)]
    )
    def test_is_all_of_the_mantissa_from_1_to_2(self, dtype, steps):
        one = torch.ones(1, dtype=dtype)
        assert ulp_distance(one, 2 * one).item() == ulp_distance(-2 * one, -one).item() == steps

    def test_does_not_depend_on_the_order_or_the_layout(self):
        a, b = torch.randn(2, 5, 4)
        assert torch.equal(ulp_distance(a, b), ulp_distance(b, a))
        assert torch.equal(ulp_distance(a.T, b.T), ulp_distance(a, b).T)


def test_one_thread_is_told_in_the_singular(exact, threads):
    threads(1)
    assert ", 1 thread, 12 positions" in str(verify(exact, list(range(12))))
    threads(2)
    assert ", 2 threads, 12 positions" in str(verify(exact, list(range(12))))
