"""The diagnosis: with one operation broken on purpose, it names that operation and the reason."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from minigpt.numerics.base import row_modules
from minigpt.numerics.copies import pack
from minigpt.numerics.exact import ExactOps
from minigpt.study.diagnosis import diagnose

LENGTH = 30


def altered(kind, when):
    """Exact operations, one kind of which gives other bits when `when(its arguments)` says so."""

    def operation(self, *arguments):
        y = getattr(ExactOps, kind)(self, *arguments)
        return torch.nextafter(y, torch.tensor(torch.inf)) if when(*arguments) else y

    return type("Altered", (ExactOps,), {kind: operation})()


def few_rows(x, *_):
    return x.shape[1] < 4


def several_threads_and_rows(x, *_):
    return torch.get_num_threads() > 1 and x.shape[-2] > 1


def few_queries(q, *_):
    return q.shape[2] < 4


def few_keys(q, k, v, starts, *_):
    return starts[0] + q.shape[2] < 20


@pytest.fixture
def diagnosed(make_model, text):
    """diagnosed(kind, when, *names): the diagnosis when these layers' operations are altered."""

    def make(kind, when, *names):
        model = make_model(numerics="exact", n_layer=3)
        for name in names:
            model.get_submodule(name).ops = altered(kind, when)
        return diagnose(model, text(1, LENGTH))

    return make


def test_it_finds_nothing_where_nothing_differs(exact, text):
    assert diagnose(exact, text(1, LENGTH)) is None


@pytest.mark.parametrize(
    ("kind", "layer", "name"),
    [
        ("linear", "h.1.mlp.c_fc", "h.1.mlp.c_fc"),
        ("linear", "h.0.attn.c_attn", "h.0.attn.c_attn"),
        ("linear", "lm_head", "lm_head"),
        ("layer_norm", "h.2.ln_1", "h.2.ln_1"),
        ("layer_norm", "ln_f", "ln_f"),
        ("activation", "h.1.mlp", "h.1.mlp.activation"),
        ("attention", "h.1.attn", "h.1.attn"),
    ],
)
def test_it_names_the_operation_and_the_layer(diagnosed, kind, layer, name):
    found = diagnosed(kind, few_queries if kind == "attention" else few_rows, layer)
    assert (found.operation, found.kind) == (name, kind)
    assert (found.rows, found.unequal) == (LENGTH, LENGTH)
    assert 0 < found.max_difference < 1e-5


def test_of_several_it_names_the_first_in_the_order_of_the_pass(diagnosed):
    found = diagnosed("linear", few_rows, "lm_head", "h.2.attn.c_proj", "h.1.mlp.c_proj")
    assert found.operation == "h.1.mlp.c_proj"


def test_it_counts_the_operations_that_agreed(diagnosed):
    # In a layer: norm, product, attention, product, norm, product, activation, product.
    assert diagnosed("linear", few_rows, "h.0.attn.c_attn").operations_before == 1
    assert diagnosed("linear", few_rows, "h.1.mlp.c_fc").operations_before == 8 + 5
    assert diagnosed("layer_norm", few_rows, "h.0.ln_1").operations_before == 0


def test_it_counts_the_positions_that_differ(diagnosed):
    assert diagnosed("attention", few_keys, "h.1.attn").unequal == 19


@pytest.mark.parametrize("kind", ["linear", "layer_norm"])
def test_row_count_is_told_with_the_smallest_call_that_is_enough(diagnosed, kind):
    layer = {"linear": "h.1.mlp.c_fc", "layer_norm": "h.1.ln_2"}[kind]
    why, enough = diagnosed(kind, few_rows, layer).causes
    assert "row count: a call of 1 row runs another kernel than a call of 30 rows" in why
    assert "a call of 4 gives the same bits" in enough


@pytest.mark.parametrize(("number", "said"), [(1, False), (2, True)])
def test_with_several_threads_it_says_that_they_are_not_the_reason(
    diagnosed, threads, number, said
):
    threads(number)
    why = diagnosed("linear", few_rows, "h.1.mlp.c_fc").causes[0]
    assert ("on one thread as well" in why) is said


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("linear", "h.1.mlp.c_fc"), ("activation", "h.1.mlp"), ("attention", "h.1.attn")],
)
def test_a_thread_split_is_told_from_a_row_count(diagnosed, threads, kind, layer):
    threads(2)
    (why,) = diagnosed(kind, several_threads_and_rows, layer).causes
    assert why.startswith("thread split: with 2 threads")
    assert torch.get_num_threads() == 2


def test_query_count_is_told_with_the_smallest_call_that_is_enough(diagnosed):
    why, enough = diagnosed("attention", few_queries, "h.1.attn").causes
    assert "query count: over the same 30 keys, a call of one query" in why
    assert "a call of 4 gives the same bits" in enough


def test_key_count_is_told_from_query_count(diagnosed):
    (why,) = diagnosed("attention", few_keys, "h.1.attn").causes
    assert why.startswith("key count: a call over later keys as well")


@pytest.mark.skipif(pack(torch.zeros(16, 16)) is None, reason="torch has no packed products here")
def test_an_activation_in_the_product_before_it_is_named_where_it_alone_differs(make_model, text):
    model = make_model(n_embd=512, n_head=4, n_layer=1)
    attention, mlp = model.h[0].attn, model.h[0].mlp
    with torch.no_grad():  # products of one term each, whose bits no order of summing changes
        for zero in (attention.c_attn.weight, attention.c_attn.bias, attention.c_proj.weight):
            zero.zero_()
        mlp.c_fc.weight.copy_(torch.eye(512).repeat(1, 4))
    found = diagnose(model, text(1, LENGTH))
    assert (found.operation, found.kind) == ("h.0.mlp.activation", "activation")
    assert "a call of 1 row runs another kernel than a call of 30 rows" in found.causes[0]


def test_an_operation_that_is_not_steady_is_called_so(diagnosed):
    calls = count()
    (why,) = diagnosed("linear", lambda *_: next(calls) == 15, "h.1.mlp.c_fc").causes
    assert "the same call gave other bits twice" in why


def test_it_reads_as_lines_that_fit_a_terminal(diagnosed):
    lines = str(diagnosed("linear", few_rows, "h.1.mlp.c_fc")).splitlines()
    assert lines[0].startswith(
        "first to differ: h.1.mlp.c_fc (linear, 48 -> 192), at 30 of 30 positions, by up to"
    )
    assert sum(line.startswith("why: ") for line in lines) == 2
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize(
    ("layer", "kind", "sentence"),
    [
        ("h.0.ln_1", "layer_norm", "it is the first of all"),
        ("h.0.attn.c_attn", "linear", "the operation before it agrees"),
        ("h.0.attn.c_proj", "linear", "the 3 operations before it agree"),
    ],
)
def test_it_says_how_much_agreed_before(diagnosed, layer, kind, sentence):
    assert sentence in " ".join(str(diagnosed(kind, few_rows, layer)).split())


def test_dropout_is_off_and_the_mode_is_as_it_was(make_model, text):
    model = make_model(numerics="exact", resid_pdrop=0.5).train()
    assert diagnose(model, text(1, 10)) is None
    assert model.training


def test_the_model_is_left_as_it_was_when_an_operation_fails(exact, text):
    calls = count()

    def fail(*_):
        if next(calls) == 20:
            raise KeyboardInterrupt
        return False

    exact.h[1].mlp.c_fc.ops = altered("linear", fail)
    before = {name: module.ops for name, module in row_modules(exact)}
    with pytest.raises(KeyboardInterrupt):
        diagnose(exact, text(1, LENGTH))
    assert {name: module.ops for name, module in row_modules(exact)} == before
