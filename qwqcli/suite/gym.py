"""Tasks made by reasoning-gym, so that none can have been learnt by heart: `--suite gym:TASK`.

Contract: `tasks` gives `SIZE` tasks of one of its generators, made from the seed, each judged by
the generator's own verifier, in this process and without a time limit. The package is optional and
is imported only here and only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qwqcli.checkers import Verdict
from qwqcli.checkers.verdict import boxed
from qwqcli.config import closest
from qwqcli.errors import UsageError
from qwqcli.suite import Task

SIZE = 20  # tasks of one run
PREFIX = "gym:"
FULL = 0.999  # a verifier's score for an answer that is right; less is given for its form alone
_FRAME = "\n\nPut the final answer alone within \\boxed{}."


@dataclass(frozen=True)
class GymChecker:
    """The verifier of the generator that a task is from."""

    dataset: Any = field(repr=False)  # a run is known again by what stands in its repr
    entry: Any

    def judge(self, answer: str) -> Verdict:
        box = boxed(answer)
        found = (answer if box is None else box).strip()
        score = float(self.dataset.score_answer(answer=found, entry=self.entry))
        right = score >= FULL
        return Verdict(right, found[:200], "" if right else f"its verifier gives {score:.2f} of 1")


def tasks(name: str, seed: int) -> list[Task]:
    """Raises UsageError if reasoning-gym is not installed or has no such generator."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(
            "Suites of reasoning-gym need that package.", "pip install 'qwq[gym]'"
        ) from error
    task = name.removeprefix(PREFIX)
    if task not in DATASETS:
        some = PREFIX + (closest(task, DATASETS) or "basic_arithmetic")
        raise UsageError(f"reasoning-gym has no task '{task}'.", f"--suite {some}")
    dataset = reasoning_gym.create_dataset(task, size=SIZE, seed=seed)
    return [
        Task(f"{task}-{at}", entry["question"] + _FRAME, GymChecker(dataset, entry))
        for at, entry in enumerate(dataset, 1)
    ]
