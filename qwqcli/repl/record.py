"""Keeps the store up with the chat: every turn before the next prompt, a reply as it grows.

A failure to write is told once, and what could not be written is tried again with the next turn, so
a disk that has room again holds everything. The chat itself never depends on the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from qwqcli.conversation import Conversation, Turn
from qwqcli.errors import QwqError, StoreError
from qwqcli.messages import Answer, Event, Reasoning
from qwqcli.sessions import Session, Store
from qwqcli.terminal import Clock

UNSAVED = "Until that is mended nothing more is saved."
EVERY_S = 1.0  # how old what is not yet on disk may become during a reply


class Record:
    """Writes one session at a time; `complain` is told of the first failure of a row."""

    def __init__(self, store: Store, complain: Callable[[QwqError], None]) -> None:
        self.store = store
        self._complain = complain
        self._late: dict[int, Turn] = {}  # turns that are not on disk as they are
        self._known: Session | None = None  # as we last wrote or read it
        self._failing = False

    def lost_name(self, session: Session) -> bool:
        """Whether another session took the name of this one before its first turn was written.

        No where the store cannot be asked; to write will tell why.
        """
        if not session.name or self._known is not None:
            return False
        with contextlib.suppress(StoreError):
            return self.store.taken(session.name, session.id)
        return False

    def save(self, session: Session, talk: Conversation, *turns: Turn) -> bool:
        """Write the session and these turns. A session nobody has said anything in is not kept."""
        self._late |= {turn.id: turn for turn in turns}
        if not talk.turns:
            return True
        try:
            self.store.save(session, talk.head, self._late.values(), self._known)
        except StoreError as error:
            if not self._failing:
                self._complain(StoreError(f"{error.message} {UNSAVED}", error.hint))
            self._failing = True
            return False
        self._late.clear()
        self._known = session
        self._failing = False
        return True

    def moved(self, known: Session | None = None) -> None:
        """The chat has gone to another session, `known` if it was read from the store.

        What is still late belongs to the one before.
        """
        self._late.clear()
        self._known, self._failing = known, False


class Growing:
    """One reply while it comes: what was said so far, and how much of it is on disk."""

    def __init__(self, record: Record, turn: Turn, saved: bool, clock: Clock) -> None:
        self._record = record
        self._turn = turn
        self._saved = saved
        self._clock = clock
        self._new: list[tuple[str, str]] = []
        self._pieces: list[tuple[str, str]] = []
        self._written = clock()

    @property
    def turn(self) -> Turn:
        """The turn with all that has been said."""
        return replace(
            self._turn,
            reasoning=self._turn.reasoning + "".join(piece[0] for piece in self._pieces),
            answer=self._turn.answer + "".join(piece[1] for piece in self._pieces),
        )

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass on the events of the reply, and keep what they say."""
        for event in events:
            match event:
                case Reasoning(text):
                    self._add(text, "")
                case Answer(text):
                    self._add("", text)
            yield event

    def tick(self) -> None:
        """Write what is old enough; to be called also while nothing comes."""
        if self._saved and self._new and self._clock() - self._written >= EVERY_S:
            thoughts, answers = zip(*self._new, strict=True)
            try:
                self._record.store.append(self._turn.id, "".join(thoughts), "".join(answers))
            except StoreError:
                self._saved = False  # the end of the reply writes it whole, or says why not
            self._new.clear()
            self._written = self._clock()

    def _add(self, reasoning: str, answer: str) -> None:
        if not self._new:
            self._written = self._clock()
        self._new.append((reasoning, answer))
        self._pieces.append((reasoning, answer))
        self.tick()


def open_store(path: Path, save: bool, complain: Callable[[QwqError], None]) -> Store:
    """The store on disk, or one in memory if nothing shall or can be saved."""
    if save:
        try:
            return Store(path)
        except StoreError as error:
            complain(error)
            complain(StoreError("This conversation is not saved."))
    return Store(None)
