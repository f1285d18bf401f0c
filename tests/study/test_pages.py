"""A page is one file with everything in it, whatever the text; the model travels in 16 bits."""

from __future__ import annotations

import base64
import json

import pytest
import torch

from minigpt import GPT, MinigptError, Tokenizer
from minigpt.commands.cli import main
from minigpt.study import pages
from minigpt.study.pages import PARTS, live_content, packed_weights, page, write_live, write_page
from minigpt.tokenizer import CharTokenizer, byte_tokenizer
from tests.helpers import TOY


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model(make_model):
    return make_model(vocab_size=257, eos_token_id=256)


def inside(text: str, opening: str) -> str:
    """What stands in an element of a page."""
    return text.split(opening, 1)[1].split("</script>", 1)[0]


class TestAPage:
    @pytest.mark.parametrize(
        "text",
        [
            "</script><script>alert(1)",
            "<!--<script>",
            "\"'\\",
            "\ud800",
            "🦊\u2028\0",
            "{{script}}",
        ],
    )
    def test_is_not_broken_by_a_text(self, text):
        made = page({"text": text})
        data = inside(made, '<script type="application/json" id="content">')
        assert not set(data) & set("<>&")
        assert data.isascii()
        assert json.loads(data) == {"text": text}
        assert made.count("</script>") == 3

    def test_has_all_its_parts_and_fetches_nothing(self):
        made = page({})
        assert "{{" not in made
        assert "default-src 'none'" in made
        for mark in ("https:", "//cdn", "@import", " src=", "import(", "fetch(", "XMLHttpRequest"):
            assert mark not in made
        assert made.count("http:") == made.count("http://www.w3.org/2000/svg")  # SVG's name
        for part in PARTS.iterdir():
            assert part.name == "page.html" or part.read_text("utf-8").strip() in made

    def test_needs_a_place_and_leaves_nothing_half_written(self, tmp_path):
        with pytest.raises(MinigptError, match="could not be written to .*nowhere"):
            write_page(tmp_path / "nowhere" / "trace.html", {})
        with pytest.raises(MinigptError, match="could not be written to"):
            write_page(tmp_path, {})  # a directory
        assert list(tmp_path.iterdir()) == []


class TestTheModelInAPage:
    @pytest.mark.parametrize(
        ("dtype", "travels"),
        [
            (torch.float32, torch.float16),
            (torch.float16, torch.float16),
            (torch.bfloat16, torch.bfloat16),
        ],
    )
    def test_has_its_weights_in_sixteen_bits(self, make_model, tokenizer, dtype, travels):
        model = make_model(dtype=dtype, vocab_size=257)
        content = live_content(model, tokenizer)
        raw = bytearray(base64.b64decode(packed_weights(model, content["dtype"])))
        assert content["dtype"] == str(travels).removeprefix("torch.")
        numbers = torch.frombuffer(raw, dtype=travels)
        state, at = model.state_dict(), 0
        for name, shape in content["tensors"]:
            want = state[name].to(travels)
            assert list(want.shape) == shape
            assert torch.equal(numbers[at : at + want.numel()].view(shape), want)
            at += want.numel()
        assert at == len(numbers)

    def test_says_what_was_rounded(self, make_model, tokenizer):
        def about(dtype):
            return live_content(make_model(dtype=dtype, vocab_size=257), tokenizer)["about"]

        assert about(torch.float32).startswith("weights in float16, rounded from float32")
        assert about(torch.bfloat16) == "weights in bfloat16, computed in float32"

    def test_loses_nothing_of_weights_that_were_widened(self, make_model, tokenizer):
        content = live_content(make_model(dtype=torch.bfloat16, vocab_size=257).float(), tokenizer)
        assert content["about"] == "weights in bfloat16, computed in float32"

    def test_has_its_vocabulary(self, model):
        found = live_content(model, Tokenizer.from_pretrained(TOY))["tokenizer"]
        assert found["vocab"] == json.loads((TOY / "vocab.json").read_text("utf-8"))
        assert found["merges"] == (TOY / "merges.txt").read_text("utf-8").splitlines()[1:]

    def test_of_this_repository_fits(self, tmp_path):
        write_live(GPT.from_pretrained(TOY), Tokenizer.from_pretrained(TOY), tmp_path / "live.html")
        assert (tmp_path / "live.html").stat().st_size <= 8 * 10**6


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"prompt": "x" * 161}, "161 tokens, but this model's context is 160"),
            ({"prompt": "\ud800"}, "lone surrogate"),
            ({"temperature": -1.0}, "temperature is -1.0"),
            ({"temperature": 6.0}, "temperature is 6.0, needed at most 5.0"),
            ({"seed": 2**31}, "seed is 2147483648"),
            ({"seed": 1.5}, "seed is 1.5"),
        ],
    )
    def test_are_a_sentence(self, model, tokenizer, tmp_path, settings, sentence):
        with pytest.raises(MinigptError, match=sentence):
            write_live(model, tokenizer, tmp_path / "live.html", **settings)
        assert list(tmp_path.iterdir()) == []

    def test_of_a_model_too_large_say_what_to_do(self, model, tokenizer, tmp_path, monkeypatch):
        monkeypatch.setattr(pages, "LARGEST_LIVE_PAGE", 200_000)
        with pytest.raises(MinigptError, match="needed at most 0 MB: record it, without --live"):
            write_live(model, tokenizer, tmp_path / "live.html")

    def test_of_a_tokenizer_of_characters(self, model, tmp_path):
        with pytest.raises(MinigptError, match="tokens are characters"):
            write_live(model, CharTokenizer(" Oabcdefghijklmnopqrstuvwxyz"), tmp_path / "l.html")

    def test_of_an_empty_prompt_without_an_end_of_text(self, make_model, tokenizer, tmp_path):
        with pytest.raises(MinigptError, match="no end-of-text token to start from"):
            write_live(make_model(vocab_size=257), tokenizer, tmp_path / "live.html", "")

    def test_of_numbers_beyond_float16(self, model, tokenizer, tmp_path):
        with torch.no_grad():
            model.wte.weight[0, 0] = 1e5
        with pytest.raises(MinigptError, match=r"wte.weight holds numbers beyond float16"):
            write_live(model, tokenizer, tmp_path / "live.html")

    def test_of_int8_weights(self, tmp_path):
        model = GPT.from_pretrained(TOY, weights="int8")
        with pytest.raises(MinigptError, match="without weights='int8'"):
            write_live(model, Tokenizer.from_pretrained(TOY), tmp_path / "live.html")


class TestTheCommand:
    @pytest.fixture
    def run(self, capsys):
        def call(*arguments):
            code = main(["trace", "--live", "--model", str(TOY), *arguments])
            return code, *capsys.readouterr()

        return call

    def test_writes_the_page_that_begins_as_asked(self, run, tmp_path):
        path = tmp_path / "live.html"
        code, out, err = run(
            "--prompt", "The fox", "--seed", "7", "--temperature", "0.5", "--out", str(path)
        )
        assert (code, out) == (0, f"{path}\n")
        assert "MB; open it in a browser" in err
        opening = '<script type="application/json" id="content">'
        content = json.loads(inside(path.read_text("utf-8"), opening))
        assert [content[name] for name in ("prompt", "temperature", "seed")] == ["The fox", 0.5, 7]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--out", "/nowhere/t.html"], "choose a file in a directory"),
            (["--prompt", "word " * 300], "but this model's context is 256: shorten it"),
            (["--top-k", "5"], "--top-k is not for --live"),
            (["--presence-penalty", "1"], "--presence-penalty is not for --live"),
            (["--weights", "int8"], "without weights='int8'"),
        ],
    )
    def test_refuses_in_a_sentence(self, run, tmp_path, monkeypatch, arguments, sentence):
        monkeypatch.chdir(tmp_path)
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
