"""The keyboard while no prompt is open: Ctrl-C stops the reply, all else waits for the prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO

from qwqcli.engine import Control
from qwqcli.interrupt import interruptible
from qwqcli.terminal import Output

KeysDuringReply = Callable[[], contextlib.AbstractContextManager[Control]]


@contextlib.contextmanager
def reply_keys(out: Output) -> Iterator[Control]:
    """`interruptible` on a quiet terminal: all other keys wait for the next prompt.

    Bracketed paste stays on, so that a paste during a reply is one prompt as well. This is the
    one place where further keys of a reply would be read.
    """
    with interruptible() as control:
        out.write("\x1b[?2004h")
        try:
            yield control
        finally:
            out.write("\x1b[?2004l")


@contextlib.contextmanager
def quiet(stdin: TextIO) -> Iterator[None]:
    """Keep what is typed while no prompt is open, key by key, and show it only in the prompt."""
    try:
        import termios
    except ImportError:  # Windows, whose console keeps keys by itself
        yield
        return
    fd = stdin.fileno()
    before = termios.tcgetattr(fd)
    attributes = termios.tcgetattr(fd)
    attributes[0] &= ~(termios.ICRNL | termios.INLCR)  # Enter must arrive as Enter, not as Ctrl+J
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    attributes[3] |= termios.NOFLSH  # Ctrl-C would throw away what was typed before it
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
