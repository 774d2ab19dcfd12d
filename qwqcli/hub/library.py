"""The models on this machine: those that qwq pulled, by their receipts, and those of other tools.

Contract: every pull and import leaves a receipt, a small JSON file in qwq's data folder that says
what it was, where it came from and where it is; an empty file beside it has the time of the last
use. What has a receipt can be removed; of a file that another tool brought, only the receipt or our
own second name for it goes. Nothing else is deleted.
Limits: a receipt is believed as to origin, never as to being there: that is looked at each time.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from qwqcli.atomic import write_file
from qwqcli.errors import UsageError
from qwqcli.gguf import read_file_header, split_paths
from qwqcli.hub.events import How
from qwqcli.hub.reuse import Shelf, everything
from qwqcli.hub.sources import QWQ_REPOS, Offer, Want, quantization_of
from qwqcli.portable import disk_bytes

QWQ = "qwq"  # the owner of what we pulled
REMOVE_WITH = {
    "Ollama": "ollama rm NAME",
    "Hugging Face": "hf cache rm REPO",
    "LM Studio": "Remove it in LM Studio",
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine. What is not known is "".

    `used_s` is when it was last used, in seconds since 1970, 0 if it never was. Of what other tools
    keep it is the time at which the file was last read.
    """

    name: str
    quantization: str
    paths: tuple[Path, ...]  # all parts in order
    size: int  # bytes of all parts
    owner: str  # QWQ, or the tool that keeps it
    used_s: float
    how: tuple[How, ...] = ()  # of each path
    repo: str = ""
    revision: str = ""
    commit: str = ""
    source: str = ""
    license: str = ""
    sha256: tuple[str, ...] = ()
    pulled: str = ""  # ISO 8601, UTC

    @property
    def ours(self) -> bool:
        """Whether `remove` may be asked for it."""
        return self.owner == QWQ


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove` did: bytes freed, and files that stay because someone else has them."""

    freed: int
    stays: tuple[Path, ...]


class Library:
    """Receipts in `folder`, and the `shelves` of the other tools."""

    def __init__(self, folder: Path, cache: Path, shelves: Sequence[Shelf]) -> None:
        self._folder, self._cache, self._shelves = folder, cache, shelves

    def models(self) -> tuple[Model, ...]:
        """Everything that can be run from here: ours first, then that of other tools."""
        ours = tuple(self._ours())
        known = {path.resolve() for model in ours for path in model.paths}
        return (*ours, *self._others(known))

    def named(self, name: str) -> Model | None:
        """The model that has exactly this name, whatever its capitals."""
        return next((m for m in self._by_use() if m.name.lower() == name.lower()), None)

    def find(self, want: Want) -> Model | None:
        """The model that `want` means: ours before those of other tools, the last used first."""
        return next((model for model in self._by_use() if _is_wanted(model, want)), None)

    def latest(self) -> Model | None:
        """The QwQ-32B of ours that was last used or pulled."""
        return next((model for model in self._ours_by_use() if _is_qwq(model)), None)

    def used(self, path: Path) -> None:
        """Note that the model at `path` is used now, if it is one of ours."""
        for model in self._ours():
            if model.paths[0] == Path(os.path.abspath(path)):
                with contextlib.suppress(OSError):  # a disk that is full or not ours to write on
                    self._use_mark(model).touch()

    def record(self, offer: Offer, paths: Sequence[Path], how: Sequence[How]) -> Model:
        """Leave the receipt of a pull."""
        whole = tuple(Path(os.path.abspath(path)) for path in paths)
        return self._write(
            Model(
                name=offer.name,
                quantization=offer.quantization,
                paths=whole,
                size=offer.size,
                owner=QWQ,
                used_s=0.0,
                how=tuple(self._really(path, way) for path, way in zip(whole, how, strict=True)),
                repo=offer.repo,
                revision=offer.revision,
                commit=offer.commit,
                source=offer.source.endpoint,
                license=offer.license,
                sha256=tuple(file.sha256 for file in offer.files),
            )
        )

    def _really(self, path: Path, how: How) -> How:
        """How a file that was there already came: as its claim says, else not by us."""
        if how != "kept":
            return how
        try:
            said = self._claim(path).read_text("ascii")
        except (OSError, ValueError):
            return "in place"
        return "linked" if said == "linked" else "downloaded"

    def claim(self, path: Path, how: How) -> None:
        """Note that we brought this file, before anyone else can find it in its place."""
        claim = self._claim(path)
        claim.parent.mkdir(parents=True, exist_ok=True)
        write_file(claim, how.encode())

    def _claim(self, path: Path) -> Path:
        return self._folder / "claims" / hashlib.sha256(os.path.abspath(path).encode()).hexdigest()

    def adopt(self, path: Path, taken: Collection[str] = ()) -> Model:
        """Know the model at `path` by name from now on, where it is.

        Raises UsageError if there is no file, BadFile if it is no whole model.
        """
        info = read_file_header(path)
        paths = tuple(Path(os.path.abspath(part)) for part in split_paths(path))
        size = sum(part.stat().st_size for part in paths)
        taken = {*taken, *(m.name.lower() for m in self._ours() if m.paths != paths)}
        name = _numbered(paths[0].name.removesuffix(".gguf"), taken)
        how: How = "imported"
        return self._write(
            Model(name, info.quantization, paths, size, QWQ, 0.0, (how,) * len(paths))
        )

    def remove(self, model: Model) -> Removed:
        """Delete what qwq brought of `model`, and its receipt. Raises UsageError if not ours."""
        if not model.ours:
            raise UsageError(
                f"{model.name} belongs to {model.owner}; qwq does not remove it.",
                REMOVE_WITH.get(model.owner, f"Remove it yourself: {model.paths[0]}"),
            )
        if sum(path.stat().st_size for path in model.paths) != model.size:
            raise UsageError(
                f"{model.name} has changed since it was pulled; qwq does not remove it.",
                f"Remove it yourself: {model.paths[0]}",
            )
        freed, stays = 0, list[Path]()
        for path, how in zip(model.paths, model.how, strict=True):
            came, kept = (0, [path]) if how in ("imported", "in place") else self._drop(path)
            freed += came
            stays += kept
            self._claim(path).unlink(missing_ok=True)
        self._use_mark(model).unlink(missing_ok=True)
        self._receipt(model).unlink(missing_ok=True)
        return Removed(freed, tuple(stays))

    def _drop(self, path: Path) -> tuple[int, list[Path]]:
        """Delete one file of ours; (bytes freed, what stays)."""
        if not path.is_symlink():
            return _delete(path), []
        blob = path.resolve()
        path.unlink()
        repo = next((p for p in path.parents if p.parent == self._cache), None)
        if repo is None or not blob.is_relative_to(repo.resolve() / "blobs"):
            return 0, [blob]  # a link that leads out of the repository is none of ours
        pointers = (p for p in repo.glob("snapshots/*/**/*") if p.is_symlink())
        used = any(pointer.resolve() == blob for pointer in pointers)
        freed = 0 if used else _delete(blob)
        _sweep(repo)
        return freed, [blob] if used else []

    def _ours(self) -> Iterator[Model]:
        for path in sorted(self._folder.glob("*.json")):
            model = _read(path)
            if model is not None and all(part.exists() for part in model.paths):
                yield replace(model, used_s=_time_of(self._use_mark(model)))

    def _ours_by_use(self) -> list[Model]:
        """To have pulled a model counts as a use of it."""

        def last(model: Model) -> float:
            return max(model.used_s, _time_of(self._receipt(model)))

        return sorted(self._ours(), key=last, reverse=True)

    def _by_use(self) -> Iterator[Model]:
        ours = self._ours_by_use()
        yield from ours  # others are looked for only if none of ours is meant: it takes longer
        yield from self._others({path.resolve() for model in ours for path in model.paths})

    def _others(self, known: set[Path]) -> Iterator[Model]:
        parts: dict[Path, list[Any]] = {}
        for item in everything(self._shelves):
            if item.path.resolve() not in known and "mmproj" not in item.name.lower():
                first = split_paths(item.path)[0]
                parts.setdefault(first, []).append(item)
        for items in parts.values():
            items.sort(key=lambda item: item.name)
            stem = re.sub(r"-\d{5}-of-\d{5}$", "", items[0].name.removesuffix(".gguf"))
            yield Model(
                name=items[0].name,
                quantization=quantization_of(stem),
                paths=tuple(item.path for item in items),
                size=sum(item.size for item in items),
                owner=items[0].owner,
                used_s=max(item.used_s for item in items),
                repo=items[0].repo,
            )

    def _write(self, model: Model) -> Model:
        self._folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        values = {**asdict(model), "paths": [str(path) for path in model.paths], "pulled": now}
        write_file(self._receipt(model), json.dumps(values, indent=1).encode(), sync=True)
        return model

    def _use_mark(self, model: Model) -> Path:
        return self._receipt(model).with_suffix(".used")

    def _receipt(self, model: Model) -> Path:
        label = re.sub(r"[^\w.-]+", "--", model.name, flags=re.ASCII)[:100]
        where = hashlib.sha256(str(model.paths[0]).encode()).hexdigest()[:8]
        return self._folder / f"{label}-{where}.json"


def _is_wanted(model: Model, want: Want) -> bool:
    """Whether `want`, in which "" is any, can mean this model."""
    if want.file:
        named = want.file.rpartition("/")[2].lower() in [path.name.lower() for path in model.paths]
        return named and want.repo.lower() in ("", model.repo.lower())
    if not want.repo and not _is_qwq(model):
        return False
    same = want.repo.lower() in ("", model.repo.lower())
    return same and want.quantization in ("", model.quantization)


def _is_qwq(model: Model) -> bool:
    """Whether a bare quantization can mean this model: neither the preview nor what others made."""
    if model.repo in QWQ_REPOS:
        return True
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", model.name.lower().removesuffix(".gguf"))
    match = re.fullmatch(r"(?:qwen_)?qwq[-:]32b(?:[-.](?:i1-)?(?:ud-)?(\w+))?", stem)
    return match is not None and (match[1] is None or bool(quantization_of(f"-{match[1]}")))


def _read(path: Path) -> Model | None:
    """The model of a receipt; None if the file is none, or damaged."""
    try:
        values = json.loads(path.read_bytes())
        paths = tuple(Path(part) for part in values.pop("paths"))
        values["sha256"], values["how"] = tuple(values["sha256"]), tuple(values["how"])
        model = Model(**{**values, "paths": paths})
        texts = [getattr(model, field.name) for field in fields(Model) if field.type == "str"]
        sound = all(isinstance(text, str) for text in texts) and isinstance(model.size, int)
        return model if sound and paths and len(model.how) == len(paths) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _numbered(name: str, taken: Collection[str]) -> str:
    """`name`, or with the first number that makes it nobody else's."""
    every = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    return next(one for one in every if one.lower() not in taken)


def _time_of(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _delete(path: Path) -> int:
    """Delete a file; returns the bytes that this frees, which are none while it has other names."""
    try:
        about = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return disk_bytes(about) if stat.S_ISREG(about.st_mode) and about.st_nlink == 1 else 0


def _sweep(repo: Path) -> None:
    """Take away what is empty in a repository's cache folder, as its last file goes."""
    snapshots = sorted(repo.glob("snapshots/**/"), key=lambda p: -len(p.parts))
    for folder in snapshots:
        with contextlib.suppress(OSError):
            folder.rmdir()
    for ref in [path for path in repo.glob("refs/**/*") if path.is_file()]:
        with contextlib.suppress(OSError, ValueError):
            if not (repo / "snapshots" / ref.read_text("ascii").strip()).exists():
                ref.unlink()
    for folder in (repo / "refs", repo / "blobs", repo):
        with contextlib.suppress(OSError):
            folder.rmdir()
