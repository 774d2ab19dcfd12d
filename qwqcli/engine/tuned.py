"""What `qwq tune` found out for a model file on this machine, and how an engine comes to use it.

Contract: a finding holds for one file (by path, size and time of change), one build of llama.cpp
and one CPU; for another it is not there. A person's own setting comes before it. It is kept in
`tuned.json` of the cache folder; a file that is torn or not ours counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwqcli.config import KV, FlashAttn, Settings
from qwqcli.engine import EngineSpec
from qwqcli.engine.selfcheck import fingerprint


@dataclass(frozen=True, slots=True)
class Tuned:
    """Settings that were faster than those that we take by ourselves; None leaves those."""

    when: str  # ISO 8601 date
    threads: int | None = None
    flash_attn: FlashAttn | None = None
    extra_bufts: bool | None = None
    n_batch: int | None = None
    kv: KV | None = None
    why: tuple[str, ...] = ()  # such as "flash attention off: +108 % at depth 2048"

    @property
    def sentence(self) -> str:
        return f"Tuned on {self.when}: {'; '.join(self.why)}." if self.why else ""


def offer(cache: Path) -> str:
    """A line for who has just pulled a first model; empty if it has been said once."""
    if (cache / "tuned.json").exists():
        return ""
    with contextlib.suppress(OSError):
        _save(cache, {})
    return "qwq tune finds the fastest settings for a model here, in three minutes at most."


def applied(spec: EngineSpec, settings: Settings, cache: Path) -> EngineSpec:
    """`spec` with what was found for its file, where `settings` say nothing else."""
    found = recall(Path(spec.path), cache)
    if found is None:
        return spec
    own = settings.flash_attn is not None or settings.kv is not None  # the two depend on each other
    return replace(
        spec,
        threads=settings.threads or found.threads or spec.threads,
        flash_attn=spec.flash_attn if own else found.flash_attn,
        kv=spec.kv if own else found.kv,
        extra_bufts=spec.extra_bufts and found.extra_bufts is not False,
        n_batch=found.n_batch,
        tuned=found.sentence,
    )


def recall(model: Path, cache: Path) -> Tuned | None:
    """What was found for this file as it is, with this build on this CPU."""
    entry = _load(cache).get(str(model.resolve()))
    try:
        if entry is None or entry["file"] != _identity(model) or entry["build"] != fingerprint():
            return None
        return Tuned(**{**entry["tuned"], "why": tuple(entry["tuned"]["why"])})
    except (KeyError, TypeError, OSError):
        return None


def keep(model: Path, cache: Path, tuned: Tuned) -> None:
    """Raises OSError if the cache folder cannot be written."""
    entry = {"file": _identity(model), "build": fingerprint(), "tuned": asdict(tuned)}
    _save(cache, {**_load(cache), str(model.resolve()): entry})


def forget(model: Path, cache: Path) -> bool:
    """Go back to our own settings for this file; False if there was nothing to forget."""
    known = _load(cache)
    if known.pop(str(model.resolve()), None) is None:
        return False
    _save(cache, known)
    return True


def _load(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads((cache / "tuned.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _save(cache: Path, known: Mapping[str, Any]) -> None:
    file = cache / "tuned.json"
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(known), encoding="utf-8")
    partial.replace(file)


def _identity(model: Path) -> list[int]:
    about = model.stat()
    return [about.st_size, about.st_mtime_ns]
