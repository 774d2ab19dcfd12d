"""Is an answer right? A checker for each kind of answer, made of what a prompt says.

Contract: `make` builds a checker or raises ValueError with one sentence that says which option is
wrong; `check` judges an answer and always comes to an end: kinds that can run for ever (a pattern,
a schema, code) do it in a child process that is ended after a time limit. Code is run only if
`run_code` allows it (confine.py says what that protects from).
Non-goals: judging prose. A prompt without a checker is for a person to judge.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from qwqcli.checkers.code import Code
from qwqcli.checkers.numbers import Number
from qwqcli.checkers.structured import JsonSchema
from qwqcli.checkers.texts import Choice, Contains, Exact, Regex
from qwqcli.checkers.verdict import Verdict
from qwqcli.config import nearest

__all__ = ["KINDS", "Checker", "Code", "Verdict", "check", "make"]

TIME_LIMIT_S = 5.0  # for one pattern or schema; a sound one needs milliseconds


class Checker(Protocol):
    """Judges answers to one prompt."""

    def judge(self, answer: str) -> Verdict:
        """The verdict on an answer."""
        ...


KINDS: dict[str, type[Any]] = {
    "number": Number,
    "choice": Choice,
    "exact": Exact,
    "contains": Contains,
    "regex": Regex,
    "json": JsonSchema,
    "code": Code,
}
_MAY_HANG = (Regex, JsonSchema)


def make(kind: str, expected: Any, options: Mapping[str, Any]) -> Checker:
    """The checker `kind`. Raises ValueError if it is unknown or its options are wrong."""
    if kind not in KINDS:
        raise ValueError(f"there is no checker '{kind}'; did you mean {nearest(kind, KINDS)}?")
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    for name, value in options.items():
        if name not in fields or name == "expected":
            known = sorted(set(fields) - {"expected"})
            raise ValueError(f"{kind} has no option '{name}', only: {', '.join(known) or 'none'}")
        if fields[name].type == "bool" and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false")
        if fields[name].type == "Mapping[str, str]" and not isinstance(value, dict):
            raise ValueError(f"{name} must be lines like `name: value`")
    for name, needed in fields.items():
        absent = (needed.default, needed.default_factory) == (dataclasses.MISSING,) * 2
        if absent and name not in ("expected", *options):
            raise ValueError(f"{kind} needs {name}")
    # YAML reads 4 as a number where a text is meant; the annotations of these classes are texts
    texts = {name: str(v) if fields[name].type == "str" else v for name, v in options.items()}
    if fields["expected"].type == "str":
        if expected is None or isinstance(expected, bool | list | dict):
            raise ValueError("expected must be a text or a number")
        expected = str(expected)
    checker: Checker = KINDS[kind](expected=expected, **texts)
    return checker


def check(checker: Checker, answer: str, *, run_code: bool = False) -> Verdict:
    """Judge an answer, in bounded time."""
    if isinstance(checker, Code):
        return (
            checker.judge(answer)
            if run_code
            else Verdict(None, "", "code is tried only with --run-code")
        )
    if isinstance(checker, _MAY_HANG):
        return _judge_in_child(checker, answer)
    return checker.judge(answer)


def _judge_in_child(checker: Checker, answer: str) -> Verdict:
    kind = next(name for name, cls in KINDS.items() if isinstance(checker, cls))
    assert dataclasses.is_dataclass(checker)
    values = dataclasses.asdict(checker)
    request = {"kind": kind, "values": values, "answer": answer}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwqcli.checkers.child"],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, "", f"the checker did not end within {TIME_LIMIT_S:g} s")
    if done.returncode:
        return Verdict(False, "", f"the checker ended with code {done.returncode}")
    return Verdict(**json.loads(done.stdout))
