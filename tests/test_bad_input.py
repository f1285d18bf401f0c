"""Bad input, everywhere: what was passed, and the telling part of the one sentence that answers.

Each line is a call as a user would write it. What a module refuses in the course of its own work
stands in that module's tests; here are wrong types, numbers no machine holds, and whatever people
pass by mistake, such as the name of a model for the model.
"""

from __future__ import annotations

import io
import socket
import sys
from typing import Any

import numpy as np
import pytest
import torch

import minigpt
from minigpt import GPT, GPTConfig, MinigptError
from minigpt.checkpoint import weights
from minigpt.commands.cli import main
from minigpt.generation.sampling import log_probabilities
from minigpt.study.cost import cache_bytes, inspect, parse_size
from minigpt.tokenizer import CharTokenizer, byte_tokenizer
from minigpt.training.bpe import train_bpe
from minigpt.training.recipes import TrainConfig, configure, preset, read_toml

BESIDES = (
    CharTokenizer, TrainConfig, cache_bytes, configure, inspect, log_probabilities, parse_size,
    preset, read_toml, train_bpe,
)  # fmt: skip

# fmt: off
CALLS: list[tuple[str, str]] = [
    # a model: its name, its class, its configuration
    ("generate('gpt2', IDS)",
     "the model is 'gpt2', needed a minigpt.GPT: load one with GPT.from_pretrained()"),
    ("stream(None, IDS)", "the model is None, needed a minigpt.GPT"),
    ("stream_text('gpt2', TOKENIZER, 'a')", "the model is 'gpt2', needed"),
    ("generate_batch(GPT, [IDS])", "the model is <class 'minigpt.model.GPT'>, needed"),
    ("beam_search(3, IDS)", "the model is 3, needed"),
    ("Engine('gpt2')", "the model is 'gpt2', needed"),
    ("Engine(MODEL, memory=1)", "memory is 1, needed a whole number of at least"),
    ("Engine(MODEL).submit('abc')", "the prompt holds 'a', needed whole numbers"),
    ("score('weights/toy', IDS)", "the model is 'weights/toy', needed"),
    ("verify(MODEL.config, IDS)", "the model is GPTConfig("),
    ("compare_caches(None, IDS)", "the model is None, needed"),
    ("load_cache('cache', 'gpt2')", "the model is 'gpt2', needed"),
    ("GPT('gpt2')",
     "config is 'gpt2', needed a GPTConfig: a trained model comes from GPT.from_pretrained()"),
    ("GPT(MODEL.config.to_dict())", "needed a GPTConfig"),
    ("GPT(GPTConfig(n_embd=2**20, n_layer=9_999, n_head=1))",
     "make n_embd, n_layer, vocab_size or n_positions smaller"),
    ("MODEL(TOKENS, cache=3)", "cache is 3, needed one from model.new_cache()"),
    ("MODEL(TOKENS, cache=[])", "cache is [], needed one from"),
    ("MODEL.next_logits(TOKENS, KVCache)", "cache is <class 'minigpt.cache.kvcache.KVCache'>"),
    ("MODEL([[1, 2]])", "tokens are list, needed a (B, T) tensor of int64"),
    ("MODEL(TOKENS.bool())", "tokens are torch.bool, needed"),
    ("MODEL(TOKENS.to('meta'))", "tokens are on meta and the model is on cpu"),
    ("MODEL(TOKENS - 2**62)", "is outside the vocabulary, needed ids from 0 to 256"),
    ("stream_text(MODEL, 'gpt2', 'a')", "the tokenizer is 'gpt2', needed a minigpt.Tokenizer"),
    # a place
    ("GPT.from_pretrained(None)", "the path is None, needed a str or a Path"),
    ("GPT.from_pretrained(3)", "the path is 3, needed"),
    ("GPT.from_pretrained(b'weights/toy')", "the path is b'weights/toy', needed a str"),
    (r"GPT.from_pretrained('a\0b')", r"the path is 'a\x00b', needed"),
    (r"GPT.from_pretrained('\ud800')", r"the path is '\ud800', needed"),
    ("GPT.from_pretrained('x' * 5_000)", "could not fetch xxxx"),
    ("GPT.from_pretrained({})", "the path is {}, needed"),
    ("Tokenizer.from_pretrained(None)", "the path is None, needed"),
    ("Tokenizer.from_pretrained(3.5)", "the path is 3.5, needed"),
    ("inspect([])", "the path is [], needed"),
    ("load_cache(3, MODEL)", "the path is 3, needed"),
    (r"load_cache('\0', MODEL)", r"the path is '\x00', needed"),
    ("load_cache('/dev/null', MODEL)",
     "is not a whole safetensors file (it is not a plain file)"),
    ("MODEL.save_pretrained(None)", "the path is None, needed"),
    (r"MODEL.save_pretrained('a\0b')", r"the path is 'a\x00b', needed"),
    ("TOKENIZER.save_pretrained(3)", "the path is 3, needed"),
    ("TOKENIZER.save_pretrained('/proc/nowhere')",
     "the tokenizer could not be written to /proc/nowhere"),
    ("save_cache(MODEL, 'cache')", "cache is a GPT, needed"),
    ("save_cache(MODEL.new_cache(), None)", "the path is None, needed"),
    ("save_cache(MODEL.new_cache(), '/proc/nowhere/x')",
     "the cache could not be written to /proc/nowhere/x"),
    ("read_toml(None)", "the path is None, needed"),
    # a device
    ("GPT.from_pretrained(SAVED, device='cuda')", "device 'cuda' cannot be used here"),
    ("GPT.from_pretrained(SAVED, device='gpu')",
     "device 'gpu' cannot be used here: Expected one of cpu, cuda"),
    ("GPT.from_pretrained(SAVED, device=[])", "device [] cannot be used here"),
    (r"GPT.from_pretrained(SAVED, device='\ud800')", r"device '\ud800' cannot be used here"),
    # tokens
    ("generate(MODEL, 'abc', 2)", "the prompt holds 'a', needed whole numbers from 0 to 256"),
    ("generate(MODEL, 3, 2)", "the prompt is 3, needed a list of token ids"),
    ("generate(MODEL, np.array(3), 2)", "the prompt is array(3), needed a list"),
    ("generate(MODEL, torch.tensor(3), 2)", "the prompt is tensor(3), needed a list"),
    ("generate(MODEL, TOKENS, 2)", "the prompt holds [1, 2, 3], needed whole numbers"),
    ("generate(MODEL, TOKENS.to('meta'), 2)", "needed a list of token ids"),
    ("generate(MODEL, [True], 2)", "the prompt holds True, needed"),
    ("generate(MODEL, [1.5], 2)", "the prompt holds 1.5, needed"),
    ("generate(MODEL, [10**400], 2)", "needed whole numbers from 0 to 256"),
    ("generate(MODEL, IDS, 2, stop_tokens=torch.tensor(3))",
     "stop_tokens is tensor(3), needed a list"),
    ("generate_batch(MODEL, torch.tensor(3), 2)", "needed a list"),
    ("generate_batch(MODEL, None, 2)", "needed a list"),
    ("beam_search(MODEL, [257], 2)", "the prompt holds 257, needed"),
    ("score(MODEL, None)", "the text is None, needed a list of token ids"),
    ("score(MODEL, [2**70, 1])", "the text holds 1180591620717411303424, needed"),
    ("verify(MODEL, {1: 2})", "needed a list of token ids"),
    ("compare_caches(MODEL, None)", "the text is None, needed a list of token ids"),
    ("compare_caches(MODEL, 'abc')", "the text holds 'a', needed whole numbers from 0 to 256"),
    ("compare_caches(MODEL, [1, 2, 999])", "the text holds 999, needed"),
    ("TOKENIZER.decode(3)", "tokens is 3, needed a list: write [id] for one"),
    # numbers
    ("generate(MODEL, IDS, '3')", "max_new_tokens is '3', needed"),
    ("generate(MODEL, IDS, 2.0)", "max_new_tokens is 2.0, needed"),
    ("generate(MODEL, IDS, 2, temperature='0.8')", "temperature is '0.8', needed"),
    ("generate(MODEL, IDS, 2, temperature=10**30)",
     "temperature is 1000000000000000000000000000000, needed"),
    ("generate(MODEL, IDS, 2, repetition_penalty=10**400)", "repetition_penalty is 1000"),
    ("generate(MODEL, IDS, 2, logit_bias={3: 10**400})", "logit_bias has 3: 1000"),
    ("generate(MODEL, IDS, 2, logit_bias=[3])", "logit_bias is a list, needed a dict"),
    ("generate(MODEL, IDS, 2, seed=np.float32(2))", "needed a whole number from 0 to 2**63 - 1"),
    ("generate(MODEL, IDS, 2, top_k=torch.tensor(2))", "top_k is tensor(2), needed"),
    ("generate(MODEL, IDS, 2, draft=3)",
     "draft is 3, needed 'lookup', a smaller model, or a Drafter"),
    ("generate(MODEL, IDS, 2, top_log_probabilities=300)", "needed a whole number from 0 to 257"),
    ("generate_batch(MODEL, [IDS], 2, n=10**30)",
     "rows were asked for, needed at most 65536 at once"),
    ("generate_batch(MODEL, [IDS], 2, seed=torch.tensor(2))", "seed is tensor(2), needed a list"),
    ("generate_batch(MODEL, [IDS], 2, seed=[1.5])", "seed is 1.5, needed"),
    ("beam_search(MODEL, IDS, 2, length_penalty=10**30)", "needed a number from -10 to 10"),
    ("beam_search(MODEL, IDS, 2, length_penalty=float('nan'))", "length_penalty is nan, needed"),
    ("score(MODEL, IDS, 1.5)", "stride is 1.5, needed"),
    ("score(MODEL, IDS).bits_per_byte(10**400)", "n_bytes is 1000"),
    ("verify(MODEL, IDS, seed=[])", "seed is [], needed a whole number"),
    ("compare_caches(MODEL, IDS, prompt='1')", "prompt is '1', needed"),
    ("compare_caches(MODEL, IDS, kinds=None)", "kinds is None, needed a list"),
    ("compare_caches(MODEL, IDS, kinds=[3])",
     "one of the kinds is 3, needed a name, or a pair of a name and its settings"),
    ("compare_caches(MODEL, IDS, kinds=[('window', 3)])",
     "one of the kinds is ('window', 3), needed"),
    ("MODEL.new_cache(kind=[])", "cache kind is [], needed one of static"),
    ("MODEL.new_cache(max_length=2.5)", "max_length is 2.5, needed"),
    ("MODEL.new_cache(batch_size=10**12)", "bytes, which cpu does not have"),
    ("MODEL.new_cache().truncate('1')", "cannot truncate to '1'"),
    ("MODEL.new_cache().truncate(torch.tensor(3))", "found a Tensor, needed a list"),
    ("MODEL.new_cache().select(3)", "found a int, needed a list"),
    ("MODEL.new_cache().select([0.0])", "cannot select row 0.0"),
    ("MODEL.new_cache().expand(10**12)", "bytes, which cpu does not have"),
    ("MODEL.new_cache().layer('0')", "there is no layer '0', needed"),
    ("KVCache.concat(3)", "found a int, needed a list"),
    ("Sampler().choose(None, GENERATOR)", "the logits are NoneType, needed a tensor (V,)"),
    ("Sampler().choose(torch.zeros(1, 5), GENERATOR)",
     "the logits are (1, 5), needed a tensor (V,)"),
    ("Sampler().distribution(torch.zeros(0))", "the logits are (0,), needed"),
    ("Sampler(top_p=np.float32(1.5))", "top_p is np.float32(1.5), needed a probability"),
    ("log_probabilities([0.0], 0)", "the logits are list, needed"),
    ("inspect(SAVED, batch=1.5)", "batch is 1.5, needed"),
    ("parse_size(8)", "the size is 8, needed a number of bytes such as 512MB"),
    ("cache_bytes(MODEL.config, 'static', -1)",
     "length is -1, needed a whole number from 0 to 32: the context"),
    ("cache_bytes(MODEL.config, 'static', 33)", "length is 33, needed"),
    # configurations
    ("GPTConfig(layer_norm_epsilon=10**400)", "layer_norm_epsilon is 1000"),
    ("GPTConfig(n_embd='768')", "n_embd is '768', needed a whole number"),
    ("GPTConfig(activation_function=['relu'])", "activation_function is ['relu'], needed one of"),
    ("GPTConfig.preset([])", "no preset is called [], needed one of gpt2"),
    ("GPTConfig.from_dict(None)", "the configuration is None, needed the content of a config.json"),
    ("TrainConfig(steps=10**30)", "steps is 1000000000000000000000000000000, needed a int"),
    ("TrainConfig(learning_rate='1e-3')", "learning_rate is '1e-3', needed a float"),
    ("configure(TrainConfig(), [], 'the file')", "the file sets [], needed names and values"),
    ("configure(TrainConfig(), {'clip': 10**400}, 'the file')", "clip is 1000"),
    ("preset({})", "no recipe is called {}, needed one of toy"),
    ("weights.load(SAVED, 'float16')", "dtype is float16, needed torch.float32"),
    # text
    (r"TOKENIZER.encode('a\ud800')", r"text has a lone surrogate '\ud800' at position 1"),
    ("TOKENIZER.encode(b'abc')", "text is a bytes, needed a str"),
    ("CharTokenizer(3)", "the vocabulary is 3, needed characters"),
    ("CharTokenizer([1.5])", "the vocabulary is [1.5], needed characters"),
    ("Tokenizer({}, {})", "a vocabulary is something else than two dicts"),
    ("Tokenizer({'a': 0}, {})", "needed ids from 0 on, by the bytes of each token"),
    ("Tokenizer({b'a': -1}, {})", "needed ids from 0 on"),
    (r"Tokenizer({b'a': 0}, {'\ud800': 1})", "text has a lone surrogate"),
    ("Tokenizer({b'a': 0}, {'x' * 10**6: 1})",
     "the special tokens have 1000000 characters together, needed at most 65536"),
    ("train_bpe(None, 300)", "texts is one NoneType, needed several"),
    ("train_bpe(['a'], 10**30)",
     "vocab_size is 1000000000000000000000000000000, needed a whole number from 257 to"),
    ("train_bpe(['a'], '300')", "vocab_size is '300', needed"),
    ("train_bpe(['a'], 300, [3])", "text is a int, needed a str"),
    ("StopStrings(3)", "stops is 3, needed a list of strings"),
    ("StopStrings(['.']).push(3)", "a piece of the text is 3, needed a str"),
    ("stream_text(MODEL, TOKENIZER, 'a', stop=None)", "stops is None, needed a list of strings"),
    # what is shown of something enormous, or of what a terminal would obey
    ("MODEL.new_cache(kind='x' * 10**6)", "needed one of static, growing"),
    (r"MODEL.new_cache(kind='\x1b[2J')", r"cache kind is '\x1b[2J', needed"),
    ("generate(MODEL, IDS, 2, draft=[1] * 10**5)",
     "needed 'lookup', a smaller model, or a Drafter"),
]
# fmt: on


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, Any]:
    """What the calls may speak of: everything public, and one of each that they need."""
    torch.manual_seed(0)
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": 256}
    model, tokenizer = GPT(GPTConfig(vocab_size=257, **shape)).eval(), byte_tokenizer()
    saved = tmp_path_factory.mktemp("saved")
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    public = {name: getattr(minigpt, name) for name in minigpt.__all__}
    return {
        **public, **{found.__name__: found for found in BESIDES},
        "np": np, "torch": torch, "weights": weights,
        "MODEL": model, "TOKENIZER": tokenizer, "SAVED": saved, "IDS": [1, 2, 3],
        "TOKENS": torch.tensor([[1, 2, 3]]), "GENERATOR": torch.Generator(),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No network, and a working directory in which nothing is left."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("call", "sentence"), CALLS, ids=[call[:60] for call, _ in CALLS])
def test_a_mistake_is_told_in_one_sentence(names, call, sentence):
    with pytest.raises(MinigptError) as told:
        eval(call, names)
    assert sentence in str(told.value)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 2_100


def test_everything_public_is_called_with_something_bad():
    functions = [name for name in minigpt.__all__ if callable(getattr(minigpt, name))]
    results = {  # come out
        "Beam", "Generation", "Report", "Request", "Score", "TokenLogProb", "TextStream",
    }  # fmt: skip
    missing = [
        name for name in functions
        if name not in results | {"MinigptError"} and not any(name in call for call, _ in CALLS)
    ]  # fmt: skip
    assert missing == []


# --- the command line -----------------------------------------------------------------------------

SAVED = ("--model", "{saved}")
ASK = ("generate", *SAVED, "--prompt", "x")
LINES: list[tuple[tuple[str, ...], str]] = [
    ((*ASK, "--temperature", "inf"), "temperature is inf, needed"),
    ((*ASK, "--top-p", "nan"), "top_p is nan, needed"),
    ((*ASK, "--max-new-tokens", "9", "--samples", str(10**9)), "rows were asked for"),
    ((*ASK, "--beams", "9999"), "beams is 9999, needed a whole number from 1 to"),
    ((*ASK, "--repetition-penalty", "0"), "repetition_penalty is 0.0, needed"),
    ((*ASK, "--frequency-penalty", "9"), "frequency_penalty is 9.0, needed"),
    ((*ASK, "--draft", "./nowhere"), "there is no directory './nowhere'"),
    ((*ASK, "--device", "cuda"), "device 'cuda' cannot be used here"),
    ((*ASK, "--load-cache", "/dev/null"), "it is not a plain file"),
    ((*ASK, "--load-cache", "{saved}"), "it is not a plain file"),
    ((*ASK, "--load-cache", "{saved}/model.safetensors"), "does not hold a cache"),
    (("generate", "--prompt", "x", "--model", "x" * 5_000), "could not fetch xxx"),
    (("generate", "--prompt", "x", "--model", ""), "there is no directory ''"),
    (("generate", "--prompt", "x", "--model", "a\0b"), r"the path is 'a\x00b', needed"),
    (("generate", "--prompt", "x", "--model", "\ud800"), r"the path is '\ud800', needed"),
    (("generate", "--prompt", "x", "--model", "a/b/c"), "there is no directory 'a/b/c'"),
    (("score", *SAVED, "{saved}"), "cannot be read"),
    (("score", *SAVED, "./nowhere"), "cannot be read"),
    (("score", *SAVED, "\ud800"), r"the path is '\ud800', needed"),
    (("score", *SAVED, "{saved}/model.safetensors"), "is not UTF-8 text"),
    (("score", *SAVED, "{saved}/config.json", "--stride", "0"), "stride is 0, needed"),
    (("verify", *SAVED, "--prompt", "\udcff"), "text has a lone surrogate"),
    (("verify", *SAVED, "--tokens", str(10**4)), "has 10,000 tokens, needed 2 to 32"),
    (("inspect", "./nowhere"), "there is no directory './nowhere'"),
    (("inspect", "{saved}", "--batch", "0"), "batch is 0, needed"),
    (("inspect", "{saved}", "--memory", "lots"), "the size is 'LOTS', needed"),
    (("inspect", "random:nothing"), "no preset is called 'nothing'"),
    (("inspect", "a\0b"), r"the path is 'a\x00b', needed"),
    (("bench", *SAVED, "--only", "nothing"), "nothing"),
    (("bench", "--model", "random:nothing"), "no preset is called 'nothing'"),
    (("bench", *SAVED, "--rounds", "0"), "rounds is 0, needed"),
    (("play", *SAVED, "--temperature", "-1"), "temperature is -1.0, needed"),
    (("play", *SAVED, "--max-new-tokens", "-1"), "max_new_tokens is -1, needed"),
    (("train", "--preset", "nothing"), "no recipe is called 'nothing'"),
    (("train", "--config", "./nowhere.toml"), "cannot be read as TOML"),
    (("train", "--config", "{saved}/model.safetensors"), "cannot be read as TOML"),
    (("train", "--task", "nothing"), "no recipe is called 'nothing'"),
    (("train", "--tokenizer", "\ud800"), r"tokenizer is '\ud800', needed whole characters"),
    (("train", "--data", "x" * 5_000), "cannot save in runs/xxx"),
    (("train", "--learning-rate", "nan"), "learning_rate is nan, needed"),
    (("train", "--n-embd", "7"), "n_embd is 7 and n_head is 5"),
    (("train", "--device", "cuda"), "device 'cuda' cannot be used here"),
    (("train", "--eval"), "--eval needs a model to measure"),
    (("train", "--eval", "./nowhere"), "./nowhere holds no run with a log.jsonl"),
    (("curves", "./nowhere"), "./nowhere holds no run with a log.jsonl"),
    (("curves", "{saved}"), "holds no run with a log.jsonl"),
    (("curves", "x" * 5_000), "holds no run with a log.jsonl"),
    (("curves", "a\0b"), r"the path is 'a\x00b', needed"),
    (("curves", "{saved}", "--plot", "x.gif"), "x.gif does not end in .png or .svg"),
    (("download", "gpt2", "--weights-dir", "x" * 5_000), "could not fetch openai-community/gpt2"),
    (("download", "../gpt2"), "there is no model '../gpt2' to download"),
]


@pytest.fixture
def command(names, capsys, monkeypatch):
    """command("generate", ...): its exit code and what it said on stderr."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = main([argument.replace("{saved}", str(names["SAVED"])) for argument in arguments])
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(("arguments", "sentence"), LINES)
def test_a_mistake_on_the_command_line_costs_one_sentence_and_code_2(command, arguments, sentence):
    code, said = command(*arguments)
    assert code == 2
    *bars, last = said.splitlines()  # a progress bar may have begun
    assert last.startswith("minigpt: ")
    assert sentence.lower() in last.lower()
    assert len(last) < 2_100
    assert "Traceback" not in "".join(bars)
