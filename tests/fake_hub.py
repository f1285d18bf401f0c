"""A hub of models, imitated on this machine's own port, and the fixtures that put a model on it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from minigpt.checkpoint import weights
from minigpt.checkpoint.hub import PINNED, Pin
from minigpt.config import GPTConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = GPTConfig.preset("nano", n_layer=1)


Fault = Callable[["Handler", bytes], None]


class FakeHub(ThreadingHTTPServer):
    """What the hub's client asks of the hub: a commit, a list of files, and the files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}  # repository -> path -> content
        self.requests: list[str] = []
        self.refuse: dict[str, str] = {}  # repository -> the hub's code for the refusal
        self.cut_after: int | None = None  # bytes after which the next large answer breaks off
        self.ranges: list[str] = []
        self.fault: Fault | None = None  # how the weights are answered instead
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, kind, *rest = parts[2:] if is_api else parts
        files = self.server.files.get(f"{owner}/{name}")
        if files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif f"{owner}/{name}" in self.server.refuse and not is_api:
            code = self.server.refuse[f"{owner}/{name}"]
            self.answer(403, b"", {"X-Error-Code": code, "X-Error-Message": "no access"})
        elif is_api and kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            self.answer_json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings})
        elif is_api and kind == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": _etag(data)}
                for file, data in files.items()
            ]
            self.answer_json(tree)
        elif self.server.fault and kind == "resolve" and rest[-1] == "model.safetensors":
            self.server.fault(self, files["model.safetensors"])
        elif kind == "resolve" and "/".join(rest[1:]) in files:
            self.answer_file(files["/".join(rest[1:])])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def answer_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self.answer(200, data, headers)
            return
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206, data[start:], headers)

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut_after
        if cut is not None and len(body) > cut:
            self.server.cut_after = None
            body = body[:cut]
            self.close_connection = True
        self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    import huggingface_hub.constants

    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.chdir(tmp_path)
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small model, as a repository on the hub has them."""
    tensors = {name: torch.randn(shape) for name, shape in CONFIG.tensors().items()}
    weights.save(tmp_path / "made", CONFIG, tensors)
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    return {
        **files,
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
        "pytorch_model.bin": b"!",
    }


@pytest.fixture
def published(
    fake_hub: FakeHub, checkpoint: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> FakeHub:
    """A hub that has the small model under gpt2's name, pinned as gpt2 is."""
    fake_hub.files["openai-community/gpt2"] = checkpoint
    data = checkpoint["model.safetensors"]
    pin = Pin("openai-community/gpt2", COMMIT, len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(PINNED, "gpt2", pin)
    return fake_hub
