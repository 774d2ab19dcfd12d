"""JSON in an answer, held against a JSON Schema.

Contract: the JSON is the last fenced block that is JSON, else the last object or array in the text.
The schema is checked by the `jsonschema` library (draft 2020-12, no reference leaves the schema).
A pattern in a schema may take for ever, so `checkers.check` runs this in a child process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwqcli.checkers.verdict import Verdict, code_blocks

_NOTHING = object()
STARTS = 200  # places in a text where JSON may begin that are tried


@dataclass(frozen=True)
class JsonSchema:
    """Right if the JSON in the answer is valid by the schema `expected`."""

    expected: Mapping[str, Any]

    def __post_init__(self) -> None:
        import jsonschema

        if not isinstance(self.expected, dict):
            raise ValueError("expected must be a JSON Schema, such as {type: object}")
        try:
            jsonschema.Draft202012Validator.check_schema(self.expected)
        except jsonschema.SchemaError as error:
            raise ValueError(f"expected is not a JSON Schema: {error.message}") from error

    def judge(self, answer: str) -> Verdict:
        import jsonschema
        import referencing.exceptions

        value = find_json(answer)
        if value is _NOTHING:
            return Verdict(False, "", "there is no JSON in the answer")
        shown = json.dumps(value, ensure_ascii=False)[:200]
        validator = jsonschema.Draft202012Validator(self.expected)
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except (RecursionError, referencing.exceptions.Unresolvable) as problem:
            return Verdict(False, shown, f"the schema cannot be used: {problem}")
        if error is None:
            return Verdict(True, shown)
        return Verdict(False, shown, f"{error.json_path}: {error.message}"[:300])


def find_json(answer: str) -> Any:
    """The JSON value that an answer gives; `_NOTHING` if there is none."""
    for _, block in reversed(code_blocks(answer)):
        try:
            return json.loads(block)
        except (ValueError, RecursionError):
            continue
    return max(_embedded(answer), key=lambda found: found[0], default=(0, _NOTHING))[1]


def _embedded(text: str) -> Iterator[tuple[int, Any]]:
    """(where it ends, value) of each object or array that is in no other."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(STARTS):
        starts = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
        if not starts:
            return
        try:
            value, at = decoder.raw_decode(text, min(starts))
            yield at, value
        except (ValueError, RecursionError):
            at = min(starts) + 1
