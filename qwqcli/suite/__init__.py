"""Suites: is the answer right, and how long did a person wait for it?

Contract: `run.run` asks every prompt of a suite, judges each reply, and yields an `Outcome` as soon
as it is known; it never draws. What has been asked is written down at once, so that a run goes on
where it was stopped. The seed of each reply follows from the seed of the run, the prompt and the
repetition: the same seed gives the same replies on the same machine.
Inside, each knowing only those before it: score (figures) · journal (the disk) · gym (tasks of
reasoning-gym) · run · draw.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from qwqcli.checkers import Checker, Verdict

SCHEMA = 1


@dataclass(frozen=True)
class Task:
    """One prompt as it is asked in a run."""

    name: str
    text: str
    judge: Checker | Any  # has `judge(answer)`; see checkers.check
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    budget: str | None = None

    def seed(self, seed: int, repeat: int) -> int:
        """The seed of this task in the given repetition; below 2^32 - 1."""
        return zlib.crc32(f"{seed} {self.name} {repeat}".encode()) % (2**32 - 1)


@dataclass(frozen=True, slots=True)
class Setup:
    """What one row of a comparison has in common."""

    model: str
    budget: str

    @property
    def label(self) -> str:
        return f"{self.model} {self.budget}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reply, judged. Times are in seconds; None where there was nothing to time.

    `right` is None if nothing was judged: the prompt did not fit (stop "skipped"), code was not
    run, or the engine died. `total_s` is from the request to the last token.
    """

    setup: Setup
    prompt: str
    repeat: int
    seed: int
    right: bool | None
    found: str
    why: str
    stop: str  # messages.Stop, or "skipped"
    thought_end: str | None
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    time_to_first_token_s: float | None = None
    time_to_answer_s: float | None = None
    generation_s: float = 0.0
    total_s: float = 0.0
    reasoning: str = ""
    answer: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What is asked once in a run."""
        return (self.setup.model, self.setup.budget, self.prompt, self.repeat)

    @property
    def thought(self) -> str:
        """How the thought ended: closed, budget, loop, context, answer_now, cut or none."""
        if self.thought_end:
            return self.thought_end
        return "cut" if self.reasoning_tokens and not self.answer_tokens else "none"


DIED = Verdict(None, "", "the engine died")
SKIPPED = Verdict(None, "", "the prompt does not fit into the context")
