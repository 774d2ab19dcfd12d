"""The keyboard while no prompt is open: what stops, answers or unfolds, and what waits.

Contract: Ctrl-C stops the reply, Ctrl-N asks for the answer, Ctrl-O folds the thought or unfolds
it; every other key waits for the next prompt, a paste as one piece. The terminal is given back as
it was found: at the end, at an error, when the process is suspended (Ctrl-Z) or terminated.

Limits: without termios (Windows) only Ctrl-C acts during a reply; the console keeps the rest.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from qwqcli.engine import Control
from qwqcli.interrupt import interruptible, orderly
from qwqcli.messages import Order
from qwqcli.terminal import Output

with contextlib.suppress(ImportError):  # Windows
    import termios

# `fold` is called when the person wants the thought folded or unfolded
KeysDuringReply = Callable[[Callable[[], None]], contextlib.AbstractContextManager[Control]]

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste


def only_interrupt(fold: Callable[[], None]) -> contextlib.AbstractContextManager[Control]:
    """`KeysDuringReply` where no other key can be read."""
    return interruptible()


Pressed = Callable[[], list[str]]  # `c-c`, `c-n`, `c-o`, as pressed since it was last asked


class Keyboard:
    """A terminal that is quiet for the length of a chat, and read from while a reply comes."""

    def __init__(self, stdin: TextIO, out: Output) -> None:
        self._fd, self._out = stdin.fileno(), out
        self._found: list[Any] = []  # the terminal's attributes
        self._in_reply = False

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep what is typed while no prompt is open, and show it only in the prompt."""
        if sys.platform == "win32":
            yield
            return
        self._found = termios.tcgetattr(self._fd)
        with orderly(self._suspend, self._go_on):
            try:
                self._hush()
                yield
            finally:
                self._give_back()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Give the terminal to another program for a while, such as a pager."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C there is not for us
        self._give_back()
        try:
            yield
        finally:
            self._hush()
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def during_reply(self, pressed: Pressed, fold: Callable[[], None]) -> Iterator[Control]:
        """Look at the keys whenever the control is asked, also at those typed before the reply."""
        orders = {"c-c": False, "c-n": False}

        def control() -> Order:
            for key in pressed():
                orders[key] = True
                if key == "c-o":
                    fold()
            if orders["c-c"] or interrupted():
                return Order.STOP
            return Order.ANSWER if orders["c-n"] else Order.GO_ON

        with interruptible() as interrupted:
            self._out.write(PASTE_ON)
            self._in_reply = True
            try:
                yield interrupted if sys.platform == "win32" else control
            finally:
                self._in_reply = False
                self._out.write(PASTE_OFF)

    def _hush(self) -> None:
        if sys.platform == "win32":
            return
        attributes = list(self._found)
        # Enter must arrive as Enter, not as Ctrl-J
        attributes[0] &= ~(termios.ICRNL | termios.INLCR)
        # IEXTEN: on BSD and macOS Ctrl-O would stop all output
        attributes[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        attributes[3] |= termios.NOFLSH  # Ctrl-C would throw away what was typed before it
        termios.tcsetattr(self._fd, termios.TCSANOW, attributes)

    def _give_back(self) -> None:
        if sys.platform != "win32":
            termios.tcsetattr(self._fd, termios.TCSANOW, self._found)

    def _suspend(self) -> None:
        self._give_back()
        self._out.leave()
        self._out.write(PASTE_OFF)

    def _go_on(self) -> None:
        self._hush()
        if self._in_reply:
            self._out.write(PASTE_ON)
