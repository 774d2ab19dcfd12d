"""Which bytes of a file are on disk, and a note of it that survives kill -9 and loss of power.

Contract: a `Journal` beside a partial file says which spans of it can be trusted. The quick note is
written often and not synced: after a kill the system still has every byte that was written, so it
is trusted as long as the machine has not been restarted since. The safe note is written after the
bytes have been synced to the disk, and is what counts after a restart. Whatever is wrong with a
note makes it worth nothing, never an error: the checksum at the end is the judge.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qwqcli.atomic import write_file
from qwqcli.portable import open_own

Spans: TypeAlias = tuple[tuple[int, int], ...]  # ascending, disjoint, each (start, end)

MAX_NOTE = 4 << 20  # bytes; a note with 10,000 spans has 0.3 MB


def gaps(spans: Iterable[tuple[int, int]], size: int) -> Spans:
    """What `spans`, in any order, leave free between 0 and `size`."""
    free, at = [], 0
    for start, end in sorted(spans):
        if start > at:
            free.append((at, start))
        at = max(at, end)
    if at < size:
        free.append((at, size))
    return tuple(free)


def held(spans: Spans) -> int:
    """Bytes in all spans."""
    return sum(end - start for start, end in spans)


class Journal:
    """The two notes about the partial file `partial` of a content of `size` bytes."""

    def __init__(self, partial: Path, sha256: str, size: int, name: str = "") -> None:
        self._partial, self._name = partial, name
        self._about = {"version": 1, "sha256": sha256, "size": size}
        # ".incomplete" lets `hf cache prune` sweep them together with the partial file
        stem = partial.name.removesuffix(".incomplete")
        self._quick = partial.with_name(f"{stem}-journal.incomplete")
        self._safe = partial.with_name(f"{stem}-safe.incomplete")

    def load(self) -> Spans:
        """The spans that can be trusted in the partial file as it is now."""
        quick = self._read(self._quick)
        if quick is not None and quick.get("boot") == boot_id() != "":
            return self._spans(quick)
        safe = self._read(self._safe)
        return self._spans(safe) if safe is not None else ()

    def save(self, spans: Spans, inode: int, *, synced: bool = False) -> None:
        """Note that `spans` are on disk. Raises OSError if the note cannot be written."""
        note = {**self._about, "name": self._name, "boot": boot_id(), "inode": inode, "have": spans}
        path = self._safe if synced else self._quick
        write_file(path, json.dumps(note).encode(), sync=synced)

    def remove(self) -> None:
        """The partial file has become a whole one, or is given up."""
        for path in (self._quick, self._safe):
            path.unlink(missing_ok=True)

    def about(self) -> Mapping[str, Any]:
        """What the notes say of the content, for those who know the partial file only."""
        return _note(self._quick) or _note(self._safe)

    def _read(self, path: Path) -> dict[str, Any] | None:
        note = _note(path)
        return note if self._about.items() <= note.items() else None

    def _spans(self, note: dict[str, Any]) -> Spans:
        """The spans of a note, if they are possible in the partial file."""
        with contextlib.suppress(OSError, TypeError, ValueError):
            about = os.stat(self._partial, follow_symlinks=False)
            spans = tuple((int(start), int(end)) for start, end in note["have"])
            edges = [0, *(edge for span in spans for edge in span), about.st_size]
            if note["inode"] == about.st_ino and edges == sorted(edges):
                return spans
        return ()


def _note(path: Path) -> dict[str, Any]:
    """The note at `path`; an empty one if there is none."""
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            note = json.loads(file.read(MAX_NOTE))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


@functools.cache
def boot_id() -> str:
    """What tells this run of the machine from the next; "" if the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        pass
    import subprocess

    try:
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]  # macOS
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
