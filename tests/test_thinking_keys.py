"""A person who watches it think: every key at awkward moments, on what the screen then shows."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest
from pseudo_terminal import ROOT, ScriptedChat

CTRL_C, CTRL_N, CTRL_O, CTRL_Z = "\x03", "\x0e", "\x0f", "\x1a"
PASTE = "\x1b[200~{}\x1b[201~"
THOUGHT = "".join(f"w{n} " for n in range(1, 41))
ANSWER = "".join(f"a{n} " for n in range(1, 9)) + "done."
PROMPT = ">"

Start = Callable[..., ScriptedChat]

# what is on the screen at the moment when a key is pressed; "" means at once
MOMENTS = {
    "with the question": "",
    "while loading": "Loading",
    "while the prompt is processed": "Reading",
    "at the first token": "Thinking",
    "in mid-thought": "w12",
    "in the answer": "a2",
}
BEFORE_THE_ANSWER = [moment for moment in MOMENTS if moment != "in the answer"]
WIDTHS = (20, 80, 200)
CASES = [(moment, WIDTHS[n % 3]) for n, moment in enumerate(MOMENTS)]


def slow(start: Start, columns: int, **environ: str) -> ScriptedChat:
    """A chat that loads, processes its prompt, thinks and answers slowly enough to be met at it."""
    terminal = start(
        (THOUGHT, ANSWER),
        columns=columns,
        FAKE_LOAD="0.3",
        FAKE_BATCHES="5",
        FAKE_DELAY="0.02",
        QWQ_PAGER="cat",
        **environ,
    )
    terminal.prompt()
    return terminal


def press(terminal: ScriptedChat, keys: str, moment: str) -> list[str]:
    """Ask, press `keys` at the moment, and wait for the next prompt."""
    terminal.keys("Q\r" + (keys if not MOMENTS[moment] else ""))
    if MOMENTS[moment]:
        terminal.see(MOMENTS[moment])
        terminal.keys(keys)
    return terminal.see(lambda rows: rows[-1] == PROMPT and "done." in words(rows))


def words(rows: list[str]) -> str:
    """The screen as one text, however it was wrapped."""
    return "".join(rows).replace(" ", "")


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("moment", "columns"), CASES)
def test_answer_now(start: Start, moment: str, columns: int, times: int) -> None:
    """Ctrl+N closes the thought at once, at whatever moment and however often it is pressed."""
    terminal = slow(start, columns)
    rows = press(terminal, CTRL_N * times, moment)
    summary = next(row for row in rows if row.startswith("Thought for"))
    if moment == "in the answer":
        assert "you asked" not in summary
    elif columns > 20:
        assert summary.endswith("· you asked for the answer")
    if moment in BEFORE_THE_ANSWER:
        thought = re.search(r"(\d+) tokens?", summary)
        assert thought is None or int(thought[1]) < 30
    assert "w40" not in words(rows)
    assert words(rows).count(ANSWER.replace(" ", "")) == 1
    terminal.keys("typed")
    assert terminal.see("> typed")[-1] == "> typed"


@pytest.mark.parametrize(("moment", "columns"), CASES)
def test_unfold(start: Start, moment: str, columns: int) -> None:
    """Ctrl+O unfolds the thought wherever it is pressed, in full and once."""
    terminal = slow(start, columns)
    rows = press(terminal, CTRL_O, moment)
    if moment == "in the answer":
        assert any(row.startswith("Thought for") for row in rows)
        assert words(rows).count("Thoughtsfromnowon:show.") == 1
    else:
        assert words(rows).count(THOUGHT.replace(" ", "")) == 1
        assert not any(row.startswith("Thought for") for row in rows)
    assert words(rows).count(ANSWER.replace(" ", "")) == 1
    if columns == 200:  # the choice sticks
        again = words(terminal.ask("again")).rpartition(">again")[2]
        assert again.count(THOUGHT.replace(" ", "")) == 1


@pytest.mark.parametrize(("moment", "columns"), [*zip(BEFORE_THE_ANSWER, WIDTHS * 2, strict=False)])
def test_unfold_and_fold(start: Start, moment: str, columns: int) -> None:
    """Pressed twice it is as if it had not been pressed, but for what the scrollback has got."""
    terminal = slow(start, columns)
    rows = press(terminal, CTRL_O * 2, moment)
    assert sum(row.startswith("Thought for") for row in rows) == 1
    assert "w40" not in words(rows)
    assert words(rows).count(ANSWER.replace(" ", "")) == 1


def test_the_last_lines_of_the_thought(start: Start) -> None:
    """Below the live line stand the last lines of the thought; nothing of them stays."""
    terminal = start(("".join(f"line {n}\n" for n in range(30)), "It is 4."), FAKE_DELAY="0.03")
    terminal.prompt()
    terminal.keys("Q\r")
    rows = terminal.see("line 12")
    at = next(n for n, row in enumerate(rows) if "Thinking" in row)
    below = rows[at + 1 :]
    assert 2 <= len(below) <= 6
    numbers = [int(row.removeprefix("line ")) for row in below if row[-1].isdigit()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    rows = terminal.prompt()
    assert not any(row.startswith("line ") for row in rows)


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_window_that_is_resized_in_mid_thought(start: Start, columns: int) -> None:
    """Narrower and wider again while it thinks: one summary and the answer stay, nothing else."""
    terminal = slow(start, columns)
    terminal.keys("Q\r")
    terminal.see("w8")
    for width in (max(columns // 2, 20), columns):
        terminal.child.setwinsize(24, width)
        terminal.emulator.resize(24, width)
        time.sleep(0.15)
    terminal.see("done.")
    rows = terminal.see(lambda rows: rows[-1] == PROMPT)
    assert sum(row.startswith("Thought for") for row in rows) == 1
    assert words(rows).count(ANSWER.replace(" ", "")) == 1
    # what stood below the live line may have been wrapped by the terminal, but not twice
    assert words(rows).count("Thinking") <= 1


def test_answer_typed_ahead(start: Start) -> None:
    """`/answer` typed while it thinks acts at once; the rest of what is typed waits."""
    terminal = slow(start, 80)
    terminal.keys("Q\r")
    terminal.see("w6")
    terminal.keys("/answer\rnext one")
    rows = terminal.see(lambda rows: rows[-1] == "> next one")
    assert "you asked for the answer" in "\n".join(rows)
    assert "w40" not in "\n".join(rows)


def test_half_a_paste_goes_on_in_the_prompt(start: Start) -> None:
    """A paste with control characters in it, cut in two by the end of a reply, is one prompt."""
    # the prompt would ask where the cursor is, and this terminal answer in the middle of the paste
    terminal = start(("", "short."), FAKE_DELAY="0.1", PROMPT_TOOLKIT_NO_CPR="1")
    terminal.prompt()
    terminal.keys("Q\r")
    whole = PASTE.format("one\x0e two\x0f\rthree")
    terminal.keys(whole[:12])
    terminal.see("short.")
    terminal.see(lambda rows: rows[-1] == PROMPT)
    terminal.keys(whole[12:] + "\r")
    terminal.see(lambda rows: rows[-1] == PROMPT and sum("short." in row for row in rows) == 2)
    terminal.keys("\x04")
    terminal.left()
    assert terminal.log.read_text(encoding="utf-8").endswith("'one\\x0e two\\x0f\\nthree']")


def test_the_last_thought_at_the_prompt(start: Start) -> None:
    """Ctrl+O at the prompt shows the last thought in the pager, and what was typed stays."""
    terminal = slow(start, 80)
    terminal.ask("Why is it so?")
    terminal.keys("half a line" + CTRL_O)
    rows = terminal.see("w40")
    assert any(re.match(r"Thought 1 · 40 tokens · Why is it so\?", row) for row in rows)
    terminal.see(lambda rows: rows[-1] == "> half a line")


def test_a_thought_by_number(start: Start) -> None:
    """`/think N` shows the N-th; a number that isn't there is told with those that are."""
    terminal = start(("first", "1."), ("second", "2."), QWQ_PAGER="cat")
    terminal.prompt()
    terminal.ask("one")
    terminal.ask("two")
    terminal.keys("/think 1\r")
    assert "second" not in "\n".join(terminal.see("first")).rpartition("/think 1")[2]
    terminal.prompt()
    terminal.keys("/think 7\r")
    terminal.see("the questions here are 1 to 2")


def test_less_as_the_pager(start: Start) -> None:
    """A real pager gets the terminal, Ctrl-C in it harms nothing, and q comes back."""
    terminal = start(("".join(f"line {n}\n" for n in range(200)), "4."), QWQ_PAGER="less")
    if pexpect.which("less") is None:
        pytest.skip("less is not installed")
    terminal.prompt()
    terminal.ask("Q")
    terminal.keys(CTRL_O)
    terminal.see("line 20")
    terminal.keys(CTRL_C)
    time.sleep(0.3)  # less throws away what is typed right behind it
    terminal.keys("q")
    terminal.keys("still here")
    terminal.see("> still here")


def test_budget_and_no_thinking(start: Start) -> None:
    """/budget says what it means, /think off and on switch thoughts, a slip is told."""
    terminal = start(("t", "4."))
    terminal.prompt()
    terminal.keys("/budget\r")
    terminal.see("Budget auto: A thought is closed after 31,268 tokens")
    terminal.keys("/budget 90s\r")
    terminal.see("closed after 90 s")
    terminal.keys("/think off\r")
    terminal.see("No thinking: replies begin with the answer.")
    terminal.keys("/think on\r")
    terminal.see(lambda rows: "".join(rows).count("Budget 90s") == 2)
    terminal.keys("/budget lots\r")
    terminal.see("'lots' is not a budget")


def test_answer_after_a_stop(start: Start) -> None:
    """A thought that was stopped with Ctrl-C is answered from with /answer."""
    terminal = slow(start, 80)
    terminal.keys("Q\r")
    terminal.see("w6")
    terminal.keys(CTRL_C)
    terminal.see("[stopped while thinking]")
    terminal.see(lambda rows: rows[-1] == PROMPT)
    terminal.keys("/answer\r")
    terminal.see("done.")
    terminal.see(lambda rows: rows[-1] == PROMPT)
    terminal.keys("/answer\r")
    terminal.see("No question waits for its answer.")


# --- the terminal is given back ----------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[pexpect.spawn]:
    """A shell with job control on a terminal of its own."""
    if pexpect.which("bash") is None:
        pytest.skip("bash is not installed")
    environ = {
        "PATH": os.environ["PATH"],
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "PS1": "$ ",
        "FAKE_HOME": str(tmp_path),
        "FAKE_DELAY": "0.02",
        "FAKE_REPLIES": f'[["{THOUGHT}", "{ANSWER}"]]',
    }
    child = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], cwd=str(ROOT), env=environ, dimensions=(24, 80)
    )
    child.expect_exact("$ ")
    yield child
    child.close(force=True)


def modes(shell: pexpect.spawn) -> str:
    """What `stty -a` says of the shell's terminal."""
    shell.sendline("echo begin; stty -a; echo e''nd")
    shell.expect(r"begin\r\n(.*)end\r\n")
    found = shell.match[1].decode()
    shell.expect_exact("$ ")
    return str(found)


@pytest.mark.parametrize("moment", ["at the prompt", "while it thinks"])
def test_suspend_and_resume(shell: pexpect.spawn, moment: str) -> None:
    """Ctrl-Z gives the shell its terminal as it was, and `fg` goes on where it stopped."""
    before = modes(shell)
    shell.logfile_read = io.BytesIO()
    shell.sendline(f"{sys.executable} -m tests.fakes")
    shell.expect_exact("Ctrl-D leaves.")
    if moment == "while it thinks":
        shell.send("Q\r")
        shell.expect_exact("Thinking")
    else:
        time.sleep(0.3)
    shell.send(CTRL_Z)
    shell.expect_exact("Stopped")
    shell.expect_exact("$ ")
    screen = pyte.Screen(80, 24)
    pyte.ByteStream(screen).feed(shell.logfile_read.getvalue())
    rows = "\n".join(screen.display).rstrip().split("\n")
    assert rows[-1] == "$"  # nothing of the thought stands below or in the shell's line
    assert "w1 w2" not in rows[-2]
    assert modes(shell) == before
    shell.sendline("fg")
    if moment == "at the prompt":
        time.sleep(0.3)
        shell.send("Q\r")
    shell.expect_exact("done.")
    time.sleep(0.3)
    shell.send("\x04")
    shell.expect_exact("$ ")
    assert modes(shell) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_terminated_while_it_thinks(shell: pexpect.spawn, number: int) -> None:
    """Ended by a signal, it leaves a terminal that echoes and has its cursor."""
    before = modes(shell)
    shell.sendline(f"{sys.executable} -m tests.fakes & echo pid=$!; fg")
    shell.expect(r"pid=(\d+)")
    pid = int(shell.match[1])
    shell.expect_exact("Ctrl-D leaves.")
    time.sleep(0.3)
    shell.send("Q\r")
    shell.expect_exact("Thinking")
    os.kill(pid, number)
    shell.expect_exact("\x1b[?25h")
    shell.expect_exact("$ ")
    assert modes(shell) == before


def test_answer_key_in_the_background(shell: pexpect.spawn) -> None:
    """Suspended and sent into the background, a process with the answer key goes on there."""
    before = modes(shell)
    script = (
        "import sys, time\nfrom qwqcli.engine import never\n"
        "from qwqcli.interrupt import answer_key\n"
        "with answer_key(sys.stdin, never, lambda: None): print('be' + 'gun'); time.sleep(1.5)\n"
        "print('o' + 'ver')"
    )
    shell.sendline(f"{sys.executable} -c {shlex.quote(script)}")
    shell.expect_exact("begun")
    shell.send(CTRL_Z)
    shell.expect_exact("Stopped")
    shell.sendline("bg")
    shell.expect_exact("over")
    shell.sendline("")
    assert modes(shell) == before
