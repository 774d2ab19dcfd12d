"""YAML files that people write: read safely, with the line of every key for the errors.

Contract: `read` gives plain values (no tags, no dates) and knows where each of them stands.
Refused, with file and line: what is not UTF-8 or not YAML, a tab as indentation, a key that comes
twice, anchors and aliases (a few lines of them can stand for gigabytes), nesting deeper than
MAX_DEPTH, a file larger than MAX_BYTES.
Non-goals: writing, keeping comments, knowing what the values mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qwqcli.errors import UsageError

MAX_BYTES, MAX_DEPTH = 1 << 20, 32
Place = tuple[str | int, ...]  # the keys and indexes that lead to a value

# the scalars that are not text; YAML 1.1's dates and sexagesimal numbers (1:30) stay text
_PLAIN = ("bool", "int", "float", "null")


@dataclass(frozen=True)
class YamlFile:
    """The content of a file, and the line (from 1) of each key or item in it."""

    path: Path
    content: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def error(self, place: Sequence[str | int], what: str, hint: str = "") -> UsageError:
        """An error that names the file, the line and the key; `what` completes the sentence."""
        at = tuple(place)
        while at and at not in self.lines:  # a key that is missing is told at what lacks it
            at = at[:-1]
        key = ".".join(str(part) for part in place if isinstance(part, str))
        line = self.lines.get(at, 1)
        named = f"{key}: " if key else ""
        return UsageError(f"{self.path}, line {line}: {named}{what}", hint)


def read(path: Path) -> YamlFile:
    """Read a file; an empty one has the content None. Raises UsageError, FileNotFoundError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB, too large for YAML.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: this is not UTF-8.", "Save it as UTF-8") from error
    return parse(text, path)


def parse(text: str, path: Path) -> YamlFile:
    """Like `read`, of a text that came from `path`."""
    lines: dict[Place, int] = {}
    try:
        root = _Composer(text).get_single_node()
        return YamlFile(path, _value(root, (), lines, path), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(
            f"{path}, line {line}: not valid YAML: {_problem(error)}.", f"Mend line {line}"
        ) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        said = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML: {said}.", f"Mend {path}") from error


class _Composer(yaml.SafeLoader):
    """Composes nodes, and refuses what could grow beyond the size of the file."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases (& and *) are not allowed here",
                problem_mark=event.start_mark,
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(node: Any, place: Place, lines: dict[Place, int], path: Path) -> Any:
    """The plain value of a node; notes the line of everything in it."""
    if node is None:
        return None
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines, path)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, at), lines, path) for at, item in enumerate(node.value)]
    return _scalar(node)


def _mapping(
    node: yaml.MappingNode, place: Place, lines: dict[Place, int], path: Path
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{path}, line {line}: a key must be a plain word.")
        key = str(key_node.value)
        if key in found:
            raise UsageError(f"{path}, line {line}: {key} stands there twice.", "Keep one of them")
        inside = (*place, key)
        lines[inside] = line
        found[key] = _value(value_node, inside, lines, path)
    return found


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.rpartition(":")[2]
    if kind not in _PLAIN or ":" in node.value:
        return str(node.value)
    try:
        return getattr(_Constructor(""), f"construct_yaml_{kind}")(node)
    except ValueError:  # what only looked like a number
        return str(node.value)


class _Constructor(yaml.SafeLoader):
    """Turns a scalar node into a value; made anew for each, as it keeps state."""


def _problem(error: yaml.MarkedYAMLError) -> str:
    said = " ".join((error.problem or error.context or "something is missing").split())
    if "\\t" in said:
        return "a tab cannot indent, use blanks"
    if error.context and said.startswith(("expected", "but ")):
        return f"{' '.join(error.context.split())}, {said}"
    return said
