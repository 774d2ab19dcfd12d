"""Draws a pull while it goes on: one live row, a plain line now and then, or JSON lines.

Contract: `view.show(event)` for each event of `Hub.pull`, then `view.close()`; it can be closed at
any moment and leaves whole lines behind. What is drawn goes to stderr, JSON to stdout. The parts of
the row stand in the order of their worth: a narrow window shows the first.
Non-goals: pulling, deciding, errors (render.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwqcli.hub import (
    Checking,
    Chosen,
    Event,
    Found,
    Notice,
    Progress,
    Pulled,
    Retrying,
    Waiting,
)
from qwqcli.render import duration
from qwqcli.terminal import Output, Screen, StatusLine, visible

PLAIN_S = 30.0  # between two lines where no row can be redrawn
JSON_S = 1.0  # between two lines of progress in JSON
GB = 10**9


def size(count: float) -> str:
    """`19.85 GB`, `98.4 MB`, `12 kB`: decimal units, as hubs and shops of disks count."""
    if count >= GB:
        return f"{count / GB:.2f} GB"
    if count >= 10**6:
        return f"{count / 10**6:.1f} MB"
    return f"{count / 1000:.0f} kB"


def percent(done: int, total: int) -> str:
    """Never 100 % before the end."""
    return f"{done * 100 // max(total, 1)} %"


class PullView:
    """Draws one pull. This one draws nothing: `--quiet`."""

    def show(self, event: Event) -> None:
        """Draw what has happened."""

    def wait(self, text: str) -> None:
        """Say what is done before the first event."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class TextView(PullView):
    """For people: a live row where that is possible, else a line every `PLAIN_S` seconds."""

    def __init__(self, screen: Screen) -> None:
        self._out, self._clock = screen.err, screen.clock
        self._status = StatusLine(screen.err, screen.clock)
        self._began = self._line_due = screen.clock()
        self._trouble: tuple[str, float] = ("", 0.0)  # why a connection waits, and until when
        self._resumed = False

    def show(self, event: Event) -> None:
        match event:
            case Chosen():
                count = len(event.files)
                parts = f" in {count} parts" if count > 1 else ""
                name = f"{event.repo} {event.quantization}".rstrip()
                self._line(f"{name}: {size(event.size)}{parts} from {event.source}")
            case Found():
                self._line(f"{event.file} is here already, in {event.owner}: {event.path}")
            case Notice():
                self._line(event.text)
            case Retrying():
                self._trouble = (event.reason, self._clock() + event.wait_s)
            case Pulled():
                self._line(self._summary(event))
            case Progress():
                self._say_resumed(event)
                self._row(progress_parts(event, self._trouble_now(event)))
            case Waiting():
                amount = f"{size(event.done)} of {size(event.total)}"
                done = percent(event.done, event.total)
                self._row([done, "another process downloads it", amount])
            case Checking():
                self._row([percent(event.done, event.total), "verifying", event.file])

    def wait(self, text: str) -> None:
        if self._out.live:
            self._status.show([visible(text)])

    def close(self) -> None:
        self._status.clear()

    def _row(self, parts: Sequence[str]) -> None:
        shown = [visible(part) for part in parts]
        if self._out.live:
            self._status.show(shown)
        elif self._clock() >= self._line_due:
            self._line_due = self._clock() + PLAIN_S
            self._out.write(self._out.symbols.dot.join(shown) + "\n")

    def _line(self, text: str) -> None:
        self._status.clear(self._out.dim(visible(text)) + "\n")

    def _say_resumed(self, event: Progress) -> None:
        if not self._resumed and not event.mending and event.file_done:
            self._line(f"Going on: {size(event.file_done)} of {event.file} are here already.")
        self._resumed = True

    def _trouble_now(self, event: Progress) -> str:
        """Why nothing comes, as long as nothing comes."""
        reason, until = self._trouble
        left = until - self._clock()
        if left <= 0 or event.connections > 1:
            return ""
        return f"{reason}, again in {duration(left)}" if left >= 1 else f"{reason}, again"

    def _summary(self, event: Pulled) -> str:
        if event.how == "downloaded":
            seconds = max(self._clock() - self._began, 0.001)
            speed = f"{size(event.received)} in {duration(seconds)}"
            return f"{event.name} is here and verified: {speed}"
        how = {
            "kept": "was here already",
            "linked": "is a second name for the file that was found; nothing was downloaded",
            "in place": "is used where it is; nothing was downloaded",
        }
        return f"{event.name} {how.get(event.how, 'is here')}: {size(event.size)}"


def progress_parts(event: Progress, trouble: str = "") -> list[str]:
    """What a row says of a download, the most wanted first."""
    if event.file_done == event.file_total and not event.mending:
        return [f"verifying {percent(event.hashed, event.file_total)}", event.file]
    parts = [percent(event.done, event.total)]
    if event.mending:
        parts = [f"comparing {percent(event.file_done, event.file_total)}"]
    if trouble:
        parts.append(trouble)
    elif event.rate > 0:
        parts.append(f"{size(event.rate)}/s")
        if event.eta_s is not None:
            parts.append(f"{duration(event.eta_s)} left")
    parts.append(f"{size(event.done)} of {size(event.total)}")
    if event.count > 1:
        done = percent(event.file_done, event.file_total)
        parts.append(f"part {event.number} of {event.count}: {done}")
    return parts


class JsonView(PullView):
    """For programs: one object a line on stdout, `type` first, progress once a second."""

    def __init__(self, screen: Screen) -> None:
        self._out, self._clock = screen.out, screen.clock
        self._due = float("-inf")

    def show(self, event: Event) -> None:
        if isinstance(event, (Progress, Waiting, Checking)):
            if self._clock() < self._due:
                return
            self._due = self._clock() + JSON_S
        write_json({"type": type(event).__name__.lower(), **asdict(event)}, self._out)


def view_of(screen: Screen, *, as_json: bool, quiet: bool) -> PullView:
    """The view that the options ask for."""
    if as_json:
        return JsonView(screen)
    return PullView() if quiet else TextView(screen)


def follow(events: Generator[Event, None, None], view: PullView) -> Pulled:
    """Show a pull to its end; whatever ends it early also ends the pull, which keeps its bytes."""
    end: Pulled | None = None
    with contextlib.closing(events):
        for event in events:
            view.show(event)
            if isinstance(event, Pulled):
                end = event
    assert end is not None, "a pull that raises nothing ends with Pulled"
    return end


def write_json(value: Mapping[str, Any], out: Output) -> None:
    """One object a line; a path is its text."""
    out.write(json.dumps(value, default=_text).replace("\x7f", "\\u007f") + "\n")


def _text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value)} is no value of JSON")
