"""A process of ours for native code, and the lines that go in and out of it.

Contract: a `Pipes` starts `python -m MODULE` and gives each line that it says to `take`, in a
thread of its own, then an empty one when there will be no more. Native code prints where it likes,
so the child's stderr is kept off the person's screen, and `last_words` tells how it ended.
Not here: what the lines mean, and what to do about a death.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

if sys.platform == "linux":
    import fcntl

Say = Callable[[dict[str, Any]], None]

PIPE_BYTES = 1 << 20  # what Linux gives to anyone (pipe-max-size)
CLOSE_S = 2.0  # how long a child may take to leave before it is killed

# how a child is started that the terminal's Ctrl-C must not reach: it is for the parent alone
APART: dict[str, Any]
if sys.platform == "win32":
    APART = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    APART = {"start_new_session": True}


class Pipes:
    """The parent's side. Not for use from more than one thread."""

    def __init__(self, module: str, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            **APART,
        )
        _widen(self.process.stdin)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def closed(self) -> bool:
        return self._errors.closed

    def send(self, line: bytes) -> None:
        """Raises OSError when the child is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def close(self) -> None:
        """Let the child go: it leaves at once when its stdin ends. Safe to call twice."""
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.process.stdout:
            self.process.stdout.close()
        self._errors.close()

    def last_words(self) -> str:
        """The last line that the child wrote to stderr; empty if it wrote none."""
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        # a child that dies may leave half a line, which is no value
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._take(line)
        self._take(b"")


def _widen(pipe: Any) -> None:
    """Where Linux lets us, a long conversation goes in at once while the child still loads.

    It takes 64 kB by itself; the parent waited for the child where it is more, before its prompt.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def replies() -> BinaryIO:
    """In the child: stdout for the lines alone; what native code prints goes to stderr."""
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return lines


def answers() -> Say:
    """In the child: says values as JSON, one a line, over `replies`."""
    lines = replies()

    def say(value: dict[str, Any]) -> None:
        lines.write(json.dumps(value).encode() + b"\n")
        lines.flush()

    return say
