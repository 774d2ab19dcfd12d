"""What the engine's process and its parent say to each other: one JSON object a line.

JSON and not pickle, because the child parses files from strangers in native code: whatever it
sends, it can only build the values listed here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from qwqcli import errors
from qwqcli.engine import EngineInfo, EngineSpec, Keep
from qwqcli.layout import Larger, Split
from qwqcli.messages import (
    Answer,
    Budget,
    Done,
    Loading,
    Message,
    Notice,
    Prompting,
    Reasoning,
    Room,
    Sampling,
    Stats,
)


@dataclass(frozen=True, slots=True)
class Load:
    """Parent: load this model. The first line that a child gets."""

    spec: EngineSpec
    cache: str  # folder for the self-check's verdict


@dataclass(frozen=True, slots=True)
class Ask:
    """Parent: stream the reply to these messages. `id`s grow by one."""

    id: int
    messages: tuple[Message, ...]
    sampling: Sampling
    thinking: bool
    budget: Budget


@dataclass(frozen=True, slots=True)
class Prepare:
    """Parent: while there is nothing else to do, get ready for a question after these messages.

    Replaces an earlier one, and is dropped by `Ask`.
    """

    id: int
    messages: tuple[Message, ...]
    keep: Keep | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Parent: keep what is there of the conversation that was prepared for, and end."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Child: `Prepare` is done. It may come between any two other lines."""

    id: int


@dataclass(frozen=True, slots=True)
class Count:
    """Parent: how many tokens is the rendered prompt of these messages?"""

    messages: tuple[Message, ...]
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class Suppose:
    """Parent: what would a context of so many tokens take?"""

    n_ctx: int


@dataclass(frozen=True, slots=True)
class Supposed:
    """Child: the answer to `Suppose`."""

    larger: Larger | None


@dataclass(frozen=True, slots=True)
class Give:
    """Parent: an `Order` for the reply to the request `id`, if it is still being given."""

    id: int
    order: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Child: the model is loaded."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Counted:
    """Child: the answer to `Count`."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Child: a request, or the load, ended in an error of ours."""

    kind: str  # class name in qwqcli.errors
    message: str
    hint: str

    @classmethod
    def of(cls, error: errors.QwqError) -> Failed:
        return cls(type(error).__name__, error.message, error.hint)

    def error(self) -> errors.QwqError:
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, errors.QwqError)):
            kind = errors.EngineError
        return kind(self.message, self.hint)


_TYPES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *(Load, Ask, Prepare, Prepared, Leave, Count, Suppose, Give),
        *(Ready, Counted, Supposed, Failed),
        *(EngineInfo, EngineSpec, Split, Keep, Larger),
        *(Message, Sampling, Budget, Stats),
        *(Loading, Prompting, Room, Reasoning, Answer, Notice, Done),
    )
}

_FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in _TYPES.values()}
_dumps = json.JSONEncoder(separators=(",", ":")).encode


def encode(value: Any) -> bytes:
    """`value`, a dataclass listed above, as one line."""
    return _dumps(_plain(value)).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The value in `line`. Raises ValueError when it holds none."""
    return _value(json.loads(line))


def _plain(value: Any) -> Any:
    names = _FIELDS.get(type(value))
    if names is not None:
        fields = {name: _plain(getattr(value, name)) for name in names}
        return {"": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(item) for item in plain)
    if isinstance(plain, dict):
        name = plain.pop("", None)
        if name not in _TYPES:
            raise ValueError(f"not a value of this protocol: {name!r}")
        return _TYPES[name](**{key: _value(item) for key, item in plain.items()})
    return plain
