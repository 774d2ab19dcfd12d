"""Commands, the conversation that is sent to the model, and the line editor, without a terminal."""

from __future__ import annotations

import io
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwqcli.config import Paths, Settings
from qwqcli.errors import ContextFull, EngineError, QwqError
from qwqcli.interrupt import interruptible
from qwqcli.messages import Answer, Done, Message, Reasoning, Stats
from qwqcli.prompts import Library, Prompt
from qwqcli.render import Reply
from qwqcli.repl import converse, run_chat
from qwqcli.repl.chat import Chat
from qwqcli.repl.commands import COMMANDS, completions, find_command, parse
from qwqcli.repl.prompt import PlainPrompt, TerminalPrompt
from qwqcli.terminal import Screen
from tests.chat_table import Table, Typed
from tests.fakes import Clock, Script, ScriptedEngine, Tty

PASTE = "\x1b[200~{}\x1b[201~"


# --- the conversation --------------------------------------------------------------------------


def test_each_question_is_sent_with_all_that_was_said() -> None:
    """The model sees the whole conversation; the thought is kept, for the person."""
    table = Table(("hmm", "Hello."))
    table.type("one", "two")
    answer = Message("assistant", "Hello.", "hmm")
    assert table.sent == [
        [Message("user", "one")],
        [Message("user", "one"), answer, Message("user", "two")],
    ]


def test_a_stopped_answer_stays() -> None:
    """What was said before Ctrl-C belongs to the conversation."""
    table = Table([Answer("It is", 2), Done("interrupted", Stats())], ("", "4"))
    table.type("one", "two")
    assert [message.content for message in table.sent[1]] == ["one", "It is", "two"]
    assert "[stopped]" in table.text


@pytest.mark.parametrize(
    "reply",
    [
        [Reasoning("hmm", 1), Done("interrupted", Stats())],
        [Reasoning("hmm", 1), Done("length", Stats())],
        EngineError("The engine died."),
        ContextFull("Too long."),
    ],
)
def test_a_question_without_an_answer_is_forgotten(reply: Script) -> None:
    """A question that got only a thought or an error is not sent again; the chat goes on."""
    table = Table(reply, ("", "4"))
    table.type("one", "two")
    assert table.sent[1] == [Message("user", "two")]


def test_a_question_that_was_too_long_can_be_edited() -> None:
    """ContextFull shows what can be done and puts the question into the next prompt."""
    table = Table(ContextFull("The context of 512 tokens is full.", "/clear"), ("", "4"))
    prompt = table.type("long", "short")
    assert prompt.drafts == ["", "long", ""]
    assert "error:" in table.text
    assert "the question alone" in table.text


def test_ctrl_c_twice_on_an_empty_line_leaves() -> None:
    """Two within two seconds leave; a single one says how, and so does a late second one."""
    table = Table()
    assert table.type(None, None, "never").drafts == ["", ""]
    table.clock.step = 3.0
    assert table.type(None, None, "hello").drafts == ["", "", "", ""]
    assert len(table.sent) == 1


def test_errors_are_told_where_the_chat_is() -> None:
    """With stderr in a file the person still sees what went wrong."""
    tty, file = Tty(), io.StringIO()
    screen = Screen(tty, file, {"TERM": "xterm"}, Clock(), lambda: (80, 24))
    engine = ScriptedEngine([EngineError("The engine died.")])
    chat = Chat(lambda name: engine, engine, Settings(model="scripted"), screen)
    chat.prompt = Typed("one")
    converse(chat)
    assert "The engine died." in tty.getvalue()
    assert file.getvalue() == ""


def test_an_empty_line_asks_nothing() -> None:
    """Enter on blanks is no question."""
    table = Table()
    table.type("", "  \n ")
    assert table.sent == []


# --- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("/help", ("help", "", "")),
        ("  /Think  show ", ("think", "show", "")),
        ("/system be\nbrief", ("system", "be\nbrief", "")),
        ("/etc/hosts is what?", ("", "", "/etc/hosts is what?")),
        ("/2 of it", ("", "", "/2 of it")),
        ("/", ("", "", "/")),
        ("//help me", ("", "", "/help me")),
        ("// a comment", ("", "", "// a comment")),
        ("1/2?", ("", "", "1/2?")),
        ('"""\n/help\nme\n"""', ("", "", "/help\nme")),
        ('"""a "b" c"""', ("", "", 'a "b" c')),
        ('"""open', ("", "", '"""open')),
        ('"""doc"""\ncode("""x""")', ("", "", '"""doc"""\ncode("""x""")')),
    ],
)
def test_parse(line: str, parsed: tuple[str, str, str]) -> None:
    """A slash and a word is a command; paths, comments and what `//` escapes are text."""
    assert parse(line) == parsed


def test_an_unknown_command_is_no_question() -> None:
    """It names the nearest command and how to send the line as it is, and the chat goes on."""
    table = Table()
    table.type("/thnk show", "/tmp", "//tmp")
    assert "There is no command /thnk." in table.text
    assert "try: /think, or //thnk ..." in table.text
    assert "try: /help, or //tmp ..." in table.text
    assert table.sent == [[Message("user", "/tmp")]]


def test_hints_are_what_is_typed_here() -> None:
    """What a hint says on the command line is said as a command of the chat."""
    table = Table()
    table.chat.library = lambda: Library([Prompt("sum", "", "en", "", "")])
    table.type("/model absent", "/prompt sun", "/resume nowhere")
    hints = re.findall("try: (.*)", table.text)
    assert hints == ["/model tiny, or see: qwq list", "/prompt sum", "/resume"]


def test_help_lists_every_command() -> None:
    """Dispatch, help and completion come from one table."""
    table = Table()
    table.type("/help")
    for command in COMMANDS:
        assert f"/{command.name}" in table.text
        assert (f"/{command.name}", command.help) in completions(table.chat, "/")
        assert find_command(command.name) is command


@pytest.mark.parametrize("name", ["/exit", "/quit", "/bye"])
def test_exit(name: str) -> None:
    """Each of the usual words leaves."""
    assert Table().type(name, "never").drafts == [""]


def test_clear() -> None:
    """/clear forgets the conversation and nothing else."""
    table = Table(settings=Settings(system="Be brief."))
    table.type("one", "/clear", "two")
    assert table.sent[1] == [Message("system", "Be brief."), Message("user", "two")]


def test_think() -> None:
    """/think changes how thoughts are drawn; alone it shows the last one in full."""
    table = Table(("a long \x1b thought", "4"))
    table.type("/think", "one")
    assert "There is no thought" in table.text
    assert "a long" not in table.text.split("Thought for")[1]
    table.type("/think")
    assert "a long ␛ thought" in table.text
    table.type("/think show", "two", "/think loud")
    assert table.chat.settings.thinking == "show"
    assert "/think knows no 'loud'" in table.text


def test_stats() -> None:
    """/stats shows the last figures and turns them on and off for those to come."""
    table = Table()
    table.type("one")
    assert "prompt 31 tokens" not in table.text
    table.type("/stats", "two", "/stats")
    assert table.text.count("prompt 31 tokens (12 reused, 19 processed) at 190 t/s") == 3


def test_system() -> None:
    """/system sets the system prompt for what follows, shows it, and removes it."""
    table = Table()
    table.type("/system Be brief.", "one", "/system", "/system none", "two")
    assert table.sent[0][0] == Message("system", "Be brief.")
    assert table.sent[1][0] == Message("user", "one")
    assert table.text.count("System prompt: Be brief.") == 2


def test_model() -> None:
    """/model frees the old model and goes on with the same conversation."""
    table = Table()
    table.type("one", "/model other", "two", "/model")
    assert [engine.closed for engine in table.engines] == [1, 0]
    assert len(table.engines[1].sent[0]) == 3
    assert "The model is other." in table.text


def test_a_model_that_cannot_be_opened_leaves_the_old_one() -> None:
    """After an error of /model the chat goes on with the model it had."""
    table = Table()
    table.type("/model absent", "one", "/model")
    assert "There is no model called 'absent'." in table.text
    assert len(table.sent) == 1
    assert "The model is scripted." in table.text


def test_the_greeting_names_the_file_of_a_path() -> None:
    """A name stands as it was typed; of a long path only its end."""
    for model, shown in (("some/repo:Q4_K_M", "some/repo:Q4_K_M"), ("/long/way/a.gguf", "a.gguf")):
        table = Table(settings=Settings(model))
        table.chat.greet()
        assert f"qwq with {shown}: /help" in table.text


@pytest.mark.parametrize("thought", ["", "hmm"])
def test_unfolding_during_the_answer(thought: str) -> None:
    """Ctrl+O then acts from the next thought on; how to see this one is said if there is one."""
    table = Table()
    view = table.chat._view()
    if thought:
        view.reasoning(Reasoning(thought, 1))
    view.answer(Answer("4", 1))
    view.fold("show")
    view.done(Reply(thought, "4", "end", Stats()))
    assert "Thoughts from now on: show." in table.text
    assert ("Ctrl+O shows this one." in table.text) == bool(thought)


# --- the line editor ---------------------------------------------------------------------------


@contextmanager
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def submitted(history: Path, text: str) -> list[str]:
    """What a line editor submits when `text` and Ctrl-D are typed."""
    lines: list[str] = []
    with keyboard() as keys:
        prompt = TerminalPrompt(history, lambda text: None)
        # beside the editor, because a pipe holds less than a megabyte
        threading.Thread(target=keys.send_text, args=[text + "\x04"], daemon=True).start()
        while True:
            try:
                lines.append(prompt.read())
            except EOFError:
                return lines
            except KeyboardInterrupt:
                lines.append("^C")


@pytest.mark.parametrize(
    ("what", "keys", "lines"),
    [
        ("Enter submits", "one\rtwo\r", ["one", "two"]),
        ("Alt+Enter is a newline", "a\x1b\rb\r", ["a\nb"]),
        ("Ctrl+J is a newline", "a\nb\r", ["a\nb"]),
        ("a backslash continues the line", "a\\\rb\r", ["a\nb"]),
        ("triple quotes hold many lines", '"""a\rb"\r\rc"""\r', ['"""a\nb"\n\nc"""']),
        ("a backslash within does not", "a\\b\r", ["a\\b"]),
        ("a paste is one prompt", PASTE.format("a\r\nb\rc\n") + "\r", ["a\nb\nc\n"]),
        ("a paste goes between what is typed", "<" + PASTE.format("x\ny") + ">\r", ["<x\ny>"]),
        ("Ctrl-C clears the line", "gone\x03kept\r", ["kept"]),
        ("Ctrl-C on an empty line is told", "\x03", ["^C"]),
        ("Chinese and emoji", "中文 👩‍👩‍👧\r", ["中文 👩‍👩‍👧"]),
    ],
)
def test_keys(tmp_path: Path, what: str, keys: str, lines: list[str]) -> None:
    """Each key does one thing."""
    assert submitted(tmp_path / "history", keys) == lines


@pytest.mark.parametrize("text", ["line of text\n" * 80_000, "x" * 1_000_000])
def test_a_huge_paste_is_one_prompt_and_quick(tmp_path: Path, text: str) -> None:
    """A megabyte is pasted in a moment and arrives whole, among what was typed around it."""
    begin = time.monotonic()
    keys = "read " + PASTE.format(text) + " this\r"
    assert submitted(tmp_path / "history", keys) == [f"read {text} this"]
    assert time.monotonic() - begin < 10


def test_history_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """Without a writable folder the chat works, and the history is in memory."""
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with keyboard() as keys:
        prompt = TerminalPrompt(tmp_path / "file" / "history", said.append)
        keys.send_text("one\r")
        assert prompt.read() == "one"
        keys.send_text("two\r")
        assert prompt.read() == "two"
    assert len(said) == 1
    assert "not kept on disk" in said[0]


# --- plain lines -------------------------------------------------------------------------------


def chat_through_a_pipe(tmp_path: Path, text: str, *replies: Script) -> tuple[str, str, int]:
    out, err = io.StringIO(), io.StringIO()
    engine = ScriptedEngine(replies or (("hmm", "Hello."),))
    paths = Paths(tmp_path, tmp_path, tmp_path)
    screen = Screen(out, err, {"TERM": "xterm"}, Clock())
    code = run_chat(lambda name: engine, Settings(), paths, screen, io.StringIO(text))
    assert engine.closed == 1
    return out.getvalue(), err.getvalue(), code


def test_lines_from_a_pipe_are_prompts(tmp_path: Path) -> None:
    """Without a terminal each line is a prompt, until the end; answers alone are on stdout."""
    out, err, code = chat_through_a_pipe(tmp_path, "one\n\ntwo\\\nlines")
    assert out == "Hello.\nHello.\n"
    assert err == "Thought for 0.0 s · 1 token\n" * 2
    assert code == 0


def test_a_pipe_learns_of_errors(tmp_path: Path) -> None:
    """An error does not end the chat, but its code is what the chat ends with."""
    replies = (EngineError("The engine died."), ("", "4"))
    assert chat_through_a_pipe(tmp_path, "one\ntwo\n", *replies) == (
        "4\n",
        "error: The engine died.\n",
        6,
    )


def test_a_first_model_that_cannot_be_opened_ends_the_chat(tmp_path: Path) -> None:
    """There is nothing to chat with: the error is the caller's."""

    def refuse(name: str) -> ScriptedEngine:
        raise QwqError("No.")

    with pytest.raises(QwqError):
        run_chat(refuse, Settings(), Paths(tmp_path, tmp_path, tmp_path))


def test_plain_prompt_continues_after_a_backslash() -> None:
    """As in the line editor; the end of the input ends the last line."""
    prompt = PlainPrompt(io.StringIO("a\\\nb\nc\\"), Screen(Tty(), Tty(), {}).out)
    assert [prompt.read(), prompt.read()] == ["a\nb", "c\n"]
    with pytest.raises(EOFError):
        prompt.read()


def test_a_plain_prompt_shows_what_waits_and_sends_it() -> None:
    """Enter alone sends it; what is typed takes its place; in a pipe an empty line is no wish."""
    tty = Tty("\nother\n")
    prompt = PlainPrompt(tty, Screen(shown := Tty(), shown, {}).out)
    assert prompt.read("What is\n2 + 2?") == "What is\n2 + 2?"
    assert "> What is 2 + 2?\n[Enter alone sends this]" in shown.getvalue()
    assert prompt.read("What?") == "other"
    assert PlainPrompt(io.StringIO("\n"), Screen(Tty(), Tty(), {}).out).read("What?") == ""


def test_a_line_that_the_terminal_has_cut_is_not_asked() -> None:
    """Linux drops what is beyond 4,095 bytes of a line; half a question is not the question."""
    prompt = PlainPrompt(Tty(f"{'x' * 4095}\nshort\n"), Screen(shown := Tty(), shown, {}).out)
    assert prompt.read() == "short"
    assert "cut that line" in shown.getvalue()
    pipe = io.StringIO(f"{'x' * 4095}\n")
    assert PlainPrompt(pipe, Screen(Tty(), Tty(), {}).out).read() == "x" * 4095


def test_interruptible_restores_the_handler() -> None:
    """SIGINT sets the flag, as often as it comes, and raises again afterwards."""
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as control:
        assert not control()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert control()
    assert signal.getsignal(signal.SIGINT) is before
