"""Killed at any step, out of room, two at once, told to stop: what is there is always whole.

Each kill is of a real process, by the system: SIGKILL before its n-th change of the disk, or the
signal that a file has reached its limit, which ends it in the midst of a write.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, load_cache, save_cache
from minigpt.checkpoint import hub, weights
from minigpt.commands.cli import main
from minigpt.support.files import locked
from minigpt.tokenizer import byte_tokenizer
from minigpt.training import state as training
from minigpt.training.data import Corpus, prepare
from minigpt.training.loop import CHECKPOINTS, train
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text
from tests.fake_hub import COMMIT
from tests.helpers import TOY

resource = pytest.importorskip("resource", reason="kills and limits are those of Unix")
forkserver = get_context("forkserver")  # each child a real process, without a second import
forkserver.set_forkserver_preload(
    [
        "minigpt.training.loop",
        "torch._dynamo",
        "minigpt.commands.cli",
        "pytest",
        "huggingface_hub.file_download",
    ]
)
SHAPES = [GPTConfig(257, 8, 16, 1, 2), GPTConfig(257, 8, 16, 1, 2, activation_function="relu")]
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink"}
RECIPE = TrainConfig(
    n_layer=1, n_head=2, n_embd=16, n_positions=8, steps=2, batch_size=2, warmup=1,
    evaluate_every=1, evaluate_windows=2, save_every=1,
)  # fmt: skip


# --- What is written: each in an old version (0) and a new one (1) ------------------------------


def made(version: int) -> GPT:
    torch.manual_seed(version)
    return GPT(SHAPES[version]).eval()


def save_model(directory: Path, version: int) -> None:
    made(version).save_pretrained(directory)


def model_there(directory: Path) -> int:
    """Which version loads; neither would be a mixture."""
    config, found = weights.load(directory, torch.bfloat16)
    version = SHAPES.index(config)
    wanted = made(version).bfloat16().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    return version


def keep_cache(directory: Path, version: int) -> None:
    model = made(0)
    cache = model.new_cache()
    model(torch.arange(3 + version)[None], cache=cache)
    save_cache(cache, directory / "cache")


def cache_there(directory: Path) -> int:
    return len(load_cache(directory / "cache", made(0))) - 3


def save_tokens(directory: Path, version: int) -> Corpus:
    text = directory / f"text-{version}"
    return prepare(text, "char", directory / "cache")


def tokens_there(directory: Path) -> int:
    """A copy is made for each text, so both may be there; nothing else may."""
    copies = [path for path in (directory / "cache").iterdir() if path.name[:4] == "text"]
    for copy in copies:
        about = json.loads((copy / "corpus.json").read_text())
        sizes = [(copy / name).stat().st_size for name in ("training.bin", "held_out.bin")]
        assert (about["dtype"], sum(sizes) // 2) == ("<u2", 2600 + 2)
    return len(copies) - 1


def write_texts(directory: Path) -> None:
    for version in (0, 1):
        (directory / f"text-{version}").write_text(f"{version} is a version of a text. " * 100)


def save_download(directory: Path, version: int) -> None:
    """There is nothing to replace: what is there already stays."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    url, size, sha256 = json.loads((directory / "hub.json").read_text())
    hub.PINNED["gpt2"] = hub.Pin("openai-community/gpt2", COMMIT, size, sha256)
    hub.download("gpt2", directory / "weights", url)


def download_there(directory: Path) -> int:
    if not (directory / "weights" / "gpt2" / "model.safetensors").exists():
        return 0
    weights.load(directory / "weights" / "gpt2")
    return 1


def save_run(directory: Path, version: int) -> None:
    """A run of one step, and then another; again when it is resumed."""
    torch.set_num_threads(1)
    training, rest = (np.arange(n, dtype=np.uint16) % 7 for n in (200, 60))
    source = Text(Corpus(byte_tokenizer(), training, rest, 60), 8, seed=1)
    config = TrainConfig(**{**vars(RECIPE), "steps": 2, "schedule": "constant"})
    torch.manual_seed(0)
    train(GPT(SHAPES[0]), source, config, directory, resume=True)


def run_there(directory: Path) -> int:
    last = training.newest_checkpoint(directory / CHECKPOINTS)
    if last is not None:
        state = training.load_checkpoint(
            last, TrainConfig(**{**vars(RECIPE), "schedule": "constant"})
        ).state
        assert f"step-{state.step:08d}" == last.name
    if (directory / "model.safetensors").exists():
        GPT.from_pretrained(directory)
    return int(last is not None and last.name == "step-00000002")


WRITERS: dict[str, tuple[Callable[[Path, int], object], Callable[[Path], int]]] = {
    "model": (save_model, model_there),
    "cache": (keep_cache, cache_there),
    "tokens": (save_tokens, tokens_there),
    "run": (save_run, run_there),
    "download": (save_download, download_there),
}


@pytest.fixture(autouse=True)
def flushing_takes_no_time(monkeypatch):
    """What a killed process has written is not lost; a flush matters when the power goes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    torch.set_num_threads(1)


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """What is written, and a directory with its old version; a run and a download have none."""
    (tmp_path / "old").mkdir()
    if request.param == "download":
        pin = request.getfixturevalue("published") and hub.PINNED["gpt2"]
        about = [os.environ["HF_ENDPOINT"], pin.size, pin.sha256]
        (tmp_path / "old" / "hub.json").write_text(json.dumps(about))
    elif request.param != "run":
        write_texts(tmp_path / "old")
        WRITERS[request.param][0](tmp_path / "old", 0)
    return request.param, tmp_path / "old"


def leftovers(directory: Path) -> list[str]:
    """What is hidden, other than an empty folder, which the next to write there removes."""
    return [path.name for path in directory.rglob(".*") if path.is_file() or any(path.iterdir())]


# --- Processes that die -------------------------------------------------------------------------


def in_a_process(target: Callable[..., object], *arguments: object) -> None:
    """Do this in a process without threads, which may be forked; nothing it does is seen here."""
    process = forkserver.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def forked(target: Callable[..., object], *arguments: object) -> int:
    """The exit code of a copy of this process that does this: minus the signal that ended it."""
    process = os.fork()
    if not process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            target(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die_at_step(when: int) -> None:
    """SIGKILL before the n-th change of the disk: a file opened to write, a flush, a rename, ..."""
    steps = count(1)

    def step() -> None:
        if next(steps) == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in CHANGES or (event == "open" and arguments[2] & writes):
            step()

    sys.addaudithook(hook)
    os.fsync = lambda descriptor: step()


def die_at_byte(size: int) -> None:
    """The system ends the process when a file grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die(how: Callable[[int], None], when: int, kind: str, directory: Path) -> None:
    how(when)
    WRITERS[kind][0](directory, 1)


def die_everywhere(how: Callable[[int], None], kind: str, old: Path) -> None:
    """Write beside `old`, in a copy of it for each point to die at, until the end is reached."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    WRITERS[kind][0](Path(shutil.copytree(old, old / "rehearsal")), 1)  # imports all it needs
    shutil.rmtree(old / "rehearsal")
    codes = {}
    every = {"run": 8, "download": 9}.get(kind, 1)
    for when in count(1, every) if how is die_at_step else (0, 1, 50, 400, 3000, 9000, 10**9):
        shutil.copytree(old, old.with_name(str(when)))
        codes[when] = forked(die, how, when, kind, old.with_name(str(when)))
        if codes[when] == 0:
            break
    old.with_name("codes.json").write_text(json.dumps(codes))


class TestAProcessThatIsKilled:
    @pytest.mark.parametrize("how", [die_at_step, die_at_byte])
    def test_leaves_the_old_or_the_new_and_the_next_one_ends_it(self, written, tmp_path, how):
        kind, old = written
        write, there = WRITERS[kind]
        in_a_process(die_everywhere, how, kind, old)
        codes = json.loads((tmp_path / "codes.json").read_text())
        *killed, last = codes.values()
        assert set(killed) == {-(signal.SIGKILL if how is die_at_step else signal.SIGXFSZ)}
        assert last == 0
        assert len(killed) >= (5 if how is die_at_step else 3)
        assert {there(tmp_path / when) for when in codes} == {0, 1}
        for when in codes:
            write(tmp_path / when, 1)
            assert there(tmp_path / when) == 1
            assert leftovers(tmp_path / when) == []


# --- No room, or no right -----------------------------------------------------------------------


def small_disk(directory: Path) -> bool:
    """Mount one, of 16 MB, that this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, everywhere = 0x20000, 1 << 18, 1 << 14
    return (
        hasattr(libc, "unshare")
        and libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, private | everywhere, None) == 0
        and libc.mount(b"tmpfs", bytes(directory), b"tmpfs", 0, b"size=16m") == 0
    )


def write_without_room(how: str, kind: str, old: Path) -> None:
    """Tell what is said, with room for more and more bytes, in a file beside `old`."""
    torch.set_num_threads(1)
    place, said = old.with_name("place"), []
    place.mkdir()
    if how == "disk" and not small_disk(place):
        return
    if how == "limit":  # which would be one for stderr, too, where that is a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    directory = shutil.copytree(old, place / "directory")
    write, there = WRITERS[kind]
    for room in (0, 4096, 16384, 32768):
        if how == "disk":
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
            (place / "filler").write_bytes(bytes(free - room))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write(directory, 1)
        except MinigptError as error:
            said.append(str(error))
            assert there(directory) == 0
            assert leftovers(directory) == [] or kind == "download"  # which keeps what is whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (place / "filler").unlink(missing_ok=True)
    write(directory, 1)
    assert there(directory) == 1
    assert leftovers(directory) == []
    old.with_name("said.json").write_text(json.dumps(said))


def write_without_right(kind: str, directory: Path, told: Path) -> None:
    torch.set_num_threads(1)
    with told.open("w") as file:  # opened while we may
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:  # whom no mode keeps from writing
            # Nobody may not read root's Python, from which the rest would be imported when needed.
            import huggingface_hub.file_download
            import huggingface_hub.hf_api  # noqa: F401

            os.setuid(65534)
        try:
            WRITERS[kind][0](directory, 1)
        except MinigptError as error:
            file.write(str(error))


class TestAWriteThatCannotBe:
    @pytest.mark.parametrize("how", ["disk", "limit"])
    def test_for_want_of_room_leaves_the_old_and_succeeds_once_there_is(
        self, written, tmp_path, how
    ):
        kind, old = written
        in_a_process(write_without_room, how, kind, old)
        if not (tmp_path / "said.json").exists():
            pytest.skip("mounting a small disk needs root, and a kernel that lets it")
        said = json.loads((tmp_path / "said.json").read_text())
        reason = "No space left" if how == "disk" else "File too large"
        assert len(said) >= 1
        assert all(reason in line and "make room" in line and "\n" not in line for line in said)

    def test_for_want_of_the_right_says_so_and_changes_nothing(self, written):
        kind, old = written
        with tempfile.TemporaryDirectory() as place:  # which others may enter
            Path(place).chmod(0o755)
            directory, told = Path(place, "directory"), Path(place, "told")
            shutil.copytree(old, directory)
            in_a_process(write_without_right, kind, directory, told)
            for path in (directory, *directory.rglob("*")):
                path.chmod(0o755)
            assert "Permission denied" in told.read_text()
            assert WRITERS[kind][1](directory) == 0
            assert leftovers(directory) == []


# --- Two at once --------------------------------------------------------------------------------


def write_often(kind: str, directory: Path, first: int) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None
    for number in range(25):
        WRITERS[kind][0](directory, (first + number) % 2)


class TestTwoProcesses:
    @pytest.mark.parametrize("written", ["model", "cache", "download"], indirect=True)
    def test_that_write_the_same_place_both_succeed_and_a_reader_sees_one_of_them(self, written):
        kind, directory = written
        both = [
            forkserver.Process(target=write_often, args=(kind, directory, first))
            for first in (0, 1)
        ]
        for process in both:
            process.start()
        seen = set()
        while any(process.is_alive() for process in both):
            seen.add(WRITERS[kind][1](directory))
        assert [process.exitcode for process in both] == [0, 0]
        assert seen == {0, 1}
        assert leftovers(directory) == []

    def test_do_not_train_into_the_same_directory(self, tmp_path):
        (tmp_path / CHECKPOINTS).mkdir()
        with (
            locked(tmp_path / CHECKPOINTS),
            pytest.raises(MinigptError, match="another process is training into .*: wait for it"),
        ):
            save_run(tmp_path, 1)


# --- Told to stop -------------------------------------------------------------------------------


def stop_at(when: int, arguments: list[str], told: Path) -> None:
    """Ctrl-C at the n-th call of a function of ours; the exit code and stderr are told."""
    calls = count(1)

    def profile(frame: Any, event: str, _: object) -> None:
        if event == "call" and "/minigpt/" in frame.f_code.co_filename and next(calls) == when:
            os.kill(os.getpid(), signal.SIGINT)

    with told.open("w") as file:
        os.dup2(file.fileno(), 2)
        sys.setprofile(profile)
        code = main(arguments)
        sys.setprofile(None)
    told.with_suffix(".json").write_text(json.dumps([code, next(calls)]))


def stop_everywhere(arguments: list[str], directory: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(directory)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    forked(stop_at, 0, arguments, directory / "whole")
    code, calls = json.loads((directory / "whole.json").read_text())
    assert code == 0
    for when in (2, 20, *(int(calls * part) for part in (0.05, 0.3, 0.6, 0.9, 0.99))):
        shutil.rmtree(directory / "runs", ignore_errors=True)
        forked(stop_at, when, arguments, directory / f"stopped-{when}")


COMMANDS = {
    "generate": ["--model", str(TOY), "--prompt", "Once", "--max-new-tokens", "6"],
    "verify": ["--model", str(TOY), "--tokens", "5"],
    "score": ["text", "--model", str(TOY)],
    "inspect": [str(TOY)],
    "train": [
        "--data",
        "text",
        "--tokenizer",
        "byte",
        "--n-layer",
        "1",
        "--n-head",
        "1",
        "--n-embd",
        "8",
        "--n-positions",
        "8",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--warmup",
        "1",
        "--evaluate-every",
        "1",
    ],
}


class TestCtrlC:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_at_any_moment_exits_with_130_and_one_line(self, command, tmp_path):
        (tmp_path / "text").write_text("Once upon a time, a fox sang. " * 20)
        in_a_process(stop_everywhere, [command, *COMMANDS[command]], tmp_path)
        stopped = {path: json.loads(path.with_suffix(".json").read_text())[0]
                   for path in tmp_path.glob("stopped-*") if not path.suffix}  # fmt: skip
        assert len(stopped) >= 6
        assert set(stopped.values()) == {130}
        for path in stopped:
            assert path.read_text().endswith("\ninterrupted\n")
            assert "Traceback" not in path.read_text()
