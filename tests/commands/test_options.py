"""Help and mistakes: what every command answers, before anything heavy is loaded."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.bench.sections import SECTIONS
from minigpt.checkpoint.hub import PINNED
from minigpt.commands import download_command, generate_command
from minigpt.commands.cli import main, parse, parser
from minigpt.commands.options import DTYPES, NUMERICS, wrapped
from minigpt.generation import decoding
from minigpt.numerics import NUMERICS as ALL_NUMERICS

COMMANDS = parser()[1]


def command_of(name):
    """The parser of one command."""
    return parser()[0]._subparsers._group_actions[0].choices[name]


@pytest.fixture
def told(capsys):
    """told("generate", ...): the lines on stderr of a command that argparse refuses."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()

    return call


class TestHelp:
    @pytest.fixture(params=[40, 80, 120])
    def width(self, request, monkeypatch):
        monkeypatch.setenv("COLUMNS", str(request.param))
        return request.param

    @pytest.mark.parametrize("name", COMMANDS)
    def test_tells_what_every_option_does(self, name):
        for action in command_of(name)._actions:
            about = action.help or ""
            assert len(about.split()) >= 2 or "(default" in about, action.option_strings

    @pytest.mark.parametrize("name", COMMANDS)
    def test_ends_with_two_examples_that_parse(self, name, capsys):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        _, examples = capsys.readouterr().out.split("\nexamples:\n")
        lines = examples.replace("\\\n", " ").splitlines()
        assert len(lines) == 2
        for line in lines:
            program, *arguments = shlex.split(line)
            assert program == "minigpt"
            options = parse(arguments)
            assert options.run is command_of(name).get_default("run")

    def test_of_the_whole_lists_the_commands(self, capsys):
        with pytest.raises(SystemExit):
            main(["--help"])
        shown = capsys.readouterr().out
        assert all(f"    {name} " in shown for name in COMMANDS)

    @pytest.mark.parametrize("name", ["", *COMMANDS])
    def test_fits_the_terminal(self, name, width, capsys):
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) < 30_000 / width  # and is no ribbon of single words


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["trian"], *([name, "--help"] for name in COMMANDS),
     ["generate", "--sede", "3"], ["train", "--presett", "toy"]],
)  # fmt: skip
def test_help_and_mistakes_do_not_load_pytorch(arguments):
    code = (
        "import sys\n"
        "from minigpt.commands.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*{'torch', 'numpy', 'minigpt.model'} & set(sys.modules), '.')"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == (0 if arguments[-1] in ("--help", "--version") else 2)
    assert done.stdout.splitlines()[-1] == " ." or done.stdout.splitlines()[-1] == "."


class TestAMistypedWord:
    @pytest.mark.parametrize(
        ("arguments", "usage", "sentence"),
        [
            (("trian",), "minigpt", "there is no command 'trian', did you mean 'train'?"),
            (("generate", "--sede", "3"), "minigpt generate",
             "there is no option --sede, did you mean '--seed'?"),
            (("generate", "--top_k=3"), "minigpt generate",
             "there is no option --top_k, did you mean '--top-k'?"),
            (("train", "--learning-rat3", "1"), "minigpt train",
             "there is no option --learning-rat3, did you mean '--learning-rate'?"),
            (("verify", "--zzzzzzzz"), "minigpt verify", "there is no option --zzzzzzzz"),
            (("generate", "Once", "upon"), "minigpt generate",
             "'Once' is one word too many: quote a text, and see --help"),
        ],
    )  # fmt: skip
    def test_is_answered_with_the_usage_and_the_nearest_known(
        self, told, arguments, usage, sentence
    ):
        first, *_, last = told(*arguments)
        assert first.startswith(f"usage: {usage} ")
        assert last == f"{usage}: error: {sentence}"


def test_names_are_those_of_the_library():
    """Written down a second time, so that help need not load what has them."""
    assert set(NUMERICS) == set(ALL_NUMERICS)
    assert set(generate_command.POLICIES) == set(decoding.POLICIES)
    assert list(download_command.NAMES) == list(PINNED)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)
    [only] = [a for a in command_of("bench")._actions if a.dest == "only"]
    assert ", ".join(SECTIONS) in only.help


def test_a_command_is_cut_between_its_words():
    assert wrapped('minigpt generate --prompt "Once upon a time" --seed 3', 36).splitlines() == [
        "  minigpt generate --prompt \\",
        '      "Once upon a time" --seed 3',
    ]
    assert wrapped("minigpt verify", 10).splitlines() == ["  minigpt \\", "      verify"]


class TestARandomModel:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("generate", "--prompt", "Once", "--max-new-tokens", "3"),
            ("generate", "--prompt", "Once", "--max-new-tokens", "3", "--dtype", "bfloat16",
             "--draft", "random:nano"),
            ("verify", "--tokens", "9"),
            ("verify", "--prompt", "Once", "--weights", "int8"),
            ("inspect",),
            ("score", "text.txt"),
            ("trace", "--prompt", "Once", "--max-new-tokens", "2"),
        ],
    )  # fmt: skip
    def test_serves_wherever_there_is_a_model_to_name(
        self, arguments, tmp_path, monkeypatch, capsys, threads
    ):
        threads(1)
        monkeypatch.chdir(tmp_path)
        Path("text.txt").write_text("Once upon a time")
        assert main([*arguments, "--model", "random:nano"]) == 0
        first = capsys.readouterr().out
        assert first
        if arguments[0] == "generate":
            assert main([*arguments, "--model", "random:nano"]) == 0
            assert capsys.readouterr().out == first

    def test_is_refused_when_there_is_no_such_shape(self, capsys):
        assert main(["generate", "--prompt", "x", "--model", "random:gpt9"]) == 2
        assert "no preset is called 'gpt9', needed one of gpt2, " in capsys.readouterr().err

    def test_of_the_toys_shape_has_the_toys_tokenizer(self, capsys):
        arguments = ["--prompt", "Once upon a time", "--max-new-tokens", "2"]
        assert main(["generate", "--model", "random:toy", *arguments]) == 0
        assert capsys.readouterr().out.startswith("Once upon a time")


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in ("train", "curves", "download")]
)
def test_the_default_model_is_no_path(name):
    arguments = ["x"] if name == "score" else []
    options: argparse.Namespace = parse([name, *arguments])
    assert options.model == ("random:gpt2" if name == "bench" else "toy")
