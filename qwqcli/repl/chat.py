"""One conversation with one model at a time: what is said, sent, shown and saved.

The conversation is a tree of turns (`conversation`); each is on disk before the next prompt
(`record`). A question that got no answer stays in it but is not sent again.

Non-goals: reading lines and knowing commands (`prompt`, `commands`), drawing (`render`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwqcli.config import Settings, Thinking
from qwqcli.conversation import Conversation, Turn
from qwqcli.engine import Engine, Keep
from qwqcli.errors import ContextFull, QwqError, StoreError
from qwqcli.inputs import Attachment
from qwqcli.interrupt import interruptible
from qwqcli.markdown import MarkdownStream
from qwqcli.messages import Event, Message, Order, Room, Stats, Stop
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
    tokens,
)
from qwqcli.repl.keys import KeysDuringReply, only_interrupt
from qwqcli.repl.prompt import NoPrompt, Prompt
from qwqcli.repl.record import Growing, Record
from qwqcli.sessions import Session, Store, new_session, new_turn_id
from qwqcli.terminal import Output, Screen, clip, fit, visible

if TYPE_CHECKING:
    from qwqcli.prompts import Library

OpenModel = Callable[[str], Engine]


def _no_prompts() -> Library:
    from qwqcli.prompts import Library  # with its checkers a tenth of the time to the first prompt

    return Library([])


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
        store: Store | None = None,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.prompt: Prompt = NoPrompt()
        self.keys: KeysDuringReply = only_interrupt
        # gives the terminal to another program for a while; None: there is none to give
        self.lend: Callable[[], contextlib.AbstractContextManager[None]] | None = None
        self.record = Record(store or Store(None), self.complain)
        self.talk = Conversation()
        self.session = new_session(settings.model, settings.system)
        self.attached: list[Attachment] = []  # go with the next question
        self.edited: Turn | None = None  # whose place the next question takes
        self.draft = ""  # what the next prompt begins with
        self.library: Callable[[], Library] = _no_prompts  # for /prompt
        self.stats_shown = False
        self.kept_budget = settings.think_budget if settings.thinks else "auto"  # for /think on
        self.leaving = False
        self.n_ctx = 0  # tokens of the window, once a reply has told
        self.exit_code = 0  # of the last error, for those who chat through a pipe
        self.engine = engine
        self.check: Callable[[Settings], None] = lambda settings: None  # refuses what is senseless
        self._open_model = open_model

    def close(self) -> None:
        self.engine.close()

    # --- what is shown -------------------------------------------------------------------------

    def greet(self) -> None:
        model = self.settings.model
        name = Path(model).name if model.endswith(".gguf") else model
        self.say(f"qwq with {name}: /help lists the commands, Ctrl-D leaves.")
        if model == "tiny":
            self.say("tiny is the small built-in model; `qwq pull` brings the real QwQ-32B.")

    def say(self, text: str) -> None:
        show_note(text, self._side)

    def complain(self, error: QwqError) -> None:
        self.exit_code = error.exit_code
        show_error(error, self._side)

    def show_last(self) -> None:
        """The last question in a line, and its answer as it was drawn then."""
        last = self.talk.last
        if last is None:
            return
        out = self.screen.out
        question = " ".join(last.question.split())
        self.say(clip(f"> {question}", max(out.size()[0] - 1, 10)))
        if last.answered and out.live:
            markdown = MarkdownStream(out, self.screen.clock)
            markdown.feed(last.answer)
            markdown.flush()
        elif last.answered:
            out.write(visible(last.answer.rstrip("\n")) + "\n")
        if last.stop is None:
            self.say("[cut off when qwq was ended]")
        if out.live:
            out.write("\n")

    @property
    def last(self) -> Turn | None:
        """The turn that the person is at."""
        return self.talk.last

    @property
    def status(self) -> str:
        """The window after the last reply in one row; empty as long as nothing is known of it."""
        stats = self.last.stats if self.last else Stats()
        if not (self.n_ctx and stats.prompt_tokens):
            return ""
        used = stats.prompt_tokens + stats.answer_tokens  # a thought is not sent again
        free = max(self.n_ctx - used, 0)
        room = f"{free:,} free of {tokens(self.n_ctx)}"
        parts = [room, f"{used:,} used", f"{stats.reused_tokens:,} reused"]
        out = self.screen.out
        return fit(parts, out.size()[0] - 1, out.symbols.dot)

    @property
    def _side(self) -> Output:
        """Where all goes that is no answer: a chat is one terminal, a pipe two streams."""
        return self.screen.out if self.screen.out.live else self.screen.err

    def _view(self) -> View:
        kind = ChatView if self.screen.out.live else AskView
        return kind(self.screen, self.settings.thinking, self.settings.max_tokens)

    # --- what is said --------------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the engine get ready for the next question while the person reads and types."""
        at = self.edited.parent if self.edited else self.talk.head
        self.engine.prepare(self.talk.at(at).messages(self.settings.system), self._kept())

    def _kept(self) -> Keep | None:
        """Where the KV state of this session is kept; None if nothing of it is on disk."""
        folder = self.record.store.files(self.session.id)
        if folder is None or not self.talk.turns:
            return None
        return Keep(str(folder / "kv"), int(self.settings.snapshots_gb * 2**30))

    def ask(self, question: str, attachments: Sequence[Attachment] = ()) -> None:
        """Ask a new question, with what was attached before. Raises the engine's errors."""
        parent = self.edited.parent if self.edited else self.talk.head
        files = (*self.attached, *attachments)
        self.edited, self.attached = None, []
        sampling = self.settings.sampling
        self.reply_to(Turn(new_turn_id(), parent, question, files, sampling=sampling))

    def reply_to(self, turn: Turn) -> None:
        """Add a turn and draw the reply to it. Raises the engine's errors."""
        system = self.settings.system
        sent = [*self.talk.at(turn.parent).messages(system), Message("user", turn.prompt)]
        turn = replace(turn, model=self.settings.model, asked=time.time())
        self.talk = self.talk.add(turn)
        self._draw(turn, sent)

    def go_on(self, turn: Turn, order: Order = Order.GO_ON) -> None:
        """Draw the rest of a reply that was stopped, with an order from the beginning.

        Raises the engine's errors.
        """
        before = self.talk.at(turn.parent).messages(self.settings.system)
        begun = Message("assistant", turn.answer, turn.reasoning)
        self._draw(replace(turn, stop=None), [*before, Message("user", turn.prompt), begun], order)

    def _draw(self, turn: Turn, sent: Sequence[Message], order: Order = Order.GO_ON) -> None:
        """Draw the reply to `sent` and keep it in `turn`, on disk as it grows."""
        growing = Growing(self.record, turn, self.save(turn), self.screen.clock)
        try:
            reply = self._stream(sent, turn, growing, order)
        except ContextFull:
            self._keep(replace(turn, stop="context"))
            if not turn.answered:
                self.talk = self.talk.at(turn.parent)
                self.draft, self.attached = turn.question, list(turn.attachments)
            raise
        except BaseException as error:  # whatever it is, what was said stays
            # an engine that is gone, or a bug; else SIGTERM
            stop: Stop = "died" if isinstance(error, Exception) else "interrupted"
            self._keep(replace(growing.turn, stop=stop))
            raise
        self._keep(replace(growing.turn, stop=reply.stop, stats=reply.stats))
        if not growing.turn.answered:
            self.say("[without an answer it is not sent again; /regen asks anew, /edit changes it]")
        if self.stats_shown:
            self.say(stats_line(reply.stats))
        if self.screen.out.live:
            self.screen.out.write("\n")

    def _stream(self, sent: Sequence[Message], turn: Turn, growing: Growing, order: Order) -> Reply:
        view = self._view()
        with self.keys(lambda: self._fold(view)) as control:

            def waiting() -> Order:
                growing.tick()
                return control() or order

            events = self.engine.stream(
                sent,
                turn.sampling,
                ticking(view, waiting),
                thinking=self.settings.thinks,
                budget=self.settings.budget,
            )
            return draw_reply(growing.watch(self._noted(events)), view)

    def _noted(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Room):
                self.n_ctx = event.context
            yield event

    def _fold(self, view: View) -> None:
        """Ctrl+O: from now on fold thoughts that were shown, show those that were folded."""
        thinking: Thinking = "fold" if self.settings.thinking == "show" else "show"
        self.settings = replace(self.settings, thinking=thinking)
        view.fold(thinking)

    def _keep(self, turn: Turn) -> None:
        self.talk = self.talk.put(turn)
        self.save(turn)

    # --- what is changed -----------------------------------------------------------------------

    def save(self, *turns: Turn) -> bool:
        """Bring the session and these turns to disk; False if that failed, which was told."""
        if self.record.lost_name(self.session):
            name = self.session.name
            self.session = replace(self.session, name="")  # or nothing of it could be saved
            self.complain(StoreError(f"Another session is called '{name}' by now.", "/name OTHER"))
        return self.record.save(self.session, self.talk, *turns)

    def begin(self, session: Session, talk: Conversation, known: Session | None = None) -> None:
        """Go on with another conversation; `known` is its session as it is in the store."""
        self.record.moved(known)
        self.session, self.talk = session, talk
        self.edited, self.attached = None, []
        self.settings = replace(self.settings, system=session.system)

    def switch(self, name: str) -> None:
        """Change the model; the old one is freed first, for two may not fit into memory."""
        old = self.settings.model
        with interruptible():  # a Ctrl-C between the two would leave the chat without a model
            self.engine.close()
            try:
                self.engine = self._open_model(name)
            except QwqError:
                self.engine = self._open_model(old)
                raise
        self.n_ctx = 0
        self.settings = replace(self.settings, model=name)
        self.session = replace(self.session, model=name)
        self.save()
