"""Files from nowhere: each loads and then gives logits, or is refused in one sentence.

Checkpoints, tokenizers, saved caches and training runs are damaged from a seed, in their bytes and
in what their headers and JSON say, 2,000 times. No case may raise anything but a `MinigptError`,
take memory out of proportion to its files, or change a file. MINIGPT_EXAMPLES=250 does 20,000.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import pickle
import random
import re
import shutil
import socket
import string
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file

from minigpt import GPT, GPTConfig, MinigptError, Tokenizer, load_cache, save_cache
from minigpt.checkpoint import caches as cache_file
from minigpt.checkpoint import weights
from minigpt.commands.cli import main
from minigpt.generation.text import stream_text
from minigpt.study.cost import inspect
from minigpt.tokenizer import CharTokenizer
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories
from minigpt.training.loop import CHECKPOINTS, Run, train
from minigpt.training.parallel import Processes
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Problems, starting_model
from minigpt.training.state import newest_checkpoint
from minigpt.training.tasks import TASKS

EXAMPLES = int(os.environ.get("MINIGPT_EXAMPLES", "25"))
CASES = 80 * EXAMPLES  # 2,000
SLACK = 32 * 2**20  # bytes that a case may take beside twice its files: torch, Python, the model
ROOM = 2**29  # bytes of addresses that a case may reserve: an absurd size fails at once
HANGS = 120  # seconds after which a case is killed, with a traceback of where it hung

Rng = random.Random
Files = dict[str, bytes]


# --- what is damaged ------------------------------------------------------------------------------

TASK = TASKS["copying"]
RUN = TrainConfig(
    task="copying", n_layer=1, n_head=2, n_embd=8, n_positions=TASK.config().n_positions,
    batch_size=2, steps=2, save_every=1, evaluate_every=5, precision="float16",
)  # fmt: skip


def small(vocab_size: int, **changes: Any) -> GPT:
    torch.manual_seed(0)
    shape = {"n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2, "eos_token_id": 0}
    config = GPTConfig(vocab_size=vocab_size, **{**shape, **changes})
    return GPT(config, numerics="fast").eval()


def whole_file(directory: Path) -> None:
    tokenizer = train_bpe(stories(1, 20), 290)
    tokenizer.save_pretrained(directory)
    small(tokenizer.n_vocab + 1).save_pretrained(directory)
    (directory / "added_tokens.json").write_text('{"<|pad|>": 290}')


def shards(directory: Path) -> None:
    """Two files and an index, an untied head, and a tokenizer of characters."""
    tokenizer = CharTokenizer(string.printable)
    tokenizer.save_pretrained(directory)
    model = small(tokenizer.n_vocab, tie_word_embeddings=False, n_kv_head=1).half()
    held = list(model.state_dict().items())
    index = {}
    for number, part in enumerate((held[:7], held[7:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({f"transformer.{key}": tensor for key, tensor in part}, directory / name)
        index |= {f"transformer.{key}": name for key, _ in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))


def cache_of(kind: str) -> Callable[[Path], None]:
    """A saved cache of two rows."""

    def make(directory: Path) -> None:
        model, window = small(17), {"window": 4} if kind == "window" else {}
        cache = model.new_cache(2, kind=kind, **window)
        model(torch.arange(18).view(2, 9) % 17, cache=cache)
        if kind != "window":
            cache.truncate([9, 7])
        save_cache(cache, directory / "cache.safetensors")

    return make


KINDS = ("static", "growing", "paged", "quantized", "window")


def training_run(directory: Path) -> None:
    source = Problems(TASK, RUN.seed)
    train(starting_model(RUN, source), source, RUN, directory)


# --- what must survive it: each step loads something and uses it ----------------------------------


def use_model(directory: Path) -> None:
    model = GPT.from_pretrained(directory, numerics="fast")
    count = min(4, model.config.n_positions)
    logits = model(torch.arange(count)[None] % model.config.vocab_size)
    assert logits.shape == (1, count, model.config.vocab_size)


def use_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(directory)
    ids = tokenizer.encode("Once upon a time,\n3 foxes")
    assert tokenizer.decode(ids) == "Once upon a time,\n3 foxes"
    tokenizer.encode("<|endoftext|><|pad|>", allow_special=True)


def use_both(directory: Path) -> None:
    model = GPT.from_pretrained(directory, torch.float32, numerics="fast")
    text = stream_text(model, Tokenizer.from_pretrained(directory), "The", max_new_tokens=2)
    assert isinstance("".join(text), str)


def use_shape(directory: Path) -> None:
    weights.read_config(directory)


def use_cache(directory: Path) -> None:
    model = small(17)
    cache = load_cache(directory / "cache.safetensors", model)
    logits = model(torch.ones(cache.batch_size, 1, dtype=torch.int64), cache=cache)
    assert logits.shape == (cache.batch_size, 1, 17)
    assert cache.tokens is None or list(map(len, cache.tokens)) == cache.lengths


def use_run(directory: Path) -> None:
    source = Problems(TASK, RUN.seed)
    model = starting_model(RUN, source)
    run = Run(model, source, RUN, directory, Processes(torch.device("cpu")), resume=True)
    run.step()
    use_model(newest_checkpoint(directory / CHECKPOINTS) or directory)


SUBJECTS: dict[str, tuple[Callable[[Path], None], tuple[Callable[[Path], None], ...], int]] = {
    # how it is made; what must survive damage to it; its share of the cases
    "one file": (whole_file, (use_model, use_tokenizer, use_both, use_shape), 8),
    "shards": (shards, (use_model, use_tokenizer, use_both, use_shape), 6),
    **{f"{kind} cache": (cache_of(kind), (use_cache,), 1) for kind in KINDS},
    "training run": (training_run, (use_run,), 1),
}


@contextmanager
def refusals() -> Iterator[None]:
    """What is inside may be refused, in one sentence that a terminal can show."""
    try:
        yield
    except MinigptError as error:
        sentence = str(error)
        assert sentence.isprintable(), sentence
        assert 10 < len(sentence) < 2_100, sentence


# --- how it is damaged ----------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 7, -1, -8, 255, 2**16, 2**24, 2**31, 2**32 - 1, 2**62, 2**63, 2**64)
ODD: tuple[Any, ...] = (
    *NUMBERS, None, True, False, 0.5, -0.0, 1e308, 10**400, float("inf"), float("nan"), "", "x",
    "é", "../x", "/etc/passwd", "\ud800", "\0", "a\n\x1b[2Jb", "F32", "I64", "F8_E4M3",
    "BOOL", "gpt2", "x" * 5_000, [], {}, [[]], [1, 2], [0, 0], [-1, 8], [2**63, 2**63],
    [2**40, 2**40], {"a": 1}, list(range(300)), json.loads("[" * 90 + "]" * 90),
)  # fmt: skip


def spoil_bytes(rng: Rng, data: bytes) -> bytes:
    """One blow to a file: most often near its beginning, where headers are."""
    end = min(len(data), rng.choice((8, 64, 600, len(data), len(data))))
    at, other = rng.randrange(end + 1), rng.randrange(len(data) + 1)
    low, high = sorted((at, other))
    blow = rng.randrange(10)
    if blow < 3 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    number = (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")
    return {
        3: data[:other],  # cut short
        4: data + rng.randbytes(rng.choice((1, 8, 1000))),
        5: data[:low] + data[high:],
        6: data[:high] + data[low:],  # a part twice
        7: data[:at] + number + data[at + 8 :],
        8: data[:low] + rng.choice((b"\0", b"\xff", b"\0\0\xc0\x7f")) * (high - low) + data[high:],
        9: number + data[8:],  # of safetensors, the length of the header
    }.get(blow, data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:])


def spoil_json(rng: Rng, content: Any) -> Any:
    """One odd value, missing key, or key under another name, somewhere in it."""
    content = copy.deepcopy(content)
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return rng.choice(ODD)
        key = rng.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        blow = rng.randrange(6)
        if blow == 0:
            del node[key]
        elif blow == 1 and isinstance(node, dict):
            node[rng.choice((rng.choice(keys), "x", "", "\ud800", "transformer." + key))] = (
                node.pop(key)
            )
        elif blow == 2 and isinstance(node[key], int):
            node[key] += rng.choice((-1, 1, 8, node[key]))
        elif blow == 3:
            node[key] = node[rng.choice(keys)]
        else:
            node[key] = rng.choice(ODD)
        return content


def as_text(rng: Rng, content: Any) -> bytes:
    """JSON, which now and then holds a key twice, or is nested deeply."""
    text = json.dumps(content)
    if rng.random() < 0.1:
        text = re.sub(r'^\{("[^"]*": (?:\{[^{}]*\}|[^{},]+)), ', r"{\1, \1, ", text)
    if rng.random() < 0.03:
        text = text[:-1] + ', "x": ' + "[" * 10_000 + "]" * 10_000 + text[-1]
    return text.encode()


def spoil_lines(rng: Rng, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    odd = rng.choice((b"", b" ", b"a", b"a b c", b"\xff", b"\xc4\xa0 \xc4\xa0", b"x" * 9_999))
    lines[at] = rng.choice((odd, lines[other], lines[at] + b" x"))
    return b"\n".join(lines)


def spoil_header(rng: Rng, data: bytes) -> bytes:
    """What a safetensors file says of its tensors, beside the bytes that it holds."""
    size = int.from_bytes(data[:8], "little")
    header = as_text(rng, spoil_json(rng, json.loads(data[8 : 8 + size])))
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def forge(rng: Rng, data: bytes) -> bytes:
    """A whole safetensors file that holds what it should not; of a cache, with a checksum."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    tensors = load(data)
    name = rng.choice(list(tensors))
    old = tensors[name]
    tensors[name] = rng.choice((
        old[..., :0], old[..., :1], old.repeat_interleave(2, 0) if old.ndim else old[None],
        old.flatten(), old.double(), old.long(), old * torch.nan, old + torch.inf, old[None], -old,
    )).contiguous()  # fmt: skip
    if "about" in metadata:
        about = json.loads(metadata["about"])
        if rng.random() < 0.6:
            tensors[name], about = old, spoil_json(rng, about)
        text = json.dumps(about)
        metadata = {"about": text, "checksum": cache_file._checksum(text, tensors)}
    return save(tensors, metadata)


def spoil(rng: Rng, files: Files) -> Files:
    """One or two of the files, in a way that fits them."""
    files = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(files))
        data = files[name]
        kind = Path(name).suffix if rng.random() < 0.75 else ""
        try:
            if kind == ".json":
                files[name] = as_text(rng, spoil_json(rng, json.loads(data)))
            elif kind == ".txt":
                files[name] = spoil_lines(rng, data)
            elif kind == ".safetensors":
                files[name] = rng.choice((spoil_header, forge))(rng, data)
            else:
                files[name] = spoil_bytes(rng, data)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError, SafetensorError):
            files[name] = spoil_bytes(rng, data)  # spoilt before: no longer what its name says
    return files


# --- the cases ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Files]:
    """The files of each subject, undamaged, by their place under its directory."""
    found = {}
    for name, (make, steps, _) in SUBJECTS.items():
        directory = tmp_path_factory.mktemp("subject")
        make(directory)
        found[name] = snapshot(directory)
        for step in steps:
            step(directory)  # no case is worth anything if the undamaged files fail
    return found


def snapshot(directory: Path) -> Files:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write(directory: Path, files: Files) -> None:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


@pytest.fixture
def bounded(tmp_path) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """bounded(size): inside, memory is limited, and afterwards its peak is at most twice the size.

    The peak is the resident memory that Linux counts (VmHWM, reset before); the limit is of
    addresses (RLIMIT_AS), so that what is reserved and never written does not go unseen.
    """
    resource = pytest.importorskip("resource", reason="only Unix limits memory")

    def reading(field: str) -> int:
        line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert line is not None
        return int(line[1]) * 1024

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux tells the peak since a given moment")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        before = reading("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (reading("VmSize") + ROOM, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert reading("VmHWM") - before <= 2 * size + SLACK

    yield limited
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def case(number: int, originals: dict[str, Files]) -> tuple[str, Files]:
    """The subject and the damaged files of a case, a function of its number alone."""
    rng = Rng(number)
    shares = [share for *_, share in SUBJECTS.values()]
    [name] = rng.choices(list(SUBJECTS), shares)
    return name, spoil(rng, originals[name])


@pytest.mark.parametrize("block", range(10))
def test_whatever_is_in_the_files_one_sentence_or_logits_come_out(
    originals, tmp_path, bounded, block
):
    with (tmp_path / "last-case").open("w") as journal:  # and how it died, should the process die
        for number in range(block * CASES // 10, (block + 1) * CASES // 10):
            print(number, file=journal, flush=True)
            faulthandler.dump_traceback_later(HANGS, exit=True, file=journal)
            name, files = case(number, originals)
            write(tmp_path / "files", files)
            try:
                for step in SUBJECTS[name][1]:
                    with bounded(sum(map(len, files.values()))), refusals():
                        step(tmp_path / "files")
                assert snapshot(tmp_path / "files") == files
            except BaseException:  # PanicException, of a library in Rust, is no Exception
                print(f"case {number}: {name}, {changed(originals[name], files)}")
                raise
            finally:
                faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(tmp_path / "files")


def changed(before: Files, after: Files) -> str:
    """Which files a case damaged, and how they begin to differ."""
    told = []
    for name, data in after.items():
        if data != before[name]:
            at = next(
                (n for n, (a, b) in enumerate(zip(before[name], data, strict=False)) if a != b), 0
            )
            told.append(f"{name} from byte {at}: {data[max(0, at - 20) : at + 60]!r}")
    return "; ".join(told)


# --- what chance does not find --------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
KEYS = st.sampled_from([*GPTConfig().to_dict(), "n_ctx", "hidden_size", "n_kv_head", "dtype"])


@settings(
    max_examples=4 * EXAMPLES, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(VALUES | st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_json_may_stand_in_the_place_of_a_configuration(originals, tmp_path, content):
    config = json.loads(originals["one file"]["config.json"])
    files = originals["one file"] | {
        "config.json": json.dumps(
            config | content if isinstance(content, dict) else content
        ).encode()
    }
    write(tmp_path / "files", files)
    for step in (use_model, use_shape, lambda directory: str(inspect(directory))):
        with refusals():
            step(tmp_path / "files")
    assert snapshot(tmp_path / "files") == files


def many_tensors(count: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"h.{n}": entry for n in range(count)}).encode()
    return len(header).to_bytes(8, "little") + header


CONFIG, WEIGHTS, INDEX = weights.CONFIG, weights.WEIGHTS, weights.INDEX
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a configuration of brackets": (CONFIG, lambda: b'{"x": [' + b"[]," * 2**22 + b"[]]}"),
    "a configuration of one number": (CONFIG, lambda: b"9" * 2**22),
    "an index of brackets": (INDEX, lambda: b"[" + b"[]," * 2**22),
    "a header of tensors": (WEIGHTS, lambda: many_tensors(100_000)),
    "the longest header of tensors": (WEIGHTS, lambda: many_tensors(34_000)),
    "a header of brackets": (WEIGHTS, lambda: (2**21).to_bytes(8, "little") + b"[" * 2**21),
    "a header beyond the file": (WEIGHTS, lambda: (2**63 - 1).to_bytes(8, "little") * 99),
    "a vocabulary of brackets": ("vocab.json", lambda: b'{"x": [' + b"[]," * 2**24 + b"[]]}"),
    "merges of spaces": ("merges.txt", lambda: b" " * 2**26),
    "a large special token": ("added_tokens.json", lambda: b'{"' + b"<" * 2**20 + b'": 299}'),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_made_to_fill_the_memory_takes_twice_its_size_at_most(
    originals, tmp_path, bounded, bomb
):
    name, make = BOMBS[bomb]
    files = originals["shards" if name == INDEX else "one file"] | {name: make()}
    write(tmp_path, files)
    for step in (use_model, use_tokenizer, use_shape):
        if (step is use_tokenizer) == (name in ("vocab.json", "merges.txt", "added_tokens.json")):
            with bounded(len(files[name])), pytest.raises(MinigptError):
                step(tmp_path)


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_inner"])
def test_an_absurd_size_is_refused_from_the_header_alone(originals, tmp_path, bounded, field):
    """Even where the header agrees with it, and the file is as short as before."""
    files = dict(originals["one file"])
    config = json.loads(files["config.json"]) | {field: 10_000 if field == "n_layer" else 2**24}
    config.pop("n_ctx", None)  # a second name of n_positions
    shapes = GPTConfig.from_dict(config).tensors()
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}
        for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    for stated in (files["model.safetensors"], len(text).to_bytes(8, "little") + text + bytes(8)):
        files |= {"config.json": json.dumps(config).encode(), "model.safetensors": stated}
        write(tmp_path, files)
        with bounded(len(stated)), pytest.raises(MinigptError):
            use_model(tmp_path)


def pipe(path: Path) -> None:
    os.mkfifo(path)  # reading it waits for a writer that never comes


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("make", [pipe, endless, Path.mkdir], ids=["a pipe", "endless", "a folder"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json", "merges.txt"])
def test_what_is_no_plain_file_is_not_read(originals, tmp_path, make, name):
    write(tmp_path, originals["one file"])
    (tmp_path / name).unlink()
    make(tmp_path / name)
    step = use_model if name in ("config.json", "model.safetensors") else use_tokenizer
    with pytest.raises(MinigptError):
        step(tmp_path)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_load_and_generation_names_the_layer(
    originals, tmp_path, number
):
    write(tmp_path, originals["one file"])
    model = GPT.from_pretrained(tmp_path)
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] = number
    model.save_pretrained(tmp_path)
    with pytest.raises(MinigptError, match=r"weights are damaged.*first in layer 1.mlp.c_fc"):
        list(stream_text(GPT.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path), "a"))


class Bait:
    """Leaves a mark when a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return Path.touch, (self.mark,)


def test_a_pickle_under_any_name_never_runs(originals, tmp_path):
    bait = pickle.dumps(Bait(tmp_path / "mark"))
    for subject, (_, steps, _) in SUBJECTS.items():
        for name in [*originals[subject], "pytorch_model.bin", "model.pt", "optimizer.pt"]:
            directory = tmp_path / "files"
            write(directory, originals[subject] | {name: bait})
            for step in steps:
                with refusals():
                    step(directory)
            shutil.rmtree(directory)
    assert not (tmp_path / "mark").exists()


COMMANDS = (
    ("generate", "--prompt", "The", "--max-new-tokens", "3"),
    ("verify", "--tokens", "9"),
    ("inspect",),
    ("score", "{text}"),
)


def test_nothing_that_names_no_hub_touches_the_network(originals, tmp_path, monkeypatch, capsys):
    write(tmp_path / "model", originals["one file"])
    (tmp_path / "text").write_text("The fox")
    asked = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    codes = [
        main(
            [c.format(text=tmp_path / "text") for c in command]
            + ["--model", str(tmp_path / "model")]
        )
        for command in COMMANDS
    ]
    small_run = (
        "--task",
        "copying",
        "--steps",
        "2",
        "--n-embd",
        "8",
        "--n-layer",
        "1",
        "--n-head",
        "2",
    )
    codes.append(main(["train", "--out", str(tmp_path / "run"), *small_run]))
    assert codes == [0] * 5, capsys.readouterr().err
    assert asked == []
