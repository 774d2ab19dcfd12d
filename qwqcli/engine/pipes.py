"""A process of ours for native code, and the lines that go in and out of it.

Contract: a `Pipes` starts `python -m MODULE` and gives each line that it says to `take`, in a
thread of its own, then an empty one when there will be no more. Another thread writes what is sent
to it: a long conversation does not wait for a child that still loads. Native code prints where it
likes, so the child's stderr is kept off the person's screen, and `last_words` tells how it ended.
Not here: what the lines mean, and what to do about a death.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

Say = Callable[[dict[str, Any]], None]

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
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._broken = False
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    @property
    def closed(self) -> bool:
        return self._errors.closed

    def send(self, line: bytes) -> None:
        """Raises OSError when the child is known to be gone."""
        if self._broken:
            raise BrokenPipeError
        self._outbox.put(line)

    def close(self) -> None:
        """Let the child go: it leaves at once when its stdin ends. Safe to call twice."""
        self._outbox.put(b"")
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        if self.process.stdout:
            self.process.stdout.close()
        self._errors.close()

    def last_words(self) -> str:
        """The last line that the child wrote to stderr; empty if it wrote none."""
        self._errors.seek(0)
        lines = self._errors.read()[-4096:].decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else ""

    def _write(self) -> None:
        """Lines from the outbox to the child, until an empty one; then its stdin ends."""
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stdin:
                while line := self._outbox.get():
                    stdin.write(line)
                    stdin.flush()
        except OSError:
            self._broken = True

    def _read(self) -> None:
        assert self.process.stdout is not None
        # a child that dies may leave half a line, which is no value
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._take(line)
        self._take(b"")


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
