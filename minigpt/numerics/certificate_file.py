"""Certificates on disk, so that a second process need not probe again; and when not to believe it.

One file for each set of *surroundings*: the place (`place.py`), the processor, the system, torch
and its libraries, the variables that steer them, and the text of the modules that probe and are
probed. Whatever of these changes, another file is meant. What is read back must name all of them,
and carry a checksum; a few of its certificates, drawn by chance, are then tried on the machine
before any is used. If one does not hold, the file goes and everything is probed anew.

The folder is `minigpt/certificates` in the user's cache directory; MINIGPT_CERTIFICATES names
another one, or says `off`. Where it cannot be read or written, processes probe for themselves. Only
what a CPU does is kept: on a GPU, libraries choose kernels by what they find out in each process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import _lru_cache_wrapper, cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from minigpt.numerics.place import Place, tied_to_threads
from minigpt.support.errors import MinigptError
from minigpt.support.files import locked, read_json

VARIABLE = "MINIGPT_CERTIFICATES"
FORMAT = 1
LARGEST = 2**20  # bytes of a file; a model's certificates take two thousand
STEERING = ("ATEN_", "BLIS_", "DNNL_", "GOMP_", "KMP_", "LD_PRELOAD", "MKL_", "OMP_",
            "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_", "VECLIB_")  # fmt: skip

Found = TypeVar("Found")


class Shape(Protocol):
    """What a certificate is about: a named tuple whose last field is the place."""

    @property
    def place(self) -> Place: ...

    def __iter__(self) -> Iterator[Any]: ...


class Kind(NamedTuple):
    """A kind of certificate."""

    shape: Callable[..., Any]  # its fields -> what the certificate is about
    read: Callable[[Any], Any]  # what JSON gives -> what the certificate says
    holds: Callable[[Any, Any, random.Random], bool]  # tries a part of what it says of a shape
    cost: Callable[[Any], float]  # of trying it: the dearer, the more seldom


KINDS: dict[str, Kind] = {}  # by name; `certificates.py` has them


def kept(name: str, kind: Kind) -> Callable[[Callable[[Any], Found]], _lru_cache_wrapper[Found]]:
    """Makes of a probe one that is asked once: in a process, and as long as its file is there."""
    KINDS[name] = kind

    def once(probe: Callable[[Any], Found]) -> _lru_cache_wrapper[Found]:
        @cache
        def look_up(shape: Shape) -> Found:
            file, key = file_of(shape.place), key_of(name, shape)
            found: Found
            if file is None:
                found = probe(shape)
            elif key in file.believed:
                found = file.believed[key]
            else:
                found = probe(shape)
                file.add(key, found)
            if not getattr(found, "any_threads", True):
                about: Any = shape  # such shapes have sizes to be known by
                tied_to_threads().setdefault(shape.place, set()).add(about.sizes)
            return found

        return look_up

    return once


def key_of(name: str, shape: Shape) -> str:
    *fields, _ = shape
    return json.dumps([name, *fields])


@cache
def file_of(place: Place) -> CertificateFile | None:
    """This place's, tried already; None where none is kept."""
    directory = folder()
    if directory is None or place.device.type != "cpu":
        return None
    return CertificateFile(directory, place)


def folder() -> Path | None:
    """Where files are kept; None: nowhere."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return None if chosen == "off" else Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as its specification asks
        base = os.path.expanduser("~/.cache")
    return Path(base, "minigpt", "certificates") if os.path.isabs(base) else None


class CertificateFile:
    """The certificates of one place: those on disk that are believed, and those found here."""

    def __init__(self, directory: Path, place: Place) -> None:
        self.surroundings = surroundings(place)
        name = hashlib.sha256(_canonical(self.surroundings)).hexdigest()[:16]
        self.path = directory / f"{name}.json"
        self._own: dict[str, Any] = {}
        said = self._read()
        try:
            self.believed = tried(said, place)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            self.believed = {}  # it says what nobody could have found here
        if said and not self.believed:
            with suppress(OSError):
                self.path.unlink()

    def add(self, key: str, found: Any) -> None:
        """Keep one more, beside those that other processes wrote meanwhile."""
        self.believed[key], self._own[key] = found, _plain(found)
        for _ in range(200):  # a second; then it goes along with the next one
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with locked(self.path.parent, wait=False):
                    self._write(self._read() | self._own)
                return
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:
                return

    def _read(self) -> dict[str, Any]:
        """What is on disk and whole and meant for here."""
        try:
            content = read_json(self.path, LARGEST)
            told = content.pop("checksum")
            if told == _checksum(content) and content["surroundings"] == self.surroundings:
                return dict(content["certificates"])
        except (MinigptError, AttributeError, KeyError, TypeError, ValueError):
            pass  # damaged, or another program's
        return {}

    def _write(self, certificates: dict[str, Any]) -> None:
        content = {"surroundings": self.surroundings, "certificates": certificates}
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1)
        aside = self.path.with_suffix(".new")  # the same for all, as the folder is locked
        aside.unlink(missing_ok=True)  # left behind, or a link or a pipe that leads elsewhere
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, self.path)


def tried(certificates: dict[str, Any], place: Place) -> dict[str, Any]:
    """What they say, if some of them, drawn by chance, hold here; else nothing.

    Of each kind one is tried, the dearer the more seldom. What makes no sense raises what Python
    does then.
    """
    chance = random.Random(os.urandom(8))  # not the user's seeds, nor the same ones every time
    by_kind: dict[str, dict[str, Any]] = {}
    believed = {}
    for key, said in certificates.items():
        name, *fields = json.loads(key)
        kind = KINDS[name]
        by_kind.setdefault(name, {})[key] = kind.shape(*fields, place)
        believed[key] = kind.read(said)
        if _plain(believed[key]) != said:
            raise ValueError
    for name, shapes in by_kind.items():
        costs = map(KINDS[name].cost, shapes.values())
        (key,) = chance.choices(list(shapes), [1 / cost for cost in costs])
        if not KINDS[name].holds(shapes[key], believed[key], chance):
            return {}
    return believed


def _plain(found: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(found))


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _checksum(content: Any) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


# --- surroundings ---------------------------------------------------------------------------------


def surroundings(place: Place) -> dict[str, Any]:
    """All that may decide which kernels run here, and in which order they add."""
    told = {name: str(value) for name, value in place._asdict().items()}
    steering = {name: os.environ[name] for name in os.environ if name.startswith(STEERING)}
    return {"format": FORMAT, **told, "variables": steering, **_machine()}


@cache
def _machine() -> dict[str, Any]:
    """What stays the same as long as a process lives."""
    own = sorted(Path(__file__).parent.glob("*.py"))  # they probe, and they are what is probed
    text = b"".join(module.read_bytes() for module in own)
    affinity = getattr(os, "sched_getaffinity", None)  # the cores that are ours, where it is told
    return {
        "minigpt": hashlib.sha256(text).hexdigest(),
        "torch": [torch.__version__, str(torch.version.git_version), torch.__config__.show()],
        "system": platform.platform(),
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor()],
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "caches": _cache_sizes(),
    }


def _processor() -> str:
    """The first processor's model and instructions, as Linux tells them."""
    lines, clock = [], ("cpu MHz", "bogomips", "processor", "apicid", "initial apicid", "core id")
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:  # no further than needed: with many processors it takes long
            if not line.strip():
                break
            if not line.startswith(clock):
                lines.append(" ".join(line.split()))
    return "\n".join(lines) or platform.processor()


def _cache_sizes() -> list[str]:
    """By which libraries cut their blocks."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    with suppress(OSError):
        return [size.read_text().strip() for size in sorted(sizes)]
    return []
