"""What Linux, macOS and Windows do in different ways, one function for each.

Contract: each is the system's own way where that exists, and else what comes nearest. The system
is asked for what it has, not for its name, so that a test can take it away.
Not here: the keyboard and its signals (interrupt.py, repl/keys.py), and a child's place in its
terminal (engine/pipes.py).
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

_turn = threading.Lock()  # one place in the file for all threads, where there is no `pread`


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """`os.open` of a regular file of ours: bytes as they are, never through a link.

    Raises OSError.
    """
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # NONBLOCK: a pipe must not hold us up
        flags |= getattr(os, name, 0)
    return os.open(path, flags, mode)


def read_at(number: int, count: int, at: int) -> bytes:
    """Up to `count` bytes of an open file from byte `at` on. Raises OSError."""
    if hasattr(os, "pread"):
        block: bytes = os.pread(number, count, at)
        return block
    with _turn:
        os.lseek(number, at, os.SEEK_SET)
        return os.read(number, count)


def write_at(number: int, data: memoryview, at: int) -> int:
    """Write `data` into an open file from byte `at` on; the count of bytes. Raises OSError."""
    if hasattr(os, "pwrite"):
        count: int = os.pwrite(number, data, at)
        return count
    with _turn:
        os.lseek(number, at, os.SEEK_SET)
        return os.write(number, data)


def typed_path(text: str | Path) -> Path:
    """The path that a person typed; `~name` of nobody is a name like any other."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def disk_bytes(about: os.stat_result) -> int:
    """Bytes that a file takes from the disk, which are fewer than its size if it has holes."""
    blocks: int | None = getattr(about, "st_blocks", None)
    return about.st_size if blocks is None else blocks * 512


def is_ours(about: os.stat_result) -> bool:
    """Whether this person owns a file; true where files tell no owner."""
    return not hasattr(os, "geteuid") or about.st_uid == os.geteuid()


def open_to_all(folder: Path) -> bool:
    """Whether anyone on this machine can replace files in `folder`, as far as its mode tells."""
    mode = folder.stat().st_mode
    has_owners = hasattr(os, "geteuid")
    return has_owners and bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
