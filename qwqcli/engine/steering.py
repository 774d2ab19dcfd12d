"""When the thought of a reply is closed from outside, and with which words.

Contract: pure; told the text of the thought as it comes and asked before each token. What is fed
to the model then, and how, is the decode loop's affair (llama.py).

The closing sentence is the one that the Qwen team closes a thought with when its budget is spent
(Qwen3 Technical Report, section 4.3); a bare tag makes models go on thinking in the answer, and
warnings before the end make thoughts longer (sources in ../README.md, decision 11).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwqcli.engine import RESERVE_SHARE
from qwqcli.guard import Guard
from qwqcli.messages import Budget, Order, ThoughtEnd
from qwqcli.reasoning import CLOSE

CLOSINGS = 3  # a model that opens a thought again and again is let go after so many
STRETCH = 256  # tokens for which a presence penalty tries to break a loop
PRESENCE_PENALTY = 1.5  # Qwen's cards name 0 to 2 against loops (QwQ-32B, Qwen3)

SENTENCES = {
    "en": "Considering the limited time by the user, I have to give the solution based on the"
    " thinking directly now.",
    "zh": "考虑到用户的时间有限，我现在必须直接根据以上思考给出答案。",
}
_TAIL = 400  # characters of thought that tell its language

LOOP_NOTICE = (
    "The thought goes in circles; words that it has used are made less likely for a while."
)
LOOP_OVER = "The thought still goes in circles; it is closed, and the answer asked for."


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tokens a thought may have, and what ends it there; None: no such limit."""

    tokens: int | None
    why: ThoughtEnd


def limits(budget: Budget, room: int, closing: int) -> Limits:
    """Of a thought where `room` tokens follow the prompt and closing it takes up to `closing`."""
    if not budget.reserve:
        return Limits(budget.tokens, "budget")
    left = max(0, room - min(budget.reserve, room // RESERVE_SHARE) - closing)
    if budget.tokens is not None and budget.tokens <= left:
        return Limits(budget.tokens, "budget")
    return Limits(left, "context")


def closing(thought: str) -> str:
    """What closes `thought`, of which the end is enough."""
    if not thought.strip():
        return bare_closing()
    gap = "\n" * (2 - min(2, len(thought) - len(thought.rstrip("\n"))))
    return f"{gap}{SENTENCES[language(thought)]}\n{CLOSE}\n\n"


def bare_closing() -> str:
    """Where there is no thought to speak of, or no room for a sentence."""
    return f"{CLOSE}\n\n"


def language(text: str) -> str:
    """`zh` where Chinese characters outweigh words of other scripts, else `en`."""
    chinese = sum("\u3400" <= char <= "\u9fff" for char in text)
    kana = any("\u3040" <= char <= "\u30ff" for char in text)
    letters = sum(char.isalpha() for char in text) - chinese
    # a Chinese character says about as much as three letters
    return "zh" if 3 * chinese > letters and not kana else "en"


class Steering:
    """The thought of one reply."""

    def __init__(
        self, budget: Budget, limit: Limits, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._limit, self._seconds, self._clock = limit, budget.seconds, clock
        self._guard = Guard() if budget.guard else None
        self._loops = 0
        self._began: float | None = None
        self._closings = 0
        self._tail = ""

    def note(self, text: str) -> str:
        """Take in a piece of the thought; a notice if it goes in circles, else an empty text."""
        self._tail = (self._tail + text)[-_TAIL:]
        if self._closings or not (self._guard and self._guard.feed(text)):
            return ""
        self._loops += 1
        return LOOP_NOTICE if self._loops == 1 else LOOP_OVER

    def over(self, order: Order, tokens: int) -> ThoughtEnd | None:
        """Why the thought must end now, `tokens` long; None while it may go on.

        Asked before each token of a thought.
        """
        if self._began is None:
            self._began = self._clock()
        if self._closings >= CLOSINGS:
            return None
        if order == Order.ANSWER:
            return "answer_now"
        if self._loops > 1:
            return "loop"
        if self._limit.tokens is not None and tokens >= self._limit.tokens:
            return self._limit.why
        if self._seconds is not None and self._clock() - self._began >= self._seconds:
            return "budget"
        return None

    def close(self) -> str:
        """The words that close it; in a thought opened once more, the tag alone."""
        self._closings += 1
        return closing(self._tail) if self._closings == 1 else bare_closing()
