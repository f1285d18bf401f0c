"""Settings of a tokenizer beside its vocabulary: transformers' tokens, or a refusal by name.

Every setting that is honoured is compared with transformers on 2,000 random strings.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from minigpt.support.errors import MinigptError
from minigpt.tokenizer import END_OF_TEXT, Tokenizer
from minigpt.tokenizer_settings import NORMALIZERS
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories
from tests.helpers import SCRIPTS

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["covid", "Fox", "the", "é", "ab", "abc", "<|user|>", "<mask>", "new  line"]
PIECES = [
    *WORDS, END_OF_TEXT, "cov", "id", "FOX", "e\u0301", "\u0301", "É", "İ", "ΑΣ", "ﬁ", "\u212b",
    " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x1c", "\x85", "'s", "don't", "12", "!", "?!", "a",
    "b", "c", "日本", "한글", "🙂", "नमस्ते", "The", " fox", "little", "Å", "house", "<|", "|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(0)
    made = ["".join(draw.choices(PIECES, k=draw.randint(0, 9))) for _ in range(2_000)]
    assert "" in made
    return made


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return train_bpe([*stories(0, 150), *SCRIPTS], 600)


@pytest.fixture(scope="module")
def content(base, tmp_path_factory) -> dict:
    """The base as a tokenizer.json, which it would not need."""
    directory = tmp_path_factory.mktemp("base")
    base.save_pretrained(directory)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(directory))
    return json.loads(theirs.backend_tokenizer.to_str())


def added(text: str, number: int, **flags: bool) -> dict:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": text, **off, **flags}


def byte_level(**changes: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
            **changes}  # fmt: skip


def template(single: str) -> dict:
    processor = tokenizers.processors.TemplateProcessing(
        single=single, pair="$A $B", special_tokens=[(END_OF_TEXT, 599)]
    )
    return json.loads(processor.__getstate__())


LOWER, NFC = {"type": "Lowercase"}, {"type": "NFC"}
BOTH = {"type": "Sequence", "normalizers": [NFC, LOWER]}
FLAGS: list[dict[str, bool]] = [
    dict.fromkeys(flags.split(), True)
    for flags in (
        "", "special", "lstrip", "rstrip", "lstrip rstrip", "normalized", "normalized special",
        "rstrip special",
    )
]  # fmt: skip
EACH = [added(WORDS[n], 600 + n, **FLAGS[n % len(FLAGS)]) for n in range(len(WORDS))]
SETTINGS: dict[str, dict] = {
    "none": {},
    "prefix space": {"pre_tokenizer": byte_level(add_prefix_space=True)},
    "no regex": {"pre_tokenizer": byte_level(use_regex=False)},
    "no regex, prefix space": {
        "pre_tokenizer": byte_level(use_regex=False, add_prefix_space=True)
    },
    **{name: {"normalizer": {"type": name}} for name in NORMALIZERS},
    "NFC, then lowercase": {"normalizer": BOTH},
    "sequences of one": {
        "normalizer": {"type": "Sequence", "normalizers": [LOWER]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level()]},
        "post_processor": {"type": "Sequence", "processors": [byte_level(), template("$A")]},
    },
    "beginning": {"post_processor": template(f"{END_OF_TEXT} $A")},
    "beginning and end": {"post_processor": template(f"{END_OF_TEXT} $A {END_OF_TEXT}")},
    "end, prefix space": {
        "post_processor": template(f"$A {END_OF_TEXT}"),
        "pre_tokenizer": byte_level(add_prefix_space=True),
    },
    **{
        f"words {flags}": {"words": [added(w, 600 + n, **flags) for n, w in enumerate(WORDS)]}
        for flags in FLAGS
    },
    "words of each kind": {"words": EACH},
    "words of each kind, lowercase": {"words": EACH, "normalizer": BOTH},
    "all at once": {
        "words": EACH,
        "normalizer": BOTH,
        "pre_tokenizer": byte_level(add_prefix_space=True),
        "post_processor": template(f"{END_OF_TEXT} $A {END_OF_TEXT}"),
    },
}  # fmt: skip


def written(directory: Path, content: dict, changes: dict) -> Path:
    changes = dict(changes)
    words = changes.pop("words", [])
    vocab = content["model"]["vocab"]  # a word that is there already keeps its id
    words = [{**w, "id": vocab.get(w["content"], w["id"])} for w in words]
    ids = iter(range(600, 700))
    words = [w if w["content"] in vocab else {**w, "id": next(ids)} for w in words]
    content = {**content, **changes, "added_tokens": content["added_tokens"] + words}
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def theirs_of(directory: Path) -> object:
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_transformers_tokens(content, texts, tmp_path, name):
    ours = Tokenizer.from_pretrained(written(tmp_path, content, SETTINGS[name]))
    theirs = theirs_of(tmp_path)
    expected = theirs(texts)["input_ids"]
    assert [ours.encode(text, allow_special=True) for text in texts] == expected
    expected = theirs(texts, split_special_tokens=True)["input_ids"]
    assert [ours.encode(text) for text in texts] == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_saved_says_the_same_to_both(content, texts, tmp_path, name):
    ours = Tokenizer.from_pretrained(written(tmp_path, content, SETTINGS[name]))
    ours.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    expected = [ours.encode(text, allow_special=True) for text in texts[:300]]
    assert again.fingerprint == ours.fingerprint
    assert [again.encode(text, allow_special=True) for text in texts[:300]] == expected
    one_file = (tmp_path / "tokenizer.json").is_file()
    kind = transformers.PreTrainedTokenizerFast if one_file else transformers.GPT2Tokenizer
    theirs = kind.from_pretrained(str(tmp_path))
    assert theirs(texts[:300])["input_ids"] == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_special_tokens_are_left_out_of_the_text_as_transformers_does(
    content, texts, tmp_path, name
):
    ours = Tokenizer.from_pretrained(written(tmp_path, content, SETTINGS[name]))
    theirs = theirs_of(tmp_path)
    for text in texts[:200]:
        ids = ours.encode(text.replace("é", ""), allow_special=True)  # theirs spells that as a byte
        assert ours.decode(ids) == theirs.decode(ids)
        skipped = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == skipped


# --- vocab.json and merges.txt, and what lies beside them ---


SMALL_FILES = {
    "prefix space": {"tokenizer_config.json": {"add_prefix_space": True}},
    "beginning": {"tokenizer_config.json": {"add_bos_token": True}},
    "beginning and end": {"tokenizer_config.json": {
        "add_bos_token": True, "add_eos_token": True, "bos_token": "<|user|>",
        "added_tokens_decoder": {"600": {"content": "<|user|>", "special": True}},
    }},
    "added words": {"added_tokens.json": {"covid": 600, "<|user|>": 601}},
    "added words, one special": {
        "added_tokens.json": {"covid": 600, "<|user|>": 601},
        "special_tokens_map.json": {"pad_token": "<|user|>"},
    },
    "added words with flags": {"tokenizer_config.json": {"added_tokens_decoder": {
        "600": {"content": "covid", "lstrip": True, "special": False},
        "601": {"content": "<mask>", "rstrip": True, "special": True},
    }}},
    "a special token with flags": {
        "added_tokens.json": {"<mask>": 600},
        "special_tokens_map.json": {"mask_token": {"content": "<mask>", "lstrip": True}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_FILES)
def test_small_files_give_transformers_tokens(base, texts, tmp_path, name):
    base.save_pretrained(tmp_path)
    for file, said in SMALL_FILES[name].items():
        (tmp_path / file).write_text(json.dumps(said), encoding="utf-8")
    ours = Tokenizer.from_pretrained(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    expected = theirs(texts)["input_ids"]
    assert [ours.encode(text, allow_special=True) for text in texts] == expected


def test_tokenizer_json_is_the_truth_where_both_are_there(base, content, texts, tmp_path):
    base.save_pretrained(tmp_path)  # an old vocab.json, without the word
    written(tmp_path, content, {"words": [added("covid", 600)]})
    ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.encode("covid") == [600]
    assert [ours.encode(t, True) for t in texts] == theirs_of(tmp_path)(texts)["input_ids"]


def test_a_part_of_a_text_has_no_space_before_it_and_no_template(content, tmp_path):
    ours = Tokenizer.from_pretrained(written(tmp_path, content, SETTINGS["all at once"]))
    whole, part = ours.encode("fox"), ours.encode("fox", part=True)
    assert whole == [599, *ours.encode(" fox", part=True), 599]
    assert ours.decode(part) == "fox"


def test_saving_removes_the_files_of_another_tokenizer(base, content, tmp_path):
    written(tmp_path, content, SETTINGS["prefix space"])
    base.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]


# --- what is refused, by name ---


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}},
         "normalizer is 'Replace'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is Whitespace"),
        ({"pre_tokenizer": None}, "pre_tokenizer is nothing"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level()]}}, "Digits and ByteLevel"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}},
         "post_processor is 'BertProcessing'"),
        ({"post_processor": template("$A $A")}, "does not name the text once"),
        ({"decoder": {"type": "WordPiece"}}, "decoder is 'WordPiece'"),
        ({"words": [added("covid", 600, single_word=True)]}, "'covid' is single_word"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(content, tmp_path, changes, named):
    with pytest.raises(MinigptError, match=named):
        Tokenizer.from_pretrained(written(tmp_path, content, changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 0.1), ("end_of_word_suffix", "</w>"), ("continuing_subword_prefix", "##"),
     ("byte_fallback", True), ("ignore_merges", True), ("type", "WordPiece")],
)  # fmt: skip
def test_a_model_of_another_kind_is_named(content, tmp_path, name, value):
    changes = {"model": {**content["model"], name: value}}
    with pytest.raises(MinigptError, match=rf"model\.{name} is {value!r}"):
        Tokenizer.from_pretrained(written(tmp_path, content, changes))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"tokenizer_class": "RobertaTokenizer"}, "tokenizer_class is 'RobertaTokenizer'"),
        ({"add_bos_token": True, "bos_token": "<s>"}, "there is no token '<s>'"),
        ({"added_tokens_decoder": [3]}, "settings in .+ are damaged"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_named(base, tmp_path, said, named):
    base.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(MinigptError, match=named):
        Tokenizer.from_pretrained(tmp_path)


def test_a_configuration_newer_than_its_tokenizer_json_is_named(content, tmp_path):
    written(tmp_path, content, {})
    said = {"added_tokens_decoder": {"600": {"content": "covid"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(MinigptError, match=r"adds 'covid', which tokenizer\.json does not have"):
        Tokenizer.from_pretrained(tmp_path)
