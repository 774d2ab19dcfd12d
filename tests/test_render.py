"""What is drawn, for each kind of output, and that nothing a model writes can act on a terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pyte
import pytest
import wcwidth
from hypothesis import given, settings
from hypothesis import strategies as st

from qwqcli.config import Thinking
from qwqcli.errors import EngineError, QwqError, UsageError
from qwqcli.markdown import Block, Code, MarkdownSplitter, MarkdownStream
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
from qwqcli.render import (
    AskView,
    ChatView,
    JsonView,
    Reply,
    StreamJsonView,
    draw_reply,
    duration,
    show_error,
    stats_line,
    stop_line,
)
from qwqcli.terminal import Screen, visible
from tests.fakes import Clock, Tty

XTERM = {"TERM": "xterm-256color"}
STATS = Stats(31, 12, 310, 42, 0.21, 12.3, 0.0905, 13.6, 7)
REPLY = (Prompting(31, 31), Reasoning("Hmm.", 2), Answer("It is ", 2), Answer("4.", 4))
END = Done("end", STATS)
# the colours of SGR: 30-37, 38, 40-47, 48, 90-97, 100-107
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:[349][0-7]|[34]8|10[0-7])[;m]")


def terminal(clock: Clock | None = None, width: int = 80, **environ: str) -> Screen:
    """A screen whose stdout and stderr are one terminal."""
    tty = Tty()
    return Screen(tty, tty, {**XTERM, **environ}, clock or Clock(), lambda: (width, 24))


def pipe() -> Screen:
    return Screen(io.StringIO(), io.StringIO(), XTERM, Clock())


def written(screen: Screen) -> tuple[str, str]:
    """All that went to stdout and all that went to stderr."""
    out, err = screen.out._stream, screen.err._stream
    assert isinstance(out, io.StringIO)
    assert isinstance(err, io.StringIO)
    return out.getvalue(), err.getvalue()


def shown(screen: Screen, width: int = 80) -> list[str]:
    """The rows that a person sees in the end, with the scrollback, without empty rows below."""
    emulator = pyte.HistoryScreen(width, 24, history=10_000)
    emulator.set_mode(pyte.modes.LNM)  # a terminal driver makes each newline a CR and LF
    pyte.Stream(emulator).feed(written(screen)[0])
    above = ["".join(row[x].data for x in range(width)) for row in emulator.history.top]
    rows = [row.rstrip() for row in [*above, *emulator.display]]
    while rows and not rows[-1]:
        rows.pop()
    return rows


def drawn(text: str, width: int = 80) -> list[str]:
    """The rows of an answer in Markdown."""
    screen = terminal(width=width)
    draw_reply([Answer(text, 1), END], ChatView(screen))
    return shown(screen, width)


# --- visible -----------------------------------------------------------------------------------

HOSTILE = [
    ("window title", "\x1b]0;owned\x07", "␛]0;owned␇"),
    ("clipboard write (OSC 52)", "\x1b]52;c;aGk=\x1b\\", "␛]52;c;aGk=␛\\"),
    ("hyperlink (OSC 8)", "\x1b]8;;http://x\x07y", "␛]8;;http://x␇y"),
    ("notification (OSC 9)", "\x1b]9;hi\x07", "␛]9;hi␇"),
    ("answer-back of the title into the keyboard buffer", "\x1b[21t", "␛[21t"),
    ("cursor position report into the keyboard buffer", "\x1b[6n", "␛[6n"),
    ("device attributes into the keyboard buffer", "\x1b[c", "␛[c"),
    ("status string request (DCS)", "\x1bP$qm\x1b\\", "␛P$qm␛\\"),
    ("ENQ answer-back", "\x05", "␅"),
    ("clear the screen", "\x1b[2J", "␛[2J"),
    ("cursor up and overwrite", "\x1b[5A", "␛[5A"),
    ("colour that hides text", "\x1b[8m", "␛[8m"),
    ("full reset", "\x1bc", "␛c"),
    ("alternate screen", "\x1b[?1049h", "␛[?1049h"),
    ("mouse reports", "\x1b[?1003h", "␛[?1003h"),
    ("C1 CSI", "\x9b2J", "\\x9b2J"),
    ("C1 OSC and ST", "\x9d0;t\x9c", "\\x9d0;t\\x9c"),
    ("C1 DCS", "\x90q", "\\x90q"),
    ("NEL", "a\x85b", "a\\x85b"),
    ("bell", "\x07", "␇"),
    ("backspace over text", "safe\b\b\b\bevil", "safe␈␈␈␈evil"),
    ("carriage return over text", "safe\revil", "safe␍evil"),
    ("vertical tab and form feed", "\x0b\x0c", "␋␌"),
    ("shift out to another character set", "\x0e", "␎"),
    ("NUL", "\x00", "␀"),
    ("DEL", "\x7f", "␡"),
    ("right-to-left override", "exe\u202etxt", "exe\\u202etxt"),
    ("isolates", "\u2066a\u2069", "\\u2066a\\u2069"),
    ("line separator", "a\u2028b", "a\\u2028b"),
    ("invisible tag characters", "\U000e0041", "\\U000e0041"),
    ("half of a surrogate pair", "\udc9b", "\ufffd"),
]


@pytest.mark.parametrize(("what", "text", "shown"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_visible(what: str, text: str, shown: str) -> None:
    """What a terminal would execute is shown instead."""
    assert visible(text) == shown


def test_visible_lets_text_pass() -> None:
    """Newline, tab, Chinese, emoji with joiners and combining marks are text."""
    text = "a\n\tb é 中文 👩‍👩‍👧 ❤️ e\u0301"
    assert visible(text) == text


@given(st.text(), st.integers(0, 50))
def test_visible_is_right_for_any_split(text: str, at: int) -> None:
    """A sequence that is split between two pieces is shown as well as a whole one."""
    assert visible(text[:at]) + visible(text[at:]) == visible(text)


@pytest.mark.parametrize("view", [AskView, ChatView])
@pytest.mark.parametrize("thinking", ["show", "fold", "hide"])
def test_no_view_executes_a_model(view: type[AskView], thinking: Thinking) -> None:
    """Neither thought nor answer nor notice reaches a terminal as a control sequence."""
    ours = r"\x1b\[(?:[0-9;]*m|\?25[lh]|\?2026[hl]|[KJ]|\d+A)|\r(?=\x1b)"
    for _, hostile, _ in HOSTILE:
        if hostile == "\x1b[8m":
            continue  # looks like one of ours
        screen = terminal(Clock(step=1))
        answer = Answer(f"`{hostile}`\n\n{hostile}\n```\n{hostile}\n", 1)
        draw_reply([Reasoning(hostile, 1), answer, Notice(hostile), END], view(screen, thinking))
        rest = re.sub(ours, "", written(screen)[0])
        assert visible(rest) == rest


def test_markdown_entities_are_no_way_around() -> None:
    """A control character that is written as an HTML entity is shown too."""
    assert drawn("a &#x202e; b &#27;]0;t&#7;") == ["a \\u202e b \ufffd]0;t\ufffd"]


# --- ask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thinking", "err"),
    [("show", "Hmm.\n\n"), ("fold", "Thought for 0.0 s · 2 tokens\n"), ("hide", "")],
)
def test_a_pipe_gets_the_answer_alone(thinking: Thinking, err: str) -> None:
    """In a pipe nothing is live: the answer on stdout, of the thought what was asked for."""
    screen = pipe()
    draw_reply([Loading(0.5), *REPLY, END], AskView(screen, thinking))
    assert written(screen) == ("It is 4.\n", err)


def test_a_pipe_gets_the_answer_unchanged() -> None:
    """Data in a pipe is not made visible: it may be code or a file."""
    screen = pipe()
    draw_reply([Answer("a\x1b[1mb\r\n", 1), END], AskView(screen))
    assert written(screen)[0] == "a\x1b[1mb\r\n"


def test_the_answer_comes_piece_by_piece() -> None:
    """Each piece has left before the next one is asked for."""
    raw = io.BytesIO()
    seen: list[bytes] = []

    def reply() -> Iterator[Event]:
        for word in ("one ", "two "):
            yield Answer(word, 1)
            seen.append(raw.getvalue())
        yield END

    out = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8")  # type: ignore[type-var]
    draw_reply(reply(), AskView(Screen(out, io.StringIO(), {})))
    assert seen == [b"one ", b"one two "]


@pytest.mark.parametrize("view", [AskView, ChatView])
def test_the_live_line_leaves_one_line(view: type[AskView]) -> None:
    """Progress and the thinking line are gone in the end; how long it thought is told."""
    screen = terminal(Clock(step=0.5))
    thought = [Reasoning(f"word{n} ", n) for n in range(1, 30)]
    draw_reply([Loading(0.4), Prompting(1024, 3000), *thought, Answer("4", 1), END], view(screen))
    live = written(screen)[0]
    assert "Loading model 40 %" in live
    assert "Reading 1,024 of 3,000 tokens" in live
    assert re.search(r"Thinking \d+ s · \d+ tokens · \d\.\d t/s", live)
    assert "\x1b[2mword1 word2 " in live
    rows = shown(screen)
    assert re.fullmatch(r"Thought for \d+ s · 29 tokens", rows[0])
    assert rows[1:] == ["4"]


def test_hide_shows_no_thought_but_something() -> None:
    """With `hide` a spinner moves, without the text, and nothing of it stays."""
    screen = terminal(Clock(step=0.5))
    draw_reply(
        [Reasoning("secret", 1), Reasoning("secret", 2), Answer("4", 1), END],
        AskView(screen, "hide"),
    )
    assert "Thinking" in written(screen)[0]
    assert "secret" not in written(screen)[0]
    assert shown(screen) == ["4"]


def test_show_streams_the_thought() -> None:
    """With `show` the whole trace stays, apart from the answer."""
    screen = terminal()
    draw_reply(
        [Reasoning("One\n", 1), Reasoning("two", 2), Answer("4", 1), END], AskView(screen, "show")
    )
    assert shown(screen) == ["One", "two", "", "4"]


def test_the_answer_in_a_file_is_followed_on_the_terminal() -> None:
    """With stdout in a file the terminal still shows that tokens come, and keeps none of it."""
    tty = Tty()
    screen = Screen(io.StringIO(), tty, XTERM, Clock(step=1), lambda: (80, 24))
    draw_reply([Answer("4", 1), Answer("2", 2), END], AskView(screen))
    assert "Answering · 2 tokens" in tty.getvalue()
    assert screen.out._stream.getvalue() == "42\n"  # type: ignore[attr-defined]


def test_at_most_ten_frames_a_second() -> None:
    """Frames follow the clock, not the tokens."""
    clock = Clock(step=0.001)
    screen = terminal(clock)
    draw_reply([*(Reasoning("x ", n) for n in range(3000)), END], AskView(screen))
    assert written(screen)[0].count("Thinking") <= clock.now * 10 + 1


@pytest.mark.parametrize("width", [1, 5, 10, 20, 21, 40, 79])
@pytest.mark.parametrize("text", ["plain words ", "中文思考", "👩‍👩‍👧❤️🎉", "e\u0301\u0301"])
def test_no_live_row_is_wider_than_the_window(width: int, text: str) -> None:
    """Rows are clipped in cells: Chinese and emoji count two, and the last column stays free."""
    screen = terminal(Clock(step=0.2), width)
    draw_reply([*(Reasoning(text, n) for n in range(40)), END], AskView(screen))
    for row in re.findall(r"\x1b\[2m(.*?)\x1b\[22m\x1b\[J", written(screen)[0]):
        assert wcwidth.wcswidth(row) <= max(width - 1, 1)


def test_a_resized_window_is_noticed() -> None:
    """The width is asked anew for each frame."""
    width = 80
    tty = Tty()
    screen = Screen(tty, tty, XTERM, Clock(step=0.3), lambda: (width, 24))

    def reply() -> Iterator[Event]:
        nonlocal width
        yield from (Reasoning("thought ", n) for n in range(10))
        width = 30
        tty.truncate(0)
        yield from (Reasoning("thought ", n) for n in range(10, 15))
        yield from (Answer("4", 1), END)

    draw_reply(reply(), AskView(screen))
    rows = re.findall(r"\x1b\[2m(.*?)\x1b\[22m", tty.getvalue())
    assert len(rows) > 3
    assert max(map(len, rows)) <= 30


# --- how it ended ------------------------------------------------------------------------------

STOPS: list[tuple[Stop, str, str, str]] = [
    ("end", "thought", "4", ""),
    ("interrupted", "thought", "4", "[stopped]"),
    ("interrupted", "thought", "", "[stopped while thinking]"),
    ("interrupted", "", "", "[stopped]"),
    ("length", "", "4", "[cut at --max-tokens 300]"),
    (
        "length",
        "thought",
        "",
        "[cut at --max-tokens 300 in its thought, so there is no answer;"
        " a larger --max-tokens gives it room]",
    ),
    (
        "context",
        "thought",
        "4",
        "[the context of 382 tokens is full; a larger --ctx or a shorter conversation"
        " gives it room]",
    ),
    ("died", "", "4", "[the engine died; ask again to start it anew]"),
    (
        "end",
        "thought",
        "\n",
        "[the model ended its turn in its thought, so there is no answer; ask again]",
    ),
    ("end", "", "", "[the model ended its turn without a word; ask again]"),
]


@pytest.mark.parametrize(("stop", "reasoning", "answer", "line"), STOPS)
def test_stop_line(stop: Stop, reasoning: str, answer: str, line: str) -> None:
    """One line says how a reply ended, unless it ended with an answer, and what to do next."""
    assert stop_line(Reply(reasoning, answer, stop, STATS), 300) == line


@pytest.mark.parametrize(
    ("stop", "answer", "code"),
    [
        ("end", "4", 0),
        ("length", "4", 0),
        ("length", "", 7),
        ("end", " ", 7),
        ("context", "4", 7),
        ("died", "4", 6),
        ("interrupted", "4", 130),
    ],
)
def test_exit_code(stop: Stop, answer: str, code: int) -> None:
    """A reply without an answer is no success, and neither is one that was broken off."""
    assert Reply("thought", answer, stop, STATS).exit_code == code


@pytest.mark.parametrize("view", [AskView, ChatView])
def test_the_stop_is_told_in_one_line_of_its_own(view: type[AskView]) -> None:
    """The partial answer stays, and the line after it says that it is partial."""
    screen = terminal()
    draw_reply([Answer("It is", 2), Done("interrupted", STATS)], view(screen))
    assert shown(screen) == ["It is", "[stopped]"]


@pytest.mark.parametrize("view", [AskView, ChatView])
def test_an_error_in_mid_reply_leaves_a_clean_terminal(view: type[AskView]) -> None:
    """What was said stays, the live rows go, the cursor is visible, the error passes."""

    def reply() -> Iterator[Event]:
        yield Reasoning("Hmm", 1)
        yield Answer("It *is", 2)
        raise EngineError("gone")

    screen = terminal(Clock(step=1))
    with pytest.raises(EngineError):
        draw_reply(reply(), view(screen))
    assert shown(screen)[-1] == "It *is"
    live = written(screen)[0]
    assert live.rfind("\x1b[?25h") >= live.rfind("\x1b[?25l")


def test_a_stream_without_done_is_a_bug() -> None:
    """An engine that breaks its contract is not covered up."""
    with pytest.raises(RuntimeError, match="without Done"):
        draw_reply([Answer("4", 1)], AskView(pipe()))


def test_the_stream_is_read_to_its_end() -> None:
    """After Done the engine gets the chance to tidy up, which a closed generator would not."""
    tidy: list[bool] = []

    def reply() -> Iterator[Event]:
        yield END
        tidy.append(True)

    draw_reply(reply(), AskView(pipe()))
    assert tidy == [True]


def test_a_notice_stands_on_its_own_line() -> None:
    """A notice in mid-answer breaks neither the answer nor the live rows."""
    screen = terminal(Clock(step=1))
    draw_reply(
        [Answer("One\n\ntw", 1), Notice("Restarted."), Answer("o", 2), END], ChatView(screen)
    )
    assert shown(screen) == ["One", "Restarted.", "", "two"]


# --- figures and errors ------------------------------------------------------------------------


def test_stats_line() -> None:
    """All figures of a reply stand in one line."""
    assert stats_line(STATS) == (
        "prompt 31 tokens (12 reused, 19 processed) at 210 t/s · thought 310"
        " · answer 42 tokens at 25.8 t/s · first token 0.21 s · answer after 12.3 s"
    )


def test_stats_line_leaves_out_what_was_not_measured() -> None:
    """A figure that does not exist is not shown as zero."""
    assert stats_line(Stats(1)) == "prompt 1 token · answer 0 tokens"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.9, "12 s"), (72, "1 min 12 s"), (7510, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    """Times are told as a person would say them."""
    assert duration(seconds) == text


def test_error_and_hint_are_two_lines_on_stderr() -> None:
    """An error tells what to type next; text in brackets is no markup, controls are shown."""
    screen = pipe()
    show_error(UsageError("No [bold]model[/bold] '\x1b[1m'.", "qwq list"), screen.err)
    assert written(screen) == ("", "error: No [bold]model[/bold] '␛[1m'.\n  try: qwq list\n")


# --- JSON --------------------------------------------------------------------------------------


def test_json_is_one_object() -> None:
    """`--json` prints the documented object, in ASCII, and nothing else."""
    screen = pipe()
    end = Done("end", STATS, "closed")
    draw_reply([Reasoning("嗯", 1), Answer("\x1b\x7f4", 1), end], JsonView(screen, "tiny"))
    out, err = written(screen)
    assert (out.isascii(), "\x7f" in out, err) == (True, False, "")
    assert json.loads(out) == {
        "model": "tiny",
        "reasoning": "嗯",
        "answer": "\x1b\x7f4",
        "stop": "end",
        "thought_end": "closed",
        "stats": {
            "prompt_tokens": 31,
            "reused_tokens": 12,
            "reasoning_tokens": 310,
            "answer_tokens": 42,
            "time_to_first_token_s": 0.21,
            "time_to_answer_s": 12.3,
            "prompt_tps": 209.945,
            "generation_tps": 25.809,
            "seed": 7,
        },
    }


def test_stream_json_is_an_event_a_line() -> None:
    """`--stream-json` prints each event as it comes; `done` is last and has the figures."""
    screen = pipe()
    events = [Loading(0.5), *REPLY, Notice("n"), Done("length", STATS)]
    draw_reply(events, StreamJsonView(screen, "tiny"))
    lines = [json.loads(line) for line in written(screen)[0].splitlines()]
    assert [line["type"] for line in lines] == [
        *("loading", "prompting", "reasoning", "answer", "answer", "notice", "done"),
    ]
    assert lines[2] == {"type": "reasoning", "text": "Hmm.", "tokens": 2}
    assert lines[-1]["stop"] == "length"
    assert lines[-1]["stats"]["answer_tokens"] == 42


# --- terminals that can do less ----------------------------------------------------------------

CODE = "```python\nx = 1\n```\n"


def test_no_color() -> None:
    """NO_COLOR takes the colours; bold and dim, which are none, may stay."""
    for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen = terminal(**environ)
        draw_reply([Reasoning("Hm", 1), Answer(f"`a` {CODE}\n{CODE}", 1), END], ChatView(screen))
        show_error(QwqError("No."), screen.err)
        assert bool(COLOUR.search(written(screen)[0])) is coloured


def test_dumb_terminal() -> None:
    """TERM=dumb gets no escape sequence and no carriage return at all."""
    screen = terminal(Clock(step=1), TERM="dumb")
    draw_reply([Loading(0.5), *REPLY, Done("length", STATS)], AskView(screen, "fold", 300))
    show_error(QwqError("No."), screen.err)
    assert "\x1b" not in written(screen)[0]
    assert "\r" not in written(screen)[0]
    assert shown(screen)[1:] == ["It is 4.", "[cut at --max-tokens 300]", "error: No."]


@pytest.mark.parametrize("view", [AskView, ChatView])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_encodings_without_our_characters(view: type[AskView], encoding: str) -> None:
    """What an encoding lacks is written as its code: nothing fails and nothing is lost."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    screen = Screen(stream, stream, XTERM, Clock(step=1), lambda: (80, 24))
    text = "- é 中 🎉 \x1b\n\n> q\n\n| a |\n|---|\n| b |\n\n---\n"
    draw_reply([Reasoning("嗯", 1), Reasoning("…", 2), Answer(text, 1), END], view(screen))
    assert "\\U0001f389 \\x1b" in raw.getvalue().decode(encoding)


def test_importing_is_cheap() -> None:
    """rich is only imported by what draws with it."""
    code = "import sys, qwqcli.render; print('rich' in sys.modules or 'markdown_it' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- Markdown ----------------------------------------------------------------------------------

DOCUMENT = """\

# Title with `code`

Some *text* and **bold**, <b>html</b>,
second line with a [link](http://x.y) and \\(a_1^{2}_{3}\\).
Setext
======
1. first
   - nested

     ```python
     x = 1
     ```
2. second

   more of it
3. third
* other list
+ and another

| a | b |
|---|--:|
| 1 | 中文 |
| 2 | <x> |

```python
def f():
    '''doc
    more'''
~~~
````
    indented code
> quote
lazy

\\[
a + b
- c
\\]
---
~~~text
last"""
LONG_CODE = "~~~text\n" + "".join(f"line {n}\n" for n in range(40)) + "~~~\n"


def pieces(parts: Iterable[str]) -> list[Block | Code]:
    splitter = MarkdownSplitter()
    found = [piece for part in parts for piece in splitter.feed(part)]
    return found + splitter.flush()


def test_pieces_add_up_to_the_text() -> None:
    """Nothing is lost or doubled, and each block is a piece of its own."""
    found = pieces([DOCUMENT])
    assert "".join(piece.source for piece in found) == DOCUMENT
    assert [piece.source.strip().split("\n")[0] for piece in found] == [
        "",
        "# Title with `code`",
        "Some *text* and **bold**, <b>html</b>,",
        "1. first",
        "2. second",
        "3. third",
        "* other list",
        "+ and another",
        "| a | b |",
        "```python",
        "indented code",
        "> quote",
        "\\[",
        "---",
        "~~~text",
    ]


def test_long_code_is_finished_in_parts() -> None:
    """Code stays after every few lines, so that no window is too small for it."""
    found = pieces([LONG_CODE])
    assert "".join(piece.source for piece in found) == LONG_CODE
    assert [piece.source.split("\n")[0] for piece in found] == ["~~~text", "line 15", "line 31"]
    assert pieces(LONG_CODE) == found


def test_the_same_pieces_for_every_split() -> None:
    """What stays on the screen does not depend on where the tokens end."""
    whole = pieces([DOCUMENT])
    for at in range(len(DOCUMENT)):
        assert pieces([DOCUMENT[:at], DOCUMENT[at:]]) == whole
    assert pieces(DOCUMENT) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                " ",
                "\n",
                "\n\n",
                "- ",
                "1. ",
                "```",
                "~~~",
                "> ",
                "|",
                "#",
                "*",
                "    ",
                "\\[",
                "$$",
                "=",
                "-|-",
            ]
        ),
        max_size=40,
    )
)
def test_any_markdown_is_split_without_loss(parts: list[str]) -> None:
    """Whatever the order of markers: the pieces are the text, and token by token the same."""
    text = "".join(parts)
    found = pieces([text])
    assert "".join(piece.source for piece in found) == text
    assert pieces(text) == found
    assert drawn(text) is not None


def test_every_split_is_drawn_the_same() -> None:
    """A chat that streams leaves the same rows as one that gets the answer at once."""
    whole = drawn(DOCUMENT)
    for size in (1, 2, 7, 50):
        screen = terminal(Clock(step=0.05))
        parts = [DOCUMENT[at : at + size] for at in range(0, len(DOCUMENT), size)]
        draw_reply([*(Answer(part, 1) for part in parts), END], ChatView(screen))
        assert shown(screen) == whole


MARKDOWN = [
    ("heading", "## Two", ["Two"]),
    ("line breaks stay", "roses\nviolets", ["roses", "violets"]),
    ("html is text", "use <b> and List<int>", ["use <b> and List<int>"]),
    (
        "latex is text",
        r"\(a_1 \{b\}_2\) and $x_1 * y_2 * z$",
        [r"\(a_1 \{b\}_2\) and $x_1 * y_2 * z$"],
    ),
    (
        "display math",
        "so\n\\[\n\\boxed{4}\n- 1\n\\]\nok",
        ["so", "", "\\[", "\\boxed{4}", "- 1", "\\]", "", "ok"],
    ),
    ("money is not math", "$5 and $10", ["$5 and $10"]),
    ("a link tells its address", "[a](http://b)", ["a (http://b)"]),
    ("a bare link is told once", "<http://b>", ["http://b"]),
    ("an image is text", "![a](http://b)", ["!a (http://b)"]),
    ("a reference is text", "[a]: http://b", ["[a]: http://b"]),
    ("nested lists", "1. a\n   - b\n     - c\n2. d", ["1. a", "   • b", "     • c", "2. d"]),
    ("four-space nesting", "- a\n    - b", ["• a", "  • b"]),
    ("numbers go on", "9. a\n10. b", ["9. a", "10. b"]),
    ("an empty item", "-\n- a", ["•", "• a"]),
    ("code in an item", "- a\n  ```py\n  x\n  ```", ["• a", "  ```py", "  x", "  ```"]),
    ("code keeps its fence", "```py\nx = 1\n\ny\n```", ["```py", "x = 1", "", "y", "```"]),
    ("a fence that never closes", "```\nx", ["```", "x"]),
    ("an empty fence", "```\n```", ["```", "```"]),
    ("indented code", "    a\n     b", ["    a", "     b"][:0] or ["a", " b"]),
    ("quote", "> a\n> b", ["▌ a", "▌ b"]),
    ("table", "|a|b|\n|-|-:|\n|1|22|", ["a    b", "──────", "1   22"]),
    ("strike and rest", "~~a~~ **b** *c* `d`", ["a b c d"]),
]


@pytest.mark.parametrize(("what", "text", "rows"), MARKDOWN, ids=[row[0] for row in MARKDOWN])
def test_markdown(what: str, text: str, rows: list[str]) -> None:
    """Each element is drawn so that nothing that was written is missing."""
    assert drawn(text) == rows


def test_code_is_highlighted_as_it_grows() -> None:
    """Code that is cut into pieces has the colours of the whole, also within a long string."""
    code = "x = '''\n" + "word\n" * 30 + "'''\ny = 1\n"
    screen = terminal()
    draw_reply([*(Answer(char, 1) for char in f"```python\n{code}```\n"), END], ChatView(screen))
    strings = re.findall(r"\x1b\[32mword\x1b\[0m\n", written(screen)[0])
    assert len(strings) == 30


def test_colours_are_seen_on_light_and_on_dark() -> None:
    """Only red, green and magenta: each other of the 16 is lost on a black or a white ground."""
    code = (
        "@cache\nclass A(Exception):\n    def f(self, x: int) -> str:  # why\n"
        "        return f'{x}' if x and not None else str(1.5)\n"
    )
    shell = 'for x in "$HOME"/*; do echo $x | grep -v 1; done'
    diff = "--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new"
    page = "<a href='x'>y</a> &amp; <!-- z -->"
    fences = {"python": code, "sh": shell, "diff": diff, "html": page, "json": '{"a": [1, true]}'}
    text = "# Title\n`code` [a](http://x) **b**\n\n| a |\n|---|\n| 1 |\n\n> q\n\n---\n\n"
    text += "".join(f"```{language}\n{body}\n```\n" for language, body in fences.items())
    screen = terminal()
    draw_reply([*(Answer(char, 1) for char in text), END], ChatView(screen))
    show_error(QwqError("no", "yes"), screen.out)
    codes = {
        int(code)
        for found in re.findall(r"\x1b\[([\d;]*)m", written(screen)[0])
        for code in found.split(";")
    }
    assert {31, 32, 35} <= codes
    assert {code for code in codes if code >= 30} <= {31, 32, 35}


def test_long_lines_of_code_are_left_whole() -> None:
    """The terminal wraps code, so that a copy of it has no line breaks of ours."""
    screen = terminal(width=40)
    draw_reply([Answer("```\n" + "x" * 100 + "\n```\n", 1), END], ChatView(screen))
    assert "x" * 100 in written(screen)[0]


@pytest.mark.parametrize(
    "text", ["word " * 4_000, "line\n" * 2_000, "| a |\n|---|\n" + "| b |\n" * 100]
)
def test_a_long_block_does_not_break(text: str) -> None:
    """The live rows never exceed the window, however long a block gets; in the end all is there."""
    screen = terminal(Clock(step=0.01), width=80)
    parts = [text[at : at + 500] for at in range(0, len(text), 500)]
    draw_reply([*(Answer(part, 1) for part in parts), END], ChatView(screen))
    ups = [int(up) for up in re.findall(r"\x1b\[(\d+)A", written(screen)[0])]
    assert max(ups, default=0) < 23
    assert "".join(shown(screen)).count("word") == text.count("word")


def test_live_rows_are_drawn_over_not_erased() -> None:
    """A frame that only changes the unfinished rows erases nothing before it draws."""
    screen = terminal()
    markdown = MarkdownStream(screen.out, Clock(step=0.2))
    for _ in range(30):
        markdown.feed("word ")
    for frame in written(screen)[0].split("\x1b[?2026h")[1:]:
        assert re.match(r"(\x1b\[\?25l)?\rword", frame)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_narrow_windows(width: int) -> None:
    """A window of any width gets the whole answer."""
    assert "Title" in "".join(drawn(DOCUMENT, width))
