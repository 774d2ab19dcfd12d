"""What tests ask of the events of a reply, and a control that gives its order at a known moment."""

from __future__ import annotations

from qwqcli.engine import Control
from qwqcli.messages import Answer, Done, Event, Order, Reasoning


def thought(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Reasoning))


def answer(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Answer))


def done(events: list[Event]) -> Done:
    """The end, of which there is one."""
    assert isinstance(events[-1], Done)
    assert sum(isinstance(e, Done) for e in events) == 1
    return events[-1]


def after(count: int, order: Order = Order.STOP) -> Control:
    """A control that gives its order when it is asked for the `count`-th time, and from then on."""
    asked = iter(range(1, 1_000_000))
    return lambda: order if next(asked) >= count else Order.GO_ON
