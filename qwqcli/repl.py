"""`qwq chat`: lines in, replies out, one conversation. Sole owner of prompt_toolkit.

Contract: the prompt takes keys while the model is still loading; what was typed is never lost (it
is in the history on disk, and what is typed during a reply waits for the next prompt). Ctrl-C
stops a reply and keeps what was said. An error of the engine is shown and the chat goes on.

What the model is sent: every question that got an answer, also a partial one, with that answer.
A question whose reply was only thought, or failed, is forgotten, because a model that reads its
own silence goes on with it; the arrow-up key brings such a question back.

Limits: without a terminal on both sides, or with TERM=dumb, chat reads plain lines until the end
of its input. Non-goals: drawing (`render`), finding models (the caller's `open_model`).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO, cast, get_args

from qwqcli.config import Paths, Settings, Thinking
from qwqcli.engine import Cancel, Engine
from qwqcli.errors import ContextFull, QwqError
from qwqcli.interrupt import interruptible
from qwqcli.messages import Message
from qwqcli.render import (
    AskView,
    ChatView,
    Reply,
    View,
    draw_reply,
    show_error,
    show_note,
    stats_line,
    ticking,
)
from qwqcli.terminal import Output, Screen, visible

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

OpenModel = Callable[[str], Engine]

LEAVE_S = 2.0  # a second Ctrl-C on an empty line within this time leaves
FOLD_CHARACTERS = 5_000  # a longer paste is one word in the line: laying it out would take seconds
LONG_HISTORY = 4_000_000  # bytes; reading that many takes about 0.1 s
PROMPT = "> "


def run_chat(
    open_model: OpenModel,
    settings: Settings,
    paths: Paths,
    screen: Screen | None = None,
    stdin: TextIO | None = None,
) -> int:
    """Chat until the person leaves; returns the exit code.

    `open_model(name)` returns at once and loads behind the engine's back; for a name that cannot
    be opened it raises a QwqError, which passes through here for the first model.
    """
    screen = screen or Screen(sys.stdout, sys.stderr, os.environ)
    stdin = stdin or sys.stdin
    if not (screen.out.live and stdin.isatty()):
        screen = screen.plain()
    chat = Chat(open_model, open_model(settings.model), settings, screen)
    try:
        if not screen.out.live:
            chat.run(PlainPrompt(stdin, screen.out), interruptible)
            return chat.exit_code
        with quiet(stdin):
            chat.greet()
            prompt = TerminalPrompt(paths.input_history, chat.say)
            chat.run(prompt, lambda: reply_keys(screen.out))
        return 0
    finally:
        chat.close()


# --- the conversation --------------------------------------------------------------------------


class Prompt(Protocol):
    """Where the next line comes from."""

    def read(self, default: str = "") -> str:
        """Wait for one submitted text. Raises EOFError to leave, KeyboardInterrupt for Ctrl-C."""
        ...


class Chat:
    """One conversation with one model at a time, and the commands that change it."""

    def __init__(
        self,
        open_model: OpenModel,
        engine: Engine,
        settings: Settings,
        screen: Screen,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.messages: list[Message] = []  # without the system prompt
        self.last: Reply | None = None
        self.stats_shown = False
        self.leaving = False
        self.exit_code = 0  # of the last error, for those who chat through a pipe
        self._open_model = open_model
        self._engine = engine
        self._draft = ""  # what the next prompt begins with

    def greet(self) -> None:
        name = visible(self.settings.model)
        self.say(f"qwq with {name}: /help lists the commands, Ctrl-D leaves.")
        if self.settings.model == "tiny":
            self.say("tiny is the small built-in model; `qwq pull` brings the real QwQ-32B.")

    def run(self, prompt: Prompt, keys: KeysDuringReply) -> None:
        """Read and handle until the person leaves."""
        interrupted = float("-inf")
        while not self.leaving:
            draft, self._draft = self._draft, ""
            try:
                line = prompt.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                if self.screen.clock() - interrupted < LEAVE_S:
                    return
                interrupted = self.screen.clock()
                self.say("[Ctrl-C once more, or Ctrl-D, leaves]")
                continue
            # Ctrl-C outside of a reply, as in a command: the command ends, the chat does not
            with contextlib.suppress(KeyboardInterrupt):
                self.handle(line, keys)

    def handle(self, line: str, keys: KeysDuringReply) -> None:
        """Do what one submitted text asks for."""
        try:
            name, argument, text = parse(line)
            if name:
                find_command(name).run(self, argument)
            elif text.strip():
                self._ask(text, keys)
        except QwqError as error:
            self.complain(error)

    def say(self, text: str) -> None:
        show_note(text, self._side)

    def complain(self, error: QwqError) -> None:
        self.exit_code = error.exit_code
        show_error(error, self._side)

    @property
    def _side(self) -> Output:
        """Where all goes that is no answer: a chat is one terminal, a pipe two streams."""
        return self.screen.out if self.screen.out.live else self.screen.err

    def close(self) -> None:
        self._engine.close()

    def switch(self, name: str) -> None:
        """Change the model; the old one is freed first, for two may not fit into memory."""
        old = self.settings.model
        with interruptible():  # a Ctrl-C between the two would leave the chat without a model
            self._engine.close()
            try:
                self._engine = self._open_model(name)
            except QwqError:
                self._engine = self._open_model(old)
                raise
        self.settings = replace(self.settings, model=name)

    def _ask(self, question: str, keys: KeysDuringReply) -> None:
        turns = [*self.messages, Message("user", question)]
        system = self.settings.system
        sent = [Message("system", system), *turns] if system else turns
        try:
            with keys() as cancel:
                view = self._view()
                waiting = ticking(view, cancel)
                events = self._engine.stream(sent, self.settings.sampling, waiting)
                reply = draw_reply(events, view)
        except ContextFull:
            self._draft = question
            raise
        self.last = reply
        if reply.answer.strip():
            self.messages = [*turns, Message("assistant", reply.answer, reply.reasoning)]
        else:
            self.say("[the question is not kept in the conversation; arrow-up brings it back]")
        if self.stats_shown:
            self.say(stats_line(reply.stats))
        if self.screen.out.live:
            self.screen.out.write("\n")

    def _view(self) -> View:
        kind = ChatView if self.screen.out.live else AskView
        return kind(self.screen, self.settings.thinking, self.settings.max_tokens)


# --- commands ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A line of the one table that drives dispatch, /help and completion."""

    name: str
    argument: str  # as /help shows it
    help: str
    run: Callable[[Chat, str], None]
    values: tuple[str, ...] = ()  # what completion offers for the argument
    aliases: tuple[str, ...] = ()


def parse(line: str) -> tuple[str, str, str]:
    """Split a submitted text into (command, argument, "") or ("", "", text for the model).

    A command is a slash and letters, so `/etc/hosts is what?` is text. `//help` is the text
    `/help`; a `//` before anything else, as in a comment, stays as it is.
    """
    match = re.match(r"\s*(/{1,2})([A-Za-z]+)(?=\s|$)\s*(.*)", line, re.DOTALL)
    if match is None:
        return "", "", line
    slashes, name, argument = match.groups()
    if slashes == "//":
        return "", "", line.replace("//", "/", 1)
    return name.lower(), argument.strip(), ""


def find_command(name: str) -> Command:
    """The command of this name. Raises QwqError with what was probably meant."""
    known = {word: command for command in COMMANDS for word in (command.name, *command.aliases)}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"/{close[0]}" if close else "/help"
    raise QwqError(
        f"There is no command /{name}.",
        f"{meant}, or //{name} ... to send the line to the model (arrow-up brings it back)",
    )


def _help(chat: Chat, argument: str) -> None:
    rows = [(f"/{c.name} {c.argument}".rstrip(), c.help) for c in COMMANDS]
    rows += KEYS
    wide = max(len(left) for left, _ in rows)
    chat.screen.out.write("".join(f"  {left:{wide}}  {right}\n" for left, right in rows))


def _exit(chat: Chat, argument: str) -> None:
    chat.leaving = True


def _clear(chat: Chat, argument: str) -> None:
    chat.messages, chat.last = [], None
    chat.say("The conversation is forgotten.")


def _think(chat: Chat, argument: str) -> None:
    choices = get_args(Thinking)
    if argument in choices:
        chat.settings = replace(chat.settings, thinking=cast(Thinking, argument))
        chat.say(f"Thinking: {argument}.")
    elif argument:
        raise QwqError(f"/think knows no '{argument}'.", f"/think {'|'.join(choices)}")
    elif chat.last and chat.last.reasoning:
        chat.say(chat.last.reasoning.strip("\n"))
    else:
        chat.say(f"There is no thought to show yet. Thinking: {chat.settings.thinking}.")


def _stats(chat: Chat, argument: str) -> None:
    chat.stats_shown = not chat.stats_shown
    chat.say(f"Figures after each reply: {'on' if chat.stats_shown else 'off'}.")
    if chat.last:
        chat.say(stats_line(chat.last.stats))


def _model(chat: Chat, argument: str) -> None:
    if argument:
        chat.switch(argument)
        chat.say(f"The model is now {argument}; the conversation goes on.")
    else:
        chat.say(f"The model is {chat.settings.model}.")


def _system(chat: Chat, argument: str) -> None:
    if argument:
        text = "" if argument == "none" else argument
        chat.settings = replace(chat.settings, system=text)
    chat.say(f"System prompt: {chat.settings.system or 'none'}")


COMMANDS = (
    Command("help", "", "show this", _help),
    Command("clear", "", "forget the conversation", _clear),
    Command(
        "think",
        "[show|fold|hide]",
        "how thoughts are drawn; alone: the last one in full",
        _think,
        get_args(Thinking),
    ),
    Command("stats", "", "figures after each reply: on or off", _stats),
    Command("model", "[NAME]", "show or change the model", _model),
    Command("system", "[TEXT]", "show or set the system prompt; 'none' removes it", _system),
    Command("exit", "", "leave", _exit, aliases=("quit", "bye")),
)
KEYS = [
    ("Alt+Enter, Ctrl+J", "a new line; so does a \\ before Enter"),
    ("Ctrl+C", "stop the reply; clear the line; twice on an empty line: leave"),
    ("//word ...", "send a line that begins with /word to the model"),
]


# --- keys during a reply -----------------------------------------------------------------------

KeysDuringReply = Callable[[], contextlib.AbstractContextManager[Cancel]]


@contextlib.contextmanager
def reply_keys(out: Output) -> Iterator[Cancel]:
    """`interruptible` on a quiet terminal: all other keys wait for the next prompt.

    Bracketed paste stays on, so that a paste during a reply is one prompt as well. This is the
    one place where further keys of a reply would be read.
    """
    with interruptible() as cancel:
        out.write("\x1b[?2004h")
        try:
            yield cancel
        finally:
            out.write("\x1b[?2004l")


@contextlib.contextmanager
def quiet(stdin: TextIO) -> Iterator[None]:
    """Keep what is typed while no prompt is open, key by key, and show it only in the prompt."""
    try:
        import termios
    except ImportError:  # Windows, whose console keeps keys by itself
        yield
        return
    fd = stdin.fileno()
    before = termios.tcgetattr(fd)
    attributes = termios.tcgetattr(fd)
    attributes[0] &= ~(termios.ICRNL | termios.INLCR)  # Enter must arrive as Enter, not as Ctrl+J
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    attributes[3] |= termios.NOFLSH  # Ctrl-C would throw away what was typed before it
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


# --- prompts -----------------------------------------------------------------------------------


class PlainPrompt:
    """Lines from a pipe or a dumb terminal; a backslash at the end of a line continues it."""

    def __init__(self, stdin: TextIO, out: Output) -> None:
        self._stdin = stdin
        self._out = out

    def read(self, default: str = "") -> str:
        lines: list[str] = []
        while True:
            if self._stdin.isatty():
                self._out.write("  " if lines else PROMPT)
            line = self._stdin.readline()
            if not line and not lines:
                raise EOFError
            text = line.rstrip("\n")
            if not line or not text.endswith("\\"):
                return "\n".join([*lines, text])
            lines.append(text[:-1])


class Pastes:
    """Stands a short word in the line for each huge paste, and puts the paste back at the end."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        if len(text) <= FOLD_CHARACTERS:
            return text
        lines = text.count("\n") + 1
        word = f"[paste {len(self._texts) + 1}: {len(text):,} characters, {lines:,} lines]"
        self._texts[word] = text
        return word

    def unfold(self, text: str) -> str:
        """Put back all pastes, and forget them."""
        for word, paste in self._texts.items():
            text = text.replace(word, paste)
        self._texts.clear()
        return text


class TerminalPrompt:
    """A line editor with history, completion, several lines and pastes of any size."""

    def __init__(self, history: Path, say: Callable[[str], None]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application.current import get_app
        from prompt_toolkit.filters import Condition

        self._say = say
        self._history = _open_history(history, say)
        self._trouble: OSError | None = None
        self._pastes = Pastes()
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation="  ",
            history=self._history,
            completer=_completer(),
            # room for the menu is only taken where there can be one
            complete_while_typing=Condition(lambda: get_app().current_buffer.text[:1] == "/"),
            key_bindings=self._bindings(),
            enable_suspend=True,
        )

    def read(self, default: str = "") -> str:
        if self._trouble:
            self._say(f"What you type is not kept on disk: {self._trouble}.")
            self._trouble = None
        return self._session.prompt(default=self._pastes.fold(default))

    def _submit(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        event.app.exit(result=self._remember(buffer.text))

    def _interrupt(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            self._remember(buffer.text)
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    def _paste(self, event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(self._pastes.fold(text))

    def _newline(self, event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def _complete(self, event: KeyPressEvent) -> None:
        """Add what all offers have in common; once that is there, go through them."""
        buffer = event.current_buffer
        text = buffer.document.text_before_cursor
        words = [word for word, _ in completions(text)]
        common = os.path.commonprefix(words)  # noqa: RUF071  words, not paths
        missing = common[len(text.rpartition(" ")[2]) :]
        if missing:
            buffer.insert_text(missing)
        elif buffer.complete_state:
            buffer.complete_next()

    def _remember(self, line: str) -> str:
        """Keep what stands in the line in the history; return it with its pastes."""
        # a byte that is no UTF-8 arrives as half a surrogate pair, which nothing can encode
        text = self._pastes.unfold(line).encode("utf-8", "replace").decode("utf-8")
        if text.strip() and self._history.get_strings()[-1:] != [text]:
            try:
                self._history.append_string(text)
            except OSError as error:
                self._trouble = error
        return text

    def _bindings(self) -> KeyBindings:
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        bindings = KeyBindings()
        bindings.add("enter")(self._submit)
        bindings.add("tab")(self._complete)
        bindings.add("c-c")(self._interrupt)
        bindings.add("<sigint>")(self._interrupt)
        bindings.add(Keys.BracketedPaste)(self._paste)
        for keys in (("escape", "enter"), ("c-j",)):
            bindings.add(*keys)(self._newline)
        return bindings


def _open_history(path: Path, say: Callable[[str], None]) -> History:
    """What was typed before, from a file that only its owner reads; in memory if need be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory, ThreadedHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        say(f"What you type is not kept on disk: {error}.")
        return InMemoryHistory()
    history = FileHistory(path)
    # read before the first key, so that arrow-up works at once, unless that would hold it up
    return history if path.stat().st_size < LONG_HISTORY else ThreadedHistory(history)


def completions(text: str) -> list[tuple[str, str]]:
    """What may follow `text`: (the word that ends it, complete; what that does)."""
    match = re.fullmatch(r"/(?:([a-z]+)[ ]+)?(\S*)", text)
    if match is None:
        return []
    name, word = match.groups()
    if name is None:
        offers = [(f"/{command.name}", command.help) for command in COMMANDS]
        return [offer for offer in offers if offer[0].startswith(text)]
    values = next((c.values for c in COMMANDS if c.name == name), ())
    return [(value, "") for value in values if value.startswith(word)]


def _completer() -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class CommandCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            start = -len(text.rpartition(" ")[2])
            for word, meta in completions(text):
                yield Completion(word, start, display_meta=meta)

    return CommandCompleter()
