"""Split a reply into thought and answer, fed in pieces that may break anywhere, tags included.

Contract: for every way to cut a reply into pieces the output is the same, kind by kind; nothing
is lost but consumed tags and the whitespace named below; at most HELD_SPACES + 7 characters wait.

- A thought is open from the start (`inside`: the prompt ended in <think>), or the reply opens one
  with <think> as its first text. A reply that starts with anything else is answer to its end.
- An opened prompt and a reply that opens again mean one thought: the echo is consumed, once.
- <think> further inside a thought is text. Depth is not counted: models talk about the tag they
  think in, they do not nest, and one tag in prose would else swallow the whole answer.
- The first </think> closes. No </think>: all of it is thought, and `flush` gives out the rest.
- After it, <think> with only whitespace in between opens the next thought; once the answer has
  begun every tag is text, in prose, in code, anywhere.
- Whitespace is dropped where a thought begins, before its </think> and where the answer begins
  after one; in a reply without a thought it is all kept.

Non-goals: other models' tags, tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["reasoning", "answer"]

OPEN = "<think>"
CLOSE = "</think>"

# Whitespace waits because a tag may follow; a model that loops on newlines must not fill memory,
# so a longer run goes out as text and is not trimmed.
HELD_SPACES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one kind, never empty, never with a consumed tag in it."""

    kind: Kind
    text: str


class Splitter:
    """One reply; `feed` it as it comes, `flush` it once at the end."""

    def __init__(self, inside: bool) -> None:
        # start: nothing seen · opening: a thought, no text yet · thought · closed: after a thought,
        # no text yet · answer
        self._state: Literal["start", "opening", "thought", "closed", "answer"]
        self._state = "opening" if inside else "start"
        self._echo = inside  # the reply may repeat the tag that the prompt opened
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to a thought, as far as is known by now."""
        return self._state in ("opening", "thought")

    @property
    def settled(self) -> bool:
        """Whether all that comes next is answer, tags or not."""
        return self._state == "answer" and not self._held

    @property
    def held(self) -> int:
        """How many characters wait for what follows them."""
        return len(self._held)

    def feed(self, text: str) -> list[Piece]:
        """What is certain after `text`."""
        if self.settled:
            return [Piece("answer", text)] if text else []
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """What still waits, at the end of the reply: no tag came of it, so it is text."""
        text, self._held = self._held, ""
        return [Piece("reasoning" if self.inside else "answer", text)] if text else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """Take one step through the text; False when it needs more."""
        if self._state == "start":
            return self._start()
        if self._state == "opening":
            return self._opening()
        if self._state == "thought":
            return self._thought(pieces)
        if self._state == "closed":
            return self._closed()
        self._emit(pieces, "answer", len(self._held))
        return False

    def _start(self) -> bool:
        text = self._held.lstrip()
        spaces = len(self._held) - len(text)
        if spaces > HELD_SPACES:
            self._state = "answer"
        elif text.startswith(OPEN):
            self._held = text[len(OPEN) :]
            self._state = "opening"
        elif OPEN.startswith(text):
            return False
        else:
            self._state = "answer"
        return True

    def _opening(self) -> bool:
        self._held = self._held.lstrip()
        if self._echo and self._held.startswith(OPEN):
            self._held = self._held[len(OPEN) :]
            self._echo = False
            return True
        if not self._held or (self._echo and OPEN.startswith(self._held)):
            return False
        self._state = "thought"
        return True

    def _thought(self, pieces: list[Piece]) -> bool:
        end = self._held.find(CLOSE)
        if end < 0:
            self._emit(pieces, "reasoning", _spaces_start(self._held, _tag_start(self._held)))
            return False
        self._emit(pieces, "reasoning", _spaces_start(self._held, end))
        self._held = self._held.lstrip()[len(CLOSE) :]
        self._state = "closed"
        return True

    def _closed(self) -> bool:
        self._held = self._held.lstrip()
        if self._held.startswith(OPEN):
            self._held = self._held[len(OPEN) :]
            self._echo = False
            self._state = "opening"
            return True
        if OPEN.startswith(self._held):
            return False
        self._state = "answer"
        return True

    def _emit(self, pieces: list[Piece], kind: Kind, end: int) -> None:
        if end:
            pieces.append(Piece(kind, self._held[:end]))
            self._held = self._held[end:]


def _tag_start(text: str) -> int:
    """Where the end of `text` may be the start of a closing tag; its length if nowhere."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if CLOSE.startswith(text[-size:]):
            return len(text) - size
    return len(text)


def _spaces_start(text: str, end: int) -> int:
    """Where the run of at most HELD_SPACES whitespace characters before `end` begins."""
    tail = text[max(0, end - HELD_SPACES) : end]
    return end - (len(tail) - len(tail.rstrip()))
