"""Asking a suite: every prompt, for every model, budget and repetition, until all is known.

Contract: `run` yields outcomes as they come, those that an earlier run had left first. It ends
early when `control` says STOP; nothing that was known is lost. A prompt that does not fit into the
context is skipped and counted. Code in answers is tried only with `run_code`.
Limits: replies are asked one after the other, in one order; their figures are those of a machine
that does nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwqcli import budget, checkers
from qwqcli.checkers import Verdict
from qwqcli.engine import Control, Engine, never
from qwqcli.errors import ContextFull
from qwqcli.messages import Answer, Done, Message, Order, Reasoning, Sampling
from qwqcli.prompts import Library, Prompt, render
from qwqcli.suite import DIED, SKIPPED, Outcome, Setup, Task, gym
from qwqcli.suite.journal import Journal

OpenModel = Callable[[str], Engine]  # a model's name, as in Wanted.models


@dataclass(frozen=True)
class Wanted:
    """A whole run: what is asked, of which models, with which settings."""

    suite: str
    tasks: tuple[Task, ...]
    models: tuple[tuple[str, Path], ...]  # names and files
    budgets: tuple[str, ...]  # as in budget.parse; "" leaves it to the prompt, else to `default`
    sampling: Sampling  # what no prompt recommends otherwise
    flags: Mapping[str, Any]  # temperature, max_tokens that go before what a prompt recommends
    default: str = "auto"
    repeat: int = 1
    seed: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)  # settings that change what it computes
    run_code: bool = False

    @property
    def total(self) -> int:
        return len(self.tasks) * len(self.models) * len(self.budgets) * self.repeat

    def asked(self) -> dict[str, Any]:
        """What makes a run the same as another, as plain values."""
        texts = [f"{t.name}\0{t.system}\0{t.text}\0{t.judge}" for t in self.tasks]
        models = [[name, path.stat().st_size] for name, path in self.models]
        sampling = (self.sampling.top_p, self.sampling.top_k, self.sampling.min_p)
        return {
            "suite": self.suite,
            "prompts": len(self.tasks),
            "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16],
            "models": models,
            "budgets": [name or self.default for name in self.budgets],
            "temperature": self.flags.get("temperature"),
            "max_tokens": self.flags.get("max_tokens"),
            "sampling": [self.sampling.temperature, *sampling, self.sampling.max_tokens],
            "repeat": self.repeat,
            "seed": self.seed,
            "engine": dict(self.engine),
            "run_code": self.run_code,
        }


def tasks_of(
    library: Library, name: str, seed: int, system: str = "", others: Sequence[str] = ()
) -> tuple[Task, ...]:
    """The tasks of a suite: of the library, or `gym:TASK`.

    Raises UsageError; `others` are suites of other kinds that may have been meant.
    """
    if name.startswith(gym.PREFIX):
        return tuple(gym.tasks(name, seed))
    return tuple(_task(prompt, seed, system) for prompt in library.suite(name, others))


def _task(prompt: Prompt, seed: int, system: str) -> Task:
    rendered = render(prompt, seed=seed)
    assert rendered.checker is not None  # a suite holds judged prompts only
    wished = prompt.settings
    return Task(
        prompt.id,
        rendered.text,
        rendered.checker,
        rendered.system or system,
        wished.temperature,
        wished.max_tokens,
        wished.budget,
    )


def run(
    wanted: Wanted, open_model: OpenModel, journal: Journal, control: Control = never
) -> Iterator[Outcome]:
    """Ask what is not known yet; yields every outcome of the run. Raises the engine's errors."""
    known = {outcome.key: outcome for outcome in journal.outcomes()}
    yield from known.values()
    for model, _ in wanted.models:
        left = [case for case in _cases(wanted, model) if case.key not in known]
        if not left:
            continue
        engine = open_model(model)
        try:
            for case in left:
                outcome = _ask(engine, wanted, case, control)
                if outcome is None:
                    return
                journal.add(outcome)
                yield outcome
        finally:
            engine.close()


@dataclass(frozen=True)
class _Case:
    setup: Setup
    task: Task
    repeat: int
    budget: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.setup.model, self.setup.budget, self.task.name, self.repeat)


def _cases(wanted: Wanted, model: str) -> Iterator[_Case]:
    for name in wanted.budgets:
        for repeat in range(1, wanted.repeat + 1):
            for task in wanted.tasks:
                used = name or task.budget or wanted.default
                yield _Case(Setup(model, name or wanted.default), task, repeat, used)


def _ask(engine: Engine, wanted: Wanted, case: _Case, control: Control) -> Outcome | None:
    """One reply, judged; None if the person stopped it."""
    task, seed = case.task, case.task.seed(wanted.seed, case.repeat)
    sampling = replace(_sampling(wanted, task), seed=seed)
    messages = [Message("system", task.system)] if task.system else []
    messages.append(Message("user", task.text))
    allowed = budget.parse(case.budget)
    thought: list[str] = []
    answer: list[str] = []
    done: Done | None = None
    try:
        for event in engine.stream(
            messages, sampling, control, thinking=allowed.tokens != 0, budget=allowed
        ):
            if isinstance(event, Reasoning):
                thought.append(event.text)
            elif isinstance(event, Answer):
                answer.append(event.text)
            elif isinstance(event, Done):
                done = event
    except ContextFull:
        return _outcome(case, seed, SKIPPED, "", "", None)
    assert done is not None
    if done.stop == "interrupted" or control() is Order.STOP:
        return None
    text = "".join(answer)
    if done.stop == "died":
        return _outcome(case, seed, DIED, "".join(thought), text, done)
    verdict = checkers.check(task.judge, text, run_code=wanted.run_code)
    return _outcome(case, seed, verdict, "".join(thought), text, done)


def _sampling(wanted: Wanted, task: Task) -> Sampling:
    """The run's sampling, with what the prompt recommends, under what a flag says."""
    temperature = wanted.flags.get("temperature")
    most = wanted.flags.get("max_tokens")
    own = wanted.sampling
    return replace(
        own,
        temperature=_first(temperature, task.temperature, own.temperature),
        max_tokens=_first(most, task.max_tokens, own.max_tokens),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _outcome(
    case: _Case, seed: int, verdict: Verdict, thought: str, answer: str, done: Done | None
) -> Outcome:
    known = Outcome(
        setup=case.setup,
        prompt=case.task.name,
        repeat=case.repeat,
        seed=seed,
        right=verdict.right,
        found=verdict.found,
        why=verdict.why,
        stop="skipped",
        thought_end=None,
    )
    if done is None:
        return known
    stats = done.stats
    return replace(
        known,
        stop=done.stop,
        thought_end=done.thought_end,
        prompt_tokens=stats.prompt_tokens,
        reasoning_tokens=stats.reasoning_tokens,
        answer_tokens=stats.answer_tokens,
        time_to_first_token_s=stats.time_to_first_token_s,
        time_to_answer_s=stats.time_to_answer_s if answer.strip() else None,
        generation_s=stats.generation_s,
        total_s=(stats.time_to_first_token_s or stats.prompt_s) + stats.generation_s,
        reasoning=thought,
        answer=answer,
    )
