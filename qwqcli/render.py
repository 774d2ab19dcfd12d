"""Draws replies, figures and errors: on a terminal, into a pipe, or as JSON. Sole owner of rich.

Contract: answers go to stdout, all else to stderr, except in chat, where both are one terminal.
What a model or a file says is data: on a terminal its control characters are shown, never
executed (`visible`); in a pipe the answer passes unchanged, JSON escapes it. Text is never read as
rich markup. No character can fail: what an encoding lacks gets a fallback.

Limits: Markdown is split by lines, so the blocks that stay are the same for any split of the text
into pieces; a reference (`[a]: url`), HTML and LaTeX are shown as they were written. The live
rows need a terminal that knows `\\r`, erase and cursor-up; TERM=dumb gets plain lines.

Non-goals: reading keys, keeping conversations, deciding exit codes of commands.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TextIO

from qwqcli.config import Thinking
from qwqcli.engine import Cancel
from qwqcli.errors import INTERRUPTED, ContextFull, EngineError, NoAnswer, QwqError
from qwqcli.messages import (
    Answer,
    Done,
    Event,
    Loading,
    Notice,
    Prompting,
    Reasoning,
    Stats,
    Stop,
)

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.tree import SyntaxTreeNode
    from rich.console import (
        Console,
        ConsoleOptions,
        OverflowMethod,
        RenderableType,
        RenderResult,
    )
    from rich.text import Text

Clock = Callable[[], float]
Size = Callable[[], tuple[int, int]]  # columns, rows

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


_PICTURES = _pictures()


def visible(text: str) -> str:
    """`text` with every control character shown as a picture; newline and tab pass.

    Works character by character, so it is right for any split of a stream.
    """
    return text.translate(_PICTURES)


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
    from rich.cells import get_character_cell_size

    return sum(1 if char == "\ufe0f" else get_character_cell_size(char) for char in text)


def clip(text: str, width: int) -> str:
    """The longest beginning of `text` that fits into `width` cells."""
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


_COMBINING = "".join(map(chr, (*range(0x300, 0x370), *range(0x1F3FB, 0x1F400))))


# --- where it goes -----------------------------------------------------------------------------


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
        """Write and flush; a character that the encoding lacks is written as its code."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write("".join(map(self._fallback, text)))
        self._stream.flush()

    def flush(self) -> None:
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
        frame = "\r" if self._drawn else "\x1b[?25l\r"
        frame += f"\x1b[J{above}" if above else ""
        frame += "\x1b[K\n".join(rows) + "\x1b[J\r"
        frame += f"\x1b[{len(rows) - 1}A" if len(rows) > 1 else ""
        frame += "" if rows else "\x1b[?25h"
        self._drawn = bool(rows)
        # 2026 is synchronized output: a terminal that knows it shows the frame at once
        self._out.write(f"\x1b[?2026h{frame}\x1b[?2026l")


class StatusLine:
    """One live row: a spinner and as many of its parts as fit."""

    def __init__(self, out: Output, clock: Clock) -> None:
        self._out = out
        self._region = Region(out)
        self._throttle = Throttle(clock)
        self._frame = 0

    def show(self, parts: Sequence[str], tail: str = "") -> None:
        """Draw the row if a frame is due; `tail` fills the room that is left, from its end."""
        if not self._out.live or not self._throttle.due():
            return
        symbols = self._out.symbols
        spinner = symbols.spinner[self._frame % len(symbols.spinner)]
        self._frame += 1
        row = _fit(f"{spinner} {parts[0]}", parts[1:], tail, self._region.width, symbols)
        self._region.draw([self._out.dim(row)])

    def clear(self, above: str = "") -> None:
        """Remove the row; `above` stays in its place."""
        self._region.draw([], above)


def _fit(row: str, parts: Sequence[str], tail: str, width: int, symbols: Symbols) -> str:
    for part in parts:
        if cells(row + symbols.dot + part) > width:
            return clip(row, width)
        row += symbols.dot + part
    tail = " ".join(tail.split())
    room = width - cells(row + symbols.dot + symbols.more)
    if tail and room >= 8:  # less is not worth reading
        row += symbols.dot + symbols.more + clip_left(tail, room)
    return clip(row, width)


# --- figures -----------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `1 min 12 s`, `2 h 5 min`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(tps: float) -> str:
    return f"{tps:,.0f} t/s" if tps >= 100 else f"{tps:.1f} t/s"


def tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def stats_line(stats: Stats, dot: str = " · ") -> str:
    """The figures of one reply in one line; what was not measured is left out."""
    prompt = f"prompt {tokens(stats.prompt_tokens)}"
    if stats.reused_tokens:
        prompt += f" ({stats.reused_tokens:,} reused)"
    if stats.prompt_tps is not None:
        prompt += f" at {rate(stats.prompt_tps)}"
    parts = [prompt]
    if stats.reasoning_tokens:
        parts.append(f"thought {stats.reasoning_tokens:,}")
    answer = f"answer {tokens(stats.answer_tokens)}"
    if stats.generation_tps is not None:
        answer += f" at {rate(stats.generation_tps)}"
    parts.append(answer)
    if stats.time_to_first_token_s is not None:
        parts.append(f"first token {stats.time_to_first_token_s:.2f} s")
    if stats.time_to_answer_s is not None:
        parts.append(f"answer after {stats.time_to_answer_s:.1f} s")
    return dot.join(parts)


def stats_object(stats: Stats) -> dict[str, Any]:
    """The figures of one reply as they stand in JSON."""
    measured = asdict(stats)
    names = ("prompt_tokens", "reused_tokens", "reasoning_tokens", "answer_tokens")
    times = ("time_to_first_token_s", "time_to_answer_s")
    return {
        **{name: measured[name] for name in names},
        **{name: _rounded(measured[name]) for name in times},
        "prompt_tps": _rounded(stats.prompt_tps),
        "generation_tps": _rounded(stats.generation_tps),
        "seed": stats.seed,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def show_error(error: QwqError, err: Output) -> None:
    """Say what is wrong in one line and what to type next in another."""
    text = f"{err.red('error:')} {visible(error.message)}\n"
    err.write(text + (f"  try: {visible(error.hint)}\n" if error.hint else ""))


def show_note(text: str, out: Output) -> None:
    """One dim line that is neither an answer nor an error."""
    out.write(out.dim(visible(text)) + "\n")


# --- a reply -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: what was thought, what was said, how it ended and what it cost."""

    reasoning: str
    answer: str
    stop: Stop
    stats: Stats

    @property
    def exit_code(self) -> int:
        """0 for an answer that is whole or as long as was asked for, else the error's code."""
        if self.stop == "interrupted":
            return INTERRUPTED
        if self.stop == "died":
            return EngineError.exit_code
        if self.stop == "context":
            return ContextFull.exit_code
        return 0 if self.answer.strip() else NoAnswer.exit_code


def stop_line(reply: Reply, max_tokens: int | None) -> str:
    """How a reply ended if not by itself with an answer, and what to do about it; else ''."""
    unanswered = not reply.answer.strip()
    thought = " in its thought, so there is no answer" if unanswered and reply.reasoning else ""
    stats = reply.stats
    if reply.stop == "interrupted":
        return "[stopped while thinking]" if thought else "[stopped]"
    if reply.stop == "length":
        limit = stats.generated_tokens if max_tokens is None else max_tokens
        cure = "; a larger --max-tokens gives it room" if unanswered else ""
        return f"[cut at --max-tokens {limit:,}{thought}{cure}]"
    if reply.stop == "context":
        used = stats.prompt_tokens + stats.generated_tokens
        cure = "a larger --ctx or a shorter conversation gives it room"
        return f"[the context of {used:,} tokens is full{thought}; {cure}]"
    if reply.stop == "died":
        return f"[the engine died{thought}; ask again to start it anew]"
    if unanswered:
        return f"[the model ended its turn{thought or ' without a word'}; ask again]"
    return ""


class View:
    """Draws one reply: one method for each kind of event. This one draws nothing."""

    def begin(self) -> None:
        """Before the first event, which may be long in coming."""

    def loading(self, event: Loading) -> None: ...

    def prompting(self, event: Prompting) -> None: ...

    def reasoning(self, event: Reasoning) -> None: ...

    def answer(self, event: Answer) -> None: ...

    def notice(self, event: Notice) -> None: ...

    def done(self, reply: Reply) -> None: ...

    def tick(self) -> None:
        """Nothing has come for a moment: let what is live show that time goes on."""

    def close(self) -> None:
        """Leave the terminal as it was found; called once, however the reply ended."""


def draw_reply(events: Iterable[Event], view: View) -> Reply:
    """Collect a reply while `view` draws it. Errors of the engine pass through."""
    thought: list[str] = []
    answer: list[str] = []
    reply: Reply | None = None
    try:
        view.begin()
        for event in events:
            match event:
                case Loading():
                    view.loading(event)
                case Prompting():
                    view.prompting(event)
                case Reasoning(text):
                    thought.append(text)
                    view.reasoning(event)
                case Answer(text):
                    answer.append(text)
                    view.answer(event)
                case Notice():
                    view.notice(event)
                case Done(stop, stats):
                    reply = Reply("".join(thought), "".join(answer), stop, stats)
                    view.done(reply)
    finally:
        view.close()
    if reply is None:
        raise RuntimeError("the engine's stream ended without Done")
    return reply


def ticking(view: View, cancel: Cancel) -> Cancel:
    """`cancel` that gives `view` a tick each time it is asked, which engines do while they wait."""

    def ask() -> bool:
        view.tick()
        return cancel()

    return ask


class ThoughtMeter:
    """Times a thought as it is seen, and remembers how it ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start: float | None = None
        self._first = 0  # tokens in the first piece, which took no time that we saw
        self._tail = ""
        self.tokens = 0

    def add(self, event: Reasoning) -> None:
        if self._start is None:
            self._start, self._first = self._clock(), event.tokens
        self.tokens = event.tokens
        self._tail = (self._tail + event.text)[-400:]

    @property
    def started(self) -> bool:
        return self._start is not None

    @property
    def seconds(self) -> float:
        return 0.0 if self._start is None else self._clock() - self._start

    @property
    def tail(self) -> str:
        return visible(self._tail)

    def parts(self) -> list[str]:
        seconds, new = self.seconds, self.tokens - self._first
        parts = [f"Thinking {duration(seconds)}", tokens(self.tokens)]
        return [*parts, rate(new / seconds)] if new > 0 and seconds >= 0.5 else parts

    def summary(self, dot: str) -> str:
        return f"Thought for {duration(self.seconds)}{dot}{tokens(self.tokens)}"


class TerminalView(View):
    """What all views for people share: progress, the thought, notices and how it ended.

    `side` takes all that is not the answer. Where it is no live terminal, nothing is drawn that
    would have to be removed again.
    """

    def __init__(
        self, side: Output, clock: Clock, thinking: Thinking, max_tokens: int | None = None
    ) -> None:
        self._side = side
        self._thinking = thinking
        self._max_tokens = max_tokens
        self._status = StatusLine(side, clock)
        self._meter = ThoughtMeter(clock)
        self._live: Callable[[], None] | None = None  # draws what is going on now
        self._thought_over = False
        self._at_line_start = True  # of what was written to `side` in pieces

    def begin(self) -> None:
        self._progress("Starting")

    def loading(self, event: Loading) -> None:
        self._progress(f"Loading model {event.fraction * 100:.0f} %")

    def prompting(self, event: Prompting) -> None:
        self._progress(f"Reading {event.done:,} of {event.total:,} tokens")

    def reasoning(self, event: Reasoning) -> None:
        self._meter.add(event)
        if self._thinking != "show":
            self._live = self._show_thinking
            self._live()
            return
        self._end_live()
        if event.text:
            self._side.write(self._side.dim(visible(event.text)))
            self._at_line_start = event.text.endswith("\n")

    def tick(self) -> None:
        if self._live:
            self._live()

    def notice(self, event: Notice) -> None:
        self._status.clear(self._new_line() + self._side.dim(visible(event.text)) + "\n")

    def close(self) -> None:
        self._end_live(self._new_line())

    def _progress(self, *parts: str) -> None:
        self._live = lambda: self._status.show(parts)
        self._live()

    def _show_thinking(self) -> None:
        tail = self._meter.tail if self._thinking == "fold" else ""
        self._status.show(self._meter.parts(), tail)

    def _end_live(self, stays: str = "") -> None:
        self._live = None
        self._status.clear(stays)

    def _end_thought(self) -> None:
        """Once, before the answer or at the end: leave of the thought what should stay."""
        if self._thought_over:
            return
        self._thought_over = True
        stays = self._new_line()
        if self._meter.started and self._thinking == "fold":
            summary = self._meter.summary(self._side.symbols.dot)
            stays = self._side.dim(clip(summary, max(self._side.size()[0], 1))) + "\n"
        elif self._meter.started and self._thinking == "show":
            stays += "\n"
        self._end_live(stays)

    def _say_stop(self, reply: Reply) -> None:
        line = stop_line(reply, self._max_tokens)
        if line:
            self._side.write(self._side.dim(line) + "\n")

    def _new_line(self) -> str:
        text = "" if self._at_line_start else "\n"
        self._at_line_start = True
        return text


class AskView(TerminalView):
    """`qwq ask`: the answer as plain text to stdout as it comes, all else to stderr."""

    def __init__(
        self, screen: Screen, thinking: Thinking = "fold", max_tokens: int | None = None
    ) -> None:
        super().__init__(screen.err, screen.clock, thinking, max_tokens)
        self._out = screen.out
        self._answer_open = False  # the last line of the answer is not ended yet

    def answer(self, event: Answer) -> None:
        self._end_thought()
        if event.text:
            self._out.write(visible(event.text) if self._out.terminal else event.text)
            self._answer_open = not event.text.endswith("\n")
        if not self._out.terminal:
            self._progress("Answering", tokens(event.tokens))

    def notice(self, event: Notice) -> None:
        self._end_answer_line(self._out.terminal)
        super().notice(event)

    def done(self, reply: Reply) -> None:
        self._end_thought()
        self._end_live()
        self._end_answer_line()
        self._say_stop(reply)

    def close(self) -> None:
        super().close()
        self._end_answer_line()

    def _end_answer_line(self, wanted: bool = True) -> None:
        if wanted and self._answer_open:
            self._out.write("\n")
            self._answer_open = False


class ChatView(TerminalView):
    """A turn of `qwq chat`: everything on one terminal, the answer as Markdown."""

    def __init__(
        self, screen: Screen, thinking: Thinking = "fold", max_tokens: int | None = None
    ) -> None:
        super().__init__(screen.out, screen.clock, thinking, max_tokens)
        self._markdown = MarkdownStream(screen.out, screen.clock)

    def answer(self, event: Answer) -> None:
        self._end_thought()
        self._live = self._markdown.draw
        self._markdown.feed(event.text)

    def notice(self, event: Notice) -> None:
        if self._thought_over:
            self._markdown.interject(self._side.dim(visible(event.text)) + "\n")
        else:
            super().notice(event)

    def done(self, reply: Reply) -> None:
        self._end_thought()
        self._markdown.flush()
        self._say_stop(reply)

    def close(self) -> None:
        super().close()
        self._markdown.flush()  # after an error: what was said stays


class JsonView(TerminalView):
    """`--json`: one object on stdout at the end; a terminal's stderr shows that it goes on."""

    def __init__(self, screen: Screen, model: str) -> None:
        super().__init__(screen.err, screen.clock, "hide")
        self._out = screen.out
        self._model = model

    def answer(self, event: Answer) -> None:
        self._progress("Answering", tokens(event.tokens))

    def done(self, reply: Reply) -> None:
        self._end_live()
        value = {
            "model": self._model,
            "reasoning": reply.reasoning,
            "answer": reply.answer,
            "stop": reply.stop,
            "stats": stats_object(reply.stats),
        }
        _write_json(self._out, value)


class StreamJsonView(View):
    """`--stream-json`: each event is a line on stdout; the last is `done`."""

    def __init__(self, screen: Screen, model: str) -> None:
        self._out = screen.out
        self._model = model

    def loading(self, event: Loading) -> None:
        self._write("loading", event)

    def prompting(self, event: Prompting) -> None:
        self._write("prompting", event)

    def reasoning(self, event: Reasoning) -> None:
        self._write("reasoning", event)

    def answer(self, event: Answer) -> None:
        self._write("answer", event)

    def notice(self, event: Notice) -> None:
        self._write("notice", event)

    def done(self, reply: Reply) -> None:
        stats = stats_object(reply.stats)
        value = {"type": "done", "model": self._model, "stop": reply.stop, "stats": stats}
        _write_json(self._out, value)

    def _write(self, kind: str, event: Loading | Prompting | Reasoning | Answer | Notice) -> None:
        _write_json(self._out, {"type": kind, **asdict(event)})


def _write_json(out: Output, value: Mapping[str, Any]) -> None:
    import json

    # pure ASCII: right in any encoding, and nothing in it can act on a terminal
    out.write(json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n")


# --- Markdown that streams ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """Finished Markdown: one block, or one item of a list. `source` is its own text."""

    source: str
    joined: bool = False  # the next item of a list: no empty row before it


@dataclass(frozen=True, slots=True)
class Code:
    """Some lines of fenced code, which is drawn as it grows; `context` are the lines before."""

    source: str
    language: str
    context: str = ""
    opens: bool = False  # `source` begins with the fence
    closes: bool = False  # `source` ends with it

    @property
    def joined(self) -> bool:
        return not self.opens


Piece = Block | Code

CODE_LINES = 16  # fenced code stays after this many lines, however long it gets
CODE_CONTEXT = 80  # lines before them that the highlighter reads again
_FENCE = r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)"


class MarkdownSplitter:
    """Cuts a stream of Markdown into finished pieces; their sources add up to the text.

    CommonMark closes a block for good as soon as the next one begins, so all blocks but the last
    are finished, and so are all items but the last of a list. Only whole lines are looked at:
    the pieces are the same for any split of the text.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # whole lines of the unfinished block
        self._partial = ""  # the line that is still coming
        self._joined = False  # the unfinished block is the next item of a list
        self._fence: Code | None = None  # the code we are in: its language and its context
        self._closing = ""  # the marker that will close it

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is finished by it."""
        *lines, self._partial = (self._partial + text).split("\n")
        return [piece for line in lines for piece in self._line(line + "\n")]

    def flush(self) -> list[Piece]:
        """The text is over: return all that is left."""
        partial, self._partial = self._partial, ""
        pieces = self._line(partial) if partial else []
        if self._fence is None:
            pieces += self._settle()
        rest = self.tail
        self._lines, self._fence, self._joined = [], None, False
        return [*pieces, rest] if rest else pieces

    @property
    def tail(self) -> Piece | None:
        """What is not finished yet, to be drawn for the time being."""
        source = "".join(self._lines) + self._partial
        if self._fence is not None:
            return replace(self._fence, source=source) if source else None
        return Block(source, self._joined) if source else None

    def _line(self, line: str) -> list[Piece]:
        before = self._lines[-1].strip() if self._lines else ""
        self._lines.append(line)
        if self._fence is not None:
            return self._code_line(line)
        first = line.lstrip()[:1]
        if before and (first.isalpha() or first == "|"):
            return []  # goes on with prose or with a table, which saves reading it all again
        return self._settle()

    def _settle(self) -> list[Piece]:
        """Cut off all blocks that are finished; enter a fence if that is what the last one is."""
        starts, last = _block_starts("".join(self._lines))
        if starts and not self._lines[-1].strip() and last not in _GO_ON:
            starts.append((len(self._lines), False))
        pieces: list[Piece] = []
        if starts and starts[0][0] > 0:  # empty lines, which belong to no block
            starts.insert(0, (0, False))
        joins = [self._joined or joined for _, joined in starts[:1]]
        joins += [joined for _, joined in starts[1:]]
        cuts = [line for line, _ in starts]
        for begin, end, joined in zip(cuts, cuts[1:], joins, strict=False):
            pieces.append(Block("".join(self._lines[begin:end]), joined))
        if starts:
            self._lines, self._joined = self._lines[cuts[-1] :], joins[-1]
        if last == "fence":
            self._enter_fence()
        return pieces

    def _enter_fence(self) -> None:
        match = re.match(_FENCE, self._lines[0])
        assert match is not None
        self._closing = match[1]
        self._fence = Code("", match[2], opens=True)

    def _code_line(self, line: str) -> list[Piece]:
        marker = line.strip()
        closed = (
            marker.startswith(self._closing)
            and not marker.strip(self._closing[0])
            and len(line) - len(line.lstrip(" ")) < 4
        )
        if not closed and len(self._lines) < CODE_LINES:
            return []
        assert self._fence is not None
        piece = replace(self._fence, source="".join(self._lines), closes=closed)
        self._lines, self._joined = [], False
        self._fence = None if closed else _after(piece)
        return [piece]


def _after(piece: Code) -> Code:
    """The code that follows `piece`, with what the highlighter must have read."""
    lines = (piece.context + piece.source).split("\n")[:-1]
    if piece.opens:
        lines = lines[1:]
    context = "".join(line + "\n" for line in lines[-CODE_CONTEXT:])
    return Code("", piece.language, context)


# the blocks that an empty line does not end
_GO_ON = ("bullet_list_open", "ordered_list_open", "code_block", "fence")


def _block_starts(text: str) -> tuple[list[tuple[int, bool]], str]:
    """The lines where blocks and items of lists begin, each with whether it is a further item.

    Also the type of the last block.
    """
    starts: list[tuple[int, bool]] = []
    last, first_item = "", False
    for token in _parser().parse(text):
        if token.map is None or token.nesting < 0:
            continue
        if token.level == 0:
            last = token.type
            first_item = last in ("bullet_list_open", "ordered_list_open")
            if not first_item:
                starts.append((token.map[0], False))
        elif token.level == 1 and token.type == "list_item_open":
            starts.append((token.map[0], not first_item))
            first_item = False
    return starts, last


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    """CommonMark with tables, where HTML and LaTeX stay text and nothing written vanishes."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["reference", "image"])
    parser.inline.ruler.before("escape", "math", _math_inline)
    parser.block.ruler.before("code", "math_block", _math_block, {"alt": ["paragraph"]})
    return parser


_MATH = r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)"


def _math_inline(state: StateInline, silent: bool) -> bool:
    """LaTeX is text: its underscores and backslashes are not Markdown."""
    match = re.compile(_MATH, re.DOTALL).match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.push("text", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Lines from `\[` or `$$` to the line with its end; an empty line gives it up."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    closing = {"\\[": "\\]", "$$": "$$"}.get(first[:2])
    if closing is None or state.is_code_block(start):
        return False
    if silent:
        return True
    line, text = start, first[2:]
    while closing not in text and line + 1 < end and not state.isEmpty(line + 1):
        line += 1
        text = state.src[state.bMarks[line] : state.eMarks[line]]
    state.line = line + 1
    token = state.push("math_block", "", 0)
    token.content = state.getLines(start, line + 1, state.blkIndent, False)
    token.map = [start, line + 1]
    return True


class MarkdownStream:
    """Draws Markdown as it comes: finished pieces stay, the unfinished rest is a live region."""

    def __init__(self, out: Output, clock: Clock) -> None:
        self._out = out
        self._region = Region(out)
        self._throttle = Throttle(clock)
        self._splitter = MarkdownSplitter()
        self._painter: Painter | None = None  # made with the first text: rich takes 50 ms
        self._changed = False  # there is text that has not been drawn
        self._empty = True  # nothing has been drawn yet: no empty row before the first block

    def feed(self, text: str) -> None:
        self._changed = True
        self.draw(self._stay(self._splitter.feed(visible(text))))

    def draw(self, above: str = "") -> None:
        """Draw the unfinished rest if it has changed and a frame is due."""
        if above or (self._changed and self._throttle.due()):
            self._region.draw(self._tail_rows(), above)
            self._changed = False

    def flush(self) -> None:
        """The text is over: all of it stays."""
        self._region.draw([], self._stay(self._splitter.flush()))

    def interject(self, line: str) -> None:
        """Put a line of our own above the unfinished rest."""
        self.draw(line)

    def _stay(self, pieces: Iterable[Piece]) -> str:
        return "".join(row + "\n" for piece in pieces for row in self._rows(piece, stays=True))

    def _tail_rows(self) -> list[str]:
        tail = self._splitter.tail
        if tail is None:
            return []
        height = self._region.height
        room = self._region.width * height
        if len(tail.source) > 4 * room + 4000:  # too much to lay out ten times a second
            tail = Block("```\n" + tail.source[-room:])
        return self._rows(tail, stays=False)[-height:]

    def _rows(self, piece: Piece, stays: bool) -> list[str]:
        if self._painter is None:
            self._painter = Painter(self._out)
        rows = self._painter.rows(piece, self._region.width, soft=stays)
        gap = [] if self._empty or piece.joined or not rows else [""]
        if stays and rows:
            self._empty = False
        return gap + rows


_JUSTIFY: dict[str, Literal["right", "center"]] = {"right": "right", "center": "center"}


class Painter:
    """Turns pieces of Markdown into rows for one terminal."""

    def __init__(self, out: Output) -> None:
        self._symbols = out.symbols
        self._console = out.console()

    def rows(self, piece: Piece, width: int, soft: bool) -> list[str]:
        """`soft` leaves long lines of code to the terminal, so that a copy of them is whole."""
        if isinstance(piece, Code):
            drawn: RenderableType = self._code(piece, "ignore" if soft else "fold")
        else:
            from markdown_it.tree import SyntaxTreeNode

            drawn = self._stack(SyntaxTreeNode(_parser().parse(piece.source)).children)
        with self._console.capture() as capture:
            self._console.print(drawn, width=width, soft_wrap=soft and isinstance(piece, Code))
        rows = capture.get().split("\n")[:-1]
        return [] if rows == [""] and isinstance(piece, Block) else rows

    def _stack(self, nodes: Sequence[SyntaxTreeNode], spaced: bool = True) -> RenderableType:
        from rich.console import Group

        drawn: list[RenderableType] = []
        for node in nodes:
            if drawn and spaced:
                drawn.append("")
            drawn.append(self._node(node))
        return Group(*drawn)

    def _node(self, node: SyntaxTreeNode) -> RenderableType:
        from rich.rule import Rule
        from rich.text import Text

        match node.type:
            case "heading":
                return self._inline(node, "bold underline" if node.tag == "h1" else "bold")
            case "fence":
                fence = f"{node.markup}{node.info}\n{node.content}{node.markup}"
                return self._code(Code(fence, node.info.split(" ")[0], opens=True, closes=True))
            case "code_block" | "math_block":
                return Text(visible(node.content.rstrip("\n")))
            case "blockquote":
                return Prefixed(self._stack(node.children), self._symbols.quote)
            case "bullet_list" | "ordered_list":
                return self._list(node)
            case "table":
                return self._table(node)
            case "hr":
                return Rule(style="dim", characters="-")
            case _:
                return self._inline(node)

    def _list(self, node: SyntaxTreeNode) -> RenderableType:
        from rich.console import Group

        number = int(node.attrs.get("start", 1))
        items = []
        for index, item in enumerate(node.children):
            bullet = self._symbols.bullet
            if node.type == "ordered_list":
                bullet = f"{number + index}{item.markup} "
            tight = any(child.type == "paragraph" and child.hidden for child in item.children)
            inner = self._stack(item.children, spaced=not tight)
            items.append(Prefixed(inner, bullet, " " * len(bullet)))
        return Group(*items)

    def _table(self, node: SyntaxTreeNode) -> RenderableType:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        head, *body = [row for part in node.children for row in part.children]
        for cell in head.children:
            aligned = str(cell.attrs.get("style", "")).removeprefix("text-align:")
            table.add_column(self._inline(cell), justify=_JUSTIFY.get(aligned, "left"))
        for row in body:
            table.add_row(*(self._inline(cell) for cell in row.children))
        return table

    def _code(self, piece: Code, overflow: OverflowMethod = "fold") -> RenderableType:
        """Code between its own fences, so that a copy of it is Markdown again."""
        from rich.console import Group
        from rich.text import Text

        lines = visible(piece.source.removesuffix("\n")).split("\n")
        opening = [lines.pop(0)] if piece.opens else []
        closing = [lines.pop()] if piece.closes else []
        rows = [
            *(Text(fence, style="dim") for fence in opening),
            *highlight(piece.context, lines, piece.language),
            *(Text(fence, style="dim") for fence in closing),
        ]
        for row in rows:
            row.overflow, row.no_wrap = overflow, overflow == "ignore"
        return Group(*rows)

    def _inline(self, node: SyntaxTreeNode, style: str = "") -> Text:
        from rich.text import Text

        text = Text(style=style, overflow="fold")
        _append(text, node, "")
        return text


_STYLES = {"em": " italic", "strong": " bold", "s": " strike", "link": " underline"}


def _append(text: Text, node: SyntaxTreeNode, style: str) -> None:
    """Add what stands in `node` to `text`; a line break stays one, as the model wrote it."""
    for child in node.children:
        if child.type in ("softbreak", "hardbreak"):
            text.append("\n")
        elif child.type == "code_inline":
            text.append(visible(child.content), f"{style} bold cyan")
        elif child.children:
            start = len(text)
            _append(text, child, style + _STYLES.get(child.type, ""))
            url = visible(str(child.attrs.get("href", "")))
            if url not in ("", text.plain[start:]):  # a label must not hide where it leads
                text.append(f" ({url})", f"{style} dim")
        else:
            text.append(visible(child.content), style)


def highlight(context: str, lines: list[str], language: str) -> list[Text]:
    """`lines` of code in colours, given the code before them."""
    from rich.syntax import Syntax

    if not lines:
        return []
    syntax = Syntax("", language or "text", theme="ansi_dark")
    known = context.count("\n")
    code = syntax.highlight(context + "\n".join(lines)).split("\n", allow_blank=True)
    return list(code[known : known + len(lines)])


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Something drawn behind a prefix, such as a bullet; `after` stands before further rows."""

    inner: Any
    first: str
    after: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        width = max(options.max_width - cells(self.first), 1)
        prefix = self.first
        inner = console.render_lines(self.inner, options.update(width=width), pad=False)
        for line in inner or [[]]:
            yield Segment(prefix)
            yield from line
            yield Segment.line()
            prefix = self.first if self.after is None else self.after
