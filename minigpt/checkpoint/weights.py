"""Checkpoints on disk: read and written in one module, because a load must know every state that
a killed save may leave.

A checkpoint is one directory, with `config.json` beside `model.safetensors`.
Names and layout are GPT-2's own, as transformers writes them, so nothing is transposed on the way.
Nothing in such a file can run; pickles can, and are refused. Where a directory comes from is
`hub.py`'s business, what the tensors mean is `model.py`'s.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt.config import GPTConfig
from minigpt.support.checks import path_of, plain_file
from minigpt.support.errors import MinigptError, reason
from minigpt.support.files import aside, flush, locked, move, read_json, sha256

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files: tensor name -> file
CONFIG = "config.json"
GENERATION = "generation_config.json"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WIDEST = str(torch.float32)  # holds every number of the others
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MASK_BUFFER = re.compile(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$")  # constants, not weights
_PREFIXES = re.compile(
    r"^(_orig_mod\.|module\.|model\.|transformer\.)+"
)  # compile's, DDP's, GPT-2's
_CHUNK_BYTES = 4 * 2**20  # converted at a time; what conversion needs beyond its result
_LARGEST_JSON = 2**22  # bytes: GPT-2's config.json has 1 KB, an index 100 for each tensor
_LARGEST_HEADER = 2**21  # bytes: 1,500 layers; GPT-2's has 15 KB
_UNFINISHED = (
    "// An interrupted save: minigpt knows which half counts; saving here again ends it.\n"
)


def load(
    source: str | Path, dtype: torch.dtype | None = None
) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read the checkpoint in a directory: its configuration, and its tensors on the CPU.

    In the file's own dtype nothing is copied: tensors are views of the mapped file, private to
    this process, so writing to them never reaches the disk. Another dtype is converted piece by
    piece and costs the result and little more. A file may hold fewer bits than its model computes
    with: where `config.json` names float32, narrower numbers are widened, which changes none.
    `model.safetensors` wins over an index of shards. A `save` that ends meanwhile waits, so that
    all is of one checkpoint.

    Args:
        source: the directory.
        dtype: float32, float16 or bfloat16; None: float32 where `config.json` names it, else what
            the file has.

    Returns:
        The configuration, and the tensors of `config.tensors()` under those names, which the files
        may prefix with `transformer.`. A tied head is not among them.

    Raises:
        MinigptError: when anything is missing, damaged, of the wrong shape, or a pickle. Shapes
            are checked before any weight is read.
    """
    source = Path(source)
    if dtype not in (None, *_DTYPES.values()):
        raise MinigptError(f"dtype is {dtype}, needed torch.float32, float16 or bfloat16")
    with locked(source, shared=True):
        stored = _read_headers(source)
        config, named = _read_config(source)
        stored = _one_for_both(stored, config)
        if dtype is None and named is torch.float32:
            dtype = named
        _refuse_misfits(source, stored, config, dtype)
        return config, _read_tensors({name: stored[name] for name in config.tensors()}, dtype)


def read_config(source: str | Path) -> tuple[GPTConfig, torch.dtype, torch.dtype]:
    """What a checkpoint is, without reading its weights.

    `config.json` alone will do; the dtype is then the one it names, or float32.

    Returns:
        The configuration, the dtype that `load` gives the weights, and the one they are stored in.

    Raises:
        MinigptError: when `config.json` is missing, damaged or not a GPT-2's, or a header damaged.
    """
    source = Path(source)
    config, named = _read_config(source)
    stored = named or torch.float32
    if (source / WEIGHTS).exists() or (source / INDEX).exists():
        found = {tensor.dtype for tensor in _read_headers(source).values()}
        if len(found) == 1 and found <= _DTYPES.keys():
            stored = _DTYPES[found.pop()]
    return config, torch.float32 if named is torch.float32 else stored, stored


def save(
    directory: str | Path,
    config: GPTConfig,
    tensors: Mapping[str, Tensor],
    stored: torch.dtype | None = None,
) -> None:
    """Write a checkpoint that `load` and transformers read as it is, in place of one already there.

    A crash at any moment leaves the old checkpoint or the new one, whole. Both files are written
    and flushed aside, then moved into place; moving the weights is the moment the new checkpoint
    counts. When `config.json` changes as well, it holds both versions and the checksum of the new
    weights during that move: `load` takes the version that belongs to the weights it finds, and
    transformers refuses it rather than pair a configuration with the wrong weights. The file that
    `tensors` are mapped from may be overwritten: the mapping keeps the old one alive.

    Only the checkpoint's files are touched: the two, and the shards and index that they replace.
    Several processes may save here at once: the last to move its files in wins.

    Args:
        directory: created when missing.
        config: the configuration, whose `config.tensors()` the tensors must have.
        tensors: bare names, all of one dtype: float32, float16 or bfloat16; on any device.
        stored: bfloat16 or float16 rounds tensors of float32 in the file, for half the bytes;
            `config.json` goes on to name float32, to which they are widened again. None: as they
            are.

    Raises:
        MinigptError: for tensors that do not fit, or when the disk is full or read-only.
    """
    directory = path_of(directory)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_shapes("the tensors do not fit the configuration", shapes, config.tensors())
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(dtypes) > 1 or dtypes[0] not in map(str, _DTYPES.values()):
        raise MinigptError(
            f"the tensors to save are {', '.join(dtypes)}, needed all of them in one of "
            f"{', '.join(map(str, _DTYPES.values()))}: convert the model with model.to(dtype)"
        )
    if stored and (stored not in _DTYPES.values() or dtypes[0] not in (str(stored), _WIDEST)):
        raise MinigptError(
            f"the tensors are {dtypes[0]} and cannot be stored as {stored}, needed the same dtype, "
            f"or tensors of {_WIDEST} and one of {', '.join(map(str, _DTYPES.values()))}"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with aside(directory) as staging:
            content = _config_json(config, dtypes[0])
            _write_new(staging, content, tensors, stored)
            with locked(directory):
                _swap(directory, staging, content)
    except (OSError, SafetensorError) as error:
        raise MinigptError(
            f"the checkpoint could not be written to {directory} ({reason(error)}): one already "
            f"there is still whole, so make room or choose another directory"
        ) from error


# --- Reading ---------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """What a file's header says of one tensor; the tensor itself is still on the disk."""

    file: Path
    key: str  # its name in the file, which may have a prefix
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "F32"


def _read_headers(directory: Path) -> dict[str, _Stored]:
    """Every weight in the directory's files, under its bare name."""
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise MinigptError(f"{directory} {found}, needed a directory with {CONFIG} and {WEIGHTS}")
    if (directory / WEIGHTS).exists():
        files = [directory / WEIGHTS]
    elif (directory / INDEX).exists():
        files = _read_index(directory)
    else:
        raise _nothing_to_load(directory)

    stored: dict[str, _Stored] = {}
    for file in files:
        with _opened(file) as reader:
            for key in list(reader.keys()):
                name = _PREFIXES.sub("", key)
                if _MASK_BUFFER.search(name):
                    continue
                if name in stored:
                    first = stored[name]
                    raise MinigptError(
                        f"{directory} holds {name} twice, as {first.key} in {first.file.name} and "
                        f"as {key} in {file.name}, needed once: save the checkpoint again"
                    )
                view = reader.get_slice(key)
                stored[name] = _Stored(file, key, tuple(view.get_shape()), view.get_dtype())
    return stored


def _one_for_both(stored: dict[str, _Stored], config: GPTConfig) -> dict[str, _Stored]:
    """A tied weight under the name that a model of ours has for it.

    safetensors' own `save_model` writes a shared tensor once, under the first name by the alphabet.
    """
    if config.tie_word_embeddings and "wte.weight" not in stored and "lm_head.weight" in stored:
        head = stored.pop("lm_head.weight")
        return {"wte.weight": head, **stored}
    return stored


def _nothing_to_load(directory: Path) -> MinigptError:
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if not pickles:
        return MinigptError(
            f"{directory} holds neither {WEIGHTS} nor {INDEX}, needed one of them beside {CONFIG}: "
            f"is it the right directory, and did the download finish?"
        )
    return MinigptError(
        f"{directory} holds its weights as {_some(pickles)}, a pickle, which can run any code when "
        f"read, needed {WEIGHTS}: if you trust it, convert it once with\n"
        f"    from transformers import GPT2LMHeadModel\n"
        f"    GPT2LMHeadModel.from_pretrained({str(directory)!r})"
        f".save_pretrained({str(directory)!r})"
    )


def _read_index(directory: Path) -> list[Path]:
    """The shards that the index names, each a plain file of this directory."""
    index = _json(directory / INDEX)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise MinigptError(
            f"{directory / INDEX} has no weight_map, needed the name of each tensor's file: "
            f"copy or download it again"
        )
    shards = sorted(set(map(str, listed.values())))
    for shard in shards:
        if not _is_inside(directory, shard):
            raise MinigptError(
                f"{directory / INDEX} names {shard!r}, needed the plain name of a .safetensors "
                f"file inside the directory: do not trust this checkpoint"
            )
    return [directory / shard for shard in shards]


def _is_inside(directory: Path, name: str) -> bool:
    if not re.fullmatch(r"[^/\\:\0]+\.safetensors", name) or not name.isprintable():
        return False
    home = Path(os.path.realpath(directory))
    homes = [home]
    if home.parent.name == "snapshots":  # the hub's cache, which links each file to its blobs
        homes += [parent / "blobs" for parent in home.parents[1:3]]
    target = Path(os.path.realpath(directory / name))
    return any(target.is_relative_to(allowed) for allowed in homes)


def _read_config(directory: Path) -> tuple[GPTConfig, torch.dtype | None]:
    """What `config.json` says: the configuration, and the dtype that it names, if it does."""
    settings = _settings(directory)
    if (directory / GENERATION).exists():  # where newer checkpoints say what ends a text
        beside = _json(directory / GENERATION)
        ends = beside.get("eos_token_id") if isinstance(beside, dict) else None
        if ends is not None:
            settings = {**settings, "eos_token_id": ends}
    try:
        config = GPTConfig.from_dict(settings)
    except MinigptError as error:
        raise MinigptError(f"in {directory}, {error}") from error
    named = settings.get("dtype") or settings.get("torch_dtype")
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
    return config, dtypes.get(str(named))


def _settings(directory: Path) -> dict[str, Any]:
    """The content of `config.json`; in an interrupted save, the version the weights belong to."""
    path = directory / CONFIG
    settings = _json(path)
    if isinstance(settings, list):  # see `save`
        before, after, new_weights = (*settings, None, None, None)[:3]
        swapped = (directory / WEIGHTS).exists() and sha256(directory / WEIGHTS) == new_weights
        settings = after if swapped else before
    if not isinstance(settings, dict):
        raise MinigptError(f"{path} is no JSON object, needed GPT-2's configuration: copy it again")
    return settings


def _json(path: Path) -> Any:
    return read_json(path, _LARGEST_JSON, "copy it from where the weights came from", _UNFINISHED)


def _refuse_misfits(
    source: Path, stored: Mapping[str, _Stored], config: GPTConfig, dtype: torch.dtype | None
) -> None:
    """Refuse tensors that are not those of the configuration, or not of one dtype."""
    expected = config.tensors()
    tied_head = {"lm_head.weight": expected["wte.weight"]} if config.tie_word_embeddings else {}
    _check_shapes(
        f"the tensors in {source} do not fit its {CONFIG}",
        {name: tensor.shape for name, tensor in stored.items()},
        expected,
        tied_head,
        "take both from the same checkpoint",
    )
    found = {tensor.dtype for tensor in stored.values()}
    if not found <= _DTYPES.keys() or (dtype is None and len(found) > 1):
        raise MinigptError(
            f"the tensors in {source} are {', '.join(sorted(found))}, needed the same one of "
            f"{', '.join(_DTYPES)} for all: convert them, or pass dtype= for a mixture of these"
        )
    pair = {name: stored[name] for name in ("wte.weight", *tied_head) if name in stored}
    if len(pair) == 2 and not _same_bits(*_read_tensors(pair, None).values()):
        raise MinigptError(
            f"the output head (lm_head.weight) in {source} differs from the token embedding "
            f"(wte.weight), but {CONFIG} ties them: set tie_word_embeddings to false there"
        )


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, mapped; its header is checked against its size on opening."""
    try:
        check_header(file)
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise MinigptError(
            f"{file} is not a whole safetensors file ({reason(error)}): copy or download it again"
        ) from error


def check_header(file: Path) -> None:
    """Refuse what is no plain file, or whose header would take more memory than any model's.

    Raises:
        OSError: then; safetensors checks the rest.
        MinigptError: for the note that git-lfs leaves in place of a file that it has not fetched.
    """
    plain_file(file)
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > _LARGEST_HEADER:
        raise OSError(f"its header has {size:,} bytes, needed at most {_LARGEST_HEADER:,}")


def _read_tensors(stored: Mapping[str, _Stored], dtype: torch.dtype | None) -> dict[str, Tensor]:
    with ExitStack() as stack:  # one mapping a file, which lives on in the tensors
        files = {tensor.file for tensor in stored.values()}
        readers = {file: stack.enter_context(_opened(file)) for file in files}
        return {
            name: readers[tensor.file].get_tensor(tensor.key)
            if dtype in (None, _DTYPES[tensor.dtype])
            else _convert(tensor, dtype)
            for name, tensor in stored.items()
        }


def _convert(stored: _Stored, dtype: torch.dtype | None) -> Tensor:
    converted = torch.empty(stored.shape, dtype=dtype)
    row_bytes = _DTYPES[stored.dtype].itemsize * converted[0].numel()
    rows = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(converted), rows):
        # A page once read counts as ours while its mapping lives, so each chunk has its own.
        with _opened(stored.file) as reader:
            converted[start : start + rows] = reader.get_slice(stored.key)[start : start + rows]
    return converted


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


# --- Writing ---------------------------------------------------------------------------------


def _config_json(config: GPTConfig, dtype: str) -> dict[str, Any]:
    """With what transformers needs besides: the dtype, and the token that GPT-2 starts from."""
    dtype = dtype.removeprefix("torch.")
    return {
        **config.to_dict(),
        "bos_token_id": config.eos_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # the same key, until transformers 4.55
    }


def _write_new(
    staging: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    stored: torch.dtype | None,
) -> None:
    new_config, new_weights = staging / CONFIG, staging / WEIGHTS
    _write(new_config, json.dumps(config, indent=2) + "\n")
    named = {}
    for name, tensor in tensors.items():
        prefix = "" if name == "lm_head.weight" else "transformer."
        named[prefix + name] = tensor.detach().cpu().to(stored or tensor.dtype).contiguous()
    save_file(named, new_weights, metadata={"format": "pt"})  # transformers insists on the format
    new_weights.chmod(new_config.stat().st_mode)  # safetensors lets the owner alone read it
    flush(new_weights)


def _swap(directory: Path, staging: Path, config: dict[str, Any]) -> None:
    """Move what `_write_new` wrote into place."""
    new_config, new_weights = staging / CONFIG, staging / WEIGHTS
    before, old_config, both_configs = None, staging / "old", staging / "both"
    with suppress(MinigptError):  # none, or not one that could be loaded
        before = _settings(directory)
    try:
        if before not in (None, config):
            shutil.copyfile(directory / CONFIG, old_config)
            versions = [before, config, sha256(new_weights)]
            _write(both_configs, _UNFINISHED + json.dumps(versions) + "\n")
            move(both_configs, directory / CONFIG)
        if not (directory / WEIGHTS).exists() and not (directory / INDEX).exists():
            move(new_config, directory / CONFIG)  # no weights there that it could be paired with
        move(new_weights, directory / WEIGHTS)
    except BaseException:
        if new_weights.exists() and old_config.exists():  # the old weights are still in place
            move(old_config, directory / CONFIG)
        raise
    if new_config.exists():
        move(new_config, directory / CONFIG)

    if (directory / INDEX).exists():  # the old checkpoint was in shards, which no longer count
        for shard in directory.glob("model-*-of-*.safetensors"):
            shard.unlink()
        (directory / INDEX).unlink()
    flush(directory)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    flush(path)


# --- Shared ----------------------------------------------------------------------------------


def _check_shapes(
    complaint: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]] | None = None,
    advice: str = "pass those of a model with this configuration",
) -> None:
    """One error for everything that is missing, unexpected or of another shape."""
    known = {**expected, **(optional or {})}
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in known],
        "mis-shaped": [
            f"{name} is {found[name]}, needed {shape}"
            for name, shape in known.items()
            if found.get(name, shape) != shape
        ],
    }
    told = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if told:
        raise MinigptError(f"{complaint}: {'; '.join(told)}: {advice}")


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
