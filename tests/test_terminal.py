"""A person at a terminal: keys go in through a pseudo-terminal, and what counts is the screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pseudo_terminal import ScriptedChat

from qwqcli.terminal import wrap

CTRL_C, CTRL_D = "\x03", "\x04"
PASTE = "\x1b[200~{}\x1b[201~"


Start = Callable[..., ScriptedChat]


def test_a_conversation(start: Start) -> None:
    """A thought folds to one line above its answer, and the next prompt is ready."""
    terminal = start(("I think. " * 10, "It is **4**.\n\n- one\n- two\n"))
    rows = terminal.prompt()
    assert rows[0] == "qwq with scripted: /help lists the commands, Ctrl-D leaves."
    terminal.keys("What is 2+2?\r")
    terminal.see("Thinking")
    rows = terminal.prompt()
    assert rows[1] == "> What is 2+2?"
    assert rows[2].startswith("Thought for 0.")
    assert rows[2].endswith(" s · 20 tokens")
    assert rows[3:] == ["It is 4.", "", "• one", "• two", "", ">"]
    terminal.keys(CTRL_D)
    assert terminal.left() == 0


def test_the_prompt_takes_keys_while_the_model_loads(start: Start) -> None:
    """A question can be typed and submitted at once; loading shows when it is waited for."""
    terminal = start(FAKE_LOAD="1", FAKE_MODEL="tiny")
    rows = terminal.prompt()
    assert rows[1] == "tiny is the small built-in model; `qwq pull` brings the real QwQ-32B."
    terminal.keys("Hi")
    terminal.see(lambda rows: rows[-1] == "> Hi")
    terminal.keys("\r")
    terminal.see("Loading model")
    assert terminal.prompt()[2:] == ["> Hi", "Hello.", "", ">"]


def test_ctrl_c_stops_a_thought_and_an_answer_and_leaves(start: Start) -> None:
    """Ctrl-C stops what runs and keeps what was said; twice at the prompt it leaves."""
    terminal = start(("hmm " * 2_000, ""), ("", "word " * 2_000))
    terminal.prompt()
    terminal.keys("one\r")
    terminal.see("Thinking")
    terminal.keys(CTRL_C + CTRL_C)
    rows = terminal.see("[stopped while thinking]")
    assert "Thought for" in rows[2]
    terminal.prompt()
    terminal.keys("two\r")
    terminal.see("word word")
    terminal.keys(CTRL_C)
    terminal.see("[stopped]\n\n>")
    terminal.keys("three\r")
    terminal.see("> three\nword")
    terminal.keys(CTRL_C)
    terminal.prompt()
    terminal.keys(CTRL_C)
    terminal.see("[Ctrl-C once more, or Ctrl-D, leaves]\n>")
    terminal.keys(CTRL_C)
    assert terminal.left() == 0
    sent = terminal.log.read_text().split("\n---\n")
    assert sent[1] == "['two']"
    assert sent[2].startswith("['two', 'word word")


def test_the_live_line_moves_while_nothing_comes(start: Start) -> None:
    """Time goes on in the live line also between two tokens that are far apart."""
    terminal = start(("One two three", "4"), FAKE_DELAY="1")
    terminal.prompt()
    terminal.keys("Hi\r")
    for tenth in (2, 4, 6, 8):
        terminal.see(f"Thinking 0.{tenth} s · 1 token")


def test_what_is_typed_during_a_reply_waits(start: Start) -> None:
    """Keys typed during a reply are not echoed into it; they stand in the next prompt."""
    terminal = start(("", "word " * 30), FAKE_DELAY="0.03")
    terminal.prompt()
    terminal.keys("one\r")
    terminal.see("word")
    terminal.keys("next" + PASTE.format("a\rb"))
    rows = terminal.see(lambda rows: rows[-2:] == ["> nexta", "  b"])
    assert rows[2] == ("word " * 30)[:79].strip()


def test_a_paste_of_many_lines_is_one_prompt(start: Start) -> None:
    """The lines of a paste stand in the prompt until Enter, and are one question."""
    terminal = start()
    terminal.prompt()
    terminal.keys(PASTE.format("first\rsecond\rthird"))
    assert terminal.see("third")[1:] == ["> first", "  second", "  third"]
    terminal.keys("\r")
    terminal.prompt()
    terminal.keys(CTRL_D)
    terminal.left()
    assert terminal.log.read_text() == "['first\\nsecond\\nthird']"


def test_history_is_kept_on_disk(start: Start, tmp_path: Path) -> None:
    """What was submitted, and what Ctrl-C cleared, comes back in this chat and in the next."""
    terminal = start()
    terminal.prompt()
    terminal.keys(PASTE.format("first\rsecond") + "\r")
    terminal.see("Hello.\n\n>")
    terminal.keys("gone")
    terminal.see("> gone")
    terminal.keys(CTRL_C)
    terminal.see("Hello.\n\n>")
    terminal.keys("\x1b[A")
    terminal.see("> gone")
    terminal.keys(CTRL_C + CTRL_D)
    assert terminal.left() == 0
    assert (tmp_path / "input_history").stat().st_mode & 0o077 == 0
    terminal = start()
    terminal.prompt()
    terminal.keys("\x1b[A")
    terminal.see("> gone")
    terminal.keys("\x1b[A")
    terminal.see("> first\n  second")


def test_tab_completes_a_command(start: Start) -> None:
    """A slash shows the commands, Tab completes one and the values of its argument."""
    terminal = start()
    terminal.prompt()
    terminal.keys("/")
    terminal.see("figures after each reply")
    terminal.keys("thi\t")
    terminal.see("> /think")
    terminal.keys(" h\t\r")
    terminal.see("Thinking: hide.\n>")


def test_a_window_of_twenty_columns(start: Start) -> None:
    """A narrow window gets short live rows and the whole answer."""
    terminal = start(("I think. " * 20, "one two three four five six"), columns=20)
    terminal.see(lambda rows: rows[-1] == ">")
    terminal.keys("Hi\r")
    rows = terminal.see("Thinking")
    assert any(row.lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏").startswith(" Thinking 0.") for row in rows)
    rows = terminal.prompt()
    assert rows[-4:] == ["one two three four", "five six", "", ">"]
    assert rows[-6] == "> Hi"


def test_a_window_that_shrinks(start: Start) -> None:
    """After a resize the live rows fit into the new window, and what was said is there once."""
    terminal = start(("I think. " * 40, "one two three four five six"))
    terminal.prompt()
    terminal.keys("Hi\r")
    terminal.see("Thinking")
    terminal.child.setwinsize(24, 30)
    terminal.emulator.resize(24, 30)
    rows = terminal.prompt()
    assert rows[-4].startswith("Thought for")
    assert rows[-3:] == ["one two three four five six", "", ">"]
    assert "\n".join(rows).count("Thought for") == 1


def test_chinese_and_emoji(start: Start) -> None:
    """Wide characters are typed, thought and answered in their places."""
    table = "| 字 | b |\n|---|---|\n| 🎉 | c |"
    terminal = start(("思考中文 🎉 " * 30, table), columns=60)
    terminal.prompt()
    terminal.keys("你好 🎉\r")
    rows = terminal.see("思考")
    assert max(map(len, rows)) <= 60
    rows = terminal.prompt()
    assert rows[1].replace(" ", "") == ">你好🎉"
    assert rows[-5:] == ["字   b", "──────", "🎉   c", "", ">"]
    terminal.keys(CTRL_D)
    terminal.left()
    assert terminal.log.read_text() == "['你好 🎉']"


def test_hostile_output_does_nothing(start: Start) -> None:
    """A model cannot set the title, move the cursor or put keys into the prompt."""
    hostile = "\x1b]2;owned\x07\x1b[6n\x1b[2J"
    terminal = start((hostile, f"{hostile}`ok`"))
    terminal.prompt()
    rows = terminal.ask("Hi")
    assert rows[3] == "␛]2;owned␇␛[6n␛[2Jok"
    assert terminal.emulator.title == ""


def test_a_dumb_terminal(start: Start) -> None:
    """TERM=dumb chats in plain lines without a single escape sequence."""
    terminal = start(("hmm", "Hello."), TERM="dumb")
    terminal.prompt()
    terminal.keys("Hi\n")
    terminal.see("Hello.\n>")
    terminal.keys(CTRL_D)
    assert terminal.left() == 0
    assert b"\x1b" not in terminal.raw


def test_no_color(start: Start) -> None:
    """With NO_COLOR neither the prompt nor the answer has colours."""
    terminal = start(("", "`a`\n```py\nx = 1\n```\n"), NO_COLOR="1")
    terminal.prompt()
    terminal.keys("Hi\r")
    terminal.prompt()
    colours = {
        (cell.fg, cell.bg) for row in terminal.emulator.buffer.values() for cell in row.values()
    }
    assert colours == {("default", "default")}


def test_the_chat_imports_nothing_that_windows_lacks() -> None:
    """No module of ours on the way to a chat or a reply needs what only Unix has."""
    script = (
        "import asyncio, multiprocessing, sqlite3, subprocess, sys, webbrowser\n"
        "import jinja2.sandbox, numpy, platformdirs, typer, yaml\n"
        "for name in ('termios', 'tty', 'pty', 'fcntl', 'resource', 'pwd', 'grp'):\n"
        "    sys.modules[name] = None\n"
        "sys.platform, subprocess.CREATE_NEW_PROCESS_GROUP = 'win32', 512\n"
        "import qwqcli.cli, qwqcli.repl, qwqcli.engine.process, qwqcli.engine.worker\n"
        "print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("it fits", 7, ["it fits"]),
        ("one two three", 8, ["one two", "three"]),
        ("one two  three", 7, ["one two", "three"]),
        ("  an indented line", 12, ["  an", "indented", "line"]),
        ("at /a/path/that/is/long it ends", 10, ["at", "/a/path/that/is/long", "it ends"]),
        ("/a/path/that/is/long", 10, ["/a/path/that/is/long"]),
        ("草莓 里有 几个", 6, ["草莓", "里有", "几个"]),
        ("a\nb c", 1, ["a", "b", "c"]),
        ("   ", 2, ["", ""]),
    ],
)
def test_our_own_lines_break_at_blanks(text: str, width: int, lines: list[str]) -> None:
    """Where a line does not fit it is broken between words; a path stays whole to be copied."""
    assert wrap(text, width).split("\n") == lines
