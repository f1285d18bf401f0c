"""What the tokenizer promises: GPT-2's tokens exactly, whole characters, and plain errors.

GPT-2's own vocabulary is read from the directory in MINIGPT_GPT2_VOCAB (vocab.json, merges.txt) and
from tiktoken's cache in TIKTOKEN_CACHE_DIR; tests that need one that is not set are skipped.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.support.errors import MinigptError
from minigpt.tokenizer import (
    END_OF_TEXT,
    CharTokenizer,
    Tokenizer,
    byte_tokenizer,
)
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories
from tests.helpers import SCRIPTS


def directory_of(variable: str, *needed: str) -> str:
    path = os.environ.get(variable, "")
    if not path or not all(Path(path, name).is_file() for name in needed):
        pytest.skip(f"{variable} is not set to a directory with GPT-2's vocabulary")
    return path


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.from_pretrained(directory_of("MINIGPT_GPT2_VOCAB", "vocab.json", "merges.txt"))


@pytest.fixture(scope="module")
def gpt2_by_name() -> Tokenizer:
    directory_of("TIKTOKEN_CACHE_DIR")
    return Tokenizer._gpt2()  # not what may lie in weights/


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(stories(seed=0, count=200))


@pytest.fixture(scope="module")
def toy(texts) -> Tokenizer:
    return train_bpe(texts, vocab_size=512)


@pytest.fixture
def toy_directory(toy, tmp_path) -> Path:
    toy.save_pretrained(tmp_path)
    return tmp_path


def edit_vocab(directory: Path, change) -> None:
    path = directory / "vocab.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(vocab)), encoding="utf-8")


# --- GPT-2's tokens ---


def test_hello_world_has_the_published_tokens(gpt2):
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]


def test_gpt2_has_50257_tokens_and_ends_text_with_the_last(gpt2):
    assert (gpt2.n_vocab, gpt2.eot_token) == (50257, 50256)


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_name_and_the_files_give_the_same_tokens(gpt2, gpt2_by_name, text):
    assert gpt2.encode(text) == gpt2_by_name.encode(text)


def test_the_name_and_the_files_give_the_same_bytes_for_every_token(gpt2, gpt2_by_name):
    everything = range(gpt2.n_vocab)
    assert [gpt2.decode_bytes([i]) for i in everything] == [
        gpt2_by_name.decode_bytes([i]) for i in everything
    ]


@pytest.mark.parametrize("name", ["openai-community/gpt2", "gpt2-xl", "distilgpt2"])
def test_other_sizes_have_the_same_vocabulary(gpt2_by_name, name):
    assert Tokenizer.from_pretrained(name).encode(SCRIPTS[0]) == gpt2_by_name.encode(SCRIPTS[0])


def test_saved_gpt2_files_are_the_original_files(gpt2, gpt2_by_name, tmp_path):
    original = Path(os.environ["MINIGPT_GPT2_VOCAB"])
    gpt2_by_name.save_pretrained(tmp_path)  # from ids alone: the merges have to be worked out
    merges = (original / "merges.txt").read_text(encoding="utf-8")
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8") == merges
    vocab = json.loads((original / "vocab.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocab


# --- the same as transformers ---


@pytest.mark.parametrize("text", SCRIPTS)
def test_transformers_reads_the_saved_files_to_the_same_tokens(toy, toy_directory, text):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(toy_directory))
    assert theirs(text)["input_ids"] == toy.encode(text)


def test_transformers_reads_stories_to_the_same_tokens(toy, toy_directory):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(toy_directory))
    text = END_OF_TEXT.join(stories(seed=9, count=20))
    assert theirs(text)["input_ids"] == toy.encode(text, allow_special=True)


def test_what_transformers_saves_is_read_to_the_same_tokens(toy, toy_directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(toy_directory))
    theirs.save_pretrained(str(tmp_path / "theirs"))  # from version 5 on: a tokenizer.json only
    again = Tokenizer.from_pretrained(tmp_path / "theirs")
    assert [again.encode(text) for text in SCRIPTS] == [toy.encode(text) for text in SCRIPTS]


# --- there and back ---


@pytest.mark.parametrize("text", SCRIPTS)
def test_decode_undoes_encode_in_every_script(toy, text):
    assert toy.decode(toy.encode(text)) == text


@given(text=st.text())
def test_decode_undoes_encode(toy, text):
    assert toy.decode(toy.encode(text)) == text


@given(text=st.text(alphabet=" \n\t'aeiouTHst.,!1🙂é"))
def test_decode_undoes_gpt2_encode(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


@given(data=st.data())
def test_decode_bytes_joins_the_bytes_of_single_tokens(toy, data):
    tokens = data.draw(st.lists(st.integers(0, toy.n_vocab - 1)))
    assert toy.decode_bytes(tokens) == b"".join(toy.decode_bytes([i]) for i in tokens)


def test_half_a_character_decodes_to_the_replacement_character(toy):
    assert toy.decode(toy.encode("é")[:1]) == "\ufffd"


def test_saving_and_loading_changes_nothing(toy, toy_directory):
    again = Tokenizer.from_pretrained(toy_directory)
    assert [again.encode(text) for text in SCRIPTS] == [toy.encode(text) for text in SCRIPTS]


def test_saving_leaves_two_files_and_no_temporary_one(toy_directory):
    assert sorted(path.name for path in toy_directory.iterdir()) == ["merges.txt", "vocab.json"]


def test_ids_may_be_assigned_in_any_order(toy, toy_directory):
    shuffled = list(range(1000, 1000 + toy.n_vocab))
    random.Random(0).shuffle(shuffled)
    edit_vocab(toy_directory, lambda vocab: {token: shuffled[i] for token, i in vocab.items()})
    other = Tokenizer.from_pretrained(toy_directory)
    text = "".join(SCRIPTS)
    assert other.encode(text) == [shuffled[i] for i in toy.encode(text)]
    assert other.decode(other.encode(text)) == text


def test_files_with_windows_line_ends_are_read(toy, toy_directory):
    merges = toy_directory / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.from_pretrained(toy_directory).encode("the fox") == toy.encode("the fox")


# --- characters and bytes ---


EVERY_CHARACTER = "".join(dict.fromkeys("".join(SCRIPTS)))


@pytest.fixture(scope="module")
def characters() -> CharTokenizer:
    return CharTokenizer(EVERY_CHARACTER)


def test_a_character_is_a_token_and_the_end_of_text_the_last():
    tokenizer = CharTokenizer("abé🙂")
    assert tokenizer.encode("🙂éa") == [3, 2, 0]
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (5, 4)


def test_a_byte_is_a_token_and_the_end_of_text_the_last():
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("aé") == [97, 195, 169]
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (257, 256)


@pytest.mark.parametrize("make", [lambda: CharTokenizer(EVERY_CHARACTER), byte_tokenizer])
def test_characters_and_bytes_are_read_back_as_they_were_saved(make, tmp_path):
    make().save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == make().fingerprint
    assert [again.decode(again.encode(text)) for text in SCRIPTS] == SCRIPTS


@pytest.mark.parametrize("text", ["a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|end"])
def test_characters_read_special_tokens_when_asked(text):
    tokenizer = CharTokenizer("ab<|>endoftx")
    pieces = text.split(END_OF_TEXT)
    expected = tokenizer.encode(pieces[0])
    for piece in pieces[1:]:
        expected += [tokenizer.eot_token, *tokenizer.encode(piece)]
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_saved_characters_to_the_same_tokens(characters, tmp_path):
    transformers = pytest.importorskip("transformers")
    characters.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in SCRIPTS:
        assert theirs(text)["input_ids"] == characters.encode(text)
        assert theirs.decode(characters.encode(text)) == text
    assert theirs.eos_token_id == characters.eot_token


def test_characters_saved_over_another_tokenizer_replace_it(characters, toy_directory):
    characters.save_pretrained(toy_directory)
    assert Tokenizer.from_pretrained(toy_directory).n_vocab == characters.n_vocab


def test_an_unknown_character_is_an_error_that_shows_it(characters):
    with pytest.raises(MinigptError, match="character '∞' is not among the"):
        characters.encode("2∞")


def test_a_vocabulary_without_characters_is_an_error():
    with pytest.raises(MinigptError, match="needed at least one character"):
        CharTokenizer("")


@pytest.mark.parametrize("vocab", [{"a": 1}, {"ab": 0}, {"a": "0"}, {}, [], None])
def test_a_damaged_list_of_characters_is_an_error(characters, tmp_path, vocab):
    characters.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"] = vocab
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(MinigptError, match=r"tokenizer\.json|vocabulary is empty"):
        Tokenizer.from_pretrained(tmp_path)


def test_equal_vocabularies_have_equal_fingerprints_and_others_not(toy, toy_directory):
    assert Tokenizer.from_pretrained(toy_directory).fingerprint == toy.fingerprint
    others = {CharTokenizer("ab").fingerprint, CharTokenizer("ba").fingerprint, toy.fingerprint}
    assert len(others) == 3


# --- special tokens ---


def test_user_text_never_becomes_a_special_token(toy):
    assert toy.eot_token not in toy.encode(f"a{END_OF_TEXT}b")


def test_user_text_that_spells_a_special_token_survives(toy):
    assert toy.decode(toy.encode(END_OF_TEXT)) == END_OF_TEXT


def test_special_tokens_are_produced_when_asked_for(toy):
    tokens = toy.encode(f"a{END_OF_TEXT}b", allow_special=True)
    assert tokens == [*toy.encode("a"), toy.eot_token, *toy.encode("b")]


def test_a_special_token_decodes_to_its_text(toy):
    assert toy.decode([toy.eot_token]) == END_OF_TEXT


def test_an_entry_that_no_merge_makes_is_a_special_token(toy, toy_directory):
    edit_vocab(toy_directory, lambda vocab: vocab | {"<|user|>": len(vocab)})
    tokenizer = Tokenizer.from_pretrained(toy_directory)
    assert tokenizer.encode("<|user|>", allow_special=True) == [toy.n_vocab]
    assert toy.n_vocab not in tokenizer.encode("<|user|>")


def test_added_tokens_of_a_fine_tuned_checkpoint_are_special(toy, toy_directory):
    added = json.dumps({"<|pad|>": toy.n_vocab})
    (toy_directory / "added_tokens.json").write_text(added, encoding="utf-8")
    tokenizer = Tokenizer.from_pretrained(toy_directory)
    assert tokenizer.encode("<|pad|>", allow_special=True) == [toy.n_vocab]


def test_without_the_entry_there_is_no_end_of_text(texts):
    assert train_bpe(texts, 300, specials=()).eot_token is None


# --- mistakes ---


@pytest.mark.parametrize("token", [-1, 512, 2**40, 2**70, 1.0, True, None, "a", np.bool_(True)])
def test_an_id_outside_the_vocabulary_is_named_with_the_range(toy, token):
    with pytest.raises(MinigptError, match=r"token .+ needed whole numbers from 0 to 511"):
        toy.decode([token])


def test_an_id_that_nothing_has_is_an_error(toy, toy_directory):
    edit_vocab(toy_directory, lambda vocab: vocab | {END_OF_TEXT: 600})
    with pytest.raises(MinigptError, match="token 550 is not in this vocabulary"):
        Tokenizer.from_pretrained(toy_directory).decode([550])


def test_whole_numbers_of_torch_and_numpy_are_ids(toy):
    tokens = toy.encode("the little fox")
    assert toy.decode(torch.tensor(tokens)) == "the little fox"
    assert toy.decode(np.array(tokens)) == "the little fox"


@pytest.mark.parametrize("tensor", [torch.tensor([True]), torch.tensor([1.0])])
def test_tensors_of_anything_else_are_not(toy, tensor):
    with pytest.raises(MinigptError, match="is not in this vocabulary"):
        toy.decode(tensor)


def test_one_id_is_not_a_list(toy):
    with pytest.raises(MinigptError, match=r"needed a list"):
        toy.decode(5)


@pytest.mark.parametrize("allow_special", [False, True])
def test_a_lone_surrogate_is_an_error_that_names_its_position(toy, allow_special):
    with pytest.raises(MinigptError, match="position 3"):
        toy.encode("abc\ud800def", allow_special)


def test_only_text_can_be_encoded(toy):
    with pytest.raises(MinigptError, match="text is a bytes, needed a str"):
        toy.encode(b"abc")


def test_a_million_spaces_in_a_row_are_an_error_and_no_panic(toy):
    with pytest.raises(MinigptError, match="white spaces in a row"):
        toy.encode(" " * 1_000_000 + "x")


def test_a_long_text_without_such_a_gap_is_encoded(toy):
    text = "ab \n" * 250_000
    assert toy.decode(toy.encode(text)) == text


# --- files that are missing or damaged ---


def test_a_directory_without_a_tokenizer_says_what_to_put_there(tmp_path):
    with pytest.raises(MinigptError, match=r"put the vocab\.json and merges\.txt"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_directory_with_gpt2s_vocabulary_size_falls_back_on_gpt2(gpt2_by_name, tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 50257}', encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path).encode("Hello") == gpt2_by_name.encode("Hello")


def test_a_directory_with_another_vocabulary_size_does_not(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 50000}', encoding="utf-8")
    with pytest.raises(MinigptError, match="has no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["./no/where", "/no/where", "a/b/c", ""])
def test_a_source_that_is_nothing_is_an_error(source):
    with pytest.raises(MinigptError, match="there is no directory"):
        Tokenizer.from_pretrained(source)


def test_any_other_hub_name_is_fetched_by_the_hub(toy, toy_directory, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "minigpt.checkpoint.hub.resolve", lambda s: asked.append(s) or toy_directory
    )
    assert Tokenizer.from_pretrained("someone/model").encode("fox") == toy.encode("fox")
    assert asked == ["someone/model"]


def test_a_gpt2_that_was_downloaded_is_read_from_there(toy, toy_directory, monkeypatch):
    monkeypatch.setattr("minigpt.checkpoint.hub.WEIGHTS_DIR", toy_directory.parent)
    toy_directory.rename(toy_directory.parent / "gpt2-medium")
    for name in ("gpt2-medium", "openai-community/gpt2-medium"):
        assert Tokenizer.from_pretrained(name).encode("fox") == toy.encode("fox")


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    def unreachable(name: str) -> None:
        raise ConnectionError

    monkeypatch.setattr("tiktoken.get_encoding", unreachable)
    monkeypatch.setattr("minigpt.checkpoint.hub.WEIGHTS_DIR", tmp_path)
    with pytest.raises(MinigptError, match=r"get vocab\.json and merges\.txt from https"):
        Tokenizer.from_pretrained("gpt2")


def test_merges_that_lack_a_token_of_the_vocabulary_are_an_error(toy_directory):
    path = toy_directory / "merges.txt"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-50]), encoding="utf-8")
    with pytest.raises(MinigptError, match="disagree, there is no merge for"):
        Tokenizer.from_pretrained(toy_directory)


def test_a_vocabulary_that_lacks_a_token_of_the_merges_is_an_error(toy_directory):
    edit_vocab(toy_directory, lambda vocab: {t: i for t, i in vocab.items() if t != "Ġt"})
    with pytest.raises(MinigptError, match="disagree, there is no id for 'Ġt'"):
        Tokenizer.from_pretrained(toy_directory)


@pytest.mark.parametrize("merge", ["Ġ", "a b c", "nothing here", "Ġ t"])
def test_a_merge_that_cannot_be_is_an_error_that_shows_it(toy_directory, merge):
    with open(toy_directory / "merges.txt", "a", encoding="utf-8") as file:
        file.write(f"{merge}\n")
    with pytest.raises(MinigptError, match=f"is '{merge}', needed two tokens"):
        Tokenizer.from_pretrained(toy_directory)


@pytest.mark.parametrize("bad", ["0", None, -1, 1.5, True])
def test_an_id_that_is_no_whole_number_is_an_error(toy_directory, bad):
    edit_vocab(toy_directory, lambda vocab: vocab | {"Ġt": bad})
    with pytest.raises(MinigptError, match="not whole numbers"):
        Tokenizer.from_pretrained(toy_directory)


def test_two_tokens_with_one_id_are_an_error(toy_directory):
    edit_vocab(toy_directory, lambda vocab: vocab | {"Ġt": 5})
    with pytest.raises(MinigptError, match="one id to two tokens"):
        Tokenizer.from_pretrained(toy_directory)


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe", b"3"])
def test_a_damaged_vocabulary_is_an_error(toy_directory, content):
    (toy_directory / "vocab.json").write_bytes(content)
    with pytest.raises(MinigptError, match=r"vocab\.json (is not|cannot be)"):
        Tokenizer.from_pretrained(toy_directory)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "config.json"])
def test_a_file_that_git_lfs_has_not_fetched_is_an_error(toy_directory, name):
    if name == "config.json":  # read only where nothing else says which tokenizer it is
        (toy_directory / "vocab.json").unlink()
    (toy_directory / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1")
    with pytest.raises(MinigptError, match=rf"{name} is a pointer of git-lfs, .* `git lfs pull`"):
        Tokenizer.from_pretrained(toy_directory)


def test_a_tokenizer_json_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}', encoding="utf-8")
    with pytest.raises(MinigptError, match="model.type is 'WordPiece'"):
        Tokenizer.from_pretrained(tmp_path)


# --- manners ---


def test_repr_shows_the_size_and_the_special_tokens(toy):
    assert repr(toy) == "Tokenizer(n_vocab=512, specials=['<|endoftext|>'])"


def test_importing_the_module_does_not_import_the_libraries():
    code = (
        "import sys, minigpt.tokenizer; sys.exit(bool({'tiktoken', 'tokenizers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
