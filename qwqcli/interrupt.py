"""Keys that come as signals: Ctrl-C, Ctrl-Z, and Ctrl-N where nothing reads the keyboard.

Within `interruptible` Ctrl-C is a value that an engine is asked to look at. Within `only_once` it
raises, as it always did, and whatever then cleans up is left in peace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from qwqcli.engine import Control
from qwqcli.messages import Order

with contextlib.suppress(ImportError):  # Windows
    import termios

CTRL_N = b"\x0e"


@contextlib.contextmanager
def interruptible(*, twice_leaves: bool = False) -> Iterator[Control]:
    """Yield a control that says STOP after Ctrl-C; a second press may raise as it always did."""
    pressed = False

    def press(signum: int, frame: object) -> None:
        nonlocal pressed
        if pressed and twice_leaves:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: Order.STOP if pressed else Order.GO_ON
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def only_once() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt, further ones do nothing until the end."""

    def press(signum: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def orderly(give_back: Callable[[], None], take: Callable[[], None]) -> Iterator[None]:
    """Call `give_back` before Ctrl-Z suspends the process, and `take` when it goes on.

    SIGTERM and SIGQUIT (Ctrl-\\) leave as an exception does, so that all is cleaned up.
    """
    if sys.platform == "win32":
        yield
        return

    def suspend(signum: int, frame: object) -> None:
        give_back()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)  # here it goes on after `fg`
        take()

    wanted = ((signal.SIGTSTP, suspend), (signal.SIGTERM, _leave), (signal.SIGQUIT, _leave))
    before = {number: signal.signal(number, handler) for number, handler in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def alone(stdin: TextIO, *outputs: TextIO) -> bool:
    """Whether this process is all of the job in front of its terminal.

    A signal of a key goes to the whole job, also to a script that waits for us, or to a pager
    that reads from us.
    """
    if sys.platform == "win32" or not stdin.isatty():
        return False
    try:
        piped = any(stat.S_ISFIFO(os.fstat(out.fileno()).st_mode) for out in outputs)
        return not piped and os.tcgetpgrp(stdin.fileno()) == os.getpid()
    except OSError:  # a stream without a descriptor, or a terminal that is not ours
        return False


@contextlib.contextmanager
def answer_key(stdin: TextIO, control: Control, leave: Callable[[], None]) -> Iterator[Control]:
    """`control` that also says ANSWER after Ctrl-N; only for a process that is `alone`.

    The terminal itself sends SIGQUIT for the key, in place of Ctrl-\\, so that all that is typed
    ahead is left for the shell. `leave` is called before the process is suspended.
    """
    if sys.platform == "win32":
        yield control
        return
    pressed = False

    def press(signum: int, frame: object) -> None:
        nonlocal pressed
        pressed = True

    found = termios.tcgetattr(stdin)
    ours = termios.tcgetattr(stdin)
    ours[6][termios.VQUIT] = CTRL_N
    ours[3] |= termios.NOFLSH  # the key would throw away what was typed before it

    def put(attributes: list[Any]) -> None:
        if os.tcgetpgrp(stdin.fileno()) == os.getpgrp():  # after `bg` the terminal is not ours
            termios.tcsetattr(stdin, termios.TCSANOW, attributes)

    def give_back() -> None:
        put(found)
        leave()

    with orderly(give_back, lambda: put(ours)):
        signal.signal(signal.SIGQUIT, press)
        put(ours)
        try:
            yield lambda: control() or (Order.ANSWER if pressed else Order.GO_ON)
        finally:
            put(found)
