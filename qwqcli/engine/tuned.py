"""What `qwq tune` found out for a model file on this machine, and how an engine comes to use it.

Contract: a finding holds for one file (by path, size and time of change), the devices that were
asked for, one build of llama.cpp and one CPU; for others it is not there. A person's own setting
comes before it. It is kept in `tuned.json` of the cache folder; a file that is torn or not ours
counts as none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwqcli import atomic
from qwqcli.config import KV, FlashAttn, Settings
from qwqcli.engine import EngineSpec
from qwqcli.engine.selfcheck import fingerprint
from qwqcli.errors import QwqError
from qwqcli.layout import Split

_DEVICES = "\n"  # no path that a person has holds one


@dataclass(frozen=True, slots=True)
class Tuned:
    """Settings that were faster than those that we take by ourselves; None leaves those."""

    when: str  # ISO 8601 date
    threads: int | None = None
    flash_attn: FlashAttn | None = None
    extra_bufts: bool | None = None
    n_batch: int | None = None
    kv: KV | None = None
    split: Split | None = None
    why: tuple[str, ...] = ()  # such as "flash attention off: +108 % at depth 2048"

    @property
    def sentence(self) -> str:
        return f"Tuned on {self.when}: {'; '.join(self.why)}." if self.why else ""


def offer(cache: Path) -> str:
    """A line for who has just pulled a first model; empty if it has been said once."""
    if (cache / "tuned.json").exists():
        return ""
    with contextlib.suppress(QwqError):
        _save(cache, {})
    return "qwq tune finds the fastest settings for a model here, in three minutes at most."


def applied(spec: EngineSpec, settings: Settings, cache: Path) -> EngineSpec:
    """`spec` with what was found for its file, where `settings` say nothing else."""
    found = recall(spec, cache)
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
        split=found.split,
        tuned=found.sentence,
    )


def recall(spec: EngineSpec, cache: Path) -> Tuned | None:
    """What was found for this file as it is, on these devices, with this build on this CPU."""
    entry = _load(cache).get(_key(spec))
    try:
        if entry is None or entry["file"] != _identity(spec) or entry["build"] != fingerprint():
            return None
        plain = entry["tuned"]
        split = plain.get("split")
        split = Split(tuple(split["layers"]), split["cpu_ffn"]) if split else None
        return Tuned(**{**plain, "why": tuple(plain["why"]), "split": split})
    except (KeyError, TypeError, OSError):
        return None


def keep(spec: EngineSpec, cache: Path, tuned: Tuned) -> None:
    """Raises QwqError if the cache folder cannot be written."""
    entry = {"file": _identity(spec), "build": fingerprint(), "tuned": asdict(tuned)}
    _save(cache, {**_load(cache), _key(spec): entry})


def forget(model: Path, cache: Path) -> bool:
    """Go back to our own settings for this file; False if there was nothing to forget."""
    known = _load(cache)
    path = str(model.resolve())
    left = {key: entry for key, entry in known.items() if key.partition(_DEVICES)[0] != path}
    if len(left) == len(known):
        return False
    _save(cache, left)
    return True


def _load(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads((cache / "tuned.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _save(cache: Path, known: Mapping[str, Any]) -> None:
    try:
        atomic.write_text(cache / "tuned.json", json.dumps(known))
    except OSError as error:
        raise QwqError(f"{cache} cannot be written: {error.strerror}.") from error


def _key(spec: EngineSpec) -> str:
    """The file and, where any were asked for, the devices."""
    wish = [str(value) for value in (spec.rpc, spec.device, spec.gpu_layers) if value is not None]
    return _DEVICES.join([str(Path(spec.path).resolve()), *wish])


def _identity(spec: EngineSpec) -> list[int]:
    about = Path(spec.path).stat()
    return [about.st_size, about.st_mtime_ns]
