"""The command line: text on stdout, the rest on stderr, one sentence for a mistake, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minigpt
from minigpt import GPT, GPTConfig, Tokenizer, load_cache, save_cache
from minigpt.checkpoint import hub
from minigpt.commands.cli import main
from minigpt.generation.sampling import Sampler
from minigpt.study import matrix
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories
from minigpt.training.loop import Run
from minigpt.training.recipes import read_toml
from minigpt.training.state import newest_checkpoint

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkpoint with its tokenizer: random weights, a context of 64."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(stories(1, 50), 300)
    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    GPT(
        GPTConfig(vocab_size=tokenizer.n_vocab, eos_token_id=tokenizer.eot_token, **shape)
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def padded(directory, tmp_path_factory):
    """The same tokenizer, and a model with 100 rows more, which it likes best."""
    padded = tmp_path_factory.mktemp("padded")
    Tokenizer.from_pretrained(directory).save_pretrained(padded)
    torch.manual_seed(0)
    model = GPT(GPTConfig(400, 64, 32, 2, 2, initializer_range=0.3))
    with torch.no_grad():
        model.wte.weight[300:] *= 4
    model.save_pretrained(padded)
    return padded


@pytest.fixture
def run(directory, capsys):
    """run("verify", ...): exit code, stdout and stderr of a command with the small model."""

    def call(command, *arguments):
        code = main([command, "--model", str(directory), *arguments])
        return code, *capsys.readouterr()

    return call


def continued(directory, prompt, count, **settings):
    """What the library gives: the prompt and its continuation, as text."""
    model, tokenizer = GPT.from_pretrained(directory), Tokenizer.from_pretrained(directory)
    result = minigpt.generate(model, tokenizer.encode(prompt), count, **settings)
    return prompt + tokenizer.decode(result.tokens)


class TestGenerate:
    def test_streams_the_librarys_text(self, run, directory):
        code, out, _ = run("generate", "--prompt", PROMPT, "--max-new-tokens", "30", "--seed", "3",
                           "--top-k", "50", "--top-p", "0.9", "--temperature", "0.7")  # fmt: skip
        settings = {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "seed": 3}
        assert code == 0
        assert out == continued(directory, PROMPT, 30, **settings) + "\n"

    def test_prints_each_token_as_it_comes(self, directory, monkeypatch):
        written, choose = [], Sampler.choose

        def spy(self, *arguments):
            written.append(sys.stdout.getvalue())
            return choose(self, *arguments)

        monkeypatch.setattr(Sampler, "choose", spy)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        arguments = ["--prompt", PROMPT, "--max-new-tokens", "20", "--seed", "3"]
        assert main(["generate", "--model", str(directory), *arguments]) == 0
        assert written[0] == PROMPT
        assert len(set(map(len, written))) > 10

    @pytest.mark.parametrize(
        "typed", [b"\xef\xbb\xbfThe fox\n", b"The fox\r\n", b"The fox"], ids=["BOM", "CRLF", "bare"]
    )
    def test_reads_what_other_systems_write(self, run, directory, monkeypatch, typed):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        _, out, _ = run("generate", "--temperature", "0", "--max-new-tokens", "8")
        assert out == continued(directory, "The fox", 8) + "\n"

    def test_reads_the_prompt_from_standard_input(self, run, directory, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The fox\n")))
        code, out, _ = run("generate", "--temperature", "0", "--max-new-tokens", "8")
        assert code == 0
        assert out == continued(directory, "The fox", 8) + "\n"

    def test_starts_an_empty_prompt_from_the_end_of_text_token(self, run, directory):
        code, out, err = run("generate", "--prompt", "", "--temperature", "0",
                             "--max-new-tokens", "8")  # fmt: skip
        assert code == 0
        assert out == continued(directory, "", 8) + "\n"
        assert "the prompt is empty" in err

    def test_reads_special_tokens_only_when_asked(self, run, directory):
        model, tokenizer = GPT.from_pretrained(directory), Tokenizer.from_pretrained(directory)
        text = "a<|endoftext|>b"
        for flags in ([], ["--special"]):
            _, out, _ = run("generate", "--prompt", text, "--temperature", "0",
                            "--max-new-tokens", "8", *flags)  # fmt: skip
            ids = tokenizer.encode(text, allow_special=bool(flags))
            made = minigpt.generate(model, ids, 8).tokens
            assert out == text + tokenizer.decode(made) + "\n"

    @pytest.mark.parametrize("how", [[], ["--samples", "2"], ["--beams", "2"], ["--no-cache"]])
    def test_never_draws_an_id_without_text_and_says_so_once(self, padded, capsys, how):
        arguments = ["--prompt", PROMPT, "--max-new-tokens", "30", "--temperature", "5"]
        assert main(["generate", "--model", str(padded), *arguments, *how]) == 0
        told = "100 ids of the model's 400 have no text (the first is 300): they are never drawn"
        assert capsys.readouterr().err.count(told) == 1

    def test_gives_the_same_text_without_the_cache(self, run):
        arguments = ("generate", "--prompt", PROMPT, "--max-new-tokens", "40")
        _, cached, told = run(*arguments)
        code, uncached, told_without = run(*arguments, "--no-cache")
        assert code == 0
        assert cached == uncached
        assert "(cache 32,768 bytes, exact numerics)" in told
        assert "(no cache, exact numerics)" in told_without

    def test_tells_the_speed_beside_the_text_and_not_in_it(self, run):
        _, out, err = run("generate", "--prompt", PROMPT, "--max-new-tokens", "5")
        assert "tokens/s" not in out
        assert "5 tokens, first after " in err
        assert "tokens/s" in err

    def test_tells_no_speed_where_no_token_was_asked_for(self, run):
        code, out, err = run("generate", "--prompt", PROMPT, "--max-new-tokens", "0")
        assert (code, out) == (0, PROMPT + "\n")
        assert "tokens/s" not in err

    def test_compares_the_two_ways_in_a_table(self, run, directory):
        code, out, err = run("generate", "--prompt", PROMPT, "--max-new-tokens", "10", "--compare",
                             "--temperature", "0")  # fmt: skip
        assert code == 0
        assert out == continued(directory, PROMPT, 10) + "\n"  # once
        heading, cached, uncached, same = err.strip().splitlines()
        assert heading.split() == [
            "tokens", "seconds", "tokens/s", "speed-up", "cache", "bytes"
        ]  # fmt: skip
        assert cached.split()[:3] == ["with", "cache", "10"]
        assert cached.split()[-1] == "32,768"
        assert uncached.split()[:2] == ["without", "10"]
        assert uncached.split()[-2:] == ["1.0x", "0"]
        assert same == "same tokens: yes"

    def test_says_when_the_context_is_full_and_what_helps(self, run):
        arguments = ("generate", "--prompt", PROMPT, "--max-new-tokens", "100")
        _, _, stopped = run(*arguments)
        code, _, went_on = run(*arguments, "--policy", "reprefill")
        assert code == 0
        assert "the context of 64 positions is full; --policy reprefill goes on" in stopped
        assert "the older half was forgotten and the rest prefilled again, " in went_on
        assert "100 tokens" in went_on

    def test_ends_before_a_stop_string(self, run, directory):
        whole = continued(directory, PROMPT, 30)
        stop = whole[len(PROMPT) + 9 : len(PROMPT) + 13]
        code, out, _ = run("generate", "--prompt", PROMPT, "--temperature", "0",
                           "--max-new-tokens", "30", "--stop", stop)  # fmt: skip
        assert code == 0
        assert out == PROMPT + whole[len(PROMPT) :].split(stop)[0] + "\n"

    @pytest.mark.parametrize("draft", ["lookup", "itself"])
    def test_drafts_change_nothing_but_the_speed(self, run, directory, draft):
        arguments = ("generate", "--prompt", PROMPT, "--max-new-tokens", "30", "--seed", "2")
        _, plain, _ = run(*arguments)
        source = str(directory) if draft == "itself" else draft
        code, drafted, err = run(*arguments, "--draft", source)
        assert code == 0
        assert drafted == plain
        assert "guesses came true" in err

    def test_writes_samples_that_are_their_seeds_texts(self, run, directory):
        code, out, _ = run("generate", "--prompt", PROMPT, "--max-new-tokens", "8", "--samples",
                           "3", "--seed", "5", "--temperature", "1")  # fmt: skip
        texts = [continued(directory, PROMPT, 8, temperature=1.0, seed=5 + n) for n in range(3)]
        assert code == 0
        assert out == "".join(
            f"--- sample {n + 1} (seed {5 + n})\n{text}\n" for n, text in enumerate(texts)
        )

    @pytest.fixture
    def prompts(self, tmp_path):
        """A file of prompts, the second with settings of its own, and where their texts go."""
        lines = [PROMPT, {"prompt": PROMPT, "max_new_tokens": 3, "seed": 9}, "", PROMPT + " fox"]
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ("--prompts", str(file), "--out", str(tmp_path / "texts.jsonl"))

    def test_continues_a_file_of_prompts_each_as_it_would_be_alone(self, run, directory, prompts):
        code, out, err = run("generate", *prompts, "--max-new-tokens", "8", "--temperature", "1")
        assert (code, out) == (0, "")
        assert "4 texts in " in err
        lines = [json.loads(line) for line in Path(prompts[-1]).read_text().splitlines()]
        asked = [(PROMPT, 8, 0), (PROMPT, 3, 9), ("", 8, 2), (PROMPT + " fox", 8, 3)]
        for line, (prompt, count, seed) in zip(lines, asked, strict=True):
            want = continued(directory, prompt, count, temperature=1.0, seed=seed)
            assert line["prompt"] + line["text"] == want
            assert len(line["tokens"]) == count
            assert line["finish_reason"] == "length"
            assert 0 < line["first_token_after"] <= line["last_token_after"]

    def test_a_file_of_texts_is_taken_up_where_it_ends(self, run, prompts):
        how = ("--max-new-tokens", "8", "--temperature", "1")
        run("generate", *prompts, *how)
        out = Path(prompts[-1])
        whole = out.read_text().splitlines(keepends=True)
        out.write_text("".join(whole[:2]) + whole[2][:20])  # killed while it wrote the third
        code, _, err = run("generate", *prompts, *how)
        again = out.read_text().splitlines(keepends=True)
        assert code == 0
        assert "has the first 2 texts already" in err
        assert again[:2] == whole[:2]
        tokens = [json.loads(line)["tokens"] for line in again]
        assert tokens == [json.loads(line)["tokens"] for line in whole]

    def test_ends_each_text_of_a_file_before_a_stop_string(self, run, directory, prompts):
        greedy = ("--temperature", "0", "--max-new-tokens", "30")
        whole = continued(directory, PROMPT, 30)
        stop = whole[len(PROMPT) + 9 : len(PROMPT) + 13]
        assert run("generate", *prompts, *greedy, "--stop", stop)[0] == 0
        first = json.loads(Path(prompts[-1]).read_text().splitlines()[0])
        assert PROMPT + first["text"] == PROMPT + whole[len(PROMPT) :].split(stop)[0]
        assert first["finish_reason"] == "stop_string"

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            ("{", "line 2 is not JSON"),
            ("3", "line 2 holds '3', needed a string or"),
            ('{"prompt": "a", "temprature": 1}', "line 2 has 'temprature', needed some of prompt"),
            ('{"prompt": "a", "temperature": -1}', "line 2: temperature is -1, needed"),
            ('"' + 100 * "a long prompt " + '"', "line 2: the prompt has "),
        ],
    )
    def test_a_bad_line_is_named_before_any_work(self, run, tmp_path, line, sentence):
        file, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
        file.write_text(f'"a"\n{line}\n')
        code, _, err = run("generate", "--prompts", str(file), "--out", str(out))
        assert code == 2
        assert sentence in err and "Traceback" not in err
        assert not out.exists()

    def test_refuses_to_write_over_other_texts(self, run, prompts):
        Path(prompts[-1]).write_text('{"prompt": "another"}\n')
        code, _, err = run("generate", *prompts)
        assert code == 2
        assert "line 1 is not the text of that line's prompt" in err
        assert Path(prompts[-1]).read_text() == '{"prompt": "another"}\n'

    def test_writes_beams_best_first(self, run, directory):
        code, out, _ = run("generate", "--prompt", PROMPT, "--max-new-tokens", "8", "--beams", "2")
        model, tokenizer = GPT.from_pretrained(directory), Tokenizer.from_pretrained(directory)
        found = minigpt.beam_search(model, tokenizer.encode(PROMPT), 8, 2)
        assert code == 0
        assert out == "".join(
            f"--- {beam.score:.3f} nats per token\n{PROMPT}{tokenizer.decode(beam.tokens)}\n"
            for beam in found
        )

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_runs_in_the_dtype_and_numerics_asked_for(self, run, monkeypatch, dtype):
        seen, choose = [], Sampler.choose

        def spy(self, logits, *rest):
            seen.append(logits.dtype)
            return choose(self, logits, *rest)

        monkeypatch.setattr(Sampler, "choose", spy)
        code, _, err = run("generate", "--prompt", PROMPT, "--max-new-tokens", "3",
                           "--dtype", dtype, "--numerics", "fast")  # fmt: skip
        assert code == 0
        assert set(map(str, seen)) == {f"torch.{dtype}"}
        assert "fast numerics" in err

    def test_sets_the_number_of_threads(self, run):
        run("generate", "--prompt", PROMPT, "--max-new-tokens", "1", "--threads", "2")
        assert torch.get_num_threads() == 2

    def test_writes_what_the_terminal_can_show(self, directory, monkeypatch):
        terminal = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding="ascii"))
        arguments = ["--prompt", "Zoë", "--max-new-tokens", "0"]
        assert main(["generate", "--model", str(directory), *arguments]) == 0
        assert terminal.getvalue() == b"Zo?\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stop", ""], "a stop is '', needed a str of at least one character"),
        (["--samples", "0"], "n is 0, needed"),
        (["--beams", "0"], "beams is 0, needed"),
        (["--samples", "2", "--draft", "lookup"], "--draft is for a single text"),
        (["--beams", "2", "--stop", "x"], "--stop is not for beam search"),
        (["--prompts", "x"], "--prompts FILE and --out FILE go together"),
        (["--prompts", "x", "--out", "y"], "--prompts runs the texts of a file together"),
        (["--min-p", "2"], "min_p is 2.0, needed"),
        (["--save-cache", "/nonexistent/cache"], "--save-cache cannot write in /nonexistent"),
        (["--load-cache", "/nonexistent/cache"], "does not exist, needed a file"),
    ],
)
def test_generate_refuses_before_any_text(run, arguments, sentence):
    code, out, err = run("generate", "--prompt", PROMPT, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


class TestAKeptCache:
    @pytest.fixture
    def kept(self, run, tmp_path):
        """kept(prompt, ...): the file that a run with that prompt alone leaves."""

        def save(prompt=PROMPT, *arguments):
            path = str(tmp_path / "cache")
            code, *_ = run("generate", "--prompt", prompt, "--max-new-tokens", "0",
                           "--save-cache", path, *arguments)  # fmt: skip
            assert code == 0
            return path

        return save

    @pytest.mark.parametrize("temperature", ["0", "0.9"])
    @pytest.mark.parametrize("more", [None, PROMPT, PROMPT + " there was a fox"])
    def test_goes_on_as_one_run_would(self, run, kept, temperature, more):
        how = ("--max-new-tokens", "20", "--temperature", temperature, "--seed", "5")
        _, once, _ = run("generate", "--prompt", more or PROMPT, *how)
        given = ("--prompt", more) if more else ()
        code, again, _ = run("generate", "--load-cache", kept(), *given, *how)
        assert code == 0
        assert again == once

    def test_computes_only_what_it_does_not_hold(self, run, kept, monkeypatch):
        path, seen, next_logits = kept(), [], GPT.next_logits

        def spy(self, tokens, cache=None):
            seen.append(tokens.shape[1])
            return next_logits(self, tokens, cache)

        monkeypatch.setattr(GPT, "next_logits", spy)
        run("generate", "--load-cache", path, "--max-new-tokens", "3")
        assert seen == [1, 1, 1]

    def test_can_be_kept_again_and_again(self, run, kept, directory, tmp_path):
        first, second = kept(), str(tmp_path / "second")
        how = ("--max-new-tokens", "6", "--temperature", "0")
        run("generate", "--load-cache", first, "--save-cache", second, *how)
        _, out, _ = run("generate", "--load-cache", second, *how)
        assert out == continued(directory, PROMPT, 12) + "\n"

    def test_goes_on_where_a_word_was_cut(self, run, kept):
        how = ("--max-new-tokens", "9", "--temperature", "0")
        _, once, _ = run("generate", "--prompt", PROMPT + " there", *how)
        _, again, _ = run("generate", "--load-cache", kept(PROMPT + " th"), "--prompt",
                          PROMPT + " there", *how)  # fmt: skip
        assert again == once

    def test_tells_its_size_and_the_time_saved(self, run, tmp_path):
        path = tmp_path / "cache"
        _, _, told = run("generate", "--prompt", PROMPT, "--max-new-tokens", "4",
                         "--save-cache", str(path), "--seed", "3")  # fmt: skip
        assert f"tokens saved in {path}, {path.stat().st_size:,} bytes)" in told
        _, _, told = run("generate", "--load-cache", str(path), "--max-new-tokens", "1")
        assert re.search(r"\(\d+ tokens loaded in .* s; prefilling took .* s are saved\)", told)

    def test_of_a_text_longer_than_the_context_holds_its_end(self, run, directory, tmp_path):
        path = str(tmp_path / "cache")
        code, _, _ = run("generate", "--prompt", PROMPT, "--max-new-tokens", "90", "--temperature",
                         "0", "--policy", "reprefill", "--save-cache", path)  # fmt: skip
        assert code == 0
        assert load_cache(path, GPT.from_pretrained(directory, numerics="exact")).tokens

    @pytest.mark.parametrize("how", ["--no-cache", "--compare"])
    def test_needs_a_run_with_the_cache(self, run, tmp_path, how):
        code, out, err = run("generate", "--prompt", "x", "--save-cache", str(tmp_path / "c"), how)
        assert (code, out) == (2, "")
        assert err.startswith("minigpt: --save-cache and --load-cache need a run with the cache")

    def test_conflicts_with_another_prompt(self, run, kept):
        code, out, err = run("generate", "--load-cache", kept(), "--prompt", "The fox ran")
        assert (code, out) == (2, "")
        assert re.match(r"minigpt: the prompt and the text in .* part after 0 tokens, .*'Once", err)
        assert err.count("\n") == 1

    def test_is_refused_for_other_numerics(self, run, kept):
        code, _, err = run("generate", "--load-cache", kept(), "--numerics", "fast")
        assert code == 2
        assert "was made with numerics exact, here it is fast" in err

    def test_with_several_rows_has_no_text_to_go_on_with(self, run, directory, tmp_path):
        save_cache(GPT.from_pretrained(directory).new_cache(2), tmp_path / "cache")
        code, _, err = run("generate", "--load-cache", str(tmp_path / "cache"))
        assert code == 2
        assert "needed a single row whose tokens are known" in err


class TestAnInterrupt:
    def test_keeps_what_was_written(self, run, directory, monkeypatch):
        choose, calls = Sampler.choose, iter(range(100))

        def interrupted(self, *arguments):
            if next(calls) == 6:
                raise KeyboardInterrupt
            return choose(self, *arguments)

        want = continued(directory, PROMPT, 6)
        monkeypatch.setattr(Sampler, "choose", interrupted)
        code, out, err = run("generate", "--prompt", PROMPT, "--temperature", "0")
        assert code == 130
        assert out == want
        assert err.strip() == "interrupted"

    def test_ends_a_check_too(self, run, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(minigpt, "verify", interrupted)
        assert run("verify")[0] == 130


class TestVerify:
    def test_exits_with_0_when_equal(self, run):
        code, out, _ = run("verify")
        assert code == 0
        assert "logits equal: yes, bit for bit (64 positions, " in out

    def test_exits_with_1_when_not(self, run, row_counts_matter):
        code, out, _ = run("verify", "--numerics", "fast", "--tokens", "20")
        assert code == 1
        assert "logits equal: no, " in out
        assert "first to differ: h.0.attn.c_attn" in out

    def test_exits_with_1_when_the_model_gives_nan(self, directory, tmp_path, capsys):
        model = GPT.from_pretrained(directory)
        with torch.no_grad():
            model.ln_f.bias.fill_(torch.nan)
        model.save_pretrained(tmp_path)
        assert main(["verify", "--model", str(tmp_path)]) == 1
        assert "cannot say, the model gives NaN at 64 of 64 positions" in capsys.readouterr().out

    def test_checks_the_prompt_given(self, run, directory):
        count = len(Tokenizer.from_pretrained(directory).encode(PROMPT))
        _, out, _ = run("verify", "--prompt", PROMPT)
        assert f" {count} positions" in out

    def test_checks_as_many_tokens_as_asked_for(self, run):
        assert "33 positions" in run("verify", "--tokens", "33")[1]

    @pytest.mark.parametrize(("numerics", "equal"), [("exact", True), ("fast", False)])
    def test_writes_json(self, run, row_counts_matter, numerics, equal):
        code, out, err = run("verify", "--json", "--tokens", "20", "--numerics", numerics)
        report = json.loads(out)
        assert code == (0 if equal else 1)
        assert report["equal"] is equal
        assert report["positions"] == 20
        assert err == ""


class TestTheMatrix:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        """Two columns and two rows of it."""
        monkeypatch.setattr(matrix, "COLUMNS", matrix.COLUMNS[:2])
        rows = ("context full", "ragged rows")
        monkeypatch.setattr(matrix, "ROWS", {row: matrix.ROWS[row] for row in rows})

    def test_is_printed_with_the_count_of_equal_cells(self, run):
        code, out, _ = run("verify", "--matrix")
        assert code == 0
        assert out.splitlines()[-1] == "4 of 4 cells equal, bit for bit"

    def test_fails_when_a_cell_differs(self, run, row_counts_matter):
        code, out, _ = run("verify", "--matrix", "--numerics", "fast")
        assert code == 1
        assert " differ" in out

    def test_writes_json(self, run):
        _, out, _ = run("verify", "--matrix", "--json")
        cells = json.loads(out)
        assert len(cells) == 4
        assert cells[0] == {"row": "context full", "column": "toy MHA float32", "cell": "equal"}


class TestTrain:
    @pytest.fixture
    def train(self, tmp_path, capsys, monkeypatch):
        """train("--steps", "5", ...): a few steps of a small model, into tmp_path / "out"."""

        def draw_at_once(runs, files):  # a real picture takes longer than such a run
            files[0].touch()
            return files[0]

        monkeypatch.setattr("minigpt.training.curves.draw_runs", draw_at_once)

        def call(*arguments, out=tmp_path / "out"):
            small = ("--n-embd", "16", "--n-head", "2", "--n-layer", "1", "--steps", "4",
                     "--batch-size", "4")  # fmt: skip
            if "--from" in arguments:  # which has a shape already
                small = small[6:]
            code = main(["train", "--out", str(out), "--cache", str(tmp_path / "cache"),
                         *small, *arguments])  # fmt: skip
            return code, *capsys.readouterr()

        return call

    @pytest.fixture
    def text(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_text("\n".join(stories(1, 40)))
        return str(path)

    def test_learns_a_text_and_saves_a_model_that_generates(self, train, text, tmp_path, capsys):
        code, out, err = train("--data", text, "--tokenizer", "char", "--n-positions", "16")
        assert code == 0
        assert "step 4: held-out loss" in err
        for told in ("bits per byte", "perplexity", "unigram", "bigram", "tokens/s", "peak memory"):
            assert told in out
        model = ("--model", str(tmp_path / "out"), "--prompt", "The", "--max-new-tokens", "5")
        assert main(["generate", *model]) == 0
        assert capsys.readouterr().out.startswith("The")

    def test_is_not_ended_by_a_sample_of_a_padded_model(self, train, text, padded):
        code, _, err = train("--from", str(padded), "--data", text, "--n-positions", "16",
                             "--sample-every", "1", "--sample-tokens", "40")  # fmt: skip
        assert code == 0
        assert err.count("no sample") == 0

    def test_is_not_ended_by_a_sample_that_fails(self, train, monkeypatch):
        def failing(self):
            raise RuntimeError("out of luck")

        monkeypatch.setattr(Run, "sample", failing)
        code, _, err = train("--task", "copying", "--sample-every", "2")
        assert code == 0
        assert err.count("no sample, and training goes on: RuntimeError('out of luck')") == 2

    def test_says_how_many_documents_a_text_holds(self, train, tmp_path):
        path = tmp_path / "dump.txt"
        path.write_text("\n<|endoftext|>\n".join(stories(1, 40)))
        _, _, err = train("--data", str(path), "--tokenizer", "byte", "--n-positions", "16")
        assert f"{path}: 40 documents" in err

    def test_learns_a_task_and_tells_how_many_problems_are_solved_exactly(self, train):
        code, out, _ = train("--task", "copying")
        assert code == 0
        assert "exactly right      0.00% of unseen problems" in out

    def test_starts_from_a_checkpoint_and_saves_the_same_shape(
        self, train, text, directory, tmp_path
    ):
        before = GPT.from_pretrained(directory)
        code, _, _ = train("--from", str(directory), "--data", text, "--n-positions", "16")
        after = GPT.from_pretrained(tmp_path / "out")
        assert code == 0
        assert after.wte.weight.shape == before.wte.weight.shape
        assert 0 < (after.wte.weight - before.wte.weight).abs().max() < 0.1

    def test_with_lora_saves_a_plain_checkpoint(self, train, text, directory, tmp_path):
        train("--from", str(directory), "--data", text, "--n-positions", "16", "--lora-rank", "2")
        before, after = (GPT.from_pretrained(d) for d in (directory, tmp_path / "out"))
        old, new = before.state_dict(), after.state_dict()
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert changed == {"h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight"}

    def test_goes_on_with_resume_and_only_then(self, train):
        task = ("--task", "copying", "--save-every", "2")
        train(*task)
        code, _, err = train(*task)
        assert code == 2
        assert "holds a run already, up to step-00000004: resume it (--resume)" in err
        assert train(*task, "--resume")[0] == 0

    def test_names_the_fields_that_differ_from_the_run_to_resume(self, train):
        train("--task", "copying")
        code, _, err = train("--task", "sorting", "--seed", "2", "--resume")
        assert code == 2
        assert "task was 'copying' and is 'sorting'" in err
        assert "seed was 1 and is 2" in err

    def test_goes_on_in_a_directory_that_needs_no_other_flags(self, train, tmp_path, capsys):
        train("--task", "copying", "--save-every", "2", "--seed", "5")
        for steps in ("6", "8"):
            resume = ["--resume", str(tmp_path / "out"), "--steps", steps]
            assert main(["train", *resume]) == 0
            assert f"step {steps}: held-out loss" in capsys.readouterr().err
            assert read_toml(tmp_path / "out" / "train.toml")["seed"] == 5

    def test_goes_on_beside_the_file_of_a_run(self, train, tmp_path, capsys, monkeypatch):
        train("--task", "copying")
        monkeypatch.chdir(tmp_path)
        file = str(tmp_path / "out" / "train.toml")
        assert main(["train", "--config", file, "--resume", "--steps", "6"]) == 0
        assert "step 6: held-out loss" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()

    def test_says_at_once_that_there_is_nothing_to_resume(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for arguments in (["--resume"], ["--resume", "runs/none"], ["--out", "x", "--resume"]):
            assert main(["train", *arguments]) == 2
            assert "holds no checkpoint, so there is nothing to resume" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_goes_on_when_the_same_data_have_moved_and_not_with_others(
        self, train, text, tmp_path, capsys
    ):
        train("--data", text, "--tokenizer", "byte", "--n-positions", "16")
        moved = tmp_path / "moved.txt"
        Path(text).rename(moved)
        resume = ["train", "--resume", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        assert main([*resume, "--data", str(moved), "--steps", "6"]) == 0
        moved.write_text("something else " * 90)
        assert main([*resume, "--data", str(moved), "--steps", "8"]) == 2
        assert "the data have changed" in capsys.readouterr().err

    def test_does_not_go_back(self, train, tmp_path, capsys):
        train("--task", "copying")
        assert main(["train", "--resume", str(tmp_path / "out"), "--steps", "3"]) == 2
        assert "has taken 4 steps and steps is 3" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (("--from", "toy", "--n-layer", "2", "--tokenizer", "char"), "--n-layer, --tokenizer"),
            (("--task", "addition", "--data", "x.txt"), "--data"),
            (("--preset", "finetune", "--n-layer", "8"), "--n-layer"),
        ],
    )
    def test_refuses_flags_that_would_be_ignored(self, tmp_path, capsys, flags, named):
        assert main(["train", "--out", str(tmp_path / "out"), *flags]) == 2
        assert f"minigpt: {named} would be ignored" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_records_the_shape_that_ran(self, train, text, directory, tmp_path):
        train("--from", str(directory), "--data", text, "--n-positions", "16")
        saved = read_toml(tmp_path / "out" / "train.toml")
        shape = [saved[name] for name in ("n_layer", "n_head", "n_embd", "tokenizer")]
        assert shape == [2, 2, 32, ""]

    def test_takes_fields_from_a_file_and_then_from_the_command_line(self, train, tmp_path):
        (tmp_path / "my.toml").write_text('task = "copying"\nwarmup = 7\nclip = 2\n')
        train("--config", str(tmp_path / "my.toml"), "--warmup", "3")
        saved = read_toml(tmp_path / "out" / "train.toml")
        assert (saved["task"], saved["warmup"], saved["clip"]) == ("copying", 3, 2.0)

    def test_ends_with_what_to_do_next_and_all_of_it_works(
        self, train, tmp_path, capsys, monkeypatch
    ):
        _, out, _ = train("--task", "copying")
        commands = [shlex.split(line) for line in out.partition("\nnext\n")[2].splitlines()]
        assert [words[:2] for words in commands] == [
            ["minigpt", name] for name in ("generate", "train", "inspect", "curves")
        ]
        monkeypatch.chdir(tmp_path)
        for words in commands:
            assert main(words[1:]) == 0, words
        assert "step 8: held-out loss" in capsys.readouterr().err  # twice the steps

    def test_shows_what_the_model_wrote_before_and_after(self, train, text):
        _, out, _ = train("--data", text, "--tokenizer", "byte", "--n-positions", "16")
        before, after = re.search(r"--- before\n(.*)--- after\n(.*)\n\nnext", out, re.S).groups()
        assert before != after
        assert before.split()[0] == after.split()[0]

    def test_says_how_many_parameters_are_trained_of_how_many(self, train, text, directory):
        _, _, err = train("--from", str(directory), "--data", text, "--n-positions", "16",
                          "--lora-rank", "2")  # fmt: skip
        every = sum(p.numel() for p in GPT.from_pretrained(directory).parameters())
        assert f"training {2 * 2 * (32 + 96):,} of {every:,} parameters" in err

    def test_keeps_the_number_of_threads_when_it_is_resumed(self, train, monkeypatch, tmp_path):
        set_to = [3]  # and not really: more threads than cores would take their time
        monkeypatch.setattr(torch, "set_num_threads", set_to.append)
        monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
        monkeypatch.setattr(
            "minigpt.training.threads.times_by_threads", lambda *_: {1: 3.0, 2: 1.0, 3: 0.99}
        )
        _, _, err = train("--task", "copying")
        assert "computing with 2 threads (tried: 3000 ms with 1, 1000 ms with 2" in err
        set_to.append(3)
        train("--task", "copying", "--resume", "--steps", "6")
        assert set_to[-1] == 2
        train("--task", "copying", "--resume", "--steps", "8", "--threads", "1")
        state = newest_checkpoint(tmp_path / "out" / "checkpoints") / "state.json"
        assert json.loads(state.read_text())["threads"] == 1

    def test_measures_a_run_again_without_training(self, train, text, tmp_path, capsys):
        cache = ("--cache", str(tmp_path / "cache"))
        _, trained, _ = train("--data", text, "--tokenizer", "byte", "--n-positions", "16")
        log = (tmp_path / "out" / "log.jsonl").read_text()
        assert main(["train", "--eval", str(tmp_path / "out"), *cache]) == 0
        out = capsys.readouterr().out
        loss = re.search(r"held-out loss +([\d.]+)", trained)[1]
        assert re.search(rf"held-out loss +{loss} ± 0\.\d+ nats per token, over \d+ windows", out)
        assert (tmp_path / "out" / "log.jsonl").read_text() == log

    def test_measures_a_checkpoint_on_held_out_text(self, directory, text, tmp_path, capsys):
        cache = ("--cache", str(tmp_path / "cache"))
        given = ("--from", str(directory), "--data", text, "--n-positions", "16")
        assert main(["train", *given, "--eval", *cache]) == 0
        assert "bits per byte" in capsys.readouterr().out

    def test_leaves_its_curves_also_when_it_is_stopped(self, train, monkeypatch, tmp_path):
        monkeypatch.setattr(Run, "save", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("--task", "copying")
        assert (tmp_path / "out" / "curves.png").is_file()

    def test_an_interrupt_saves_and_exits_with_130(self, train, monkeypatch):
        step = Run.step

        def interrupted(self, stop):
            if self.state.step == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, stop)

        monkeypatch.setattr(Run, "step", interrupted)
        code, _, err = train("--task", "copying")
        assert code == 130
        assert "stopped after step 3, which is saved: --resume goes on from there" in err
        assert train("--task", "copying", "--resume")[0] == 0


class TestCurves:
    @pytest.fixture
    def runs(self, tmp_path, monkeypatch):
        """The directories of two runs that differ in their recipe."""
        monkeypatch.chdir(tmp_path)
        for name, rate in (("one", 0.1), ("two", 0.2)):
            place = tmp_path / name
            place.mkdir()
            (place / "train.toml").write_text(f"learning_rate = {rate}\n")
            (place / "log.jsonl").write_text('{"step": 1, "held_out": 2.5, "loss": 2.0}\n')
        return "one", "two"

    def test_are_one_table_and_one_picture(self, runs, tmp_path, capsys):
        assert main(["curves", *runs, "--plot", "both.svg"]) == 0
        said = capsys.readouterr()
        assert re.search(r"learning rate +0\.1 +0\.2", said.out)
        assert said.err == "(drawn in both.svg)\n"
        assert (tmp_path / "both.svg").is_file()

    def test_of_one_run_lie_beside_its_log(self, runs, tmp_path, capsys):
        assert main(["curves", runs[0]]) == 0
        found = {path.name for path in (tmp_path / "one").iterdir()}
        assert found == {"train.toml", "log.jsonl", "curves.png", "curves.svg"}

    def test_are_told_without_matplotlib_too(self, runs, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert main(["curves", *runs]) == 0
        said = capsys.readouterr()
        assert "held-out loss, lowest" in said.out
        assert "pip install minigpt[plots]" in said.err


def test_download_prints_where_the_files_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hub, "download", lambda name, weights_dir: weights_dir / name)
    assert main(["download", "gpt2", "--weights-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "gpt2")


GENERATE = ("generate", "--prompt", "x")
MISTAKES = [
    ((*GENERATE, "--model", "./nowhere"), "there is no directory './nowhere'"),
    ((*GENERATE, "--temperature", "-1"), "temperature is -1.0, needed 0 (greedy) or a positive"),
    ((*GENERATE, "--temperature", "nan"), "temperature is nan, needed"),
    ((*GENERATE, "--top-k", "0"), "top_k is 0, needed a whole number of at least 1"),
    ((*GENERATE, "--top-k", "9999"), "top_k is 9999, but the vocabulary has 300 tokens"),
    ((*GENERATE, "--top-p", "1.5"), "top_p is 1.5, needed a probability"),
    ((*GENERATE, "--max-new-tokens", "-1"), "max_new_tokens is -1, needed"),
    ((*GENERATE, "--seed", "-1"), "seed is -1, needed a whole number"),
    ((*GENERATE, "--seed", str(2**70)), "seed is 1180591620717411303424, needed"),
    ((*GENERATE, "--threads", "0"), "--threads is 0, needed a whole number from 1 to 1024"),
    ((*GENERATE, "--threads", "99999"), "--threads is 99999, needed a whole number from 1 to 1024"),
    ((*GENERATE, "--device", "gpu"), "device 'gpu' cannot be used here: Expected one of cpu, cuda"),
    ((*GENERATE, "--device", "hpu"), "device 'hpu' cannot be used here: "),
    ((*GENERATE, "--device", "meta"), "device 'meta' cannot be used here: it holds shapes"),
    (("generate", "--prompt", "\udcff"), "text has a lone surrogate"),
    (("generate", "--prompt", "word " * 100), "the prompt has "),
    (("verify", "--tokens", "-3"), "--tokens is -3, needed a whole number of at least 2"),
    (("verify", "--tokens", "1"), "--tokens is 1, needed a whole number of at least 2"),
    (("verify", "--tokens", "65"), "the text to verify has 65 tokens, needed 2 to 64"),
    (("verify", "--prompt", ""), "the text to verify has 0 tokens, needed 2 to 64"),
    (("verify", "--matrix", "--device", "gpu"), "device 'gpu' cannot be used here"),
]


class TestAMistake:
    """... costs one sentence and exit code 2, and no traceback."""

    @pytest.fixture
    def told(self, capsys):
        """told("generate", ...): the sentence that the command ended with."""

        def call(*arguments):
            assert main(arguments) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("minigpt: ")
            assert err.count("\n") == 1
            return err.removeprefix("minigpt: ")

        return call

    @pytest.mark.parametrize(("arguments", "sentence"), MISTAKES)
    def test_in_the_arguments(self, told, directory, arguments, sentence):
        command, *rest = arguments
        assert told(command, "--model", str(directory), *rest).startswith(sentence)

    def test_in_the_name_of_a_model_when_there_is_no_network(self, told, monkeypatch):
        def unreachable(pin):
            raise OSError("no route to host")

        monkeypatch.setattr(hub, "_snapshot", unreachable)
        sentence = told("generate", "--model", "someone/something", "--prompt", "x")
        assert sentence.startswith("could not fetch someone/something from the hub (OSError: no")

    def test_in_the_directory_which_has_no_tokenizer(self, told, directory, tmp_path):
        GPT.from_pretrained(directory).save_pretrained(tmp_path)
        sentence = told("generate", "--model", str(tmp_path), "--prompt", "x")
        assert sentence.startswith(f"{tmp_path} has no tokenizer: put the vocab.json")

    def test_in_what_comes_on_standard_input(self, told, directory, monkeypatch):
        pipe = io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        sentence = told("generate", "--model", str(directory))
        assert sentence.startswith("standard input is not UTF-8 text (byte 3 is 0xe9): convert it")

    def test_in_what_to_train(self, told, tmp_path):
        (tmp_path / "file").write_text("")
        assert told("train", "--steps", "0") == "steps is 0, needed a whole number of at least 1\n"
        place = str(tmp_path / "file" / "toy")
        assert told("train", "--out", place).startswith(f"cannot save in {place} (")

    @pytest.mark.parametrize(
        ("content", "options", "sentence"),
        [
            (b"", (), "{file} is empty, needed some text"),
            (b"caf\xe9 " * 99, (), "byte 3 of {file} is no UTF-8"),
            (b"too short", (), "the training text has "),
            (b"long enough " * 999, ("--from", "{model}", "--n-positions", "65"),
             "the model has a context of 64 and the data need one of 65"),
            (b"long enough " * 99, ("--tokenizer", "words"), "tokenizer is 'words', needed 'char'"),
            (b"long enough " * 99, ("--preset", "huge"), "no recipe is called 'huge'"),
            (b"long enough " * 99, ("--config", "none.toml"), "none.toml "),
            (b"long enough " * 999, ("--from", "{model}", "--n-positions", "16", "--freeze", "x"),
             "freeze names 'x'"),
        ],
    )  # fmt: skip
    def test_in_the_data_to_train_on(self, capsys, directory, tmp_path, content, options, sentence):
        file = tmp_path / "text.txt"
        file.write_bytes(content)
        options = [option.format(model=directory) for option in options]
        places = ("--data", str(file), "--cache", str(tmp_path), "--out", str(tmp_path / "out"))
        shape = () if "--from" in options else ("--tokenizer", "byte", "--n-positions", "16")
        code = main(["train", *places, *shape, *options])
        last = capsys.readouterr().err.splitlines()[-1]  # after the progress of tokenizing
        assert code == 2
        assert last.startswith(f"minigpt: {sentence.format(file=file)}")

    def test_in_what_to_download(self, told):
        assert told("download", "gpt5").startswith("there is no model 'gpt5' to download")

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((), "the following arguments are required: COMMAND"),
            (("dream",), "there is no command 'dream', needed one of generate, play, verify, "),
            (("verify", "--numerics", "quick"), "invalid choice: 'quick'"),
            (("verify", "--prompt", "x", "--tokens", "3"), "not allowed with"),
            (("generate", "--no-cache", "--compare"), "not allowed with"),
            (("generate", "--max-new-tokens", "many"), "invalid int value: 'many'"),
        ],
    )
    def test_in_the_syntax_is_told_by_argparse_with_the_same_code(
        self, capsys, arguments, sentence
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "play",
        "verify",
        "trace",
        "inspect",
        "score",
        "bench",
        "train",
        "curves",
        "download",
    ],
)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: minigpt {command}" in capsys.readouterr().out


def test_python_m_minigpt_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"minigpt {minigpt.__version__}"


@pytest.mark.skipif(os.name == "nt", reason="a pipe whose reader has gone is another error there")
@pytest.mark.parametrize("arguments", [("generate", "--prompt", "x"), ("inspect",)])
def test_a_reader_that_leaves_early_is_no_error(directory, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed_pipe:
        done = subprocess.run(
            [sys.executable, "-m", "minigpt", *arguments, "--model", directory],
            stdout=closed_pipe, stderr=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize("arguments", [("generate", "--prompt", "x"), ("inspect",)])
def test_a_full_disk_costs_one_sentence(directory, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minigpt", *arguments, "--model", directory],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "minigpt: the output cannot be written (No space left on device): make room there\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="a pipe whose reader has gone is another error there")
def test_help_for_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed_pipe:
        done = subprocess.run(
            [sys.executable, "-m", "minigpt", "generate", "--help"],
            stdout=closed_pipe, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
