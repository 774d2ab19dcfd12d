"""A small engine that says what a script tells it, for tests and for looking at the terminal.

`python -m tests.fakes` chats with it on the terminal it is started in.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwqcli.engine import UNLIMITED, Control, EngineInfo, Keep, never
from qwqcli.errors import EngineError, QwqError
from qwqcli.layout import Larger
from qwqcli.messages import (
    Answer,
    Budget,
    Done,
    Event,
    Loading,
    Message,
    Order,
    Prompting,
    Reasoning,
    Sampling,
    Stats,
)

CLOSING = "\n\nThat is enough thought."  # what closes a thought from outside

# a reply: its events, or (reasoning, answer), or an error to raise
Script = Sequence[Event] | tuple[str, str] | QwqError


@dataclass
class ScriptedEngine:
    """Obeys the Engine protocol; remembers the messages and the sampling that it was sent."""

    replies: Sequence[Script] = (("", "Hello."),)
    delay_s: float = 0.0  # before each event
    load_s: float = 0.0  # the first reply begins with this much loading
    batches: int = 0  # of prompt processing, at the beginning of each reply
    sent: list[list[Message]] = field(default_factory=list)
    sampling: list[Sampling] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    thinking: list[bool] = field(default_factory=list)
    prepared: list[list[Message]] = field(default_factory=list)
    closed: int = 0

    def info(self) -> EngineInfo:
        return EngineInfo("scripted", 4096, 32_768, 1, 1, 1, True, self.load_s, "nowhere")

    def count_tokens(self, messages: Sequence[Message], *, thinking: bool = True) -> int:
        return sum(len(message.content.split()) for message in messages)

    def prepare(self, messages: Sequence[Message], keep: Keep | None = None) -> bool:
        self.prepared.append(list(messages))
        return True

    def larger(self, n_ctx: int) -> Larger | None:
        return Larger(n_ctx, n_ctx * 1000, fits=n_ctx <= 8192)

    def close(self) -> None:
        self.closed += 1

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        control: Control = never,
        *,
        thinking: bool = True,
        budget: Budget = UNLIMITED,
    ) -> Iterator[Event]:
        """The next script; the last one is repeated for ever."""
        if self.closed:
            raise EngineError("The engine is closed.")
        script = self.replies[min(len(self.sent), len(self.replies) - 1)]
        self.sent.append(list(messages))
        self.sampling.append(sampling)
        self.budgets.append(budget)
        self.thinking.append(thinking)
        if isinstance(script, QwqError):
            raise script
        yield from self._play([*self._loading(), *self._prompting(), *events(script)], control)

    def _loading(self) -> list[Event]:
        load_s, self.load_s = self.load_s, 0.0
        steps = int(load_s / 0.05)
        return [Loading(step / steps) for step in range(steps)]

    def _prompting(self) -> list[Event]:
        return [Prompting(512 * n, 512 * self.batches) for n in range(1, self.batches + 1)]

    def _wait(self, seconds: float, control: Control) -> Order:
        """Ask `control` now and then, as the real engine does while its child is silent."""
        for _ in range(int(seconds / 0.05)):
            time.sleep(0.05)
            if order := control():
                return order
        time.sleep(seconds % 0.05)
        return control()

    def _play(self, script: list[Event], control: Control) -> Iterator[Event]:
        """Say the events; at an order to answer, the thought is closed and the rest of it cut."""
        stats, end = Stats(), None
        for event in script:
            order = self._wait(0.05 if isinstance(event, Loading) else self.delay_s, control)
            if order == Order.STOP:
                yield Done("interrupted", stats, end)
                return
            if isinstance(event, Reasoning):
                if end == "answer_now":
                    continue
                stats = replace(stats, reasoning_tokens=event.tokens)
                end = event.end
                if order == Order.ANSWER and not end:
                    event = Reasoning(CLOSING, event.tokens, end := "answer_now")
            if isinstance(event, Answer):
                stats = replace(stats, answer_tokens=event.tokens)
            if isinstance(event, Done) and end:
                event = replace(event, thought_end=end)
            yield event


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Clock:
    """A clock that goes on by `step` each time it is asked."""

    now: float = 0.0
    step: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def events(script: Sequence[Event] | tuple[str, str]) -> list[Event]:
    """The events of a reply; (reasoning, answer) becomes a word a token and one Done."""
    if not (isinstance(script, tuple) and isinstance(script[0], str)):
        return [event for event in script if not isinstance(event, str)]
    reasoning, answer = (words(str(text)) for text in script)
    return [
        Prompting(31, 31),
        *(Reasoning(word, at) for at, word in enumerate(reasoning, 1)),
        *([Reasoning("", len(reasoning), "closed")] if reasoning and answer else []),
        *(Answer(word, at) for at, word in enumerate(answer, 1)),
        Done("end", Stats(31, 12, len(reasoning), len(answer), 0.21, 1.5, 0.1, 1.6, 7)),
    ]


def words(text: str) -> list[str]:
    """Pieces that end after each blank; together they are the text."""
    pieces = text.replace(" ", " \0").replace("\n", "\n\0").split("\0")
    return [piece for piece in pieces if piece]


def main() -> int:
    """Chat with a script from the environment, for a person or a pseudo-terminal test.

    FAKE_REPLIES is a JSON list of [thought, answer].
    """
    from qwqcli.config import Paths, Settings
    from qwqcli.repl import run_chat

    environ = os.environ
    replies = json.loads(environ.get("FAKE_REPLIES", '[["", "Hello."]]'))
    home = Path(environ.get("FAKE_HOME", "/tmp/qwq-fake"))
    engine = ScriptedEngine(
        [(thought, answer) for thought, answer in replies],
        float(environ.get("FAKE_DELAY", "0.02")),
        float(environ.get("FAKE_LOAD", "0")),
        int(environ.get("FAKE_BATCHES", "0")),
    )
    settings = Settings(model=environ.get("FAKE_MODEL", "scripted"))
    code = run_chat(lambda name: engine, settings, Paths(home, home, home))
    if "FAKE_LOG" in environ:
        log = "\n---\n".join(repr([message.content for message in sent]) for sent in engine.sent)
        Path(environ["FAKE_LOG"]).write_text(log, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
