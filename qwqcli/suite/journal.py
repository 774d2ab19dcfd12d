"""Runs of suites on disk: a run goes on after Ctrl-C or a kill, and saved replies can be read.

Contract: a run is a folder `suites/<id>` of the data folder with `run.json` (what is asked, of
whom) and `outcomes.jsonl`, to which each outcome is added as a line as soon as it is known. Half a
line, left by a kill, is cut off. A run is found again by `identity`: the same models, prompts,
settings and seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwqcli import atomic
from qwqcli.errors import QwqError, UsageError
from qwqcli.suite import SCHEMA, Outcome, Setup


def identity(asked: Mapping[str, Any]) -> str:
    """A short name of what is asked: the same for the same."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Journal:
    """One run on disk."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def outcomes(self) -> list[Outcome]:
        """What is known so far; drops half a line at the end."""
        path = self.folder / "outcomes.jsonl"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            return [_outcome(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"The run {self.name} cannot be read: {path} is damaged.", f"Remove {self.folder}"
            ) from error

    def add(self, outcome: Outcome) -> None:
        """Write one outcome; it is there after a kill, too."""
        line = json.dumps(dataclasses.asdict(outcome), ensure_ascii=False)
        with (self.folder / "outcomes.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def about(self) -> dict[str, Any]:
        """What is asked, of whom, since when, and whether all of it is done."""
        try:
            about = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"The run {self.name} cannot be read: {error}.") from error
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise UsageError(f"The run {self.name} was written by another version of qwq.")
        return about

    def finish(self) -> None:
        """Everything that was to be asked has been."""
        self._write({**self.about(), "done": True})

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, about: Mapping[str, Any]) -> None:
        text = json.dumps(about, ensure_ascii=False, indent=1)
        atomic.write_text(self.folder / "run.json", text)


def start(data: Path, asked: Mapping[str, Any], now: float, *, fresh: bool = False) -> Journal:
    """The journal of a run: one of the same that was stopped, unless `fresh`; else a new one."""
    key = identity(asked)
    if not fresh:
        for journal in reversed(_journals(data)):
            if journal.name.endswith(f"-{key}") and not journal.about().get("done"):
                return journal
    began = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    names = itertools.chain([began], (f"{began}.{n}" for n in itertools.count(2)))
    folders = (data / "suites" / f"{name}-{key}" for name in names)
    journal = Journal(next(folder for folder in folders if not folder.exists()))
    try:
        journal.folder.mkdir(parents=True)
        journal._write({"schema": SCHEMA, "began": began, "done": False, "asked": dict(asked)})
    except OSError as error:
        raise QwqError(
            f"{journal.folder} cannot be written: {error.strerror}.", "QWQ_DATA_DIR=FOLDER qwq ..."
        ) from error
    return journal


def saved(data: Path) -> list[Journal]:
    """Every run that is kept, the oldest first."""
    return _journals(data)


def find(data: Path, name: str) -> Journal:
    """The run whose name is or begins with this, or `last`. Raises UsageError."""
    journals = _journals(data)
    if not journals:
        raise UsageError("No run is saved.", "qwq bench --suite tiny --save")
    if name == "last":
        return journals[-1]
    found = [journal for journal in journals if journal.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    problem = f"begins with '{name}'" if not found else f"is the only one that begins '{name}'"
    raise UsageError(f"No run {problem}.", f"qwq prompts show-run {journals[-1].name}")


def _journals(data: Path) -> list[Journal]:
    folder = data / "suites"
    with contextlib.suppress(OSError):
        return [Journal(p) for p in sorted(folder.iterdir()) if (p / "run.json").is_file()]
    return []


def _outcome(plain: dict[str, Any]) -> Outcome:
    return Outcome(**{**plain, "setup": Setup(**plain["setup"])})
