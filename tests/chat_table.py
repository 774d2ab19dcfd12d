"""A chat at a table: lines that were typed before, engines that follow scripts, no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwqcli import catalog
from qwqcli.config import Settings
from qwqcli.engine import Control, never
from qwqcli.messages import Message
from qwqcli.repl import converse
from qwqcli.repl.chat import Chat
from qwqcli.sessions import Store
from qwqcli.terminal import Screen
from tests.fakes import Clock, Script, ScriptedEngine, Tty


@contextmanager
def no_keys(fold: Callable[[], None]) -> Iterator[Control]:
    yield never


class Typed:
    """A prompt whose lines were typed before; None is Ctrl-C, the end is Ctrl-D."""

    def __init__(self, *lines: str | None) -> None:
        self._lines = iter(lines)
        self.drafts: list[str] = []

    def read(self, default: str = "") -> str:
        self.drafts.append(default)
        for line in self._lines:
            if line is None:
                raise KeyboardInterrupt
            return line
        raise EOFError

    def ask(self, question: str) -> str:
        return next(self._lines, None) or ""

    def edit(self, text: str) -> str:
        return f"{text} edited"


class Table:
    """A chat on a terminal that is a string, with engines that follow scripts."""

    def __init__(
        self,
        *replies: Script,
        settings: Settings | None = None,
        store: Store | None = None,
        columns: int = 80,
    ) -> None:
        self.tty = Tty()
        self.clock = Clock()
        self.engines: list[ScriptedEngine] = []
        self.replies = replies or (("hmm", "Hello."),)
        screen = Screen(self.tty, self.tty, {"TERM": "xterm"}, self.clock, lambda: (columns, 24))
        settings = settings or Settings(model="scripted")
        self.chat = Chat(self.open, self.open(settings.model), settings, screen, store)

    def open(self, name: str) -> ScriptedEngine:
        if name == "absent":
            catalog.resolve(name, {"HOME": "/nowhere"})  # raises what a person gets
        self.engines.append(ScriptedEngine(self.replies))
        return self.engines[-1]

    def type(self, *lines: str | None) -> Typed:
        prompt = Typed(*lines)
        self.chat.prompt, self.chat.keys = prompt, no_keys
        converse(self.chat)
        return prompt

    @property
    def sent(self) -> list[list[Message]]:
        return [messages for engine in self.engines for messages in engine.sent]

    @property
    def text(self) -> str:
        return self.tty.getvalue()
