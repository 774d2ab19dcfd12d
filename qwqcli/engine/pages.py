"""KV states on disk, in pages: what lets a conversation go on without being processed again.

Contract: a page holds the state of PAGE tokens, the last one of fewer. Its name is a keyed hash of
what computed it and of all tokens up to its end, so that a page of another model file, build or
cache type, or of another beginning, is not found at all. `read` gives a page only if its checksum,
made with a key that only this person has, is right: llama.cpp aborts the process on some broken
states, so what was cut, swapped or forged never reaches it, and is removed. A file is written
beside and renamed, and only its owner may read it: a state tells what was said.

Nothing here raises: a disk that fails is one that has no page. Non-goals: when pages are made and
used (`llama`), how a state is taken (`native`).
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwqcli.atomic import write_file
from qwqcli.engine import Keep
from qwqcli.gguf import split_paths
from qwqcli.portable import open_own

PAGE = 256  # tokens: 64 MiB of QwQ's f16 cache
LEAVE_FREE = 1 << 30  # bytes of the disk that pages never take
FOLDER = "kv"  # of a session's files, where its pages are
_MAGIC, _MAC_BYTES, _KEY_BYTES = b"QWQKV\0\0\1", 32, 32
_SAMPLES, _SAMPLE_BYTES, _HEAD_BYTES = 64, 4096, 1 << 20
_ABANDONED_S = 3600.0  # after which a file that was never renamed is nobody's


@dataclass(frozen=True, slots=True)
class Page:
    """The tokens from `start` to before `end` of a conversation, and the file of their state."""

    file: str
    start: int
    end: int


class Pages:
    """The pages of one session, made by one model as it is loaded now."""

    def __init__(self, keep: Keep, maker: str) -> None:
        """`maker` is all that the numbers of a state depend on, see `maker_of`."""
        self._folder, self._cap = Path(keep.folder), keep.cap
        self._root = self._folder.parent.parent
        self._key = _key(self._root) if self._cap else b""
        self._maker = maker.encode()

    def of(self, tokens: Sequence[int]) -> list[Page]:
        """The pages of `tokens`, whether or not they are there; none if nothing can be kept."""
        if not self._key:
            return []
        digest = hashlib.blake2b(self._maker, key=self._key, digest_size=16)
        pages = []
        for start in range(0, len(tokens), PAGE):
            piece = tokens[start : start + PAGE]
            digest.update(array.array("q", piece).tobytes())
            kind = "page" if len(piece) == PAGE else "tail"
            pages.append(Page(f"{digest.hexdigest()}.{kind}", start, start + len(piece)))
        return pages

    def has(self, page: Page) -> bool:
        return (self._folder / page.file).is_file()

    def read(self, page: Page) -> bytearray | None:
        """The state in a page; None if there is none to be trusted."""
        path = self._folder / page.file
        try:
            data = bytearray(path.stat().st_size)
            with path.open("rb") as file:
                file.readinto(data)
        except (OSError, MemoryError):
            return None
        head, mac = len(_MAGIC), len(_MAGIC) + _MAC_BYTES
        state = data[mac:]
        if data[:head] == _MAGIC and hmac.compare_digest(data[head:mac], self._mac(page, state)):
            return state
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def write(self, page: Page, state: memoryview) -> bool:
        """Keep a state, and remove the least recently used ones where they take too much."""
        size = len(state) + len(_MAGIC) + _MAC_BYTES
        try:
            make_room(self._root, self._cap - size)
            self._folder.mkdir(parents=True, exist_ok=True)
            if size > self._cap or shutil.disk_usage(self._folder).free < size + LEAVE_FREE:
                return False
            mac = self._mac(page, state)
            write_file(self._folder / page.file, _MAGIC, mac, state, mode=0o600)
            if page.file.endswith(".tail"):
                self._drop_other_tails(page)
        except OSError:
            return False
        return True

    def touch(self, pages: Sequence[Page]) -> None:
        """These were used now. A first page is the last to be removed: all others build on it."""
        now = time.time_ns()
        for at, page in enumerate(pages):
            with contextlib.suppress(OSError):
                os.utime(self._folder / page.file, ns=(now - at * 1000, now - at * 1000))

    def _mac(self, page: Page, state: Any) -> bytes:
        digest = hashlib.blake2b(page.file.encode(), key=self._key, digest_size=_MAC_BYTES)
        digest.update(state)
        return digest.digest()

    def _drop_other_tails(self, page: Page) -> None:
        for path in self._folder.glob("*.tail"):
            if path.name != page.file:
                path.unlink(missing_ok=True)


def maker_of(path: Path, build: str, placement: dict[str, Any]) -> str:
    """What the numbers of a state depend on: the weights, the build, and how they are placed.

    Left out is what no number depends on (rope scaling is a value of its own): who goes on in a
    larger window, or after a death with smaller batches, must find what there is.
    """
    idle = ("n_ctx", "n_batch", "mmap")
    computed = {name: value for name, value in placement.items() if name not in idle}
    return json.dumps([_weights(path), build, computed], sort_keys=True)


def _weights(path: Path) -> list[list[Any]]:
    """Size, time and samples of a model file: 20 GB cannot be hashed at each start.

    The first MiB holds the metadata; 64 samples, evenly spread, tell fine-tunes of one shape apart.
    A file that was changed in place has another time.
    """
    facts: list[list[Any]] = []
    for part in split_paths(path):
        digest, stat = hashlib.blake2b(digest_size=16), part.stat()
        with part.open("rb") as file:
            digest.update(file.read(_HEAD_BYTES))
            for at in range(_SAMPLES):
                file.seek(stat.st_size * at // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
        facts.append([stat.st_size, stat.st_mtime_ns, digest.hexdigest()])
    return facts


def usage(root: Path) -> dict[str, int]:
    """Bytes of all pages of each session under `root`, the folder of all sessions' files."""
    total: dict[str, int] = {}
    for path, _, size in _files(root):
        session = path.parent.parent.name
        total[session] = total.get(session, 0) + size
    return total


def make_room(root: Path, cap: int) -> int:
    """Remove the least recently used pages until all take at most `cap` bytes; bytes removed."""
    files = sorted(_files(root), key=lambda file: file[1])
    before = total = sum(size for _, _, size in files)
    for path, used, size in files:
        abandoned = path.name.startswith(".") and time.time() - used > _ABANDONED_S
        if total > cap or abandoned:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
    return before - total


def _files(root: Path) -> Iterator[tuple[Path, float, int]]:
    """Each file of pages: where, when it was last used (seconds since 1970), its bytes."""
    for path in root.glob(f"*/{FOLDER}/*"):
        with contextlib.suppress(OSError):  # another process may be removing it
            stat = path.stat()
            yield path, stat.st_mtime, stat.st_size


def _key(root: Path) -> bytes:
    """This person's key, made where there is none; empty if none can be had."""
    path = root / "kv.key"
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            made = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(made, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
        if len(key) == _KEY_BYTES:
            return key
        path.unlink()  # cut off while it was written; the next one to look makes another
    return b""
