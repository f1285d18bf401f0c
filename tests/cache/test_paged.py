"""Pages: who shares what, who copies, and when memory comes back."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def filled(exact, text):
    """20 positions in pages of 16: one full page, and 4 positions of another."""
    cache = exact.new_cache(kind="paged")
    exact(text(1, 20), cache=cache)
    return cache


def in_use(pool):
    return sum(owners > 0 for owners in pool.owners) - 1  # the page of zeros aside


def test_it_allocates_pages_as_it_grows(exact, text):
    cache = exact.new_cache(kind="paged")
    page = 16 * 768
    sizes = []
    for count in (1, 15, 1, 16):
        exact(text(1, count), cache=cache)
        sizes.append(cache.nbytes // page)
    assert sizes == [1, 1, 2, 3]


def test_forks_share_every_page_until_they_write(filled, exact, text):
    children = [filled.fork() for _ in range(16)]
    assert in_use(filled.pool) == 2
    assert all(child.tables == filled.tables for child in children)


def test_a_fork_that_writes_copies_one_page(filled, exact, text):
    child = filled.fork()
    exact(text(1, 1), cache=child)
    assert in_use(filled.pool) == 3
    assert child.tables[0][0] == filled.tables[0][0]
    assert child.tables[0][1] != filled.tables[0][1]


def test_whoever_writes_last_keeps_the_page(filled, exact, text):
    child = filled.fork()
    exact(text(1, 1), cache=child)
    before = filled.tables[0][1]
    exact(text(1, 1), cache=filled)
    assert filled.tables[0][1] == before
    assert in_use(filled.pool) == 3


def test_rows_expanded_from_one_share_its_pages(filled, exact, text):
    many = filled.expand(8)
    assert in_use(filled.pool) == 2
    exact(text(8, 1), cache=many)
    assert in_use(filled.pool) == 2 + 8


def test_pages_come_back_when_the_last_owner_is_dropped(filled, exact, text):
    child, pool = filled.fork(), filled.pool
    exact(text(1, 40), cache=child)
    held = in_use(pool)
    del child
    assert held == 2 + 3
    assert in_use(pool) == 2


def test_pages_come_back_after_truncate(filled):
    filled.truncate(16)
    assert in_use(filled.pool) == 1
    filled.reset()
    assert in_use(filled.pool) == 0


def test_truncating_inside_a_shared_page_leaves_the_others_text_alone(filled):
    child = filled.fork()
    keys = filled.layer(1)[0].clone()
    child.truncate(18)
    assert torch.equal(filled.layer(1)[0], keys)
    assert torch.equal(child.layer(1)[0], keys[:, :, :18])


def test_memory_of_many_forks_and_drops_is_flat(filled, exact, text):
    before = None
    for _ in range(50):
        child = filled.fork()
        exact(text(1, 30), cache=child)
        del child
        if before is None:
            before = filled.pool.nbytes
    assert filled.pool.nbytes == before


def test_a_pass_that_fails_gives_its_pages_back(filled, exact, text):
    def interrupt(*_):
        raise KeyboardInterrupt

    owners = list(filled.pool.owners)
    hook = exact.h[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        exact(text(1, 100), cache=filled)
    hook.remove()
    assert filled.pool.owners[: len(owners)] == owners
    assert in_use(filled.pool) == 2


def test_forks_of_a_long_text_take_a_small_part_of_their_copies(exact, text):
    cache = exact.new_cache(kind="paged")
    exact(text(1, 141), cache=cache)
    alone = cache.pool.nbytes
    children = [cache.fork() for _ in range(16)]
    assert cache.pool.nbytes == alone
    for child in children:
        exact(text(1, 1), cache=child)
    assert in_use(cache.pool) == 9 + 16


def test_numbers_of_a_broken_text_do_not_leak_into_the_next(exact, text):
    cache = exact.new_cache(kind="paged")
    exact(text(1, 60), cache=cache)
    cache.pool.data[:, :, :, 1:] = torch.nan
    cache.reset()
    assert torch.equal(exact(text(1, 70), cache=cache), exact(text(1, 70)))


@pytest.mark.parametrize("page", [1, 4, 64, 128, 192])
def test_pages_of_any_size_give_the_same_logits(exact, text, page):
    tokens = text(1, 150)
    cache = exact.new_cache(kind="paged", page=page)
    cached = [exact(part, cache=cache) for part in tokens.split([50, *[1] * 30, 40, 30], 1)]
    assert torch.equal(torch.cat(cached, 1), exact(tokens))
