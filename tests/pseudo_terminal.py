"""A chat in a pseudo-terminal of its own: keys go in, and what counts is the screen."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).parents[1]
WHERE = b"\x1b[6n"  # a new prompt asks the terminal where the cursor is


class Emulator(pyte.HistoryScreen):
    """A screen that answers the questions that programs ask a terminal."""

    def __init__(self, columns: int, answer: Callable[[str], object]) -> None:
        super().__init__(columns, 24, history=1000)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data)


class Terminal:
    """A program in a pseudo-terminal of its own; the methods know the prompt of a chat."""

    def __init__(
        self, argv: Sequence[str], cwd: Path, environ: dict[str, str], columns: int
    ) -> None:
        self.child = pexpect.spawn(
            argv[0],
            list(argv[1:]),
            cwd=str(cwd),
            env=environ,  # type: ignore[arg-type]
            dimensions=(24, columns),
        )
        self.child.delaybeforesend = None
        self.emulator = Emulator(columns, self.child.send)
        self._stream = pyte.ByteStream(self.emulator)
        self.raw = b""
        self._typed_at = 0  # in `raw`

    def keys(self, text: str) -> None:
        self._typed_at = len(self.raw)
        self.child.send(text)

    @property
    def rows(self) -> list[str]:
        """What stands on the screen, without the row about the window and empty rows below."""
        # not pyte's own `display`, which fails where half of a wide character was drawn over
        screen = self.emulator
        lines = (screen.buffer[y] for y in range(screen.lines))
        rows = ("".join(line[x].data for x in range(screen.columns)).rstrip() for line in lines)
        text = "\n".join(rows).rstrip("\n")
        return re.sub(r"\n+[\d,]+ free\b[^\n]*\Z", "", text).split("\n")

    def see(self, seen: Callable[[list[str]], bool] | str, timeout: float = 40) -> list[str]:
        """Wait until the screen is as expected."""
        expected = (lambda rows: seen in "\n".join(rows)) if isinstance(seen, str) else seen
        end = time.monotonic() + timeout
        while not expected(self.rows):
            assert time.monotonic() < end, f"never seen: {seen}\n" + "\n".join(self.rows)
            self._read()
        return self.rows

    def prompt(self) -> list[str]:
        """Wait for an empty prompt."""
        return self.see(lambda rows: rows[-1] == ">")

    def ready(self) -> list[str]:
        """Wait for an empty prompt that has begun since the last keys were typed."""
        return self.see(lambda rows: rows[-1] == ">" and WHERE in self.raw[self._typed_at :])

    def ask(self, question: str) -> list[str]:
        """Submit a question and wait for the prompt after the reply."""
        self.keys(question + "\r")
        return self.ready()

    def left(self) -> int:
        """Wait until the chat has ended; its exit code."""
        end = time.monotonic() + 60
        while self._read():
            assert time.monotonic() < end, "it does not leave\n" + "\n".join(self.rows)
        self.child.close()
        assert self.child.exitstatus is not None
        return self.child.exitstatus

    def _read(self) -> bool:
        try:
            # so little that no frame can be missed
            data = self.child.read_nonblocking(100, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True


class ScriptedChat(Terminal):
    """A chat with an engine that follows a script, and notes in `log` what it was sent."""

    def __init__(
        self,
        home: Path,
        columns: int,
        replies: tuple[tuple[str, str], ...],
        environ: dict[str, str],
    ) -> None:
        self.log = home / "sent"
        environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            "FAKE_HOME": str(home),
            "FAKE_LOG": str(self.log),
            "FAKE_DELAY": "0.01",
            **({"FAKE_REPLIES": json.dumps(replies)} if replies else {}),
            **environ,
        }
        super().__init__([sys.executable, "-m", "tests.fakes"], ROOT, environ, columns)
