"""Ctrl-C as a value: within `interruptible` it sets a flag that an engine is asked to look at.

Within `only_once` it raises, as it always did, and whatever then cleans up is left in peace.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from qwqcli.engine import Control
from qwqcli.messages import Order


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
