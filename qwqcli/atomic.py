"""Files that are written whole or not at all: a reader sees the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from qwqcli.portable import open_own


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Put `text` at `path` in one step, in a folder that need not be there yet. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode(), mode=mode)


def write_file(path: Path, *parts: Any, sync: bool = False, mode: int = 0o644) -> None:
    """Put `parts`, bytes or buffers, at `path` in one step. `sync`: it outlives a loss of power."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(open_own(scratch, flags, mode), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
