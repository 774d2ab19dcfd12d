"""A conversation as a value: a tree of turns, and the path through it that the model is sent.

A turn is one question and one reply. To regenerate or to edit adds a turn beside the last one, to
undo steps back, to ask goes on: turns are only ever added, so nothing that was said is lost.
`head` is the turn that the person is at; the conversation is the path from the beginning to it.

What the model is sent: of that path every question that got an answer, also a partial one, with
that answer. A question whose reply was only thought, or failed, stays in the tree but is not sent,
because a model that reads its own silence goes on with it.

Non-goals: disk (`sessions`), the engine. Cost: a step is linear in the number of turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwqcli.inputs import Attachment, with_attachments
from qwqcli.messages import Message, Sampling, Stats, Stop

NOTHING_MEASURED, DEFAULTS = Stats(), Sampling()


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and one reply. `stop` is None as long as the reply has not come to an end."""

    id: int
    parent: int | None  # the turn before it; None for the first
    question: str
    attachments: tuple[Attachment, ...] = ()
    reasoning: str = ""
    answer: str = ""
    stop: Stop | None = None
    stats: Stats = NOTHING_MEASURED
    sampling: Sampling = DEFAULTS
    model: str = ""
    asked: float = 0.0  # seconds since 1970

    @property
    def answered(self) -> bool:
        return bool(self.answer.strip())

    @property
    def prompt(self) -> str:
        """What the model is sent as the question: it, and each attached file under its name."""
        return with_attachments(self.question, self.attachments)


@dataclass(frozen=True, slots=True)
class Conversation:
    """All turns in the order in which they were asked, and the one that the person is at."""

    turns: tuple[Turn, ...] = ()
    head: int | None = None

    @property
    def last(self) -> Turn | None:
        """The turn that the person is at."""
        return None if self.head is None else self._turn(self.head)

    def path(self) -> tuple[Turn, ...]:
        """The turns from the first to `head`."""
        known = {turn.id: turn for turn in self.turns}
        path: list[Turn] = []
        at = self.head
        while at is not None:
            path.append(known[at])
            at = known[at].parent
        return tuple(reversed(path))

    def messages(self, system: str = "") -> list[Message]:
        """What the engine is sent before the next question."""
        sent = [Message("system", system)] if system else []
        for turn in self.path():
            if turn.answered:
                sent.append(Message("user", turn.prompt))
                sent.append(Message("assistant", turn.answer, turn.reasoning))
        return sent

    def add(self, turn: Turn) -> Conversation:
        """With one turn more, which becomes the head. Its parent must be in the tree."""
        if turn.parent is not None:
            self._turn(turn.parent)
        return Conversation((*self.turns, turn), turn.id)

    def put(self, turn: Turn) -> Conversation:
        """With `turn` in the place of the one that has its id, as its reply grows."""
        self._turn(turn.id)
        turns = tuple(turn if turn.id == other.id else other for other in self.turns)
        return replace(self, turns=turns)

    def at(self, head: int | None) -> Conversation:
        """The same tree, with the person at another turn; None is before the first."""
        if head is not None:
            self._turn(head)
        return replace(self, head=head)

    def undo(self) -> Conversation:
        """Before the last turn; at the beginning nothing changes."""
        return self if self.last is None else self.at(self.last.parent)

    def alternatives(self) -> tuple[Turn, ...]:
        """The turns that answer the very question of the last one, itself among them."""
        last = self.last
        return () if last is None else tuple(t for t in self.turns if _same_question(t, last))

    def _turn(self, id: int) -> Turn:
        return next(turn for turn in self.turns if turn.id == id)


def branch(conversation: Conversation, ids: Sequence[int]) -> Conversation:
    """The path alone, as a conversation of its own whose turns have these ids."""
    path = conversation.path()
    parents = (None, *ids)
    turns = tuple(
        replace(turn, id=id, parent=parent)
        for turn, id, parent in zip(path, ids, parents[: len(path)], strict=True)
    )
    return Conversation(turns, ids[-1] if ids else None)


def _same_question(a: Turn, b: Turn) -> bool:
    return (a.parent, a.question, a.attachments) == (b.parent, b.question, b.attachments)
