"""Dialogues with `qwq chat` and the built-in model in a pseudo-terminal, as a person has them.

What is asserted is what stands on the screen; where a line may be wrapped, without its blanks.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pexpect
import pyte
import pytest

from qwqcli.conversation import Turn
from qwqcli.sessions import Store, new_session, new_turn_id
from tests.pseudo_terminal import ROOT, ScriptedChat, Terminal

ENTER, TAB = "\r", "\t"
CTRL_C, CTRL_D = "\x03", "\x04"
SUM = "What is 47 + 86?"

HOSTILE = [
    "\x1b]0;title\x07",  # window title
    "\x1b]52;c;aGk=\x07",  # clipboard
    "\x1b[6n",  # makes the terminal type its cursor's position
    "\x1b[c",  # makes it type what it is
    "\x1bP+q544e\x1b\\",  # DECRQSS and termcap queries
    "\x1b]8;;http://x\x07link\x1b]8;;\x07",  # a link that says something else
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b[8m",  # hidden text
    "\x1b(0",  # another character set
    "\x9b31m",  # CSI in one byte
    "\x1b[?1049h",  # another screen
    "\u202etxt.exe",  # right to left
]


class Dialogue(Terminal):
    """`qwq chat` in a pseudo-terminal of its own."""

    def __init__(self, environ: dict[str, str], cwd: Path, columns: int, *argv: str) -> None:
        command = [sys.executable, "-m", "qwqcli", "chat", *argv]
        super().__init__(command, cwd, environ, columns)

    @property
    def text(self) -> str:
        """All that is on the screen or was, without blanks and line ends."""
        history = ["".join(c.data for _, c in sorted(row.items())) for row in self._history()]
        return re.sub(r"\s+", "", "".join([*history, *self.rows]))

    def _history(self) -> list[dict[int, pyte.screens.Char]]:
        return list(self.emulator.history.top)

    def has(self, *texts: str) -> None:
        """Wait until each of these texts was shown, wherever the lines were broken."""
        for text in texts:
            self.see(lambda rows, text=text: re.sub(r"\s+", "", text) in self.text, timeout=30)

    def line(self, text: str) -> None:
        """Type a line, submit it, and wait for the next prompt."""
        self.keys(text + ENTER)
        self.ready()

    def leave(self) -> None:
        self.keys(CTRL_D)
        assert self.left() == 0


Start = Callable[..., Dialogue]


@pytest.fixture
def chat(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start chats; each is ended with its test."""
    started: list[Dialogue] = []
    keep = ("QWQ_", "HF_HOME", "PATH", "HOME", "COVERAGE")
    small = {name: value for name, value in environ.items() if name.startswith(keep)}
    base = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}

    def start(*argv: str, columns: int = 80, **more: str) -> Dialogue:
        environ = {**small, **base, "QWQ_MODEL": "tiny", **more}
        started.append(Dialogue(environ, tmp_path, columns, *argv))
        return started[-1]

    yield start
    for dialogue in started:
        dialogue.child.close(force=True)


Slow = Callable[[int], Terminal]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    """Start a chat whose engine takes its time to think; the built-in model is too quick."""
    started: list[Terminal] = []

    def start(columns: int) -> Terminal:
        reply = ("thought " * 80, "It is 133.")
        started.append(ScriptedChat(tmp_path, columns, (reply,), {"FAKE_DELAY": "0.05"}))
        return started[-1]

    yield start
    for terminal in started:
        terminal.child.close(force=True)


# --- turns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 80])
def test_regen_and_alt(chat: Start, columns: int) -> None:
    """Another answer is asked for, listed, and gone back from."""
    talk = chat(columns=columns)
    talk.prompt()
    talk.line(SUM)
    talk.has("133")
    talk.keys("/regen" + ENTER)
    talk.has("[answer 2 of 2; /alt N goes back to another]")
    talk.ready()
    talk.line("/alt")
    talk.has("* 2", "1  ")
    talk.line("/alt 1")
    talk.has(f"> {SUM}")
    talk.line("/alt 9")
    talk.has("'9' is not a number from 1 to 2.")
    talk.leave()


@pytest.mark.parametrize("columns", [20, 200])
def test_edit_and_undo(chat: Start, columns: int) -> None:
    """The last question stands in the prompt to be changed; /undo takes it back."""
    talk = chat(columns=columns)
    talk.prompt()
    talk.line(SUM)
    talk.keys("/edit" + ENTER)
    talk.has("[Enter sends it in place of the last question")
    talk.see(lambda rows: rows[-1].endswith("86?"))
    talk.keys("\x7f\x7f\x7f" + "87?" + ENTER)
    talk.has("134")
    talk.ready()
    talk.line("/undo")
    talk.has("Taken back: What is 47 + 87?")
    talk.line("/undo")
    talk.has("Nothing has been asked yet.")
    talk.leave()


@pytest.mark.parametrize("columns", [20, 80])
def test_a_stopped_thought_goes_on(slow: Slow, columns: int) -> None:
    """Ctrl-C in the thought, then /continue: it comes to its answer in the same turn."""
    talk = slow(columns)
    talk.prompt()
    talk.keys(SUM + ENTER)
    talk.see("Thinking")
    talk.keys(CTRL_C)
    talk.see("[stopped")
    talk.prompt()
    talk.keys("/continue" + ENTER)
    talk.see("It is 133.")
    talk.prompt()
    talk.keys("/continue" + ENTER)
    talk.see(lambda rows: "complete." in "".join(rows))
    talk.keys(CTRL_D)
    assert talk.left() == 0


# --- sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_a_session_is_named_left_and_resumed(chat: Start, columns: int) -> None:
    """By its name, by choice and as the latest; what was said stands there again."""
    talk = chat(columns=columns)
    talk.prompt()
    talk.line(SUM)
    talk.line("/name sums")
    talk.leave()
    talk = chat("--resume", "sums", columns=columns)
    talk.has("1 turn.", f"> {SUM}"[: columns - 2], "133")
    talk.ready()
    talk.leave()
    talk = chat("--resume", columns=columns)
    talk.has("Which one? [1]")
    talk.keys("1" + ENTER)
    talk.has("1 turn.")
    talk.ready()
    talk.line("/branch other")
    talk.has("sums stays as it was.")
    talk.leave()
    talk = chat("--continue", columns=columns)
    talk.has("Session other (")
    talk.leave()


def test_a_choice_can_be_left(chat: Start) -> None:
    """Ctrl-C and Ctrl-D at the choice of a session leave; in the chat they end the command."""
    talk = chat()
    talk.prompt()
    talk.line(SUM)
    talk.leave()
    for key in (CTRL_C, CTRL_D):
        talk = chat("--resume")
        talk.has("Which one?")
        talk.keys(key)
        assert talk.left() == 130
    talk = chat()
    talk.prompt()
    for key in (CTRL_C, CTRL_D):
        talk.keys("/resume" + ENTER)
        talk.see(lambda rows: rows[-1] == "Which one? [1]")
        talk.keys(key)
        talk.ready()
    talk.leave()


def test_a_killed_chat_goes_on(chat: Start, slow: Slow, tmp_path: Path) -> None:
    """kill -9 in mid-thought: the question and what was thought are there, and it goes on."""
    killed = slow(80)
    killed.prompt()
    killed.keys(SUM + ENTER)
    killed.see("Thinking 2 s")
    os.kill(killed.child.pid, signal.SIGKILL)
    talk = chat("--continue", QWQ_DATA_DIR=str(tmp_path), QWQ_PAGER="cat")
    talk.has("1 turn.", f"> {SUM}", "[cut off when qwq was ended]")
    talk.ready()
    talk.keys("/think 1" + ENTER)
    talk.has("thought thought thought")
    talk.ready()
    talk.leave()


def test_two_terminals_share_a_session(chat: Start) -> None:
    """Both go on from the same place; what either says is kept."""
    one = chat()
    one.prompt()
    one.line(SUM)
    one.line("/name shared")
    one.has(", shared.")
    two = chat("--resume", "shared")
    two.has("1 turn.")
    two.ready()
    one.line("What is 1 + 1?")
    two.line("What is 2 + 2?")
    one.leave()
    two.leave()
    three = chat("--resume", "shared")
    three.has("2 turns.")
    three.see(lambda rows: ">Whatis1+1?" in three.text or ">Whatis2+2?" in three.text)
    three.leave()


def test_nothing_is_saved_where_nothing_can_be(chat: Start, tmp_path: Path) -> None:
    """A data folder that is a file is told, and the chat goes on; --no-save makes no file."""
    (tmp_path / "file").write_text("")
    talk = chat(QWQ_DATA_DIR=str(tmp_path / "file"))
    talk.has("cannot be used", "This conversation is not saved.")
    talk.ready()
    talk.line(SUM)
    talk.has("133")
    talk.leave()
    talk = chat("--no-save")
    talk.prompt()
    talk.line(SUM)
    talk.leave()
    assert not list(tmp_path.rglob("sessions.db"))


# --- input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 80])
def test_files_are_completed_and_attached(chat: Start, columns: int, tmp_path: Path) -> None:
    """Tab completes the path, /file counts it, @path goes with the question."""
    (tmp_path / "notes.txt").write_text("47 apples\n")
    (tmp_path / "other.txt").write_text("86 pears\n")
    talk = chat(columns=columns)
    talk.prompt()
    talk.keys("/file no" + TAB + ENTER)
    talk.has("notes.txt: 9 characters", "go with the next question.")
    talk.ready()
    talk.line("/context")
    talk.has("next files", "free")
    talk.keys("What is @ot" + TAB)
    talk.see(lambda rows: "@other.txt" in "".join(row.strip() for row in rows))
    talk.keys(ENTER)
    talk.has("[attached: other.txt,")
    talk.ready()
    talk.leave()


@pytest.mark.parametrize("columns", [20, 80])
def test_lines_between_triple_quotes(chat: Start, columns: int) -> None:
    """Enter is a new line until they are closed; a command between them is text."""
    talk = chat(columns=columns)
    talk.prompt()
    talk.keys('"""' + ENTER + SUM + ENTER)
    talk.see(lambda rows: rows[-1] == "" or "86?" in "".join(rows))
    talk.keys('"""' + ENTER)
    talk.has("133")
    talk.ready()
    talk.leave()


def test_search_and_suggestions(chat: Start) -> None:
    """Ctrl-R finds what was typed before, also in an earlier chat; arrow-right takes it whole."""
    talk = chat(columns=200)
    talk.prompt()
    talk.line(SUM)
    talk.leave()
    talk = chat()
    talk.prompt()
    talk.keys("\x12" + "47")
    talk.see(lambda rows: "47 + 86" in rows[-1] or "47 + 86" in "".join(rows[-3:]))
    talk.keys(ENTER)
    talk.see(lambda rows: rows[-1] == f"> {SUM}")
    talk.keys(CTRL_C)
    talk.see(lambda rows: rows[-1] == ">")
    talk.keys("What")
    talk.see(lambda rows: rows[-1] == f"> {SUM}")  # the rest is the suggestion
    talk.keys("\x1b[C" + ENTER)
    talk.has("133")
    talk.ready()
    talk.leave()


def test_the_editor(chat: Start, tmp_path: Path) -> None:
    """Ctrl-X Ctrl-E edits the line, /editor begins with the last question or none."""
    script = tmp_path / "edit"
    script.write_text('#!/bin/sh\nprintf "What is 1 + 2?" > "$1"\n')
    script.chmod(0o755)
    talk = chat(EDITOR=str(script))
    talk.prompt()
    talk.keys("something\x18\x05")
    talk.see(lambda rows: rows[-1] == "> What is 1 + 2?")
    talk.keys(CTRL_C + "/editor" + ENTER)
    talk.see(lambda rows: rows[-1] == "> What is 1 + 2?")
    talk.keys(ENTER)
    talk.has("Thought for")
    talk.ready()
    talk.leave()


def test_vi_keys(chat: Start) -> None:
    """With `editing: vi`, Escape leaves the insertion, `cc` begins the line anew."""
    talk = chat(QWQ_EDITING="vi")
    talk.prompt()
    talk.keys("something\x1b")
    time.sleep(0.7)  # what follows Escape at once would be one key with it
    talk.keys("cc" + SUM + ENTER)
    talk.has("133")
    talk.ready()
    talk.leave()


def test_wide_and_right_to_left_text(chat: Start) -> None:
    """Editing in the middle of double-width characters at 20 columns; the answer to Chinese."""
    talk = chat(columns=20)
    talk.prompt()
    talk.keys("四十七加八十六等于多少\x7f\x7f多少？")
    talk.has("四十七加八十六等于多少？")
    talk.keys(CTRL_C + "مرحبا" + ENTER)
    talk.has("مرحبا")
    talk.ready()
    talk.line("👩‍👩‍👧 47 + 86 = ?")
    talk.leave()


# --- commands ----------------------------------------------------------------------------------


def test_save_asks_before_it_writes_over(chat: Start, tmp_path: Path) -> None:
    """No is the default, Ctrl-C is no, y is yes."""
    talk = chat()
    talk.prompt()
    talk.line(SUM)
    talk.line("/save talk.md")
    talk.has("Saved in talk.md.")
    first = (tmp_path / "talk.md").read_text()
    for answer in (ENTER, CTRL_C):
        talk.keys("/save talk.md" + ENTER)
        talk.see(lambda rows: rows[-1].startswith("talk.md exists."))
        talk.keys(answer)
        talk.ready()
    talk.line("What is 1 + 1?")
    assert (tmp_path / "talk.md").read_text() == first
    talk.keys("/save talk.md" + ENTER)
    talk.see(lambda rows: rows[-1].startswith("talk.md exists."))
    talk.keys("y" + ENTER)
    talk.ready()
    assert "1 + 1" in (tmp_path / "talk.md").read_text()
    talk.leave()


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_set_and_context(chat: Start, columns: int) -> None:
    """Settings are completed, checked and shown; the window's parts add up to a row each."""
    talk = chat(columns=columns)
    talk.prompt()
    talk.keys("/set tempe" + TAB)
    talk.see(lambda rows: "temperature" in "".join(rows))
    talk.keys(" 9" + ENTER)
    talk.has("outside 0 to 5")
    talk.ready()
    talk.line("/set temperature 0.7")
    talk.has("temperature: 0.7")
    talk.line("/context")
    talk.has("system", "history", "free", "tokens")
    talk.keys("/help" + ENTER)
    rows = talk.see(lambda rows: rows[-1] == ">" and "//word" in "".join(rows))
    at = next(at for at, row in enumerate(rows) if row.startswith("  //word ..."))
    if columns == 20:  # no room for two columns
        assert rows[at + 1].startswith("    send a line")
    else:
        assert "  send a line" in rows[at]
    talk.leave()


def test_copy_goes_through_the_terminal(chat: Start) -> None:
    """OSC 52 holds the answer; the screen says so and shows none of it."""
    talk = chat(PATH="/nowhere")
    talk.prompt()
    talk.line(SUM)
    talk.line("/copy")
    talk.has("of answer with the terminal.")
    match = re.search(rb"\x1b]52;c;([A-Za-z0-9+/=]+)\x07", talk.raw)
    assert match is not None
    assert "133" in base64.b64decode(match[1]).decode()
    talk.line("/copy code")
    talk.has("There is no code to copy.")
    talk.leave()


# --- qwq ask -----------------------------------------------------------------------------------


Job = Callable[..., pexpect.spawn]


@pytest.fixture
def ask(environ: dict[str, str], tmp_path: Path) -> Iterator[Job]:
    """Start `qwq ask --json` on a terminal of its own; it is ended with its test."""
    started: list[pexpect.spawn] = []
    keep = ("QWQ_", "HF_HOME", "PATH", "HOME", "COVERAGE")
    small = {name: value for name, value in environ.items() if name.startswith(keep)}
    base = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "QWQ_MODEL": "tiny"}

    def start(*wrapper: str) -> pexpect.spawn:
        argv = [*wrapper, sys.executable, "-m", "qwqcli", "ask", "--json", SUM]
        child = pexpect.spawn(argv[0], argv[1:], cwd=str(tmp_path), env={**small, **base})
        child.delaybeforesend = None
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def _until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answer_now_in_ask(ask: Job) -> None:
    """Ctrl+N closes the thought of `qwq ask` too; what else is typed is left for the shell."""
    child = ask()
    terminal = os.dup(child.fileno())
    found = termios.tcgetattr(terminal)[6][termios.VQUIT]
    _until(lambda: termios.tcgetattr(terminal)[6][termios.VQUIT] == b"\x0e")
    child.send("typed ahead\x0e")
    child.expect_exact('"thought_end": "answer_now"')
    _until(lambda: termios.tcgetattr(terminal)[6][termios.VQUIT] == found)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    os.close(terminal)


def test_a_key_of_a_script_is_not_taken(ask: Job) -> None:
    """A job of several processes would all get the signal: there the key stays what it was."""
    child = ask("sh", "-c", '"$@"; true', "sh")
    changed = []
    while child.isalive():
        changed.append(termios.tcgetattr(child.fileno())[6][termios.VQUIT] == b"\x0e")
        time.sleep(0.02)
    assert not any(changed)
    child.expect_exact('"thought_end": "closed"')


# --- manners -----------------------------------------------------------------------------------


def test_a_window_resized_while_it_answers(slow: Slow) -> None:
    """80, 20 and 200 columns in one reply: the next prompt is whole, and the answer is there."""
    talk = slow(80)
    talk.prompt()
    talk.keys(SUM + ENTER)
    talk.see("Thinking")
    for columns in (20, 200, 80):
        talk.emulator.resize(24, columns)
        talk.child.setwinsize(24, columns)
        time.sleep(0.2)
    talk.see("It is 133.")
    talk.prompt()
    talk.keys(CTRL_D)
    assert talk.left() == 0


@pytest.mark.parametrize("how", ["--plain", "TERM=dumb"])
def test_plain_output_is_only_text(chat: Start, how: str) -> None:
    """Nothing is redrawn: no escape sequence and no carriage return but at line ends."""
    talk = chat(*(["--plain"] if how == "--plain" else []), TERM="dumb" if "=" in how else "xterm")
    talk.see(">")
    talk.keys(SUM + "\n")
    talk.see("133", timeout=30)
    talk.keys("/context\n")
    talk.see("free")
    talk.keys(CTRL_D)
    assert talk.left() == 0
    assert b"\x1b" not in talk.raw
    assert b"\r" not in talk.raw.replace(b"\r\n", b"")


def test_no_color(chat: Start) -> None:
    """With NO_COLOR no colour is ever set, neither by the prompt nor by an error."""
    talk = chat(NO_COLOR="1")
    talk.prompt()
    talk.line("/absent")
    talk.has("There is no command /absent.")
    talk.line(SUM)
    talk.leave()
    codes = {
        code for found in re.findall(rb"\x1b\[([\d;]*)m", talk.raw) for code in found.split(b";")
    }
    assert not {code for code in codes if code[:1] in (b"3", b"4", b"9") and len(code) > 1}


def test_nothing_that_is_shown_is_executed(chat: Start, tmp_path: Path) -> None:
    """Escape sequences in questions, files, file names, session names and history are pictures."""
    evil = "".join(HOSTILE)
    (tmp_path / "evil.txt").write_text(evil)
    (tmp_path / "a\x1b]0;x\x07b.txt").write_text("x")
    history = tmp_path / "data" / "input_history"
    history.parent.mkdir(exist_ok=True)
    history.write_text(f"\n# 2026-01-01\n+{evil}\n")
    session = replace(new_session("tiny"), name=evil)
    turn = Turn(new_turn_id(), None, evil, (), evil, evil, "end")
    with closing(Store(tmp_path / "data" / "sessions.db")) as store:
        store.save(session, turn.id, [turn])
    talk = chat("--resume", session.id)
    talk.has("1 turn.")
    talk.ready()
    talk.line("/alt")
    talk.keys("\x1b[A\x1b[A")  # the history
    talk.see(lambda rows: rows[-1].endswith("txt.exe"))
    talk.keys(CTRL_C)
    talk.prompt()
    talk.keys("\x1b[200~" + evil.replace("\x1b[", "\x1b [") + "\x1b[201~" + ENTER)
    talk.ready()
    talk.line("/file evil.txt")
    talk.keys("/file a" + TAB)
    talk.see(lambda rows: rows[-1].endswith("b.txt"))
    talk.keys(ENTER)
    talk.ready()
    talk.line("/undo")
    for text in HOSTILE:
        if text != "\x1b[6n":  # the line editor asks for the cursor's position itself
            assert text.encode() not in talk.raw, text
    talk.leave()
