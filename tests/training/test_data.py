"""What training data promises: each token once, whole caches, windows without state."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.support.errors import MinigptError
from minigpt.tokenizer import CharTokenizer, Tokenizer, byte_tokenizer
from minigpt.tokenizer_settings import Settings, Word
from minigpt.training import tokenizing
from minigpt.training.bpe import train_bpe
from minigpt.training.data import IGNORED, Corpus, draws, prepare, windows
from minigpt.training.documents import STORIES_SEED, read_documents
from minigpt.training.grammar import stories

EOT = 256  # of the byte tokenizer
SENTENCE = "The café is open.\n  Où? Là-bas!\r\n"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make_file(tmp_path):
    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.fixture
def book(make_file) -> Path:
    return make_file("book.txt", SENTENCE * 100)


def whole(corpus: Corpus) -> list[int]:
    return [*corpus.training.tolist(), *corpus.held_out.tolist()]


def texts(corpus: Corpus, part: np.ndarray) -> list[str]:
    """The documents of a part."""
    joined = corpus.tokenizer.decode(part)
    return [text for text in joined.split("<|endoftext|>") if text]


# --- every token, once ---


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:300"])
def test_both_parts_together_are_the_text(book, cache, tokenizer):
    corpus = prepare(book, tokenizer, cache)
    assert texts(corpus, corpus.training)[0] + texts(corpus, corpus.held_out)[0] == SENTENCE * 100


def test_a_tokenizer_that_is_there_is_used(book, cache):
    tokenizer = train_bpe([SENTENCE], 280)
    corpus = prepare(book, tokenizer, cache)
    ids = tokenizer.encode(SENTENCE * 100)
    assert whole(corpus) == [tokenizer.eot_token, *ids, tokenizer.eot_token]


def test_characters_have_ids_in_their_own_order(book, cache):
    corpus = prepare(book, "char", cache)
    assert corpus.tokenizer.decode(range(corpus.tokenizer.n_vocab - 1)) == "".join(
        sorted(set(SENTENCE))
    )


def test_tokens_take_two_bytes_each(book, cache):
    assert prepare(book, "byte", cache).training.dtype == np.uint16


def test_a_large_vocabulary_takes_four(make_file, cache):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) + "".join(
        map(chr, range(0x20000, 0x20000 + 46_000))
    )
    corpus = prepare(make_file("signs.txt", text), "char", cache)
    assert corpus.training.dtype == np.uint32
    assert corpus.tokenizer.decode(whole(corpus)[1:-1]) == text


def test_tokens_are_mapped_not_loaded(book, cache):
    assert isinstance(prepare(book, "byte", cache).training, np.memmap)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab'1!é🙂 \n\t\x1c\u3000", max_size=80),
    piece=st.integers(1, 9),
)
def test_pieces_have_the_tokens_of_the_whole_text(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("pieces") / "text.txt"
    path.write_bytes(text.encode())
    tokenizer = train_bpe(["!\x1c a'b \n\n ab  ab 11 \t\n \n"] * 9, 290)
    pieces = [p for document in read_documents(path, piece) for p in document]
    assert [i for p in pieces for i in tokenizer.encode(p)] == tokenizer.encode(text)


def test_a_text_without_a_white_space_is_read_in_pieces_all_the_same(make_file):
    path = make_file("long.txt", "é" * 3_000_000)
    document = next(read_documents(path))
    lengths = [len(piece) for piece in document]
    assert sum(lengths) == 3_000_000
    assert max(lengths) < 2_500_000


def test_bits_per_byte_count_the_bytes_of_the_held_out_text(make_file, cache):
    corpus = prepare(make_file("e.txt", "é" * 1000), "char", cache, held_out=0.2)
    assert corpus.held_out_bytes == 400
    assert corpus.bytes_per_token == pytest.approx(400 / 201)  # and the end of text


# --- documents ---


def test_a_folder_is_read_in_order_without_hidden_files(make_file, tmp_path, cache):
    for name, text in [("b.txt", "two"), ("a/z.txt", "one"), (".git/x", "no"), ("c.txt", "")]:
        make_file(f"folder/{name}", text)
    make_file("folder/d.jsonl", '{"text": "three"}\n\n{"text": "four", "more": 4}\n')
    corpus = prepare(tmp_path / "folder", "byte", cache, held_out=0.2)
    assert texts(corpus, corpus.training) == ["one", "two", "three"]
    assert texts(corpus, corpus.held_out) == ["four"]
    assert whole(corpus).count(EOT) == 6  # none for the empty file


def test_the_end_of_text_is_before_the_first_document_and_after_each(make_file, cache):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in "abc")
    corpus = prepare(make_file("lines.jsonl", lines), "byte", cache, held_out=0.3)
    assert corpus.training.tolist() == [EOT, 97, EOT, 98, EOT]
    assert corpus.held_out.tolist() == [EOT, 99, EOT]


DUMPS = {
    "a<|endoftext|>b": ["a", "b"],
    "a\n<|endoftext|>\nb\n<|endoftext|>\n": ["a", "b"],
    "<|endoftext|>\n\na\n\n<|endoftext|>": ["\na\n"],
    "a<|endoftext|><|endoftext|>b": ["a", "b"],
    "a <|endoftext b|> <|endo": ["a <|endoftext b|> <|endo"],
}


@pytest.mark.parametrize("text", DUMPS)
@pytest.mark.parametrize("piece", [1, 3, 2**20])
def test_an_end_of_text_in_a_text_file_parts_documents(make_file, text, piece):
    documents = read_documents(make_file("dump.txt", text), piece)
    assert [joined for d in documents if (joined := "".join(d))] == DUMPS[text]


def test_what_is_parted_is_tokenized_and_counted_as_documents(make_file, cache):
    dump = "\n<|endoftext|>\n".join(["one", "two", "three", "four"])
    corpus = prepare(make_file("dump.txt", dump), "byte", cache, held_out=0.2)
    assert corpus.documents == 4
    assert texts(corpus, corpus.training) == ["one", "two", "three"]
    assert texts(corpus, corpus.held_out) == ["four"]
    assert whole(corpus).count(EOT) == 6


def test_an_end_of_text_in_a_line_of_json_is_only_characters(make_file, cache):
    lines = json.dumps({"text": "a<|endoftext|>b" * 10})
    corpus = prepare(make_file("sly.jsonl", lines), "byte", cache)
    assert whole(corpus).count(EOT) == 2  # before and after


def test_a_tokenizer_whose_tokens_cross_words_is_given_whole_documents(make_file, cache):
    base = train_bpe(["a b"], 258)
    words = (Word("new york", 258),)
    tokenizer = Tokenizer(
        {bytes([b]): b for b in range(256)}, {"<|endoftext|>": 256}, Settings(words=words)
    )
    text = "x" * (2**20 - 3) + " new york"  # where a piece ends
    corpus = prepare(make_file("long.txt", text + " y z"), tokenizer, cache, held_out=1e-6)
    assert whole(corpus).count(258) == 1
    assert base.is_local and not tokenizer.is_local


def test_the_held_out_share_is_cut_where_it_is_closest(make_file, cache):
    lines = "".join(json.dumps({"text": "x" * 10}) + "\n" for _ in range(10))
    corpus = prepare(make_file("ten.jsonl", lines), "byte", cache, held_out=0.31)
    assert len(texts(corpus, corpus.held_out)) == 3


def test_a_single_document_is_cut_before_a_white_space(make_file, cache):
    corpus = prepare(make_file("one.txt", "word " * 99), "byte", cache, held_out=0.101)
    (tail,) = texts(corpus, corpus.held_out)
    assert tail.startswith(" word")


def test_stories_are_a_source(cache):
    corpus = prepare("stories:20", "byte", cache)
    found = texts(corpus, corpus.training) + texts(corpus, corpus.held_out)
    assert found == list(stories(STORIES_SEED, 20))


# --- the cached copy ---


def test_a_second_run_tokenizes_nothing(book, cache, monkeypatch):
    first = prepare(book, "char", cache)
    monkeypatch.setattr(tokenizing, "tokenize", None)  # calling it would be a TypeError
    assert whole(prepare(book, "char", cache)) == whole(first)


def test_the_tokenizer_comes_back_with_the_tokens(book, cache):
    prepare(book, "bpe:300", cache)
    corpus = prepare(book, "bpe:300", cache)
    ids = corpus.tokenizer.encode(SENTENCE * 100)
    assert whole(corpus)[1:-1] == ids


def test_an_edit_of_equal_size_and_time_is_seen(book, cache):
    prepare(book, "byte", cache)
    times = book.stat()
    book.write_bytes(book.read_bytes().replace(b"open", b"shut"))
    os.utime(book, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "shut" in texts(corpus := prepare(book, "byte", cache), corpus.training)[0]


def test_each_tokenizer_and_share_has_a_copy_of_its_own(book, cache):
    for tokenizer in ("char", "byte", train_bpe([SENTENCE], 260), train_bpe([SENTENCE], 259)):
        prepare(book, tokenizer, cache)
    prepare(book, "byte", cache, held_out=0.2)
    assert len(list(cache.iterdir())) == 5


SCRIPT = """
import hashlib, os, sys, time
from pathlib import Path
from minigpt.training.data import prepare
rename, here = os.rename, Path(sys.argv[2])
def rename_when_all_are_there(made, home):  # so that each has tokenized, and none is renamed yet
    if made.name == "corpus":
        here.with_name(f"here-{os.getpid()}").touch()
        while len(list(here.parent.glob("here-*"))) < int(sys.argv[3]):
            time.sleep(0.01)
    rename(made, home)
os.rename = rename_when_all_are_there
corpus = prepare(sys.argv[1], "char", here)
print(hashlib.sha256(corpus.training.tobytes() + corpus.held_out.tobytes()).hexdigest())
"""


def run_beside(book: Path, cache: Path, expected: int) -> subprocess.Popen:
    """A process that tokenizes, then waits until `expected` of them have, then renames."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(book), str(cache), str(expected)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_runs_that_start_at_once_both_succeed_and_leave_one_copy(book, cache):
    runs = [run_beside(book, cache, expected=2) for _ in range(2)]
    printed = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    corpus = prepare(book, "char", cache)
    tokens = corpus.training.tobytes() + corpus.held_out.tobytes()
    assert printed == [hashlib.sha256(tokens).hexdigest()] * 2
    assert [path.name[:4] for path in cache.iterdir()] == ["book"]


def test_a_run_that_is_killed_leaves_nothing_that_is_taken_for_a_copy(book, cache):
    run = run_beside(book, cache, expected=2)  # it waits for ever
    deadline = time.monotonic() + 120
    while not list(cache.parent.glob("here-*")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert [path.name[:8] for path in cache.iterdir()] == [".saving-"]
    corpus = prepare(book, "char", cache)
    assert len(whole(corpus)) == len(SENTENCE) * 100 + 2
    assert [path.name[:4] for path in cache.iterdir()] == ["book"]  # what it left is gone


def test_a_run_that_fails_leaves_nothing(make_file, cache):
    with pytest.raises(MinigptError):
        prepare(make_file("bad.jsonl", '{"text": "good"}\nbad\n'), "byte", cache)
    assert list(cache.iterdir()) == []


def test_a_damaged_copy_says_what_to_remove(book, cache):
    prepare(book, "byte", cache)
    (home,) = cache.iterdir()
    (home / "corpus.json").write_text("{")
    with pytest.raises(MinigptError, match=f"{home.name} cannot be read .+ remove that directory"):
        prepare(book, "byte", cache)


# --- windows ---


TEXT = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_tokens_that_follow():
    inputs, targets = windows(TEXT, 8, seed=0, step=0, rows=range(16))
    assert inputs.shape == targets.shape == (16, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


def test_rows_do_not_depend_on_who_shares_them():
    everyone = windows(TEXT, 8, 3, 5, range(12))[0]
    three = [windows(TEXT, 8, 3, 5, range(first, 12, 3))[0] for first in range(3)]
    assert torch.equal(torch.stack(three, dim=1).flatten(0, 1), everyone)


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_seeds_and_steps_have_other_windows(other):
    assert not torch.equal(
        windows(TEXT, 8, *other, range(9))[0], windows(TEXT, 8, 0, 0, range(9))[0]
    )


def test_windows_are_drawn_evenly_from_the_first_to_the_last():
    starts = windows(TEXT[:12], 8, 0, 0, range(4000))[0][:, 0]
    assert torch.bincount(starts).tolist() == pytest.approx([1000] * 4, rel=0.1)


def test_draws_never_change():
    expected = [16613338946343043936, 937349279089814987, 6065558222555597514]
    assert draws(seed=1, step=2, rows=[0, 1, 2**40]).tolist() == expected


DOCUMENTS = np.array([9, 1, 2, 3, 9, 4, 5, 9, *range(10, 40), 9], np.uint16)


def test_a_window_of_documents_begins_at_the_start_of_a_short_one():
    inputs, _ = windows(DOCUMENTS, 6, 0, 0, range(200), end_of_text=9)
    starts = {tuple(row[:2]) for row in inputs.tolist()}
    assert {(9, 1), (9, 4), (9, 10)} <= starts
    assert not starts & {(1, 2), (2, 3), (4, 5), (10, 11), (14, 15)}
    assert (15, 16) in starts  # the start of its document is more than a window away


def test_targets_of_later_documents_do_not_count():
    inputs, targets = windows(DOCUMENTS, 6, 0, 0, range(200), end_of_text=9)
    row = inputs[:, :2].tolist().index([9, 1])
    assert inputs[row].tolist() == [9, 1, 2, 3, 9, 4]
    assert targets[row].tolist() == [1, 2, 3, 9, IGNORED, IGNORED]


def test_without_boundaries_every_target_counts():
    assert (windows(DOCUMENTS, 6, 0, 0, range(200))[1] >= 0).all()


# --- mistakes ---


@pytest.mark.parametrize("content", ["", b"", "\n\n"])
def test_no_text_is_an_error(make_file, cache, content):
    with pytest.raises(MinigptError, match=r"is empty, needed some text"):
        prepare(make_file("empty.jsonl", content), "char", cache)


def test_an_empty_folder_is_an_error(tmp_path, cache):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MinigptError, match="nothing is empty, needed some text"):
        prepare(tmp_path / "nothing", "byte", cache)


def test_a_source_that_is_nothing_is_an_error(tmp_path, cache):
    with pytest.raises(MinigptError, match="there is no file or folder"):
        prepare(tmp_path / "nowhere", "byte", cache)


@pytest.mark.parametrize("piece", [3, 4, 2**20])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xf0\x9f"])
def test_bytes_that_are_no_utf8_are_named_by_their_place(make_file, bad, piece):
    path = make_file("latin.txt", "né h".encode() + bad)
    with pytest.raises(MinigptError, match=r"byte 5 of .+latin\.txt is no UTF-8"):
        for document in read_documents(path, piece):
            list(document)


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 2**20])
@pytest.mark.parametrize("text", ["one two", "a\ufeffb", "\ufeff\ufeff", "a"])
def test_the_mark_that_a_file_may_begin_with_is_no_text(make_file, text, piece):
    path = make_file("marked.txt", codecs.BOM_UTF8 + text.encode())
    assert "".join(p for document in read_documents(path, piece) for p in document) == text
    path = make_file("marked.jsonl", codecs.BOM_UTF8 + json.dumps({"text": text}).encode())
    assert ["".join(document) for document in read_documents(path)] == [text]


@pytest.mark.parametrize("name", ["texts.json", "texts.jsonl"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8 + b"\n "])
def test_a_json_array_is_told_from_lines(make_file, cache, name, mark):
    path = make_file(name, mark + b'[{"text": "one"},\n {"text": "two"}]')
    with pytest.raises(MinigptError, match=rf"{name} is a JSON array, needed text or a \.jsonl"):
        prepare(path, "byte", cache)


def test_json_that_is_no_array_is_text(make_file):
    documents = read_documents(make_file("one.json", '{"a": [1, 2]}'))
    assert ["".join(document) for document in documents] == ['{"a": [1, 2]}']


def test_a_picture_among_the_texts_is_named(make_file, tmp_path, cache):
    folder = make_file("texts/a.txt", "one two three").parent
    make_file("texts/b.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(MinigptError, match=r"byte 0 of .+b\.png is no UTF-8.+if it is no text"):
        prepare(folder, "byte", cache)


@pytest.mark.parametrize(
    "line", ["text", "[]", '{"txt": ""}', '{"text": 3}', b"\xff", '{"text": "\\ud800"}']
)
def test_a_line_that_is_no_object_with_a_text_is_named(make_file, cache, line):
    good = b'{"text": "good"}\n'
    path = make_file("lines.jsonl", good + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(MinigptError, match=r"line 2 of .+lines\.jsonl is not a JSON object"):
        prepare(path, "byte", cache)


@pytest.mark.parametrize("tokenizer", ["word", "bpe", "bpe:many", ""])
def test_an_unknown_tokenizer_names_the_known_ones(book, cache, tokenizer):
    with pytest.raises(MinigptError, match="needed 'char', 'byte', 'gpt2', or 'bpe:'"):
        prepare(book, tokenizer, cache)


def test_a_character_outside_the_vocabulary_is_named(book, cache):
    with pytest.raises(MinigptError, match="character 'T' is not among the 3"):
        prepare(book, CharTokenizer("abc"), cache)


@pytest.mark.parametrize("share", [0.0, 1.0, -1, float("nan")])
def test_a_share_that_leaves_nothing_is_an_error(book, cache, share):
    with pytest.raises(MinigptError, match="needed a share between 0 and 1"):
        prepare(book, "byte", cache, held_out=share)


def test_a_place_that_cannot_be_written_is_an_error(book, make_file):
    with pytest.raises(MinigptError, match="cannot be kept in"):
        prepare(book, "byte", make_file("taken", "a file"))


def test_less_than_one_window_is_an_error():
    with pytest.raises(
        MinigptError, match="the text has 8 tokens, needed more than one window of 8"
    ):
        windows(TEXT[:8], 8, 0, 0, range(1))


@pytest.mark.parametrize(
    ("training", "held_out", "message"),
    [
        (8, 9, "the training text has 8 tokens, needed more than one context of 8"),
        (9, 8, "the held-out text has 8 tokens"),
    ],
)
def test_a_corpus_smaller_than_one_context_is_refused(training, held_out, message):
    corpus = Corpus(byte_tokenizer(), TEXT[:training], TEXT[:held_out], 1)
    with pytest.raises(MinigptError, match=message):
        corpus.check(width=8, vocab_size=257)


def test_tokens_outside_the_models_vocabulary_are_refused():
    corpus = Corpus(byte_tokenizer(), TEXT[:100], TEXT[:100], 1)
    with pytest.raises(MinigptError, match=r"tokens up to 256 .+ make a model with vocab_size=257"):
        corpus.check(width=8, vocab_size=256)
