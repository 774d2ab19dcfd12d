"""What drawing a thought costs the parent process, per token, and whether that stays flat.

    python benchmarks/drawing.py [TOKENS]

A reply of 100,000 tokens is drawn as `qwq chat` does, at 40 tokens/s by a clock of its own, into a
terminal that forgets, while the keys of a pseudo-terminal are looked at. What counts is CPU time;
1 % of the time of such a reply on one core is 250 us a token. Measured at its beginning and at its
end, folded, unfolded, and folded in a window that is resized at every frame.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prompt_toolkit.application import create_app_session
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.output import DummyOutput

from qwqcli.config import Thinking
from qwqcli.engine import Control
from qwqcli.messages import Reasoning, Room
from qwqcli.render import ChatView, ticking
from qwqcli.repl.keys import Keyboard
from qwqcli.repl.prompt import TerminalPrompt
from qwqcli.terminal import Screen

A_TOKEN_S = 1 / 40
LIMIT_US = 250
PART = 5_000  # tokens that are measured at each end

ENGLISH = (
    "so the answer is not what we have seen before because each of them carries over\n"
    "Wait, let me check that again: 17 * 23 = 391, and then"
)
CHINESE = "我们先来看一下这个问题的答案是不是已经算对了，再检查一遍。"


class Terminal(io.StringIO):
    """A terminal that forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)

    def isatty(self) -> bool:
        return True


class Window:
    """A clock that is set by hand, and a size that may change at every look."""

    def __init__(self, columns: int, resized: bool) -> None:
        self.now, self._columns, self._resized, self._looks = 0.0, columns, resized, 0

    def clock(self) -> float:
        return self.now

    def size(self) -> tuple[int, int]:
        self._looks += 1
        return self._columns - (self._looks % 7 if self._resized else 0), 50


def words(chinese: bool) -> Iterator[str]:
    chosen = random.Random(1)
    while True:
        yield chosen.choice(CHINESE) if chinese else chosen.choice(ENGLISH.split(" ")) + " "


def measure(
    keys: Control, tokens: int, thinking: Thinking, columns: int, chinese: bool, resized: bool
) -> None:
    window = Window(columns, resized)
    screen = Screen(Terminal(), Terminal(), {"TERM": "xterm"}, window.clock, window.size)
    view = ChatView(screen, thinking)
    control = ticking(view, keys)
    view.begin()
    view.room(Room(131_072, 100, 31_268))
    text, took = words(chinese), []
    for at in range(1, tokens + 1):
        event = Reasoning(next(text), at)
        began = time.process_time_ns()
        control()  # as an engine asks before each token
        view.reasoning(event)
        took.append(time.process_time_ns() - began)
        window.now += A_TOKEN_S
    first, last = (sum(part) / PART / 1000 for part in (took[:PART], took[-PART:]))
    what = f"{thinking}, {columns} columns, {'Chinese' if chinese else 'English'}"
    what += ", resized all the time" if resized else ""
    verdict = "" if max(first, last) <= LIMIT_US else f"  over {LIMIT_US} us"
    print(f"{what}: {first:.0f} us a token at the beginning, {last:.0f} us at the end{verdict}")


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    _, terminal = os.openpty()
    with tempfile.TemporaryDirectory() as folder, os.fdopen(terminal, "r") as stdin:
        screen = Screen(Terminal(), Terminal(), {"TERM": "xterm"})
        keyboard = Keyboard(stdin, screen.out)
        with create_app_session(Vt100Input(stdin), DummyOutput()), keyboard.quiet():
            prompt = TerminalPrompt(Path(folder, "history"), print)
            with keyboard.during_reply(prompt.pressed, lambda: None) as keys:
                for columns in (20, 80, 200):
                    for chinese in (False, True):
                        measure(keys, tokens, "fold", columns, chinese, resized=False)
                measure(keys, tokens, "fold", 200, True, resized=True)
                measure(keys, tokens, "show", 80, False, resized=False)


if __name__ == "__main__":
    main()
