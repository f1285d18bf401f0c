"""Long texts: the same tokens on all cores, when killed and resumed, packed or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from minigpt.support.errors import MinigptError
from minigpt.training import tokenizing
from minigpt.training.data import Corpus, prepare
from minigpt.training.grammar import stories
from minigpt.training.tokenizing import shared_tokenizer

TEXT = "\n<|endoftext|>\n".join(stories(1, 120))


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def large(monkeypatch):
    """A text of some kilobytes is a large one, in dozens of shares."""
    monkeypatch.setattr(tokenizing, "LARGE", 1)
    monkeypatch.setattr(tokenizing, "SHARE", 1000)
    monkeypatch.setattr(tokenizing, "KEEP_EVERY", 4)


def same(one: Corpus, two: Corpus) -> bool:
    return (
        np.array_equal(one.training, two.training)
        and np.array_equal(one.held_out, two.held_out)
        and one.held_out_bytes == two.held_out_bytes
        and one.documents == two.documents == 120
    )


def test_all_cores_make_the_tokens_of_one(text, tmp_path, large, monkeypatch):
    shared = prepare(text, "byte", tmp_path / "shared")
    monkeypatch.setattr(tokenizing, "LARGE", 10**9)
    assert same(prepare(text, "byte", tmp_path / "alone"), shared)


class TestALargeTextWhoseTokenizingIsStopped:
    @pytest.fixture
    def work(self, large, monkeypatch):
        """The shares that were encoded, here and not in other processes; the 11th stops it."""
        done: list[int] = []
        encode = tokenizing._encode

        def counted(*arguments):
            done.append(1)
            if len(done) == 11:
                raise KeyboardInterrupt
            return encode(*arguments)

        monkeypatch.setattr(tokenizing, "_encode", counted)
        monkeypatch.setattr(tokenizing, "_on_all_cores", map)
        return done

    def test_goes_on_from_the_last_shares_that_were_kept(self, text, tmp_path, work):
        with pytest.raises(KeyboardInterrupt):
            prepare(text, "bpe:300", tmp_path / "cache")
        resumed = prepare(text, "bpe:300", tmp_path / "cache")
        again = len(work) - 11
        work[:] = [1] * 20
        whole = prepare(text, "bpe:300", tmp_path / "other")
        assert same(resumed, whole)
        assert again == len(work) - 20 - 8  # all but two times four
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_begins_anew_where_what_was_kept_is_damaged(self, text, tmp_path, work):
        with pytest.raises(KeyboardInterrupt):
            prepare(text, "byte", tmp_path / "cache")
        [kept] = (tmp_path / "cache").iterdir()
        (kept / "training.bin").write_bytes(b"")
        resumed = prepare(text, "byte", tmp_path / "cache")
        work[:] = [1] * 20
        assert same(resumed, prepare(text, "byte", tmp_path / "other"))


class TestAPackedFile:
    def test_is_read_as_what_is_in_it(self, text, tmp_path):
        packed = tmp_path / "text.txt.gz"
        packed.write_bytes(gzip.compress(text.read_bytes()))
        one, two = (prepare(path, "byte", tmp_path / "cache") for path in (text, packed))
        assert same(one, two)

    def test_may_hold_lines_of_json(self, tmp_path):
        packed = tmp_path / "lines.jsonl.gz"
        packed.write_bytes(gzip.compress(b'{"text": "one two"}\n{"text": "three"}\n'))
        assert prepare(packed, "byte", tmp_path / "cache").documents == 2

    @pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"\0" + b, lambda b: b[:20]])
    def test_that_is_damaged_is_told(self, text, tmp_path, damage):
        packed = tmp_path / "text.gz"
        packed.write_bytes(damage(gzip.compress(text.read_bytes())))
        with pytest.raises(MinigptError, match="text.gz is not a whole gzip file"):
            prepare(packed, "byte", tmp_path / "cache")


class TestATokenizerOfSeveralSources:
    @pytest.mark.parametrize("kind", ["char", "bpe:300"])
    def test_knows_what_is_in_any_of_them(self, tmp_path, kind):
        for name, content in (("a", "abc " * 50), ("b", "xyz§ " * 50)):
            (tmp_path / name).write_text(content, encoding="utf-8")
        tokenizer = shared_tokenizer([str(tmp_path / n) for n in "ab"], kind, tmp_path / "cache")
        assert tokenizer.decode(tokenizer.encode("cab zyx§")) == "cab zyx§"
        if kind != "char":
            assert len(tokenizer.encode("abc")) == len(tokenizer.encode("xyz")) == 1

    def test_is_learned_once(self, text, tmp_path, monkeypatch):
        one = shared_tokenizer([str(text)], "bpe:300", tmp_path / "cache")
        monkeypatch.setattr(tokenizing, "train_bpe", None)  # calling it would be a TypeError
        assert shared_tokenizer([str(text)], "bpe:300", tmp_path / "cache").fingerprint == (
            one.fingerprint
        )
