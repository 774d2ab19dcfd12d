"""What a list of outcomes says: shares with their confidence, medians, and what a change costs.

Contract: pure. A share carries its 95 % interval by Wilson (1927), which is right for few trials
and for shares near 0 and 1. Trials of one prompt are taken as independent, which
flatters: repetitions tell of the sampling, not of other prompts.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwqcli.suite import Outcome, Setup

Z95 = 1.959964  # of the normal distribution


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of some outcomes; medians and means over those that were asked."""

    asked: int
    judged: int
    right: int
    skipped: int
    low: float  # of the 95 % interval of `share`
    high: float
    first_token_s: float | None  # median
    answer_s: float | None  # median time to the first token of the answer
    unanswered: int
    reasoning_tokens: float  # mean
    answer_tokens: float
    thoughts: tuple[tuple[str, int], ...]  # how they ended, the most frequent first
    tokens_per_s: float | None
    total_s: float  # of all replies

    @property
    def share(self) -> float | None:
        return self.right / self.judged if self.judged else None


def wilson(right: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = right / trials, Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials)
    half *= math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(outcomes: Iterable[Outcome]) -> Score:
    """The figures of these outcomes."""
    every = list(outcomes)
    asked = [o for o in every if o.stop != "skipped"]
    judged = [o for o in asked if o.right is not None]
    right = sum(o.right is True for o in judged)
    low, high = wilson(right, len(judged))
    generated = sum(max(0, o.reasoning_tokens + o.answer_tokens - 1) for o in asked)
    seconds = sum(o.generation_s for o in asked)
    return Score(
        asked=len(asked),
        judged=len(judged),
        right=right,
        skipped=len(every) - len(asked),
        low=low,
        high=high,
        first_token_s=_median([o.time_to_first_token_s for o in asked]),
        answer_s=_median([o.time_to_answer_s for o in asked]),
        unanswered=sum(o.time_to_answer_s is None for o in asked),
        reasoning_tokens=_mean([o.reasoning_tokens for o in asked]),
        answer_tokens=_mean([o.answer_tokens for o in asked]),
        thoughts=tuple(Counter(o.thought for o in asked).most_common()),
        tokens_per_s=generated / seconds if seconds > 0 else None,
        total_s=sum(o.total_s for o in asked),
    )


def by_setup(outcomes: Iterable[Outcome]) -> dict[Setup, list[Outcome]]:
    """The outcomes of each setup, in the order in which setups come first."""
    groups: dict[Setup, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.setup, []).append(outcome)
    return groups


def by_prompt(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each prompt."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.prompt, []).append(outcome)
    return groups


@dataclass(frozen=True, slots=True)
class Change:
    """A setup beside the first one, over the replies that both were judged on."""

    pairs: int
    gained: int  # right here, wrong there
    lost: int
    seconds: float  # all replies here less all replies there
    p_value: float  # of gains and losses being chance: the exact sign test


def change(first: Iterable[Outcome], second: Iterable[Outcome]) -> Change:
    """What `second` gains and costs over `first`, reply by reply."""
    before = {(o.prompt, o.repeat): o for o in first if o.right is not None}
    pairs = [
        (before[o.prompt, o.repeat], o)
        for o in second
        if o.right is not None and (o.prompt, o.repeat) in before
    ]
    gained = sum(bool(b.right) and not a.right for a, b in pairs)
    lost = sum(bool(a.right) and not b.right for a, b in pairs)
    seconds = sum(b.total_s - a.total_s for a, b in pairs)
    return Change(len(pairs), gained, lost, seconds, sign_test(gained, lost))


def sign_test(gained: int, lost: int) -> float:
    """Two-sided probability of a split at least as uneven, if both were equally likely."""
    trials, least = gained + lost, min(gained, lost)
    tail = sum(math.comb(trials, k) for k in range(least + 1)) / 2**trials
    return min(1.0, 2 * float(tail))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Sequence[int]) -> float:
    return statistics.fmean(values) if values else 0.0
