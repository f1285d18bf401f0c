"""Checkpoints: what loads, what is refused and how, what a crash leaves; transformers agrees.

The reference is transformers' GPT2LMHeadModel with random weights, wide enough apart that a wrong
activation, scale or transpose moves the logits by far more than the tolerance.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt.checkpoint import weights
from minigpt.config import ACTIVATIONS, GPTConfig
from minigpt.support.errors import MinigptError

CONFIG = GPTConfig(
    vocab_size=61, n_positions=24, n_embd=24, n_layer=2, n_head=3,
    embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_tensors(config: GPTConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = config.tensors()
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write(directory: Path, tensors: dict[str, Tensor], config: GPTConfig = CONFIG) -> Path:
    """A checkpoint as some other program might have written it."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_shards(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """The same, in two files and an index."""
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / shard)
    write_index(directory, {name: shard for shard, held in shards.items() for name in held})
    return directory


def write_index(directory: Path, weight_map: object) -> None:
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return random_tensors(CONFIG)


@pytest.fixture
def checkpoint(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write(tmp_path / "checkpoint", tensors)


# --- Reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_come_in_the_dtype_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(CONFIG).items()}

    config, loaded = weights.load(write(tmp_path / "x", tensors))

    assert config == CONFIG
    assert same(loaded, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_converted_to_the_dtype_asked_for(
    checkpoint: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    _, loaded = weights.load(checkpoint, dtype)

    assert same(loaded, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def test_a_tensor_larger_than_a_chunk_is_converted_whole(
    checkpoint: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 1000)  # ten rows of wte's 61

    _, loaded = weights.load(checkpoint, torch.bfloat16)

    assert torch.equal(loaded["wte.weight"], tensors["wte.weight"].bfloat16())


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()

    weights.load(checkpoint)[1]["wte.weight"].fill_(1.0)

    assert (checkpoint / "model.safetensors").read_bytes() == before


@pytest.fixture
def peak_memory() -> Callable[[], int]:
    """Calling it gives the most memory this process held, mapped pages included, beyond now."""

    def reading(field: str) -> int:
        line = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert line is not None
        return int(line[1]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak up to now
    except OSError:
        pytest.skip("only Linux tells the peak since a given moment")
    base = reading("VmRSS")
    return lambda: reading("VmHWM") - base


@pytest.fixture
def large_checkpoint(tmp_path: Path) -> Iterator[Path]:
    """100 MB in float32, most of it in one tensor."""
    config = dataclasses.replace(CONFIG, vocab_size=100_000, n_embd=252)
    shapes = config.tensors()
    directory = tmp_path / "large"
    write(directory, {name: torch.ones(shape) for name, shape in shapes.items()}, config)
    yield directory
    shutil.rmtree(directory)


def test_loading_reads_nothing_before_it_is_used(
    large_checkpoint: Path, peak_memory: Callable[[], int]
) -> None:
    _config, loaded = weights.load(large_checkpoint)

    assert peak_memory() < 0.1 * sum(tensor.nbytes for tensor in loaded.values())


def test_loading_and_using_all_of_it_takes_at_most_1_3_times_the_weights(
    large_checkpoint: Path, peak_memory: Callable[[], int]
) -> None:
    _config, loaded = weights.load(large_checkpoint)
    for tensor in loaded.values():
        tensor.flatten()[::512].sum()  # one number of every page

    assert peak_memory() < 1.3 * sum(tensor.nbytes for tensor in loaded.values())


def test_converting_takes_at_most_1_3_times_the_result(
    large_checkpoint: Path, peak_memory: Callable[[], int]
) -> None:
    _config, loaded = weights.load(large_checkpoint, torch.bfloat16)

    assert peak_memory() < 1.3 * sum(tensor.nbytes for tensor in loaded.values())


@pytest.mark.parametrize(
    "prefix", ["", "transformer.", "_orig_mod.transformer.", "module.", "_orig_mod.module."]
)
def test_names_may_have_a_prefix(tmp_path: Path, tensors: dict[str, Tensor], prefix: str) -> None:
    named = {prefix + name: tensor for name, tensor in tensors.items()}

    _, loaded = weights.load(write(tmp_path / "x", named))

    assert same(loaded, tensors)


def test_a_tied_weight_may_have_the_heads_name_alone(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    tensors["lm_head.weight"] = tensors["wte.weight"]
    path = write(tmp_path / "head", {n: t for n, t in tensors.items() if n != "wte.weight"})

    read = weights.load(path)[1]

    assert torch.equal(read["wte.weight"], tensors["wte.weight"])


def test_what_ends_a_text_may_stand_in_the_generation_configuration(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = write(tmp_path / "chat", tensors, dataclasses.replace(CONFIG, eos_token_id=3))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))

    assert weights.load(path)[0].stop_tokens == (7, 9)


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.transformer."])
@pytest.mark.parametrize("buffer", ["h.0.attn.bias", "h.1.attn.masked_bias"])
def test_mask_buffers_are_ignored(
    tmp_path: Path, tensors: dict[str, Tensor], prefix: str, buffer: str
) -> None:
    mask = torch.ones(1, 1, 24, 24, dtype=torch.uint8)

    _, loaded = weights.load(write(tmp_path / "x", {**tensors, prefix + buffer: mask}))

    assert same(loaded, tensors)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    twice = {**tensors, "transformer.wte.weight": tensors["wte.weight"] + 1}

    with pytest.raises(MinigptError, match=r"holds wte\.weight twice"):
        weights.load(write(tmp_path / "x", twice))


def test_shards_are_put_together(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    _, loaded = weights.load(write_shards(tmp_path / "x", tensors))

    assert same(loaded, tensors)


def test_one_file_wins_over_shards(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(tmp_path / "x", random_tensors(CONFIG, seed=1))

    _, loaded = weights.load(write(tmp_path / "x", tensors))

    assert same(loaded, tensors)


# --- The head ---------------------------------------------------------------------------------


def test_a_tied_head_may_be_in_the_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    both = {**tensors, "lm_head.weight": tensors["wte.weight"].clone()}

    _, loaded = weights.load(write(tmp_path / "x", both))

    assert same(loaded, tensors)


def test_a_tied_head_that_differs_in_one_bit_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    tensors["wte.weight"][3, 5] = 0.0
    head = tensors["wte.weight"].clone()
    head[3, 5] = -0.0

    with pytest.raises(MinigptError, match=r"differs .* set tie_word_embeddings to false"):
        weights.load(write(tmp_path / "x", {**tensors, "lm_head.weight": head}))


def test_an_untied_head_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    tensors = random_tensors(UNTIED)

    _, loaded = weights.load(write(tmp_path / "x", tensors, UNTIED))

    assert same(loaded, tensors)


def test_an_untied_head_must_be_there(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(MinigptError, match=r"1 missing \(lm_head\.weight\)"):
        weights.load(write(tmp_path / "x", tensors, UNTIED))


# --- What does not fit ------------------------------------------------------------------------


def test_all_that_does_not_fit_is_in_one_error(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    del tensors["ln_f.bias"], tensors["h.1.mlp.c_fc.weight"]
    tensors["score.weight"] = torch.zeros(2)
    tensors["wpe.weight"] = torch.zeros(25, 24)

    with pytest.raises(MinigptError) as caught:
        weights.load(write(tmp_path / "x", tensors))

    sentence = str(caught.value)
    assert "2 missing (h.1.mlp.c_fc.weight, ln_f.bias)" in sentence
    assert "1 unexpected (score.weight)" in sentence
    assert "1 mis-shaped (wpe.weight is (25, 24), needed (24, 24))" in sentence


def test_a_long_list_is_shortened_and_counted(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    deeper = dataclasses.replace(CONFIG, n_layer=100)

    with pytest.raises(MinigptError, match=r"1176 missing \(.* and 1170 more\)") as caught:
        weights.load(write(tmp_path / "x", tensors, deeper))
    assert len(str(caught.value)) < 600


def test_shapes_are_checked_before_a_weight_is_read(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("read a tensor")

    monkeypatch.setattr(weights, "_read_tensors", refuse)
    tensors["wpe.weight"] = torch.zeros(25, 24)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    with pytest.raises(MinigptError, match="mis-shaped"):
        weights.load(write(tmp_path / "x", tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_cannot_be_computed_with_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    tensors["ln_f.weight"] = torch.ones(24).to(dtype)

    with pytest.raises(MinigptError, match=r"are .*, needed the same one of F32, F16, BF16"):
        weights.load(write(tmp_path / "x", tensors), torch.float32)


def test_numbers_stored_narrow_are_widened_where_the_configuration_names_float32(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    weights.save(tmp_path, CONFIG, tensors, torch.bfloat16)
    _, loaded = weights.load(tmp_path)
    assert same(loaded, {name: tensor.bfloat16().float() for name, tensor in tensors.items()})
    assert weights.read_config(tmp_path) == (CONFIG, torch.float32, torch.bfloat16)
    _, narrow = weights.load(tmp_path, torch.bfloat16)
    assert same(narrow, {name: tensor.bfloat16() for name, tensor in tensors.items()})


def test_float32_is_never_narrowed_unasked(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    weights.save(tmp_path, CONFIG, tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dtype"] = config["torch_dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(weights.load(tmp_path)[1], tensors)


def test_only_float32_is_stored_narrower(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    with pytest.raises(MinigptError, match=r"are torch\.float16 and cannot be stored as"):
        weights.save(tmp_path, CONFIG, halves, torch.bfloat16)


def test_transformers_computes_with_narrow_numbers_in_float32_as_we_do(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    transformers = pytest.importorskip("transformers")
    weights.save(tmp_path, CONFIG, tensors, torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.float32}
    state = theirs.transformer.state_dict()
    assert same({name: state[name] for name in tensors}, weights.load(tmp_path)[1])


def test_a_mixture_of_dtypes_asks_for_a_choice(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["ln_f.weight"] = tensors["ln_f.weight"].half()

    with pytest.raises(MinigptError, match=r"are F16, F32, .* or pass dtype="):
        weights.load(write(tmp_path / "x", tensors))


def test_a_mixture_of_dtypes_loads_in_the_one_chosen(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    tensors["ln_f.weight"] = tensors["ln_f.weight"].half()

    _, loaded = weights.load(write(tmp_path / "x", tensors), torch.float32)

    assert same(loaded, {name: tensor.float() for name, tensor in tensors.items()})


def test_only_three_dtypes_can_be_asked_for(checkpoint: Path) -> None:
    with pytest.raises(MinigptError, match=r"dtype is torch\.float64, needed torch\.float32"):
        weights.load(checkpoint, torch.float64)


# --- Damaged, dangerous or missing ------------------------------------------------------------


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def put_a_file_there(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.touch()


def put_a_folder_for_the_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()


def empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "does not exist, needed a directory"),
    "a file": (put_a_file_there, "is a file, needed a directory"),
    "empty": (empty, "holds neither model.safetensors nor"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "half a config": (overwrite("config.json", b'{"n_layer": 2'), "is not valid JSON"),
    "no text": (overwrite("config.json", b"\xff\xfe{}"), "is not valid JSON"),
    "deep": (overwrite("config.json", b"[" * 100_000), "is not valid JSON"),
    "a string": (overwrite("config.json", b'"gpt2"'), "is no JSON object"),
    "a list": (overwrite("config.json", b"[]"), "is no JSON object"),
    "infinite": (overwrite("config.json", b'{"n_layer": 1e999}'), "n_layer is inf, needed"),
    "negative": (overwrite("config.json", b'{"n_embd": -1}'), "n_embd is -1, needed"),
    "huge": (overwrite("config.json", b'{"n_layer": 999999999}'), "n_layer is 999999999, needed"),
    "large": (overwrite("config.json", b'{"vocab_size": 16777216}'), "do not fit"),
    "cut short": (cut_short, "is not a whole safetensors file"),
    "not fetched": (
        overwrite("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1"),
        "is a pointer of git-lfs, not the file itself: run `git lfs pull` in ",
    ),
    "0 bytes": (overwrite("model.safetensors", b""), "is not a whole safetensors file"),
    "garbled": (overwrite("model.safetensors", b"x" * 99), "is not a whole safetensors file"),
    "a folder": (put_a_folder_for_the_weights, "is not a whole safetensors file"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_in_one_sentence(
    checkpoint: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(checkpoint)

    with pytest.raises(MinigptError, match=re.escape(sentence)) as caught:
        weights.load(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"never unpickled")

    with pytest.raises(MinigptError, match=rf"as {re.escape(name)}, a pickle"):
        weights.load(tmp_path)


def test_the_conversion_that_the_refusal_shows_works(tmp_path: Path) -> None:
    reference = transformers_model()
    reference.config.save_pretrained(tmp_path)
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MinigptError) as caught:
        weights.load(tmp_path)

    exec("\n".join(line.strip() for line in str(caught.value).split("\n")[1:]), {})

    _, loaded = weights.load(tmp_path)
    assert torch.equal(loaded["wte.weight"], reference.transformer.wte.weight)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/in.safetensors",
        "sub\\in.safetensors",
        "C:in.safetensors",
        "x\0.safetensors",
        "weights.bin",
        7,
        None,
    ],
)
def test_an_index_may_only_name_files_beside_it(
    tmp_path: Path, tensors: dict[str, Tensor], shard: object
) -> None:
    inside = write_shards(tmp_path / "x", tensors)
    (inside / "sub").mkdir()
    save_file(tensors, inside / "sub" / "in.safetensors")
    save_file(tensors, tmp_path / "outside.safetensors")
    write_index(inside, dict.fromkeys(tensors, shard))

    with pytest.raises(MinigptError, match="do not trust this checkpoint"):
        weights.load(inside)


def test_a_shard_may_not_be_a_link_that_leads_out(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    inside = write_shards(tmp_path / "x", tensors)
    shard = inside / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(tmp_path / "outside.safetensors")

    with pytest.raises(MinigptError, match="do not trust this checkpoint"):
        weights.load(inside)


def test_the_links_of_the_hubs_cache_are_followed(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    snapshot = write_shards(tmp_path / "models--a--b" / "snapshots" / "0123", tensors)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = snapshot.parents[1] / "blobs" / str(number)
        file.rename(blob)
        file.symlink_to(Path("../../blobs") / blob.name)

    assert same(weights.load(snapshot)[1], tensors)


@pytest.mark.parametrize("index", [{}, [], "x", None])
def test_an_index_without_names_is_told(
    tmp_path: Path, tensors: dict[str, Tensor], index: object
) -> None:
    inside = write_shards(tmp_path / "x", tensors)
    write_index(inside, index)

    with pytest.raises(MinigptError, match="has no weight_map"):
        weights.load(inside)


def test_a_missing_shard_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    inside = write_shards(tmp_path / "x", tensors)
    (inside / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(MinigptError, match=r"model-00002-of-00002\.safetensors is not a whole"):
        weights.load(inside)


# --- Writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, UNTIED, dataclasses.replace(CONFIG, n_kv_head=1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_loads_to_the_bit(
    tmp_path: Path, config: GPTConfig, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(config).items()}

    weights.save(tmp_path / "new" / "x", config, tensors)
    loaded_config, loaded = weights.load(tmp_path / "new" / "x")

    assert loaded_config == config
    assert same(loaded, tensors)


def test_saving_writes_two_files_of_the_usual_permissions(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    weights.save(tmp_path / "x", CONFIG, tensors)

    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "x").iterdir()}
    assert modes == {"config.json": usual, "model.safetensors": usual}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    weights.save(tmp_path / "a", CONFIG, tensors)
    weights.save(tmp_path / "b", CONFIG, tensors)

    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_files_in_the_directory_are_left_alone(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    others = ["vocab.json", "optimizer.pt", "model-notes.txt", "adapter.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")

    weights.save(tmp_path, CONFIG, tensors)

    assert {(tmp_path / name).read_text() for name in others} == {"mine"}


def test_saving_over_shards_removes_them(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(tmp_path / "x", random_tensors(CONFIG, seed=1))

    weights.save(tmp_path / "x", CONFIG, tensors)

    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_saving_over_the_file_that_is_mapped_is_safe(
    checkpoint: Path, tensors: dict[str, Tensor]
) -> None:
    config, mapped = weights.load(checkpoint)

    weights.save(checkpoint, config, {name: tensor + 1 for name, tensor in mapped.items()})

    assert same(mapped, tensors)


def test_saving_cleans_up_after_a_save_that_was_killed(
    checkpoint: Path, tensors: dict[str, Tensor]
) -> None:
    (checkpoint / ".saving-123").mkdir()
    (checkpoint / ".saving-123" / "model.safetensors").write_bytes(b"half")

    weights.save(checkpoint, CONFIG, tensors)

    assert {path.name for path in checkpoint.iterdir()} == {"config.json", "model.safetensors"}


def test_tensors_that_do_not_fit_are_not_saved(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors.pop("wte.weight")

    with pytest.raises(MinigptError, match=r"1 missing \(wte.weight\); 1 unexpected \(lm_head"):
        weights.save(tmp_path / "x", CONFIG, tensors)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_only_one_dtype_of_the_three_is_saved(
    tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    tensors["ln_f.bias"] = tensors["ln_f.bias"].to(dtype)

    with pytest.raises(MinigptError, match="needed all of them in one of"):
        weights.save(tmp_path / "x", CONFIG, tensors)


# --- When saving fails, or the power does -----------------------------------------------------

OTHER = dataclasses.replace(CONFIG, activation_function="relu")  # the same shapes, other logits


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(checkpoint: Path) -> None:
    resource = pytest.importorskip("resource", reason="only Unix limits the size of a file")
    before = contents(checkpoint)
    new = random_tensors(OTHER, seed=1)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(MinigptError, match=r"could not be written to .*: one already"):
            weights.save(checkpoint, OTHER, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert contents(checkpoint) == before


@pytest.mark.parametrize("step", [1, 2])  # config.json with both versions; the weights
def test_a_refused_move_leaves_the_old_checkpoint_and_nothing_else(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = contents(checkpoint)
    steps = iter(range(1, 100))
    replace = os.replace

    def refused_once(source: Path, target: Path) -> None:
        if next(steps) == step:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused_once)

    with pytest.raises(MinigptError, match="Permission denied"):
        weights.save(checkpoint, OTHER, random_tensors(OTHER, seed=1))
    assert contents(checkpoint) == before


def test_an_interrupt_before_the_weights_move_restores_the_old_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(checkpoint)
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(source).name == "model.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt):
        weights.save(checkpoint, OTHER, random_tensors(OTHER, seed=1))
    assert contents(checkpoint) == before


def test_a_place_that_cannot_be_a_directory_is_told(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    (tmp_path / "x").touch()

    with pytest.raises(MinigptError, match="could not be written to"):
        weights.save(tmp_path / "x" / "y", CONFIG, tensors)


@pytest.fixture
def photographed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[Path]]:
    """Copies of a directory as a crash would leave it: at every change that a save makes to it."""
    photos: list[Path] = []

    def watch(directory: Path) -> list[Path]:
        def photograph() -> None:
            photos.append(tmp_path / f"photo-{len(photos)}")
            shutil.copytree(directory, photos[-1])

        def watched(change: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                photograph()
                result = change(*args, **kwargs)
                photograph()
                return result

            return wrapper

        monkeypatch.setattr(os, "replace", watched(os.replace))
        monkeypatch.setattr(Path, "unlink", watched(Path.unlink))
        monkeypatch.setattr(weights, "save_file", watched(save_file))
        return photos

    return watch


@pytest.mark.parametrize("layout", [write, write_shards])
@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path,
    photographed: Callable[[Path], list[Path]],
    layout: Callable[..., Path],
    config: GPTConfig,
) -> None:
    old, new = random_tensors(CONFIG, seed=0), random_tensors(config, seed=1)
    photos = photographed(layout(tmp_path / "x", old))
    weights.save(tmp_path / "x", config, new)

    seen = []
    for photo in photos:
        found, loaded = weights.load(photo)
        is_old, is_new = same(loaded, old), same(loaded, new)
        assert (is_old and found == CONFIG) or (is_new and found == config)
        seen.append(is_new)

    assert seen == sorted(seen)  # once new, always new
    assert set(seen) == {False, True}


def test_after_a_crash_transformers_pairs_no_configuration_with_the_wrong_weights(
    tmp_path: Path, photographed: Callable[[Path], list[Path]]
) -> None:
    transformers = pytest.importorskip("transformers")
    old, new = random_tensors(CONFIG, seed=0), random_tensors(OTHER, seed=1)
    photos = photographed(write(tmp_path / "x", old))
    weights.save(tmp_path / "x", OTHER, new)

    for photo in photos:
        try:
            model = transformers.GPT2LMHeadModel.from_pretrained(photo)
        except (OSError, ValueError):
            continue  # refused: config.json holds two versions
        is_new = torch.equal(model.transformer.wte.weight, new["wte.weight"])
        assert model.config.activation_function == ("relu" if is_new else "gelu_new")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_saving_again_ends_an_interrupted_save(
    tmp_path: Path, photographed: Callable[[Path], list[Path]], moment: str
) -> None:
    photos = photographed(write(tmp_path / "x", random_tensors(CONFIG)))
    weights.save(tmp_path / "x", OTHER, random_tensors(OTHER, seed=1))
    unfinished = [p for p in photos if (p / "config.json").read_text().startswith("//")]
    last = random_tensors(CONFIG, seed=2)

    weights.save(unfinished[0 if moment == "before" else -1], CONFIG, last)
    config, loaded = weights.load(unfinished[0 if moment == "before" else -1])

    assert config == CONFIG
    assert same(loaded, last)


# --- Transformers agrees ----------------------------------------------------------------------

# Two programs add in different orders; float32 keeps 7 digits and these logits stay below 100.
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"n_head": 1},
    "five heads": {"n_embd": 40, "n_head": 5},
    "inner width set": {"n_inner": 50},
    "untied head": {"tie_word_embeddings": False},
    "scores not scaled": {"scale_attn_weights": False, "n_embd": 12},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    **{f"activation {name}": {"activation_function": name} for name in ACTIVATIONS},
}


def transformers_model(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 61, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3}
    ids = {"bos_token_id": None, "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**settings, **ids, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(tokens)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(tmp_path: Path, tokens: Tensor, shape: str) -> None:
    from minigpt.model import GPT

    reference = transformers_model(**SHAPES[shape])
    reference.save_pretrained(tmp_path)

    ours = GPT.from_pretrained(tmp_path)

    torch.testing.assert_close(logits_of(ours, tokens), logits_of(reference, tokens), **TOLERANCE)


@pytest.mark.parametrize("kind", ["prefixed", "bare", "sharded"])
def test_files_of_transformers_load_however_they_are_laid_out(
    tmp_path: Path, tokens: Tensor, kind: str
) -> None:
    from minigpt.model import GPT

    reference = transformers_model()
    if kind == "bare":
        reference.transformer.save_pretrained(tmp_path)
    else:
        reference.save_pretrained(tmp_path, max_shard_size="20KB" if kind == "sharded" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "sharded")

    ours = GPT.from_pretrained(tmp_path)

    torch.testing.assert_close(logits_of(ours, tokens), logits_of(reference, tokens), **TOLERANCE)


def test_greedy_continuations_are_those_of_transformers(tmp_path: Path, tokens: Tensor) -> None:
    from minigpt.model import GPT

    reference = transformers_model()
    reference.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path)
    prompt = tokens[:, :4]

    continued = prompt
    for _ in range(20):
        chosen = logits_of(ours, continued)[:, -1].argmax(-1, keepdim=True)
        continued = torch.cat([continued, chosen], dim=1)

    theirs = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )
    assert torch.equal(continued, theirs)


@pytest.mark.parametrize(
    "mistake", ["transposed c_proj", "exact GELU", "scale of layer 0", "epsilon", "head of wte"]
)
def test_a_mistake_would_not_pass_for_transformers(
    tmp_path: Path, tokens: Tensor, mistake: str
) -> None:
    from minigpt.model import GPT

    reference = transformers_model(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True)
    reference.save_pretrained(tmp_path)
    changed = {
        "exact GELU": {"activation_function": "gelu"},
        "scale of layer 0": {"scale_attn_by_inverse_layer_idx": False},
        "epsilon": {"layer_norm_epsilon": 1e-3},
    }
    config = json.loads((tmp_path / "config.json").read_text()) | changed.get(mistake, {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(tmp_path / "model.safetensors")
    if mistake == "transposed c_proj":
        name = "transformer.h.0.attn.c_proj.weight"
        stored[name] = stored[name].T.contiguous()
    if mistake == "head of wte":
        stored["lm_head.weight"] = stored["transformer.wte.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")

    ours = GPT.from_pretrained(tmp_path)

    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            logits_of(ours, tokens), logits_of(reference, tokens), **TOLERANCE
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_ours_as_it_is(tmp_path: Path, tokens: Tensor, shape: str) -> None:
    transformers = pytest.importorskip("transformers")
    from minigpt.model import GPT

    ours = GPT.from_pretrained(saved_by_transformers(tmp_path / "theirs", **SHAPES[shape]))
    ours.save_pretrained(tmp_path / "ours")

    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )

    torch.testing.assert_close(logits_of(theirs, tokens), logits_of(ours, tokens), **TOLERANCE)
    assert not any(info.values()), info


def saved_by_transformers(directory: Path, **changes: Any) -> Path:
    transformers_model(**changes).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_loads_ours_in_the_dtype_it_was_saved_in(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    transformers = pytest.importorskip("transformers")
    tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(CONFIG).items()}
    weights.save(tmp_path, CONFIG, tensors)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")

    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_transformers_does_not_pass_grouped_heads_for_plain_ones(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, n_kv_head=1)
    weights.save(tmp_path, config, random_tensors(config))

    with pytest.raises(ValueError, match="minigpt"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("end_of_text", [None, 60])
def test_transformers_learns_where_text_ends(tmp_path: Path, end_of_text: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, eos_token_id=end_of_text)
    weights.save(tmp_path, config, random_tensors(config))

    read = transformers.AutoConfig.from_pretrained(tmp_path)

    assert (read.bos_token_id, read.eos_token_id) == (end_of_text, end_of_text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_reloads_to_identical_bits(
    tmp_path: Path, tokens: Tensor, tied: bool, dtype: torch.dtype
) -> None:
    from minigpt.model import GPT

    source = saved_by_transformers(tmp_path / "theirs", tie_word_embeddings=tied)
    model = GPT.from_pretrained(source, dtype=dtype)
    model.save_pretrained(tmp_path / "ours")

    again = GPT.from_pretrained(tmp_path / "ours")

    assert torch.equal(logits_of(again, tokens), logits_of(model, tokens))


def test_the_file_says_that_its_tensors_are_of_pytorch(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    weights.save(tmp_path, CONFIG, tensors)

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.network
@pytest.mark.skipif(
    os.environ.get("MINIGPT_NETWORK_TESTS") != "1",
    reason="downloads 548 MB: set MINIGPT_NETWORK_TESTS=1",
)
def test_gpt2_continues_the_dog_as_published() -> None:
    from minigpt.model import GPT

    model = GPT.from_pretrained("gpt2")
    tokens = [464, 3290]  # The dog
    for _ in range(18):
        tokens.append(int(logits_of(model, torch.tensor([tokens]))[0, -1].argmax()))

    assert tokens == [
        464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246,
        286, 262, 2688, 290, 2688, 27262, 13, 198, 198, 464,
    ]  # fmt: skip
