"""One conversation with one model at a time: what is said, what is sent, what is shown.

What the model is sent: every question that got an answer, also a partial one, with that answer.
A question whose reply was only thought, or failed, is forgotten, because a model that reads its
own silence goes on with it; the arrow-up key brings such a question back.

Non-goals: reading lines and knowing commands (`prompt`, `commands`), drawing (`render`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qwqcli.config import Settings
from qwqcli.engine import Engine
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
from qwqcli.repl.keys import KeysDuringReply
from qwqcli.repl.prompt import NoPrompt, Prompt
from qwqcli.terminal import Output, Screen, visible

OpenModel = Callable[[str], Engine]


class Chat:
    """The state of a chat, and what can be done with it; commands change it from outside.

    `prompt` is where the person types, `keys` watches for keys while a reply comes.
    """

    def __init__(
        self,
        open_model: OpenModel,
        engine: Engine,
        settings: Settings,
        screen: Screen,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.prompt: Prompt = NoPrompt()
        self.keys: KeysDuringReply = interruptible
        self.messages: list[Message] = []  # without the system prompt
        self.last: Reply | None = None
        self.stats_shown = False
        self.leaving = False
        self.exit_code = 0  # of the last error, for those who chat through a pipe
        self._open_model = open_model
        self._engine = engine
        self.draft = ""  # what the next prompt begins with

    def greet(self) -> None:
        name = visible(self.settings.model)
        self.say(f"qwq with {name}: /help lists the commands, Ctrl-D leaves.")
        if self.settings.model == "tiny":
            self.say("tiny is the small built-in model; `qwq pull` brings the real QwQ-32B.")

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

    def ask(self, question: str) -> None:
        """Send a question and draw the reply. Raises the engine's errors."""
        turns = [*self.messages, Message("user", question)]
        system = self.settings.system
        sent = [Message("system", system), *turns] if system else turns
        try:
            with self.keys() as control:
                view = self._view()
                waiting = ticking(view, control)
                events = self._engine.stream(sent, self.settings.sampling, waiting)
                reply = draw_reply(events, view)
        except ContextFull:
            self.draft = question
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
