"""The tokens of one reply, told as events: their text, which part they belong to, and how many.

Bytes come out of tokens, so they pass an incremental UTF-8 decoder, then the splitter, then leave
as pieces of thought or answer, several at once where they come fast.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from qwqcli.messages import Answer, Event, Reasoning, Stats, ThoughtEnd
from qwqcli.reasoning import Piece, Splitter


class Instants:
    """The instants of a reply, in seconds since the request reached the engine."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._start = clock, clock()
        self.prompt_s = 0.0
        self.first_token: float | None = None
        self.first_answer: float | None = None
        self.last_token = 0.0

    def now(self) -> float:
        return self._clock() - self._start

    def prompt_done(self) -> None:
        self.prompt_s = self.now()

    def token(self) -> None:
        self.last_token = self.now()
        if self.first_token is None:
            self.first_token = self.last_token


class Telling:
    """Turns tokens of one reply into events, and counts them.

    A piece waits only where one was said less than `apart_s` ago, and no longer than until the
    first token after that. In the answer, where no tag matters any more, even its text is made only
    then: with the caches full of weights, making it costs as much for one token as for ten.
    """

    def __init__(self, splitter: Splitter, instants: Instants, apart_s: float = 0.0) -> None:
        self.reasoning_tokens = self.answer_tokens = 0
        self.thought_end: ThoughtEnd | None = None
        self.text = ""  # what the last token of a thought added, tags and all
        self._splitter, self._instants, self._apart_s = splitter, instants, apart_s
        self._bytes = b""  # the beginning of a character, or what waits of the answer
        self._waiting: list[Reasoning | Answer] = []  # of one kind
        self._said = float("-inf")  # when a piece was said last

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to a thought."""
        return self._splitter.inside

    @property
    def closable(self) -> bool:
        """Whether a thought is open and not in the middle of a character."""
        return self.inside and not self._bytes

    @property
    def tokens(self) -> int:
        return self.reasoning_tokens + self.answer_tokens

    def token(self, piece: bytes, end: ThoughtEnd | None = None) -> Sequence[Event]:
        """Events of one more token. Both tags count as thought, as does all between them.

        `end` says why the thought ends if this token ends it; None: the model closes it.
        """
        self._instants.token()
        self._bytes += piece
        if self._splitter.settled:
            self.answer_tokens += 1
            return self.held() if self._due() else ()
        inside = self.inside
        self.text = self._decoded()
        pieces = self._splitter.feed(self.text)
        if inside or self.inside:
            self.reasoning_tokens += 1
        else:
            self.answer_tokens += 1
        events = self._events(pieces)
        if inside and not self.inside:  # the closing tag has no text, but counts
            self.thought_end = end or "closed"
            thought = sum(isinstance(event, Reasoning) for event in events)
            events.insert(thought, Reasoning("", self.reasoning_tokens, self.thought_end))
        return self._gathered(events)

    def held(self) -> list[Event]:
        """What waits, to be said now: something else follows."""
        if self._splitter.settled:
            self._waiting += self._events(self._splitter.feed(self._decoded()))
        return self._joined()

    def flush(self) -> list[Event]:
        """What is left at the end: what waits, half a character, what might have become a tag."""
        pieces = self._splitter.feed(self._decoded(final=True)) + self._splitter.flush()
        return self._gathered(self._events(pieces)) + self._joined()

    def _decoded(self, final: bool = False) -> str:
        text, used = codecs.utf_8_decode(self._bytes, "replace", final)
        self._bytes = self._bytes[used:]
        return text

    def _events(self, pieces: list[Piece]) -> list[Reasoning | Answer]:
        events: list[Reasoning | Answer] = []
        for piece in pieces:
            if piece.kind == "reasoning":
                events.append(Reasoning(piece.text, self.reasoning_tokens))
            else:
                if self._instants.first_answer is None:
                    self._instants.first_answer = self._instants.now()
                events.append(Answer(piece.text, self.answer_tokens))
        return events

    def _gathered(self, events: Iterable[Reasoning | Answer]) -> list[Event]:
        """Those of `events` that are said now, together with what waited for them."""
        said: list[Event] = []
        for event in events:
            if self._waiting and type(event) is not type(self._waiting[0]):
                said += self._joined()
            self._waiting.append(event)
            # what comes after the piece that closes a thought belongs to another
            if self._due() or (isinstance(event, Reasoning) and event.end):
                said += self._joined()
        return said

    def _due(self) -> bool:
        return self._instants.last_token - self._said >= self._apart_s

    def _joined(self) -> list[Event]:
        """All that wait as one piece, with the number of tokens and the end of the last."""
        if not self._waiting:
            return []
        text = "".join(piece.text for piece in self._waiting)
        joined = replace(self._waiting[-1], text=text)
        self._waiting.clear()
        self._said = self._instants.last_token
        return [joined]

    def stats(self, prompt_tokens: int, reused: int, seed: int) -> Stats:
        instants, first = self._instants, self._instants.first_token
        return Stats(
            prompt_tokens=prompt_tokens,
            reused_tokens=reused,
            reasoning_tokens=self.reasoning_tokens,
            answer_tokens=self.answer_tokens,
            time_to_first_token_s=first,
            time_to_answer_s=instants.first_answer,
            prompt_s=instants.prompt_s,
            generation_s=instants.last_token - first if first else 0.0,
            seed=seed,
        )
