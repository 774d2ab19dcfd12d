"""Draws replies, figures and errors: on a terminal, into a pipe, or as JSON.

Contract: answers go to stdout, all else to stderr, except in chat, where both are one terminal.
On a terminal what a model says is made visible first; in a pipe the answer passes unchanged, JSON
escapes it. Text is never read as rich markup.

Non-goals: reading keys, keeping conversations, deciding exit codes of commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwqcli.config import Thinking
from qwqcli.engine import Control
from qwqcli.errors import INTERRUPTED, ContextFull, EngineError, NoAnswer, QwqError
from qwqcli.hardware import GiB, MiB, gib
from qwqcli.layout import Larger
from qwqcli.live import Tail
from qwqcli.markdown import MarkdownStream
from qwqcli.messages import (
    Answer,
    Done,
    Event,
    Loaded,
    Loading,
    Notice,
    Order,
    Prompting,
    Reasoning,
    Room,
    Stats,
    Stop,
    ThoughtEnd,
)
from qwqcli.terminal import Clock, Output, Screen, StatusLine, fit, visible, wrap
from qwqcli.trim import Cut

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


def larger_option(larger: Larger) -> str:
    """A larger context and what it costs: `--ctx 16384 (2.1 GiB more: fits)`."""
    more = memory(larger.more_bytes) if larger.more_bytes > 0 else "no"
    how = f", with {larger.how}" if larger.how else ""
    return f"--ctx {larger.n_ctx} ({more} more: {'fits' if larger.fits else 'does not fit'}{how})"


def cut_line(cut: Cut, name: str) -> str:
    """What was left out of a text: `the beginning of NAME, 1,234 tokens`."""
    where = "all" if cut.gone else "the beginning"
    return f"{where} of {name}, {tokens(cut.left_out)}"


def memory(n_bytes: int) -> str:
    """`2.1 GiB`, `98.4 MiB`."""
    return gib(n_bytes) if n_bytes >= GiB // 10 else f"{n_bytes / MiB:.1f} MiB"


def stats_line(stats: Stats, dot: str = " · ") -> str:
    """The figures of one reply in one line; what was not measured is left out."""
    prompt = f"prompt {tokens(stats.prompt_tokens)}"
    if stats.reused_tokens:
        processed = stats.prompt_tokens - stats.reused_tokens
        prompt += f" ({stats.reused_tokens:,} reused, {processed:,} processed)"
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
    said = _fitted(f"error: {error.message}", err).removeprefix("error:")
    # what is to be typed stays in one line, so that it can be copied
    err.write(
        f"{err.red('error:')}{said}\n" + (f"  try: {visible(error.hint)}\n" if error.hint else "")
    )


def show_note(text: str, out: Output) -> None:
    """One dim line that is neither an answer nor an error."""
    out.write(_noted(text, out))


def _noted(text: str, out: Output) -> str:
    return out.dim(_fitted(text, out)) + "\n"


def _fitted(text: str, out: Output) -> str:
    """`text` made safe to show; on a terminal with its lines broken at blanks."""
    return wrap(visible(text), out.size()[0]) if out.live else visible(text)


# --- a reply -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: what was thought, what was said, how it ended and what it cost."""

    reasoning: str
    answer: str
    stop: Stop
    stats: Stats
    thought_end: ThoughtEnd | None = None

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
        # the last one did not go in any more
        used = stats.prompt_tokens + stats.generated_tokens - 1
        cure = "a larger --ctx or a shorter conversation gives it room"
        return f"[the context of {used:,} tokens is full{thought}; {cure}]"
    if reply.stop == "died":
        return f"[the engine died{thought}; ask again to start it anew]"
    if unanswered:
        return f"[the model ended its turn{thought or ' without a word'}; ask again]"
    return ""


class View:
    """Draws one reply: one method for each kind of event. This one draws nothing."""

    hint: tuple[str, ...] = ()  # the keys that act while it thinks

    def begin(self) -> None:
        """Before the first event, which may be long in coming."""

    def loading(self, event: Loading) -> None: ...

    def loaded(self, event: Loaded) -> None: ...

    def prompting(self, event: Prompting) -> None: ...

    def room(self, event: Room) -> None: ...

    def reasoning(self, event: Reasoning) -> None: ...

    def answer(self, event: Answer) -> None: ...

    def notice(self, event: Notice) -> None: ...

    def done(self, reply: Reply) -> None: ...

    def fold(self, thinking: Thinking) -> None: ...

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
                case Loaded():
                    view.loaded(event)
                case Prompting():
                    view.prompting(event)
                case Room():
                    view.room(event)
                case Reasoning(text):
                    thought.append(text)
                    view.reasoning(event)
                case Answer(text):
                    answer.append(text)
                    view.answer(event)
                case Notice():
                    view.notice(event)
                case Done(stop, stats, end):
                    reply = Reply("".join(thought), "".join(answer), stop, stats, end)
                    view.done(reply)
    finally:
        view.close()
    if reply is None:
        raise RuntimeError("the engine's stream ended without Done")
    return reply


def ticking(view: View, control: Control) -> Control:
    """`control` that gives `view` a tick each time it is asked, as engines do while they wait."""

    def ask() -> Order:
        view.tick()
        return control()

    return ask


class ThoughtMeter:
    """Times a thought as it is seen, and knows what it has room for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start: float | None = None
        self._first = 0  # tokens in the first piece, which took no time that we saw
        self._room: Room | None = None
        self.end: ThoughtEnd | None = None
        self.tokens = 0

    def limit(self, room: Room) -> None:
        self._room = room

    def add(self, event: Reasoning) -> None:
        if self._start is None:
            self._start, self._first = self._clock(), event.tokens
        self.tokens = event.tokens
        self.end = event.end

    @property
    def started(self) -> bool:
        return self._start is not None

    @property
    def seconds(self) -> float:
        return 0.0 if self._start is None else self._clock() - self._start

    def parts(self) -> list[str]:
        seconds, new = self.seconds, self.tokens - self._first
        parts = [f"Thinking {duration(seconds)}", tokens(self.tokens)]
        if new > 0 and seconds >= 0.5:
            parts.append(rate(new / seconds))
        return [*parts, *self._shares(seconds)]

    def _shares(self, seconds: float) -> list[str]:
        """How much of the budget and of the context is used up."""
        room = self._room
        if room is None:
            return []
        used = [self.tokens / room.thought] if room.thought else []
        used += [seconds / room.seconds] if room.seconds else []
        shares = [f"budget {_percent(max(used))}"] if used else []
        return [*shares, f"context {_percent((room.prompt + self.tokens) / room.context)}"]

    def summary(self) -> list[str]:
        why = [ENDS[self.end]] if self.end in ENDS else []
        return [f"Thought for {duration(self.seconds)}", tokens(self.tokens), *why]


# why a thought was closed from outside, as its summary says it
ENDS: dict[ThoughtEnd | None, str] = {
    "budget": "its budget was spent",
    "answer_now": "you asked for the answer",
    "loop": "it went in circles",
    "context": "the context was nearly full",
}


def _percent(share: float) -> str:
    return f"{min(share, 1) * 100:.0f} %"


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
        self._tail = Tail()
        self._unshown: list[str] = []  # of the thought, what is not in the scrollback
        self._afterwards = ""  # to be said when the reply is over
        self._live: Callable[[], None] | None = None  # draws what is going on now
        self._thought_over = False
        self._at_line_start = True  # of what was written to `side` in pieces

    def begin(self) -> None:
        self._progress("Starting")

    def loading(self, event: Loading) -> None:
        self._progress(f"Loading model {event.fraction * 100:.0f} %")

    def prompting(self, event: Prompting) -> None:
        self._progress(f"Reading {event.done:,} of {event.total:,} tokens")

    def room(self, event: Room) -> None:
        self._meter.limit(event)

    def reasoning(self, event: Reasoning) -> None:
        self._meter.add(event)
        self._unshown.append(event.text)
        self._tail.add(event.text)
        if self._thinking == "show":
            self._show_text()
        else:
            self._live = self._show_thinking
            self._live()

    def fold(self, thinking: Thinking) -> None:
        """From now on draw thoughts in this way, also the one that is coming in."""
        self._thinking = thinking
        if self._thought_over:
            this = " Ctrl+O shows this one." if self._meter.started else ""
            self._afterwards = f"Thoughts from now on: {thinking}.{this}"
        elif self._meter.started and thinking == "show":
            self._show_text()
        elif self._meter.started:
            self._side.write(self._new_line())
            self._tail = Tail()  # what came before stands above
            self._live = self._show_thinking

    def _show_text(self) -> None:
        """Bring what is new of the thought into the scrollback."""
        self._end_live()
        text = "".join(self._unshown)
        self._unshown.clear()
        if text:
            self._side.write(self._side.dim(visible(text)))
            self._at_line_start = text.endswith("\n")

    def tick(self) -> None:
        if self._live:
            self._live()

    def notice(self, event: Notice) -> None:
        self._status.clear(self._new_line() + _noted(event.text, self._side))

    def close(self) -> None:
        self._end_live(self._new_line())

    def _progress(self, *parts: str) -> None:
        self._live = lambda: self._status.show(parts)
        self._live()

    def _show_thinking(self) -> None:
        if self._status.due():
            width, count = self._status.room
            below = self._tail.rows(width, count if self._thinking == "fold" else 0)
            self._status.draw([*self._meter.parts(), *self.hint], below)

    def _end_live(self, stays: str = "") -> None:
        self._live = None
        self._status.clear(stays)

    def _end_thought(self) -> None:
        """Once, before the answer or at the end: leave of the thought what should stay."""
        if self._thought_over:
            return
        self._thought_over = True
        stays = self._new_line()
        if self._meter.started and self._thinking == "show":
            stays += "\n"
        if self._meter.started and (self._thinking == "fold" or self._meter.end in ENDS):
            width, dot = self._side.size()[0], self._side.symbols.dot
            stays += self._side.dim(fit(self._meter.summary(), width, dot)) + "\n"
        self._end_live(stays)

    def _say_stop(self, reply: Reply) -> None:
        for line in (stop_line(reply, self._max_tokens), self._afterwards):
            if line:
                show_note(line, self._side)

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
        self.hint = ("Ctrl+N answers now", "Ctrl+O unfolds")
        self._markdown = MarkdownStream(screen.out, screen.clock)

    def loaded(self, event: Loaded) -> None:
        self.notice(Notice(event.placement))

    def answer(self, event: Answer) -> None:
        self._end_thought()
        self._live = self._markdown.draw
        self._markdown.feed(event.text)

    def notice(self, event: Notice) -> None:
        if self._thought_over:
            self._markdown.draw(_noted(event.text, self._side))
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
            "thought_end": reply.thought_end,
            "stats": stats_object(reply.stats),
        }
        _write_json(self._out, value)


class StreamJsonView(View):
    """`--stream-json`: each event is a line on stdout; the last is `done`."""

    def __init__(self, screen: Screen, model: str) -> None:
        self._out = screen.out
        self._model = model

    def done(self, reply: Reply) -> None:
        stats = stats_object(reply.stats)
        how = {"stop": reply.stop, "thought_end": reply.thought_end}
        _write_json(self._out, {"type": "done", "model": self._model, **how, "stats": stats})

    def _write(self, event: Event) -> None:
        fields = asdict(event)
        if fields.get("end", "") is None:  # only the piece that closes a thought says why
            del fields["end"]
        _write_json(self._out, {"type": type(event).__name__.lower(), **fields})

    loading = loaded = prompting = room = reasoning = answer = notice = _write


def _write_json(out: Output, value: Mapping[str, Any]) -> None:
    import json

    # pure ASCII: right in any encoding, and nothing in it can act on a terminal
    out.write(json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n")
