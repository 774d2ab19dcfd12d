"""One question, one reply: `qwq ask` below its options.

Contract: what is too long for the context is an error with numbers and what to type, or, with
`trim`, cut (see `trim`) and asked again; which text lost how much is said before the reply.
Non-goals: reading options and files (`commands`, `inputs`), drawing (`render`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from qwqcli import trim as trimming
from qwqcli.config import Settings
from qwqcli.engine import Control, Engine, larger_for, prompt_room
from qwqcli.errors import ContextFull
from qwqcli.inputs import Asked
from qwqcli.messages import Message, Notice
from qwqcli.render import Reply, View, cut_line, draw_reply, larger_option, ticking


@dataclass(frozen=True, slots=True)
class Oneshot:
    """How a question is asked; each try is drawn by a view of its own."""

    engine: Engine
    settings: Settings
    view: Callable[[], View]
    control: Control

    def ask(self, asked: Asked, *, trim: bool) -> Reply:
        """Draw the reply. Raises the engine's errors; ContextFull tells how to go on."""
        try:
            return self._drawn(asked)
        except ContextFull as error:
            shorter = self._trimmed(asked) if trim else None
            if shorter is None:
                raise self._advised(error, asked, trim) from error
        return self._drawn(*shorter)

    def _drawn(self, asked: Asked, notices: Iterable[Notice] = ()) -> Reply:
        view = self.view()
        events = self.engine.stream(
            self._messages(asked),
            self.settings.sampling,
            ticking(view, self.control),
            thinking=self.settings.thinks,
            budget=self.settings.budget,
        )
        return draw_reply(chain(notices, events), view)

    def _messages(self, asked: Asked) -> list[Message]:
        system = self.settings.system
        said = [Message("system", system)] if system else []
        return [*said, Message("user", asked.prompt)]

    def _size(self, asked: Asked) -> int:
        return self.engine.count_tokens(self._messages(asked), thinking=self.settings.thinks)

    def _trimmed(self, asked: Asked) -> tuple[Asked, list[Notice]] | None:
        """What is left of the texts, and what to say of it; None if the question is too long."""
        cuts = trimming.oldest(asked.texts, lambda t: self._size(asked.with_texts(t)), self._room())
        if cuts is None:
            return None
        said = [
            Notice(f"[--trim oldest left out {cut_line(cut, name)}]")
            for name, cut in zip(asked.names, cuts, strict=True)
            if cut.left_out
        ]
        return asked.with_texts([cut.text for cut in cuts]), said

    def _advised(self, error: ContextFull, asked: Asked, trimmed: bool) -> ContextFull:
        """The error with what to type: what can be cut, and a larger context if one fits."""
        bare = asked.with_texts([""] * len(asked.texts))
        cuttable = any(asked.texts) and not trimmed and self._size(bare) < self._room()
        ways = ["--trim oldest" if cuttable else "a shorter question"]
        larger = larger_for(self.engine, self._size(asked))
        if larger and larger.fits:
            ways.append(larger_option(larger))
        return ContextFull(error.message, ", or ".join(ways))

    def _room(self) -> int:
        """Tokens that a prompt may have."""
        return prompt_room(self.engine.info().n_ctx, self.settings.budget.reserve)
