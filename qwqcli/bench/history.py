"""Every run of `qwq bench`, kept: one JSON file each in the data folder.

Contract: `keep` writes whole files only (a rename), so a run that is interrupted while it is kept
leaves the others alone. `listed` passes over files that cannot be read and says which; `find`
refuses them. An id may be shortened to what is unique; `last` is the newest, `last~1` the one
before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qwqcli import atomic, costs
from qwqcli.bench.report import FLASH, Report, Row, from_json, to_json
from qwqcli.engine.selfcheck import fingerprint
from qwqcli.errors import QwqError, UsageError
from qwqcli.plan import Option, Plan, with_measurement


def folder(data: Path) -> Path:
    """Where reports are, below the data folder."""
    return data / "bench"


def keep(report: Report, data: Path) -> str:
    """Write `report`; returns a sentence if that is not possible, for the figures are not lost."""
    target = folder(data) / f"{report.id}.json"
    try:
        atomic.write_text(target, to_json(report) + "\n")
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


def with_measured(found: Plan | Sequence[Option], data: Path) -> Plan | list[Option]:
    """`found` with speeds that were measured here, where there are any, for what was predicted.

    They count for the same model and quantization, build of llama.cpp, layers on the GPU and KV;
    runs with the plan's threads and flash attention before others, of which it is said.
    """
    here = fingerprint()
    reports = [report for report in listed(data)[0] if report.setup.engine_build == here]
    if isinstance(found, Plan):
        return _plan_with(found, reports)
    return [
        replace(option, plan=_plan_with(option.plan, reports)) if option.plan else option
        for option in found
    ]


def _plan_with(plan: Plan, reports: Sequence[Report]) -> Plan:
    """With the newest run that has the plan's threads and flash attention, else the newest."""
    runs: dict[str, tuple[float | None, float]] = {}  # the newest of each kind, newest first
    for report in reversed(reports):
        rows = [
            row
            for row in report.tests
            if (row.n_gpu_layers, row.type_k) == (plan.gpu_layers, plan.type_k)
        ]
        thinking = thinking_tps(rows, min(costs.THOUGHT, plan.n_ctx) // 2)
        name = f"{report.setup.model_name} {report.setup.quantization}".strip()
        if thinking and name == plan.model:
            prompts = [row.speed.mean for row in rows if row.n_prompt and not row.n_depth]
            how = _how(rows[0].n_threads, rows[0].flash_attn)  # a run has one for all its tests
            runs.setdefault(how, (prompts[0] if prompts else None, thinking))
    if not runs:
        return plan
    own = _how(plan.threads, FLASH[plan.flash_attn])
    how = own if own in runs else next(iter(runs))
    return with_measurement(plan, *runs[how], "" if how == own else how)


def _how(n_threads: int, flash_attn: int) -> str:
    flash = next(word for word, number in FLASH.items() if number == flash_attn)
    threads = "thread" if n_threads == 1 else "threads"
    return f" with {n_threads} {threads}, flash attention {flash}"


def thinking_tps(rows: Sequence[Row], depth: int) -> float | None:
    """Tokens per second at `depth`: on the line through the seconds per token that were measured.

    A token's time grows by the same for every token of depth. None with less than two depths.
    """
    seen = sorted((r.n_depth + r.n_gen / 2, 1 / r.speed.mean) for r in rows if r.n_gen)
    if len(seen) < 2 or seen[-1][0] - seen[0][0] < 256:
        return None
    (near, first), (far, last) = seen[0], seen[-1]
    slope = max((last - first) / (far - near), 0.0)
    return 1 / (first + slope * (depth - near))


def _paths(data: Path) -> list[Path]:
    return sorted(folder(data).glob("*.json"))


def _read(path: Path) -> Report:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    return from_json(text, str(path))
