"""Certificates on disk save a second process its probes, and are believed only while they hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.numerics import certificate_file, certificates
from minigpt.numerics.base import ACTIVATION, plain_linear
from minigpt.numerics.certificate_file import CertificateFile, file_of, folder, key_of
from minigpt.numerics.certificates import (
    AttentionCalls,
    AttentionShape,
    LinearCalls,
    LinearShape,
    RowwiseShape,
)
from minigpt.numerics.copies import Chains
from minigpt.numerics.place import Place
from tests.helpers import ROOT

PLACE = Place.here(torch.float32, torch.device("cpu"))._replace(threads=1)
LINEAR = LinearShape(96, 128, by_column=False, has_bias=True, place=PLACE)
ROWWISE = RowwiseShape("gelu_new", 96, PLACE)
ATTENTION = AttentionShape(1, 2, 1, 128, 16, PLACE)
LOOK_UPS = ("certified_calls", "rowwise_sizes", "attention_calls", "packed_works")


def forget():
    """As in a process that has just begun."""
    file_of.cache_clear()
    for name in LOOK_UPS:
        getattr(certificates, name).cache_clear()


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_CERTIFICATES", str(tmp_path / "certificates"))
    forget()
    yield tmp_path / "certificates"
    forget()


@pytest.fixture
def probes(monkeypatch):
    """The keys of all certificates that were not there, in order."""
    seen: list[str] = []
    add = CertificateFile.add

    def spy(self, key, found):
        seen.append(key)
        add(self, key, found)

    monkeypatch.setattr(CertificateFile, "add", spy)
    return seen


def ask_all():
    return (
        certificates.certified_calls(LINEAR),
        certificates.rowwise_sizes(ROWWISE),
        certificates.attention_calls(ATTENTION),
    )


def write(certificates, place=PLACE):
    """Put a whole file on disk that says this, [(name, shape, what is certified)]."""
    file = CertificateFile(folder(), place)
    said = {key_of(name, shape): found for name, shape, found in certificates}
    file.path.parent.mkdir(exist_ok=True)
    file._write(json.loads(json.dumps(said)))
    return file.path


SECOND = """
import hashlib, torch
from minigpt import GPT
from minigpt.numerics.certificate_file import CertificateFile
probes, add = [], CertificateFile.add
CertificateFile.add = lambda self, key, found: probes.append(key) or add(self, key, found)
torch.set_num_threads(1)
with torch.inference_mode():
    logits = GPT.from_pretrained("toy", numerics="exact")(torch.arange(40)[None])
print(len(probes), hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def second_process(**variables):
    done = subprocess.run(
        [sys.executable, "-c", SECOND], cwd=ROOT, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    count, digest = done.stdout.split()
    return int(count), digest


def test_a_second_process_probes_nothing(directory, probes):
    import hashlib

    from minigpt import GPT

    with torch.inference_mode():
        logits = GPT.from_pretrained("toy", numerics="exact")(torch.arange(40)[None])
    assert len(probes) == len(set(probes)) == 8  # five products, norm, activation, attention
    digest = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    assert second_process() == (0, digest)
    assert second_process(MKL_VERBOSE="0") == (8, digest)  # surroundings that are others


def test_what_is_read_is_what_was_found(probes):
    found = ask_all()
    assert len(probes) == 3
    forget()
    assert ask_all() == found
    assert len(probes) == 3
    assert list(folder().iterdir()) == [file_of(PLACE).path]


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2}, {"dtype": torch.bfloat16}, {"precision": "high"}, {"switches": (False,)},
    ],
    ids=str,
)  # fmt: skip
def test_another_place_has_a_file_of_its_own(probes, change):
    certificates.rowwise_sizes(ROWWISE)
    certificates.rowwise_sizes(ROWWISE._replace(place=PLACE._replace(**change)))
    assert len(probes) == len(list(folder().iterdir())) == 2


@pytest.mark.parametrize("part", certificate_file._machine())
def test_another_machine_or_library_has_a_file_of_its_own(probes, monkeypatch, part):
    certificates.rowwise_sizes(ROWWISE)
    forget()
    changed = {**certificate_file._machine(), part: "another"}
    monkeypatch.setattr(certificate_file, "_machine", lambda: changed)
    certificates.rowwise_sizes(ROWWISE)
    assert len(probes) == len(list(folder().iterdir())) == 2


def test_what_a_gpu_does_is_not_kept():
    assert file_of(PLACE._replace(device=torch.device("cuda"))) is None


class TestALie:
    """... with the right checksum is found out, and the file probed anew."""

    def thrown_away(self, name, shape, lie):
        look_up = {"linear": 0, "rowwise": 1, "attention": 2}[name]
        honest = [("linear", LINEAR), ("rowwise", ROWWISE), ("attention", ATTENTION)]
        found = ask_all()
        said = [(*each, found[n]) for n, each in enumerate(honest) if n != look_up]
        write([*said, (name, shape, lie)])
        forget()
        return file_of(PLACE).believed == {} and not file_of(PLACE).path.exists()

    def test_about_a_kernel_that_adds_in_another_order(self, monkeypatch, probes):
        def plain(x, weight, bias):
            if x.shape[0] != 64:
                return plain_linear(x, weight, bias)
            return plain_linear(x[:, :48], weight[:48], bias) + x[:, 48:] @ weight[48:]

        monkeypatch.setattr(certificates, "plain_linear", plain)
        monkeypatch.setattr(certificates, "pack", lambda weight: None)
        assert self.thrown_away("linear", LINEAR, LinearCalls("plain", {64: "plain"}))
        asked = len(probes)
        found = certificates.certified_calls(LINEAR)
        assert len(probes) == asked + 1
        assert 64 not in found.kernel
        forget()
        assert certificates.certified_calls(LINEAR) == found
        assert len(probes) == asked + 1

    def test_about_the_length_of_chains(self, monkeypatch):
        monkeypatch.setattr(certificates, "COPY_FROM", 0)
        calls = certificates.certified_calls(LINEAR)
        assert calls.chains is not None
        for wrong in (calls.chains.block - 1, calls.chains.block // 2):
            assert self.thrown_away("linear", LINEAR, calls._replace(chains=Chains(wrong)))

    def test_about_pairs(self, monkeypatch):
        monkeypatch.setattr(
            certificates, "paired_linear", lambda x, stack, bias: torch.baddbmm(bias, x, stack) + 1
        )
        lie = LinearCalls("plain", {}, in_pairs=True)
        assert self.thrown_away("linear", LINEAR, lie)

    def test_about_an_activation(self, monkeypatch):
        def gelu(x):
            y = torch.nn.functional.gelu(x, approximate="tanh")
            return y.nextafter(torch.tensor(torch.inf)) if len(x) == 32 else y

        monkeypatch.setitem(ACTIVATION, "gelu_new", gelu)
        assert self.thrown_away("rowwise", ROWWISE, (32,))

    def test_about_attention(self, monkeypatch):
        fused = certificates.fused_attention

        def cheating(q, k, v, mask, scale):
            y = fused(q, k, v, mask, scale)
            return y * (1 + 2**-22) if q.shape[2] == 32 else y

        monkeypatch.setitem(certificates.ATTENTION, "fused", cheating)
        assert self.thrown_away("attention", ATTENTION, AttentionCalls("fused", (32,)))

    @pytest.mark.parametrize(
        ("name", "shape", "lie"),
        [
            ("linear", LINEAR, ["cudnn", {"1": "cudnn"}, None, False, True]),
            ("linear", LINEAR, ["plain", {"1": "plain"}]),
            ("linear", LINEAR, ["plain", {"one": "plain"}, None, False, True]),
            ("rowwise", ROWWISE, []),
            ("attention", ATTENTION, ["unheard of", [1], True]),
        ],
    )
    def test_that_makes_no_sense(self, name, shape, lie):
        assert self.thrown_away(name, shape, lie)


def altered(text):
    content = json.loads(text)
    content["certificates"] = {key: [1, 2] for key in content["certificates"]}
    return json.dumps(content)


def meant_for_others(text):
    content = json.loads(text)
    content["surroundings"]["format"] += 1
    del content["checksum"]
    return json.dumps({**content, "checksum": certificate_file._checksum(content)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: text[: len(text) // 2], lambda text: "[1, 2]",
        lambda text: "{}", lambda text: "\0" * 4096, altered, meant_for_others,
    ],
)  # fmt: skip
def test_what_is_damaged_or_foreign_or_older_is_written_anew(probes, damage):
    found = certificates.rowwise_sizes(ROWWISE)
    path = file_of(PLACE).path
    whole = path.read_text()
    path.write_text(damage(whole))
    forget()
    assert certificates.rowwise_sizes(ROWWISE) == found
    assert len(probes) == 2
    assert path.read_text() == whole


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_left_alone(probes, kind):
    path = write([])
    path.unlink()
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    forget()
    assert certificates.rowwise_sizes(ROWWISE)
    assert len(probes) == 1


def test_a_link_where_it_is_written_aside_is_not_followed(probes, tmp_path):
    path, other = write([]), tmp_path / "other"
    path.unlink()
    other.write_text("mine")
    path.with_suffix(".new").symlink_to(other)
    forget()
    assert certificates.rowwise_sizes(ROWWISE)
    assert other.read_text() == "mine"
    assert not path.is_symlink()
    assert set(CertificateFile(folder(), PLACE).believed) == set(probes)


@pytest.mark.parametrize("chosen", ["off", "/proc/nowhere/minigpt", __file__])
def test_a_folder_that_is_none_costs_probes_and_nothing_else(probes, monkeypatch, chosen):
    monkeypatch.setenv("MINIGPT_CERTIFICATES", chosen)
    forget()
    assert certificates.rowwise_sizes(ROWWISE)
    assert len(probes) == (chosen != "off")


def test_the_folder_is_in_the_users_cache(monkeypatch):
    monkeypatch.delenv("MINIGPT_CERTIFICATES")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert folder() == Path("/somewhere/minigpt/certificates")
    for nowhere in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        monkeypatch.setenv("HOME", "/home/reader")
        assert folder() == Path("/home/reader/.cache/minigpt/certificates")


def in_child(work):
    """The process in which `work` runs, which ends with it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_process_killed_while_it_writes_leaves_what_was_there(probes, monkeypatch):
    certificates.rowwise_sizes(ROWWISE)
    path = file_of(PLACE).path
    before = path.read_bytes()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die():
        monkeypatch.setattr(os, "replace", die)
        file_of(PLACE).add("another", [1])

    _, status = os.waitpid(in_child(write_and_die), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == before
    assert path.with_suffix(".new").exists()
    certificates.rowwise_sizes(ROWWISE._replace(width=97))
    assert set(CertificateFile(folder(), PLACE).believed) == set(probes)


def test_processes_that_write_at_the_same_time_lose_nothing():
    widths = range(16, 16 + 24)
    keys = [key_of("rowwise", ROWWISE._replace(width=width)) for width in widths]

    def write_some(some):
        file = CertificateFile(folder(), PLACE)
        for key in some:
            file.add(key, (1,))

    children = [in_child(lambda n=n: write_some(keys[n::3])) for n in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert set(CertificateFile(folder(), PLACE).believed) == set(keys)
