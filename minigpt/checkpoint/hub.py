"""From a name to a directory of files: local folders first, then the Hugging Face hub.

What is in the files is `weights.py`'s business and `tokenizer.py`'s. The hub's own client does the
talking, so its cache, its resuming of broken connections, mirrors (HF_ENDPOINT) and offline mode
(HF_HUB_OFFLINE) work as everywhere. Only JSON, text and safetensors are fetched: no pickles.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from minigpt.checkpoint.weights import CONFIG, INDEX, WEIGHTS
from minigpt.support.checks import path_of
from minigpt.support.errors import MinigptError
from minigpt.support.files import locked, sha256

BUNDLED = "toy"  # travels with the package, so it is there in any working directory
WEIGHTS_DIR = Path("weights")  # where `download` puts checkpoints, seen from the working directory
FILES = (CONFIG, "vocab.json", "merges.txt", WEIGHTS)  # of a published GPT-2; the weights last
_PATTERNS = [
    *FILES, INDEX, "model-*.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
]  # fmt: skip


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Pin:
    """A model on the hub at one revision, and what its `model.safetensors` must be if known."""

    repo: str
    revision: str = "main"
    size: int | None = None  # bytes
    sha256: str | None = None


# Only gpt2's revision and checksum are known for certain; the others are fetched as they are now.
PINNED: dict[str, Pin] = {
    "gpt2": Pin(
        "openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        size=548_105_171,
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Pin("openai-community/gpt2-medium"),
    "gpt2-large": Pin("openai-community/gpt2-large"),
    "gpt2-xl": Pin("openai-community/gpt2-xl"),
    "distilgpt2": Pin("distilbert/distilgpt2"),
}


def resolve(source: str | Path, weights_dir: Path | None = None) -> Path:
    """The directory that a name stands for, fetched from the hub when it is nowhere here.

    Args:
        source: a directory; a name under `weights_dir`; "toy", which comes with the package; a
            short name of `PINNED`; or a hub id such as "owner/model".
        weights_dir: where downloaded checkpoints lie; None: `weights` in the working directory.

    Raises:
        MinigptError: for a path that does not exist, or a model that cannot be fetched, or one
            whose checksum is known and wrong.
    """
    by_hand = "a directory" if weights_dir is None else str(weights_dir / str(source))
    weights_dir = WEIGHTS_DIR if weights_dir is None else weights_dir
    name, path = str(source), Path(os.path.expanduser(path_of(source)))
    if name == BUNDLED and not (path / CONFIG).is_file() and not (weights_dir / name).is_dir():
        return _bundled()
    if name and os.path.isdir(path):  # rather than path.is_dir(), which fails for a long name
        return path
    if name and "/" not in name and os.path.isdir(weights_dir / name):
        return weights_dir / name
    if os.path.isfile(path):
        raise MinigptError(f"{source} is a file, needed the directory that holds it: {path.parent}")
    is_path = isinstance(source, Path) or not name or name[0] in "./~" or "\\" in name
    if is_path or name.count("/") > 1 or path.parent == weights_dir:
        raise MinigptError(
            f"there is no directory {name!r}, needed one with {CONFIG} and {WEIGHTS}, or a hub "
            f"name such as 'gpt2': check the spelling and the working directory"
        )

    pin = PINNED.get(name, Pin(name))
    from huggingface_hub import constants

    with _explained(pin.repo, by_hand, Path(constants.HF_HUB_CACHE)):
        folder = _snapshot(pin)
    if not _has_weights(folder):
        raise MinigptError(
            f"{pin.repo} has no {WEIGHTS} on the hub, needed because pickles are not read here: "
            f"load it with transformers, save it with save_pretrained, and pass that directory"
        )
    return folder


def cached(name: str) -> Path | None:
    """Where a published model lies in the cache of the hub's client, whole; nothing is fetched.

    Args:
        name: a short name of `PINNED`. (transformers may have filed it under that name as well.)
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for repo in (PINNED[name].repo, name) if name in PINNED else ():
        for revision in (PINNED[name].revision, "main"):
            with suppress(LocalEntryNotFoundError):
                found = snapshot_download(
                    repo, revision=revision, allow_patterns=list(FILES), local_files_only=True
                )
                if not _missing(Path(found)):
                    return Path(found)
    return None


def _bundled() -> Path:
    """The bundled model: inside the package as a wheel installs it, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package, package.parent):
        if (place / "weights" / BUNDLED / CONFIG).is_file():
            return place / "weights" / BUNDLED
    raise MinigptError(
        f"the model {BUNDLED!r} did not come with this installation: install minigpt again, or "
        f"pass the directory of another one"
    )


def _snapshot(pin: Pin) -> Path:
    """The model's folder in the hub client's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")  # read now: the client reads it when imported
    if pin.sha256 is not None:  # a fixed commit: what is in the cache cannot be out of date
        cached = None
        with suppress(LocalEntryNotFoundError):
            cached = Path(
                snapshot_download(
                    pin.repo, revision=pin.revision, allow_patterns=_PATTERNS, local_files_only=True
                )
            )
            if not _missing(cached) and (cached / WEIGHTS).stat().st_size == pin.size:
                return cached
        try:
            _current_commit(pin, endpoint)
        except Exception:
            if cached and _has_weights(cached):  # an interrupted download; they may be all we need
                return cached
            raise
    fetched = Path(
        snapshot_download(
            pin.repo, revision=pin.revision, allow_patterns=_PATTERNS, endpoint=endpoint
        )
    )
    if pin.sha256 is not None:
        _refuse_wrong(fetched / WEIGHTS, pin)
    return fetched


def _current_commit(pin: Pin, endpoint: str | None) -> str:
    """The commit to fetch, so that all files are of one. Asking fails at once without a network,
    while fetching by commit would repeat itself for half a minute first."""
    from huggingface_hub import HfApi, constants

    wait = constants.HF_HUB_ETAG_TIMEOUT  # seconds, 10 if the variable of this name is not set
    return HfApi(endpoint).model_info(pin.repo, revision=pin.revision, timeout=wait).sha or "main"


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def download(name: str, weights_dir: Path = WEIGHTS_DIR, endpoint: str | None = None) -> Path:
    """Fetch a published checkpoint into `weights_dir/name`, at its pinned revision.

    Files arrive in a folder of their own, where those that an interrupted download finished are
    kept, and move to their place when all are there and the checksum, where known, is right. What
    is in place already is checked, never replaced; when all of it is, nothing is fetched.

    Args:
        name: a short name of `PINNED`.
        weights_dir: the folder of checkpoints.
        endpoint: the hub or a mirror; None: HF_ENDPOINT, else huggingface.co.

    Returns:
        The folder with `FILES`.

    Raises:
        MinigptError: for an unknown name, no way to the hub, or a wrong checksum.
    """
    if name not in PINNED:
        raise MinigptError(
            f"there is no model {name!r} to download, needed one of {', '.join(PINNED)}: "
            f"others load by their hub id, as in GPT.from_pretrained('owner/model')"
        )
    pin, weights_dir = PINNED[name], path_of(weights_dir)
    folder, partial = weights_dir / name, weights_dir / f".{name}.partial"
    if WEIGHTS not in _missing(folder) and (found := _difference(folder / WEIGHTS, pin)):
        raise MinigptError(
            f"{folder / WEIGHTS} is not the published one ({found}): move it away, if it is worth "
            f"keeping, and download again"
        )
    if _missing(folder):
        with _explained(pin.repo, str(folder), weights_dir):
            commit = _current_commit(pin, endpoint or os.environ.get("HF_ENDPOINT"))
            partial.mkdir(parents=True, exist_ok=True)
            with locked(partial):  # another process may be at the same, and be done meanwhile
                if files := _missing(folder):
                    _fetch(pin, commit, files, partial, folder, endpoint)
    shutil.rmtree(partial, ignore_errors=True)
    return folder


def _missing(folder: Path) -> list[str]:
    return [file for file in FILES if not os.path.exists(folder / file)]


def _fetch(
    pin: Pin, commit: str, files: list[str], partial: Path, folder: Path, endpoint: str | None
) -> None:
    """Some of a model's files into `partial`, and when all are there and right, into `folder`."""
    from huggingface_hub import hf_hub_download

    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    for left_behind in partial.rglob("*.????????.incomplete"):  # by a killed process
        left_behind.unlink()
    for file in files:
        hf_hub_download(pin.repo, file, revision=commit, local_dir=partial, endpoint=endpoint)
    if WEIGHTS in files:
        _refuse_wrong(partial / WEIGHTS, pin)
    folder.mkdir(exist_ok=True)
    for file in files:  # in the order of FILES: without weights nothing loads
        os.replace(partial / file, folder / file)


def _refuse_wrong(weights: Path, pin: Pin) -> None:
    if found := _difference(weights, pin):
        weights.resolve().unlink()  # in the client's cache it is a link to the file
        weights.unlink(missing_ok=True)
        raise MinigptError(
            f"{WEIGHTS} of {pin.repo} arrived wrong and was deleted ({found}): download it again, "
            f"without HF_ENDPOINT if that is set"
        )


def _difference(file: Path, pin: Pin) -> str | None:
    """How a weights file differs from the pinned one; None when it does not, or none is known."""
    if pin.size is not None and file.stat().st_size != pin.size:
        return f"{file.stat().st_size:,} bytes, needed {pin.size:,}"
    if pin.sha256 is not None and (found := sha256(file)) != pin.sha256:
        return f"sha256 {found}, needed {pin.sha256}"
    return None


@contextmanager
def _explained(repo: str, folder: str, place: Path) -> Iterator[None]:
    """Whatever the hub's client raises, as one sentence that says what to do.

    Args:
        folder: where the files may be placed by hand, in words.
        place: where the client writes them.
    """
    try:
        yield
    except MinigptError:
        raise
    except Exception as error:  # the client's errors share no base class, and change by version
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise MinigptError(
                f"{repo} cannot be written to {place} ({error}): make room there, or choose "
                f"another place"
            ) from error
        raise MinigptError(
            f"could not fetch {repo} from the hub ({_reason(error)}): try again later, set "
            f"HF_ENDPOINT to a mirror, or place {', '.join(FILES)} in {folder} by hand and load it"
        ) from error


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its page there and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "it has no model of this name, or a private one: HF_TOKEN opens your own"
    while error.__cause__ is not None:  # the client wraps what happened in what it was doing
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
