"""Every run of `qwq bench`, kept: one JSON file each in the data folder.

Contract: `keep` writes whole files only (a rename), so a run that is interrupted while it is kept
leaves the others alone. `listed` passes over files that cannot be read and says which; `find`
refuses them. An id may be shortened to what is unique; `last` is the newest, `last~1` the one
before it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qwqcli.bench.report import Report, from_json, to_json
from qwqcli.errors import QwqError, UsageError


def folder(data: Path) -> Path:
    """Where reports are, below the data folder."""
    return data / "bench"


def keep(report: Report, data: Path) -> str:
    """Write `report`; returns a sentence if that is not possible, for the figures are not lost."""
    target = folder(data) / f"{report.id}.json"
    partial = target.with_suffix(f".{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(to_json(report) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        return f"This run cannot be kept in {target.parent}: {error.strerror}."
    return ""


def listed(data: Path) -> tuple[list[Report], list[str]]:
    """Every report, the oldest first, and a sentence for each file that is none."""
    reports, problems = [], []
    for path in _paths(data):
        try:
            reports.append(_read(path))
        except QwqError as error:
            problems.append(error.message)
    return reports, problems


def find(data: Path, name: str) -> Report:
    """The report called `name`. Raises UsageError if there is none, several, or it is torn."""
    paths = _paths(data)
    if not paths:
        raise UsageError("No run has been kept yet.", "qwq bench")
    back = re.fullmatch(r"last(?:~(\d+))?", name)
    if back:
        at = int(back[1] or 0)
        if at >= len(paths):
            raise UsageError(f"Only {len(paths)} runs are kept.", "qwq bench --history")
        return _read(paths[-1 - at])
    found = [path for path in paths if path.stem.startswith(name)]
    if len(found) != 1:
        many = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f"There is {many} called '{name}'.", "qwq bench --history")
    return _read(found[0])


def _paths(data: Path) -> list[Path]:
    return sorted(folder(data).glob("*.json"))


def _read(path: Path) -> Report:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    return from_json(text, str(path))
