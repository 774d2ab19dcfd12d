"""Model files that other tools have downloaded: found by size and checksum, never touched.

Contract: `find` gives a file with exactly this content, wherever one of the known tools keeps it;
`everything` lists the model files of all of them. Files are opened for reading and nothing else.
A checksum is computed once and remembered with the file's size, time and inode: a name that says
"sha256-..." is a hint where to look, not a proof, since those who wrote it may not have checked.
Sources of the layouts: the tools' own code (ollama, lms, llama.cpp's common/, modelscope_hub).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwqcli.atomic import write_file
from qwqcli.hub.events import Checking
from qwqcli.hub.store import cache_root, home

BLOCK = 1 << 20  # bytes read at once for a checksum
STEP = 64 << 20  # bytes between two reports
MAX_KNOWN = 1000  # checksums remembered, the newest
MAX_MANIFEST = 1 << 20  # bytes of a manifest of Ollama, which has about 1 kB


@dataclass(frozen=True, slots=True)
class Shelf:
    """A folder in which a tool keeps models."""

    owner: str
    root: Path
    pattern: str  # of its model files
    named: str = ""  # the name of a file of checksum {sha256}, where names say it


@dataclass(frozen=True, slots=True)
class Item:
    """A model file on a shelf; `name` is what its owner calls it."""

    owner: str
    path: Path
    name: str
    size: int
    used_s: float  # time of the last access, since 1970
    repo: str = ""


def shelves(environ: Mapping[str, str]) -> tuple[Shelf, ...]:
    """All places where models may be, those that tell checksums by name first."""
    own = home(environ)
    cache = Path(environ.get("XDG_CACHE_HOME") or own / ".cache")
    ollama = (
        [Path(environ["OLLAMA_MODELS"])]
        if environ.get("OLLAMA_MODELS")
        else [own / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    )
    llama = [cache / "llama.cpp", own / "Library/Caches/llama.cpp"]
    llama = [Path(environ["LLAMA_CACHE"])] if environ.get("LLAMA_CACHE") else llama
    modelscope = Path(environ.get("MODELSCOPE_CACHE") or cache / "modelscope")
    hugging_face = cache_root(environ)
    return (
        Shelf(
            "Hugging Face",
            hugging_face,
            "models--*/snapshots/*/**/*.gguf",
            "models--*/blobs/{sha256}",
        ),
        *(Shelf("Ollama", root, "manifests/*/*/*/*", "blobs/sha256-{sha256}") for root in ollama),
        *(Shelf("LM Studio", root, "*/*/*.gguf") for root in _lm_studio(own)),
        *(Shelf("llama.cpp", root, "**/*.gguf") for root in llama),
        Shelf("ModelScope", modelscope, "**/*.gguf"),
    )


def find(
    shelves: Iterable[Shelf], sums: Sums, size: int, sha256: str
) -> Generator[Checking, None, tuple[Path, str] | None]:
    """(path, owner) of a file with this content, if there is one. Use with `yield from`."""
    for shelf in shelves:
        for path in _candidates(shelf, sha256):
            if _size(path) != size:
                continue
            found = yield from sums.of(path)
            if found == sha256:
                return path, shelf.owner
    return None


def everything(shelves: Iterable[Shelf]) -> Iterator[Item]:
    """Every model file on the shelves, each once: split models by their first part."""
    seen: set[tuple[int, int]] = set()
    for shelf in shelves:
        for path, name in _named_files(shelf):
            with contextlib.suppress(OSError):
                about = path.stat()
                key = (about.st_dev, about.st_ino)
                if stat.S_ISREG(about.st_mode) and key not in seen:
                    seen.add(key)
                    repo = _repo_of(shelf, path)
                    yield Item(shelf.owner, path, name, about.st_size, about.st_atime, repo)


class Sums:
    """Checksums of files, each computed once as long as the file stays the same."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, path: Path) -> str | None:
        """The checksum of `path` as it is now, if it has been computed before."""
        with contextlib.suppress(OSError):
            entry = self._load().get(str(path.resolve()))
            if isinstance(entry, list) and entry[:-1] == _identity(path):
                return str(entry[-1])
        return None

    def remember(self, path: Path, sha256: str) -> None:
        """Note what has been computed elsewhere, such as during a download."""
        known = self._load()
        with contextlib.suppress(OSError):
            known.pop(str(path.resolve()), None)
            known[str(path.resolve())] = [*_identity(path), sha256]
            newest = dict(list(known.items())[-MAX_KNOWN:])
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(newest).encode())

    def of(self, path: Path, *, anew: bool = False) -> Generator[Checking, None, str]:
        """The checksum of `path`, recalled or computed; "" if it cannot be read. `yield from`."""
        if not anew and (known := self.known(path)) is not None:
            return known
        digest, done = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                before = _identity(path)
                while block := file.read(BLOCK):
                    digest.update(block)
                    done += len(block)
                    if done % STEP == 0:
                        yield Checking(path.name, done, before[0])
                if _identity(path) != before:
                    return ""
        except OSError:
            return ""
        self.remember(path, digest.hexdigest())
        return digest.hexdigest()

    def _load(self) -> dict[str, object]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}


def _identity(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino, about.st_dev]


def _size(path: Path) -> int | None:
    """Bytes of a regular file that we may read."""
    with contextlib.suppress(OSError):
        about = path.stat()
        if stat.S_ISREG(about.st_mode) and os.access(path, os.R_OK):
            return about.st_size
    return None


def _candidates(shelf: Shelf, sha256: str) -> Iterator[Path]:
    pattern = shelf.named.format(sha256=sha256) if shelf.named else shelf.pattern
    with contextlib.suppress(OSError):  # the service of Ollama lets nobody look
        yield from sorted(shelf.root.glob(pattern))


def _named_files(shelf: Shelf) -> Iterator[tuple[Path, str]]:
    with contextlib.suppress(OSError):
        for path in sorted(shelf.root.glob(shelf.pattern)):
            if shelf.owner != "Ollama":
                yield path, path.name
            elif (blob := _ollama_blob(shelf.root, path)) is not None:
                yield blob, f"{path.parent.name}:{path.name}"


def _repo_of(shelf: Shelf, path: Path) -> str:
    """The repository that a file came from, where its folder says it."""
    with contextlib.suppress(ValueError):
        first, second, *_ = path.relative_to(shelf.root).parts
        if shelf.owner == "Hugging Face":
            return first.removeprefix("models--").replace("--", "/", 1)
        if shelf.owner == "LM Studio":
            return f"{first}/{second}"
    return ""


def _ollama_blob(root: Path, manifest: Path) -> Path | None:
    """The model file that a manifest of Ollama speaks of."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        with manifest.open("rb") as file:
            layers = json.loads(file.read(MAX_MANIFEST))["layers"]
        for layer in layers:
            if layer["mediaType"] == "application/vnd.ollama.image.model":
                algorithm, digest = layer["digest"].split(":")
                if algorithm == "sha256" and digest.isalnum():
                    return root / "blobs" / f"sha256-{digest}"
    return None


def _lm_studio(own: Path) -> Iterator[Path]:
    """Its pointer file says where it lives; the models folder may have been moved by a setting."""
    pointer = own / ".lmstudio-home-pointer"
    folders = [own / ".lmstudio", own / ".cache/lm-studio"]
    with contextlib.suppress(OSError, ValueError):
        folders.insert(0, Path(pointer.read_text("utf-8").strip()))
    for folder in dict.fromkeys(folders):
        yield folder / "models"
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            moved = json.loads((folder / "settings.json").read_bytes()).get("downloadsFolder")
            if moved:
                yield Path(moved)
