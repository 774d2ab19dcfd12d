"""Tells when a text has begun to go in circles, fed as it comes, at a flat cost per token.

The text is read as units: words, numbers, single Chinese characters, runs of one symbol. A run of
units is stale when it has been seen often enough before, and a text that stays stale for long
goes in circles. Two counts, of which either may raise the alarm:

- exact: runs of EXACT.length units as they are. Catches any cycle, of whatever period.
- near: longer runs with every number taken for the same one, at least half of them words. Catches
  "Step 1 … Step 2 …". Tables and lists are honest near repeats, so this one waits much longer.

Figures of false alarms and delays: benchmarks/LOG.md. Non-goals: knowing tokens or tags, deciding
what is done about it, paraphrases (a thought that says the same in ever new words).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

# Words longer than any real one, and runs of one symbol, are cut: an endless one must be seen too.
_UNIT = re.compile(
    r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]{1,24}|\d{1,16}|([^\w ]|_)\1{0,15}| {2,16}"
)
_REMEMBERED = 300_000  # runs; then all are forgotten, so that memory is bounded


@dataclass(frozen=True, slots=True)
class Rule:
    """`length` units make a run, stale once seen `seen` times before.

    The score grows by one with a stale run and falls by `relief` with another, never below zero;
    at `alarm` the text goes in circles.
    """

    length: int
    seen: int
    relief: int
    alarm: int


EXACT = Rule(length=8, seen=4, relief=8, alarm=300)
NEAR = Rule(length=12, seen=8, relief=8, alarm=1_200)


class Guard:
    """One text; `feed` it as it comes, broken anywhere."""

    def __init__(self) -> None:
        self._rest = ""  # the last unit, which may go on
        self._exact, self._near = _Count(EXACT), _Count(NEAR)

    def feed(self, text: str) -> bool:
        """Whether the text goes in circles by now; having said so, it starts anew."""
        self._rest += text
        units = [match.group() for match in _UNIT.finditer(self._rest)]
        if not units:
            self._rest = self._rest[-1:]
            return False
        self._rest = self._rest[self._rest.rindex(units[-1]) :]
        circles = False
        for unit in units[:-1]:
            number, word = unit[0].isdecimal(), unit[0].isalpha()
            exact = self._exact.add(unit, True)
            near = self._near.add("0" if number else unit, word)
            circles = circles or exact or near
        if circles:
            self.__init__()  # type: ignore[misc]
        return circles


class _Count:
    """How often each run was seen, and how stale the text is."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._run: deque[str] = deque(maxlen=rule.length)
        self._words: deque[bool] = deque(maxlen=rule.length)
        self._telling = 0  # how many units of the run are words
        self._seen: dict[int, int] = {}
        self._score = 0

    def add(self, unit: str, word: bool) -> bool:
        """Whether the text goes in circles with `unit`, which is or is not a word."""
        if len(self._words) == self._rule.length:
            self._telling -= self._words[0]
        self._run.append(unit)
        self._words.append(word)
        self._telling += word
        key = hash(tuple(self._run))
        times = self._seen.get(key, 0)
        self._seen[key] = times + 1
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        if times >= self._rule.seen and 2 * self._telling >= self._rule.length:
            self._score += 1
        else:
            self._score = max(0, self._score - self._rule.relief)
        return self._score >= self._rule.alarm
