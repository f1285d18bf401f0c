"""Where models come from: local folders, and a hub, here imitated on this machine's own port."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from minigpt import GPT, GPTConfig, Tokenizer
from minigpt.checkpoint import hub, weights
from minigpt.checkpoint.hub import PINNED, Pin, download, resolve
from minigpt.support.errors import MinigptError
from tests.fake_hub import COMMIT, CONFIG, FakeHub, Fault, Handler


def nowhere() -> str:
    """The address of a server that has just gone down."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


# --- Names ------------------------------------------------------------------------------------


def test_gpt2_is_pinned_to_the_published_file() -> None:
    assert PINNED["gpt2"] == Pin(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        548_105_171,
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    )


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_directory_is_itself(tmp_path: Path, as_type: type) -> None:
    assert resolve(as_type(tmp_path)) == tmp_path


def test_the_home_directory_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine").mkdir()

    assert resolve("~/mine") == tmp_path / "mine"


def test_a_name_is_first_looked_for_among_the_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights/gpt2").mkdir(parents=True)

    assert resolve("gpt2") == Path("weights/gpt2")


def test_the_folder_of_checkpoints_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()

    assert resolve("toy", weights_dir=tmp_path) == tmp_path / "toy"


@pytest.mark.parametrize(
    "path",
    ["./none", "../none", "/none", "~/none", "a/b/c", "a\\b", "weights/none", "", Path("none")],
)
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(
    fake_hub: FakeHub, path: str | Path
) -> None:
    with pytest.raises(MinigptError, match="there is no directory"):
        resolve(path)
    assert fake_hub.requests == []


def test_the_bundled_model_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()  # something else of that name, without a config.json

    assert resolve("toy").samefile(Path(__file__).parents[2] / "weights" / "toy")
    assert GPT.from_pretrained("toy").config == GPTConfig.preset("toy")
    assert Tokenizer.from_pretrained("toy").n_vocab == GPTConfig.preset("toy").vocab_size


def test_a_model_of_ones_own_goes_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "toy").mkdir(parents=True)
    assert resolve("toy") == Path("weights/toy")

    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text("{}")
    assert resolve("toy") == Path("toy")


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()

    with pytest.raises(MinigptError, match="is a file, needed the directory that holds it"):
        resolve(file)


# --- Through the client's cache ---------------------------------------------------------------


def test_a_hub_id_is_fetched_and_loads(fake_hub: FakeHub, checkpoint: dict[str, bytes]) -> None:
    fake_hub.files["someone/model"] = checkpoint

    config, _ = weights.load(resolve("someone/model"))

    assert config == CONFIG


def test_a_short_name_stands_for_its_hub_id_and_revision(published: FakeHub) -> None:
    folder = resolve("gpt2")

    assert (folder.name, weights.load(folder)[0]) == (COMMIT, CONFIG)


def test_pickles_are_never_fetched(published: FakeHub) -> None:
    resolve("gpt2")

    assert not [request for request in published.requests if "pytorch_model.bin" in request]


def test_the_cache_answers_for_a_pinned_revision_without_asking(published: FakeHub) -> None:
    first = resolve("gpt2")
    published.requests.clear()

    assert (resolve("gpt2"), published.requests) == (first, [])


def test_what_is_cached_loads_when_the_hub_is_down(
    fake_hub: FakeHub, checkpoint: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.files["someone/model"] = checkpoint
    folder = resolve("someone/model")
    monkeypatch.setenv("HF_ENDPOINT", nowhere())

    assert resolve("someone/model") == folder


def test_a_sharded_model_loads_from_the_cache(fake_hub: FakeHub, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shapes = CONFIG.tensors()
    shard = "model-00001-of-00001.safetensors"
    index = dict.fromkeys(shapes, shard)
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / shard)
    fake_hub.files["someone/large"] = {
        "config.json": json.dumps(CONFIG.to_dict()).encode(),
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        shard: (tmp_path / shard).read_bytes(),
    }

    config, _ = weights.load(resolve("someone/large"))

    assert config == CONFIG


def test_a_model_with_pickles_only_says_how_to_convert_it(fake_hub: FakeHub) -> None:
    fake_hub.files["someone/old"] = {"config.json": b"{}", "pytorch_model.bin": b"!"}

    with pytest.raises(
        MinigptError, match=r"has no model\.safetensors on the hub.*save_pretrained"
    ):
        resolve("someone/old")


# --- When the hub does not deliver ------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "someone/model"])
def test_without_a_network_one_sentence_says_what_to_do(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nowhere())

    with pytest.raises(MinigptError) as caught:
        resolve(name)

    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in (name, "HF_ENDPOINT", "model.safetensors", "in a directory by hand"):
        assert part in sentence
    assert "weights/" not in sentence  # nobody has named such a path


def test_a_folder_of_checkpoints_that_was_named_is_where_files_may_be_put_by_hand(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nowhere())

    with pytest.raises(MinigptError, match=f"in {tmp_path / 'gpt2'} by hand"):
        resolve("gpt2", weights_dir=tmp_path)


def test_offline_mode_is_named_as_the_reason(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(MinigptError, match="HF_HUB_OFFLINE"):
        resolve("someone/model")


def test_a_model_that_is_not_there_is_named(fake_hub: FakeHub) -> None:
    with pytest.raises(
        MinigptError, match=r"could not fetch someone/nothing .*no model of this name"
    ):
        resolve("someone/nothing")


def test_a_gated_model_says_how_to_get_in(fake_hub: FakeHub, checkpoint: dict[str, bytes]) -> None:
    fake_hub.files["someone/gated"] = checkpoint
    fake_hub.refuse["someone/gated"] = "GatedRepo"

    with pytest.raises(MinigptError, match=r"gated: accept its terms .*HF_TOKEN"):
        resolve("someone/gated")


def test_a_name_the_hub_cannot_have_is_refused(fake_hub: FakeHub) -> None:
    with pytest.raises(MinigptError, match="could not fetch what a name!"):
        resolve("what a name!")


# --- Into the folder of checkpoints -----------------------------------------------------------


def test_a_download_is_complete_and_loads(published: FakeHub, tmp_path: Path) -> None:
    folder = download("gpt2", tmp_path / "weights", endpoint=published.url)

    config, _ = weights.load(folder)
    names = {path.name for path in folder.iterdir()}
    assert folder == tmp_path / "weights" / "gpt2"
    assert (config, names) == (CONFIG, set(hub.FILES))


def test_a_download_leaves_nothing_else_behind(published: FakeHub, tmp_path: Path) -> None:
    download("gpt2", tmp_path / "weights")

    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["gpt2"]


def test_a_downloaded_name_resolves_to_its_folder(published: FakeHub) -> None:
    folder = download("gpt2")

    assert resolve("gpt2") == folder


def test_a_complete_download_asks_nothing(published: FakeHub, tmp_path: Path) -> None:
    folder = download("gpt2", tmp_path)
    published.requests.clear()

    assert (download("gpt2", tmp_path), published.requests) == (folder, [])


def test_files_placed_by_hand_are_kept_and_the_rest_fetched(
    published: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text('{"mine": 0}')

    folder = download("gpt2", tmp_path)

    assert (folder / "vocab.json").read_text() == '{"mine": 0}'
    assert weights.load(folder)[0] == CONFIG


def test_other_weights_under_the_name_are_not_overwritten(
    published: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"fine-tuned for a week")

    with pytest.raises(MinigptError, match="is not the published one"):
        download("gpt2", tmp_path)
    assert (tmp_path / "gpt2" / "model.safetensors").read_bytes() == b"fine-tuned for a week"


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 12}])
def test_a_wrong_file_is_refused_and_deleted(
    published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    monkeypatch.setitem(PINNED, "gpt2", dataclasses.replace(PINNED["gpt2"], **wrong))

    with pytest.raises(MinigptError, match="arrived wrong and was deleted"):
        download("gpt2", tmp_path / "weights")

    assert not list((tmp_path / "weights").rglob("model.safetensors"))


def test_a_wrong_file_is_fetched_anew(
    published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = published.files["openai-community/gpt2"]["model.safetensors"]
    wrong = bytes([right[0]]) + right[1:-1] + bytes([right[-1] ^ 1])
    published.files["openai-community/gpt2"]["model.safetensors"] = wrong
    with pytest.raises(MinigptError, match="sha256"):
        download("gpt2", tmp_path)
    published.files["openai-community/gpt2"]["model.safetensors"] = right

    folder = download("gpt2", tmp_path)

    assert weights.load(folder)[0] == CONFIG


def test_a_broken_connection_is_resumed_where_it_broke(
    published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    published.cut_after = 100_000

    folder = download("gpt2", tmp_path)

    assert weights.load(folder)[0] == CONFIG
    assert published.ranges == ["bytes=100000-"]


def test_a_partial_download_does_not_load(published: FakeHub, tmp_path: Path) -> None:
    weightless = dict(published.files["openai-community/gpt2"])
    del weightless["model.safetensors"]
    published.files["openai-community/gpt2"] = weightless

    with pytest.raises(MinigptError, match="could not fetch"):
        download("gpt2", tmp_path)

    assert not (tmp_path / "gpt2").exists()


def test_an_interrupted_download_keeps_what_it_finished(published: FakeHub, tmp_path: Path) -> None:
    files = published.files["openai-community/gpt2"]
    data = files.pop("model.safetensors")
    with pytest.raises(MinigptError):
        download("gpt2", tmp_path)
    files["model.safetensors"] = data
    published.requests.clear()

    download("gpt2", tmp_path)

    assert [r.rpartition("/")[2] for r in published.requests if r.startswith("GET /openai")] == [
        "model.safetensors"
    ]


def test_a_download_without_a_network_says_how_to_place_the_files(tmp_path: Path) -> None:
    with pytest.raises(MinigptError) as caught:
        download("gpt2", tmp_path, endpoint=nowhere())

    sentence = str(caught.value)
    assert "\n" not in sentence
    assert (
        f"place config.json, vocab.json, merges.txt, model.safetensors in {tmp_path / 'gpt2'}"
        in sentence
    )


# --- When the hub misbehaves ------------------------------------------------------------------


def in_the_body(act: Fault) -> Fault:
    """Answer questions about the file, and half of the file itself, before the fault."""

    def fault(handler: Handler, data: bytes) -> None:
        if handler.command == "HEAD":
            return handler.answer_file(data)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        act(handler, data)

    return fault


def stall(handler: Handler, data: bytes) -> None:
    handler.server.over.wait()


def close(handler: Handler, data: bytes) -> None:
    handler.close_connection = True


def reset(handler: Handler, data: bytes) -> None:
    linger_not = struct.pack("ii", 1, 0)  # then closing sends a reset instead of a goodbye
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
    handler.connection.close()


def go_on_with_zeros(handler: Handler, data: bytes) -> None:
    handler.wfile.write(bytes(len(data) - len(data) // 2))


def redirect_to_itself(handler: Handler, data: bytes) -> None:
    handler.answer(302, b"", {"Location": handler.path})


def shorter(handler: Handler, data: bytes) -> None:
    handler.answer_file(data if handler.command == "HEAD" else data[:-4])


def status(code: int) -> Fault:
    return lambda handler, data: handler.answer(code, b"", {})


FAULTS = {
    "stalls": stall,
    "stalls in the midst": in_the_body(stall),
    "breaks off": in_the_body(close),
    "resets": in_the_body(reset),
    "goes on with zeros": in_the_body(go_on_with_zeros),
    "is shorter than promised": shorter,
    "redirects to itself": redirect_to_itself,
    **{f"answers {code}": status(code) for code in (403, 404, 429, 500, 503)},
}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would be slept; waiting for an answer ends after a fraction of one."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    seconds: list[float] = []
    for variable in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(huggingface_hub.constants, variable, 0.15)
    longer = "_ETAG_RETRY_TIMEOUT"  # of some versions, when they ask about a file again
    monkeypatch.setattr(huggingface_hub.file_download, longer, 0.15, raising=False)
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("how", FAULTS)
def test_a_hub_that_fails_costs_one_sentence_and_nothing_that_loads_and_may_be_asked_again(
    published: FakeHub, tmp_path: Path, slept: list[float], how: str
) -> None:
    published.fault = FAULTS[how]

    for fetch in (lambda: download("gpt2", tmp_path / "weights"), lambda: resolve("gpt2")):
        with pytest.raises(MinigptError, match="gpt2") as caught:
            fetch()
        assert "\n" not in str(caught.value)
    assert sum(slept) < 60  # in both together: it gives up within a minute or so
    assert not list(tmp_path.rglob("weights/**/model.safetensors"))
    assert not list(tmp_path.rglob("hub-cache/**/model.safetensors"))

    published.fault = None

    cached, folder = resolve("gpt2"), download("gpt2", tmp_path / "weights")

    assert weights.load(cached)[0] == weights.load(folder)[0] == CONFIG
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["gpt2"]


def test_a_redirect_is_followed(published: FakeHub, tmp_path: Path) -> None:
    def elsewhere(handler: Handler, data: bytes) -> None:
        if handler.path.endswith("?moved"):
            return handler.answer_file(data)
        handler.answer(307, b"", {"Location": f"{handler.path}?moved"})

    published.fault = elsewhere

    assert weights.load(download("gpt2", tmp_path))[0] == CONFIG


def test_a_fetch_that_ended_before_the_vocabulary_came_is_completed(published: FakeHub) -> None:
    first = resolve("gpt2")
    (first / "vocab.json").unlink()

    assert (resolve("gpt2") / "vocab.json").exists()


def test_weights_that_came_alone_load_when_the_hub_is_down(
    published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    resolve("gpt2")
    other = shutil.copytree(tmp_path / "hub-cache", tmp_path / "other", symlinks=True)
    for listing in other.glob("*/trees"):  # as other programs keep none
        shutil.rmtree(listing)
    next(other.rglob("snapshots/*/vocab.json")).unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(other))
    monkeypatch.setenv("HF_ENDPOINT", nowhere())

    assert weights.load(resolve("gpt2"))[0] == CONFIG


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MinigptError, match="needed one of gpt2, gpt2-medium"):
        download("gpt5", tmp_path)
