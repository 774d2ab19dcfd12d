"""A terminal, or what stands in for one: text made safe to show, streams, live rows.

Contract: what a model or a file says is data; on a terminal its control characters are shown,
never executed (`visible`). No character can fail: what an encoding lacks gets a fallback. Live
rows need a terminal that knows `\\r`, erase and cursor-up; TERM=dumb gets plain lines.

Non-goals: reading keys, knowing what is drawn.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from qwqcli.errors import ClosedPipe, LostOutput

if TYPE_CHECKING:
    from rich.console import Console

Clock = Callable[[], float]
Size = Callable[[], tuple[int, int]]  # columns, rows

NARROW = 12  # cells; text in fewer is not worth reading
FRAME_S = 0.1  # no live row is drawn more often than this


# --- text that is safe to show -----------------------------------------------------------------


def _pictures() -> dict[int, str]:
    """What stands for each character that a terminal would act on or that hides others."""
    c0 = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    c1 = {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
    hidden = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
    order = {code: f"\\u{code:04x}" for code in hidden}
    lone = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # half of a surrogate pair
    tags = {code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)}  # invisible ASCII
    return {**c0, 0x7F: "\u2421", **c1, **order, **lone, **tags}


PICTURES = _pictures()


def visible(text: str) -> str:
    """`text` with every control character shown as a picture; newline and tab pass.

    Works character by character, so it is right for any split of a stream.
    """
    return text.translate(PICTURES)


@dataclass(frozen=True, slots=True)
class Symbols:
    """The characters that we draw ourselves, in two sets of the same widths."""

    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    dot: str = " · "
    more: str = "…"
    bullet: str = "• "
    quote: str = "▌ "


ASCII = Symbols("|/-\\", " - ", "~", "* ", "| ")


def cells(text: str) -> int:
    """Terminal cells of `text`, never fewer than drawn: an emoji sequence counts each part."""
    if text.isascii() and text.isprintable():
        return len(text)
    from rich.cells import get_character_cell_size

    return sum(1 if char == "\ufe0f" else get_character_cell_size(char) for char in text)


def clip(text: str, width: int) -> str:
    """The longest beginning of `text` that fits into `width` cells."""
    if text.isascii() and text.isprintable():
        return text[: max(width, 0)]
    from rich.cells import get_character_cell_size

    for at, char in enumerate(text):
        width -= 1 if char == "\ufe0f" else get_character_cell_size(char)
        if width < 0:
            return text[:at]
    return text


def clip_left(text: str, width: int) -> str:
    """The longest end of `text` that fits, not beginning in the middle of a character."""
    kept = clip(text[::-1], width)[::-1]
    return kept if kept == text else kept.lstrip("\u200d\ufe0f" + _COMBINING)


def fit(parts: Sequence[str], width: int, dot: str) -> str:
    """As many of `parts` as have room in a row, with `dot` between them; the first one clipped."""
    row = parts[0]
    for part in parts[1:]:
        if cells(row + dot + part) > width:
            break
        row += dot + part
    return clip(row, width)


def wrap(text: str, width: int) -> str:
    """`text` with its lines broken at blanks to fit into `width` cells; longer words stay whole."""
    rows: list[str] = []
    for line in text.split("\n"):
        while (fits := clip(line, width)) != line:
            cut = max(line.rfind(" ", 0, len(fits) + 1), 0)
            if not line[:cut].strip():  # a word that fills the row: the terminal breaks it
                cut = line.find(" ", len(fits))
            if cut < 0:
                break
            rows.append(line[:cut].rstrip())
            line = line[cut:].lstrip(" ")
        rows.append(line)
    return "\n".join(rows)


_COMBINING = "".join(map(chr, (*range(0x300, 0x370), *range(0x1F3FB, 0x1F400))))


# --- where it goes -----------------------------------------------------------------------------


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """What the system says of a stream, as errors of ours."""
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipe("The reader of our output has left.") from error
    except OSError as error:
        raise LostOutput(
            f"The output cannot be written: {error.strerror or error}.",
            "Make room there, or write it elsewhere",
        ) from error


class Output:
    """A text stream that no character can break, and what is known about its terminal."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str], size: Size | None = None):
        self._stream = stream
        self._environ = environ
        self._size = size
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.terminal = stream.isatty()
        # a dumb terminal has neither colour nor a cursor that can be moved
        self.live = self.terminal and environ.get("TERM", "") not in ("dumb", "unknown")
        self.colour = self.live and not environ.get("NO_COLOR")
        self.symbols = Symbols() if self._can_encode("⠋·…•▌") else ASCII

    def write(self, text: str) -> None:
        """Write and flush; a character that the encoding lacks is written as its code.

        Raises ClosedPipe and LostOutput.
        """
        with output_errors():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write("".join(map(self._fallback, text)))
            self._stream.flush()

    def leave(self) -> None:
        """Before a shell writes: no live rows are left below the cursor, and it is shown."""
        if self.live:
            self.write("\x1b[J\x1b[?25h")

    def flush(self) -> None:
        """Raises ClosedPipe and LostOutput."""
        with output_errors():
            self._stream.flush()

    def isatty(self) -> bool:
        return self.terminal

    def size(self) -> tuple[int, int]:
        """Columns and rows, asked anew each time because windows are resized."""
        if self._size:
            return self._size()
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):  # not a terminal, or a stream without a descriptor
            columns = rows = 0
        return (columns or _number(self._environ.get("COLUMNS"), 80)), (
            rows or _number(self._environ.get("LINES"), 24)
        )

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[22m" if self.live and text else text

    def red(self, text: str) -> str:
        return f"\x1b[1;31m{text}\x1b[0m" if self.colour else text

    def console(self) -> Console:
        """A rich console on this stream that takes text literally."""
        from rich.console import Console

        return Console(
            file=self,  # type: ignore[arg-type]  # rich needs write, flush, isatty, encoding
            force_terminal=self.live,
            no_color=not self.colour,
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
            _environ=self._environ,
        )

    def _can_encode(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def _fallback(self, char: str) -> str:
        if self._can_encode(char):
            return char
        if 0x2400 <= ord(char) <= 0x2421:  # the picture of a control character
            return f"\\x{ord(char) - 0x2400 if char != chr(0x2421) else 0x7F:02x}"
        return char.encode("ascii", "backslashreplace").decode("ascii")


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) > 0 else default


class Screen:
    """The two streams of a process and a clock: all that drawing needs from outside."""

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        environ: Mapping[str, str],
        clock: Clock = time.monotonic,
        size: Size | None = None,
    ) -> None:
        self.out = Output(out, environ, size)
        self.err = Output(err, environ, size)
        self.clock = clock
        self.environ = environ
        self._plain = (out, err, {**environ, "TERM": "dumb"}, clock, size)

    def plain(self) -> Screen:
        """The same streams without colour and without moving the cursor."""
        return Screen(*self._plain)


class Throttle:
    """Says when the next frame is due."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = float("-inf")

    def due(self) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + FRAME_S
        return True


class Region:
    """Rows at the end of the output that are drawn over, frame by frame.

    Between frames the cursor rests at the start of the first row. A terminal that reflows its
    lines when it is resized moves the cursor with them, so no row ever has to be counted again.
    A frame is one write and erases nothing before it has been drawn over: it cannot flicker.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._drawn = False

    @property
    def width(self) -> int:
        """Cells in a row; the last column stays free, so that no row ever wraps."""
        return max(self._out.size()[0] - 1, 1)

    @property
    def height(self) -> int:
        return max(self._out.size()[1] - 1, 1)

    def draw(self, rows: Sequence[str], above: str = "") -> None:
        """Show `rows`, after `above` (whole lines) has been written over them for good."""
        if not self._out.live or not (rows or self._drawn):
            if above:
                self._out.write(above)
            return
        frame = "\x1b[?25l\r"  # each time: the cursor is shown again when we were suspended
        frame += f"\x1b[J{above}" if above else ""
        frame += "\x1b[K\n".join(rows) + "\x1b[J\r"
        frame += f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
        frame += "" if rows else "\x1b[?25h"
        self._drawn = bool(rows)
        # 2026 is synchronized output: a terminal that knows it shows the frame at once
        self._out.write(f"\x1b[?2026h{frame}\x1b[?2026l")


class StatusLine:
    """One live row, a spinner and as many of its parts as fit, and rows of text below it."""

    def __init__(self, out: Output, clock: Clock) -> None:
        self._out = out
        self._region = Region(out)
        self._throttle = Throttle(clock)
        self._frame = 0

    def due(self) -> bool:
        """Whether a frame is to be drawn now; asked once for each frame."""
        return self._out.live and self._throttle.due()

    @property
    def room(self) -> tuple[int, int]:
        """Cells in a row, and how many rows of text stand well below the status row."""
        width = self._region.width
        return width, max(0, (self._region.height - 2) // 5) if width >= NARROW else 0

    def show(self, parts: Sequence[str]) -> None:
        """Draw the row alone if a frame is due."""
        if self.due():
            self.draw(parts)

    def draw(self, parts: Sequence[str], below: Sequence[str] = ()) -> None:
        """Draw a frame."""
        symbols = self._out.symbols
        spinner = symbols.spinner[self._frame % len(symbols.spinner)]
        self._frame += 1
        row = fit([f"{spinner} {parts[0]}", *parts[1:]], self._region.width, symbols.dot)
        self._region.draw([self._out.dim(text) for text in (row, *below)])

    def clear(self, above: str = "") -> None:
        """Remove the rows; `above` stays in their place."""
        self._region.draw([], above)
