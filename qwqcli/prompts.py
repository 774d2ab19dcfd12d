"""The library of prompts: YAML files that come with qwq, and a person's own in the config folder.

Contract: `load` reads every `*.yaml` of its folders and checks all of it; an error names file, line
and key. A prompt is text, a template with variables (`{{name}}`), or a document made from a seed
(`recall`), and may have an expected answer with a checker. `render` makes of it what is sent.
The schema is `SCHEMA`; prompts/README.md tells every key.
Non-goals: asking a model (suite/), judging (checkers/), logic in templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwqcli import budget, checkers, inputs, yaml_file
from qwqcli.checkers import Checker, recall
from qwqcli.config import RANGES, Paths, closest, nearest
from qwqcli.errors import UsageError
from qwqcli.messages import Sampling
from qwqcli.yaml_file import Place, YamlFile

SCHEMA = 1
ALL = "all"  # the suite of every prompt that has a checker

_VARIABLE = re.compile(r"\{\{\s*([^{}\s]*)\s*\}\}")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9.]+)*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")
_BODIES = ("text", "template", "recall")
_SHARED = ("language", "tags", "system", "checker", "source", "licence", "settings")
_KEYS = (*_SHARED, *_BODIES, "id", "title", "variables", "files", "expected", "expected_file")


@dataclass(frozen=True, slots=True)
class Recommended:
    """Settings that a prompt is best asked with; None leaves it to the person's own."""

    temperature: float | None = None
    max_tokens: int | None = None
    budget: str | None = None  # of thought, as --budget takes it


@dataclass(frozen=True, slots=True)
class RecallSpec:
    """How long a document to make, and how many facts to scatter in it."""

    tokens: int
    needles: int


@dataclass(frozen=True)
class Prompt:
    """One prompt of the library."""

    id: str
    title: str
    language: str
    place: str  # file and line, for errors and `show`
    suite: str  # the name of its file
    tags: tuple[str, ...] = ()
    text: str = ""
    variables: Mapping[str, str | None] | None = None  # None: a plain text; a None must be given
    recall: RecallSpec | None = None
    files: tuple[Path, ...] = ()
    system: str = ""
    expected: Any = None
    kind: str = ""  # of its checker; empty: judged by a person
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    settings: Recommended = Recommended()

    @property
    def judged(self) -> bool:
        """Whether an answer can be checked without anything more from a person."""
        return bool(self.kind or self.recall) and not self.missing

    @property
    def missing(self) -> tuple[str, ...]:
        """Variables that must be given."""
        return tuple(name for name, value in (self.variables or {}).items() if value is None)

    @property
    def suites(self) -> tuple[str, ...]:
        """What it can be asked by, with others or alone."""
        return (ALL, self.suite, self.language, *self.tags, self.id)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is sent to a model, and what judges its answer."""

    system: str
    text: str
    checker: Checker | None


class Library:
    """Prompts by their ids."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = {prompt.id: prompt for prompt in prompts}

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts.values())

    def __len__(self) -> int:
        return len(self._prompts)

    def find(self, name: str) -> Prompt:
        """The prompt with this id. Raises UsageError with the nearest one."""
        if name not in self._prompts:
            close = closest(name, self._prompts)
            hint = f"qwq prompts show {close}" if close else "qwq prompts list"
            raise UsageError(f"There is no prompt '{name}'.", hint)
        return self._prompts[name]

    def suite(self, name: str, others: Sequence[str] = ()) -> list[Prompt]:
        """The prompts of a file, with a tag, or with an id; those that can be judged.

        Raises UsageError if there are none, with the nearest name, which may be one of `others`.
        """
        judged = [prompt for prompt in self if prompt.judged]
        found = [prompt for prompt in judged if name in prompt.suites]
        if found:
            return found
        if any(name in prompt.suites for prompt in self):
            raise UsageError(
                f"No prompt of '{name}' has an answer that can be checked.", "qwq prompts list"
            )
        raise _unknown(name, "--suite", judged, others)

    def named(self, name: str) -> list[Prompt]:
        """Like `suite`, with the prompts that a person has to judge."""
        found = [prompt for prompt in self if name in prompt.suites]
        if not found:
            raise _unknown(name, "qwq prompts list", list(self))
        return found


def _unknown(
    name: str, typed: str, prompts: Sequence[Prompt], others: Sequence[str] = ()
) -> UsageError:
    """With what to type instead: the nearest name, else the files and `others` to choose from."""
    known = {*others, *(name for prompt in prompts for name in prompt.suites)}
    files = {*others, *(prompt.suite for prompt in prompts)}
    meant = closest(name, known) or nearest(name, files)
    return UsageError(f"No suite, tag or prompt is called '{name}'.", f"{typed} {meant}")


def folders(paths: Paths) -> tuple[Path, Path]:
    """Where prompts are: those that come with qwq, and the person's own."""
    installed = Path(__file__).with_name("data") / "prompts"
    in_the_source = Path(__file__).parent.parent / "prompts"
    return (installed if installed.is_dir() else in_the_source, paths.config / "prompts")


def load(places: Sequence[Path]) -> Library:
    """Read and check every prompt in these folders. Raises UsageError."""
    files = [path for folder in places for path in sorted(folder.glob("*.yaml"))]
    return load_files(files)


def load_files(files: Sequence[Path]) -> Library:
    """Read and check every prompt in these files. Raises UsageError, also for an id given twice."""
    seen: dict[str, Prompt] = {}
    for path in files:
        for prompt in read_file(path):
            if prompt.id in seen:
                raise UsageError(
                    f"{prompt.place}: id: '{prompt.id}' is already the id of a prompt in"
                    f" {seen[prompt.id].place}.",
                    "Give one of them another id",
                )
            seen[prompt.id] = prompt
    return Library(list(seen.values()))


def library(paths: Paths) -> Library:
    """The prompts that come with qwq and the person's own."""
    return load(folders(paths))


def render(
    prompt: Prompt, variables: Mapping[str, str] | None = None, *, seed: int = 0
) -> Rendered:
    """The text to send, and its checker. Raises UsageError for a variable that is missing.

    `seed` matters to documents that are made. A library's prompt is found with `Library.find`.
    """
    given = dict(variables or {})
    unknown = sorted(set(given) - set(prompt.variables or {}))
    if unknown:
        takes = ", ".join(prompt.variables or {}) or "none"
        raise UsageError(
            f"The prompt {prompt.id} has no variable '{unknown[0]}'.", f"It takes: {takes}"
        )
    checker = _checker(prompt)
    text = prompt.text
    if prompt.variables is not None:
        text = _filled(prompt, {**prompt.variables, **given})
    if prompt.recall:
        made = recall.make(prompt.recall.tokens, prompt.recall.needles, seed, prompt.language)
        text = made.text
        checker = checkers.make("contains", list(made.expected), {"without": list(made.without)})
    parts = [text, *(f"{path.name}:\n```\n{inputs.read_file(path)}\n```" for path in prompt.files)]
    return Rendered(prompt.system, "\n\n".join(part.strip("\n") for part in parts), checker)


def recommended(prompt: Prompt, sampling: Sampling, flags: Mapping[str, Any]) -> Sampling:
    """`sampling` with what the prompt is best asked with, except where a flag was given."""
    names = ("temperature", "max_tokens")
    wished = {name: getattr(prompt.settings, name) for name in names if flags.get(name) is None}
    return replace(sampling, **{name: v for name, v in wished.items() if v is not None})


def _checker(prompt: Prompt) -> Checker | None:
    return checkers.make(prompt.kind, prompt.expected, prompt.options) if prompt.kind else None


def _filled(prompt: Prompt, values: Mapping[str, str | None]) -> str:
    def value(match: re.Match[str]) -> str:
        text = values[match[1]]
        if text is None:
            raise UsageError(
                f"The prompt {prompt.id} needs a value for '{match[1]}'.",
                f"--var {match[1]}='...'",
            )
        return text

    return _VARIABLE.sub(value, prompt.text)  # once: what a person gives is not read again


# --- reading -----------------------------------------------------------------------------------


def read_file(path: Path) -> list[Prompt]:
    """The prompts of one file, checked. Raises UsageError."""
    try:
        file = yaml_file.read(path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.", "qwq prompts list") from error
    content = _mapping(file, (), file.content, ("schema", "defaults", "prompts"))
    if content.get("schema") != SCHEMA:
        raise file.error(
            ("schema",),
            f"this version of qwq reads schema {SCHEMA}, not {content.get('schema')!r}.",
            f"schema: {SCHEMA}",
        )
    defaults = _mapping(file, ("defaults",), content.get("defaults") or {}, _SHARED)
    items = content.get("prompts")
    if not isinstance(items, list) or not items:
        raise file.error(("prompts",), "there must be a list of prompts.", "- id: my-prompt")
    return [_prompt(file, ("prompts", at), item, defaults) for at, item in enumerate(items)]


def _prompt(file: YamlFile, at: Place, item: Any, defaults: Mapping[str, Any]) -> Prompt:
    own = _mapping(file, at, item, _KEYS)
    values = {**defaults, **own}
    read = _Reader(file, at, values)
    bodies = [name for name in _BODIES if name in own]
    if len(bodies) != 1:
        raise file.error(at, f"a prompt has one of {', '.join(_BODIES)}; this has {len(bodies)}.")
    spec, options = _checker_spec(read)
    prompt = Prompt(
        id=read.matching("id", _ID, "small letters, figures and hyphens"),
        title=read.text("title"),
        language=read.matching("language", _LANGUAGE, "a language such as en or zh"),
        place=f"{file.path}, line {file.lines[at]}",
        suite=file.path.stem,
        tags=read.texts("tags"),
        text="" if bodies == ["recall"] else read.text(bodies[0]),
        variables=_variables(read) if bodies == ["template"] else None,
        recall=_recall(read) if bodies == ["recall"] else None,
        files=_files(read),
        system=read.text("system", ""),
        expected=_expected(read),
        kind=spec,
        options=options,
        source=read.text("source", ""),
        licence=read.text("licence", ""),
        settings=_settings(read),
    )
    _check_answer(read, prompt)
    return prompt


class _Reader:
    """The values of one prompt, and errors that say where they stand."""

    def __init__(self, file: YamlFile, at: Place, values: Mapping[str, Any]) -> None:
        self.file, self.at, self.values = file, at, values

    def error(self, key: str, what: str, hint: str = "") -> UsageError:
        inside = (*self.at, *key.split("."))
        shared = ("defaults", *key.split("."))
        missing_here = inside[: len(self.at) + 1] not in self.file.lines
        return self.file.error(
            shared if missing_here and shared[:2] in self.file.lines else inside, what, hint
        )

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise self.error(key, f"{key} is missing.", f"{key}: ...")
        if isinstance(value, dict | list | bool):
            raise self.error(key, f"must be a text, not {value!r}.")
        if default is None and not str(value).strip():
            raise self.error(key, "must not be empty.")
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self.error(key, "must be a list of texts.", f"{key}: [a, b]")
        return tuple(value)

    def matching(self, key: str, pattern: re.Pattern[str], what: str) -> str:
        value = self.text(key)
        if not pattern.fullmatch(value):
            raise self.error(key, f"must be {what}, not {value!r}.")
        return value

    def mapping(self, key: str, known: Sequence[str] | None = None) -> dict[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, "must be lines like `name: value`.")
        if known is not None:
            for name in value:
                if name not in known:
                    raise self.error(f"{key}.{name}", "is not known.", nearest(name, known))
        return value

    def whole(self, key: str, name: str, low: int, high: int) -> int:
        value = self.mapping(key).get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(f"{key}.{name}", f"must be a whole number from {low} to {high:,}.")
        return value


def _mapping(file: YamlFile, at: Place, value: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise file.error(at, "there must be lines like `name: value`.", f"schema: {SCHEMA}")
    for name in value:
        if name not in known:
            raise file.error((*at, name), "is not a key of a prompt.", nearest(name, known))
    return value


def _variables(read: _Reader) -> dict[str, str | None]:
    declared = read.mapping("variables") if read.values.get("variables") is not None else {}
    for name, value in declared.items():
        if not _NAME.fullmatch(name):
            raise read.error(f"variables.{name}", "a name has small letters, figures and _ only.")
        if isinstance(value, dict | list):
            raise read.error(f"variables.{name}", "must be a text, or null if it must be given.")
    used = set(_VARIABLE.findall(read.text("template")))
    for name in sorted(used - set(declared)):
        raise read.error("template", f"uses {{{{{name}}}}}, which is not in variables.")
    for name in sorted(set(declared) - used):
        raise read.error(f"variables.{name}", "is not used in the template.")
    return {name: None if value is None else str(value) for name, value in declared.items()}


def _recall(read: _Reader) -> RecallSpec:
    read.mapping("recall", ("tokens", "needles"))
    return RecallSpec(
        read.whole("recall", "tokens", 100, 1 << 20), read.whole("recall", "needles", 1, 200)
    )


def _files(read: _Reader) -> tuple[Path, ...]:
    return tuple(_beside(read, "files", name) for name in read.texts("files"))


def _beside(read: _Reader, key: str, name: str) -> Path:
    """A file beside the prompt; none outside of its folder, also not through a link."""
    folder = read.file.path.parent.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise read.error(key, f"{name} is outside of the prompt's folder.")
    if not path.is_file():
        raise read.error(key, f"there is no file {name} beside the prompt.")
    return path


def _expected(read: _Reader) -> Any:
    """The expected answer, from the prompt itself or from a file beside it."""
    if "expected_file" not in read.values:
        return read.values.get("expected")
    if "expected" in read.values:
        raise read.error("expected_file", "stands beside expected; one of them is enough.")
    return inputs.read_file(_beside(read, "expected_file", read.text("expected_file")))


def _settings(read: _Reader) -> Recommended:
    if read.values.get("settings") is None:
        return Recommended()
    values = read.mapping("settings", ("temperature", "max_tokens", "budget"))
    settings = Recommended()
    for name in ("temperature", "max_tokens"):
        value, (low, high) = values.get(name), RANGES[name]
        if value is None:
            continue
        whole = isinstance(value, int) or name == "temperature"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and whole and low <= value <= high):
            raise read.error(f"settings.{name}", f"must be a number from {low:g} to {high:g}.")
        settings = replace(settings, **{name: value})
    allowed = values.get("budget")
    if allowed is None:
        return settings
    try:
        budget.parse(str(allowed))
    except UsageError as error:
        raise read.error("settings.budget", error.message, error.hint) from error
    return replace(settings, budget=str(allowed))


def _checker_spec(read: _Reader) -> tuple[str, Mapping[str, Any]]:
    """The kind of checker and its options: `number`, or `number: {tolerance: 0.01}`."""
    value = read.values.get("checker")
    if value is None:
        return "", {}
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        kind, options = next(iter(value.items()))
        if options is None or isinstance(options, dict):
            return kind, options or {}
    raise read.error("checker", "must be a name, or a name with options.", "checker: number")


def _check_answer(read: _Reader, prompt: Prompt) -> None:
    """Expected answer and checker belong together, and make sense."""
    if prompt.recall:
        if prompt.kind or prompt.expected is not None:
            raise read.error("recall", "its answer is made with it: leave out expected, checker.")
        if prompt.language not in recall.LANGUAGES:
            known = " and ".join(recall.LANGUAGES)
            raise read.error("language", f"of recall must be one of {known}.")
        return
    if not prompt.kind:
        if prompt.expected is not None:
            raise read.error("expected", "needs a checker.", "checker: exact")
        return
    if prompt.expected is None:
        raise read.error("checker", "needs an expected answer.", "expected: ...")
    try:
        _checker(prompt)
    except ValueError as error:
        text = str(error)
        key = "expected" if text.startswith(("expected", "the tests")) else "checker"
        raise read.error(key, f"{text}.") from error
