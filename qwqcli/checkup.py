"""What `qwq doctor` sees: everything that it asks of the world, with a time limit on each question.

Contract: `look` never hangs and never raises for what it finds; a question without an answer is a
finding. What takes long is asked in the background while llama.cpp is asked. Nothing is changed on
disk but the verdict of a self-check and the checksums that `deep` computes; tokens are tried and
never kept in what is returned.
Non-goals: judging, and what to type (doctor.py).
"""

from __future__ import annotations

import contextlib
import platform
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

from qwqcli import builtin, config, hardware, sessions
from qwqcli.config import Settings
from qwqcli.engine import EngineSpec, selfcheck
from qwqcli.engine.probe import Probe
from qwqcli.errors import QwqError
from qwqcli.gguf import read_file_header
from qwqcli.hardware import Machine
from qwqcli.hub import Event, Hub, Model, Policy
from qwqcli.hub.sources import QWQ_REPOS, Absent, source_of
from qwqcli.hub.store import cache_root
from qwqcli.layout import Want
from qwqcli.plan import options, recommended
from qwqcli.terminal import Output

Value = TypeVar("Value")

DISK_LIMIT_S = 3.0  # a network disk that is gone answers never
NETWORK_LIMIT_S = 5.0
MODELS_LIMIT_S = 20.0  # reads the header of each, 0.3 s for QwQ
QUICK = Policy(connect_s=3.0, stall_s=3.0, metadata_s=4.0, tries=1)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of ours: can it be read and written, or made?"""

    use: str
    path: str
    problem: str  # "" if there is none


@dataclass(frozen=True, slots=True)
class Reached:
    """A source of models: how long it took to answer a question, or why it did not."""

    host: str
    seconds: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A model of ours whose files are not what they were."""

    name: str
    problem: str
    can_be_pulled: bool


@dataclass(frozen=True, slots=True)
class Shelf:
    """The models on this machine."""

    count: int
    n_bytes: int
    others: int  # that other tools brought
    damaged: tuple[Damaged, ...]
    read_through: bool  # every byte was compared with what was published


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. Texts that end in a problem are "" where there is none; None: no answer."""

    python: tuple[int, int, int]
    system: str
    engine: str  # version of llama-cpp-python
    machine: Machine
    self_check: str  # "fast", "safe", or why the engine does not work
    self_check_fix: str
    model_folder: str
    disk_free_bytes: int | None
    folders: tuple[Folder, ...]
    sessions_problem: str | None
    settings: Settings | None  # None if they cannot be read
    settings_problem: str
    settings_fix: str
    built_in_problem: str
    hub: Reached | None  # None: not asked
    mirror: Reached | None
    token: str  # "none", "valid", "refused", or "" if that is not known
    models: Shelf | None
    encoding: str
    terminal: bool
    live: bool
    colour: bool
    columns: int
    best: str | None  # the quantization of QwQ-32B to take here


def look(
    environ: Mapping[str, str],
    out: Output,
    rpc: str | None = None,
    *,
    offline: bool = False,
    deep: bool = False,
    show: Callable[[Event], None] = lambda event: None,
) -> Seen:
    """Ask the world. Takes a few seconds; `deep` reads every model, and `show`s how far it is."""
    paths = config.paths(environ)
    local = Hub(environ, offline=True)
    asked = not (offline or Hub(environ).offline)
    hub = Later(lambda: _reach(environ, "")) if asked else None
    mirror = Later(lambda: _reach(environ, "modelscope")) if asked else None
    token = Later(lambda: _token(environ)) if asked else None
    folder = cache_root(environ)
    disk = Later(lambda: shutil.disk_usage(_existing(folder)).free)
    kept = Later(lambda: sessions.problem(paths.sessions, deep=deep))
    models = Later(lambda: _models(local))
    with Probe(rpc) as probe:
        machine = hardware.probe(probe.devices)
    verdict, verdict_fix = _self_check(paths.cache)
    settings, problem, fix = _settings(environ)
    return Seen(
        python=sys.version_info[:3],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        engine=_version("llama-cpp-python"),
        machine=machine,
        self_check=verdict,
        self_check_fix=verdict_fix,
        model_folder=str(folder),
        disk_free_bytes=disk.answer(DISK_LIMIT_S),
        folders=tuple(
            _folder(use, path)
            for use, path in (
                ("config", paths.config),
                ("cache", paths.cache),
                ("data", paths.data),
            )
        ),
        sessions_problem=kept.answer(MODELS_LIMIT_S if deep else DISK_LIMIT_S),
        settings=settings,
        settings_problem=problem,
        settings_fix=fix,
        built_in_problem=_header_problem(builtin.model_path()),
        hub=_answered(hub, environ, ""),
        mirror=_answered(mirror, environ, "modelscope"),
        token=(token.answer(NETWORK_LIMIT_S) if token else None) or "",
        models=_shelf(local, models.answer(MODELS_LIMIT_S), deep, show),
        encoding=out.encoding,
        terminal=out.terminal,
        live=out.live,
        colour=out.colour,
        columns=out.size()[0],
        best=recommended(options(machine, Want(), explained=False)),
    )


class Later(Generic[Value]):
    """A question that is being answered in the background."""

    def __init__(self, ask: Callable[[], Value]) -> None:
        self._ask, self._began = ask, time.monotonic()
        self._answers: queue.SimpleQueue[Value] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, limit_s: float) -> Value | None:
        """The answer; None if it takes longer than `limit_s` in all or the system refuses it."""
        left = self._began + limit_s - time.monotonic()
        with contextlib.suppress(queue.Empty):
            return self._answers.get(timeout=max(left, 0.01))
        return None

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self._answers.put(self._ask())


# --- the network -------------------------------------------------------------------------------


def _reach(environ: Mapping[str, str], source: str) -> Reached:
    """Ask a source for the list of files in the repository of QwQ's makers."""
    began = time.monotonic()
    host = _host(environ, source)
    try:
        Hub(environ, source=source, policy=QUICK).offers(QWQ_REPOS[0])
    except Absent:  # it answered, and a mirror need not have it
        pass
    except QwqError as error:
        return Reached(host, None, error.message)
    return Reached(host, time.monotonic() - began)


def _answered(
    later: Later[Reached] | None, environ: Mapping[str, str], source: str
) -> Reached | None:
    if later is None:
        return None
    slow = f"no answer within {NETWORK_LIMIT_S:g} s"
    return later.answer(NETWORK_LIMIT_S) or Reached(_host(environ, source), None, slow)


def _host(environ: Mapping[str, str], source: str) -> str:
    try:
        return source_of(source, environ).name
    except QwqError:
        return source or "HF_ENDPOINT"


def _token(environ: Mapping[str, str]) -> str:
    try:
        works = Hub(environ, policy=QUICK).token_works()
    except QwqError:
        return ""
    return {None: "none", True: "valid", False: "refused"}[works]


# --- models ------------------------------------------------------------------------------------


def _models(hub: Hub) -> tuple[list[Model], list[Damaged]]:
    """All models, and those of ours that are not as long as they were or not readable."""
    models = list(hub.models())
    damaged = []
    for model in models:
        problem = _model_problem(model) if model.ours else ""
        if problem:
            damaged.append(Damaged(model.name, problem, bool(model.repo)))
    return models, damaged


def _model_problem(model: Model) -> str:
    size = sum(path.stat().st_size for path in model.paths)
    if size != model.size:
        return f"it has {size:,} bytes instead of {model.size:,}"
    return _header_problem(model.paths[0])


def _shelf(
    hub: Hub,
    found: tuple[list[Model], list[Damaged]] | None,
    deep: bool,
    show: Callable[[Event], None],
) -> Shelf | None:
    if found is None:
        return None
    models, damaged = found
    ours = [model for model in models if model.ours]
    known = {one.name for one in damaged}
    for model in ours if deep else []:
        if model.name not in known and _read_through(hub, model, show):
            damaged.append(Damaged(model.name, "its content has changed", bool(model.repo)))
    size = sum(model.size for model in ours)
    return Shelf(len(ours), size, len(models) - len(ours), tuple(damaged), deep)


def _read_through(hub: Hub, model: Model, show: Callable[[Event], None]) -> bool:
    """Whether any file of a model differs from what was published."""
    events = hub.damaged(model)
    while True:
        try:
            show(next(events))
        except StopIteration as end:
            return bool(end.value)


# --- this machine ------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _self_check(cache: Path) -> tuple[str, str]:
    """`fast`, `safe`, or what is wrong and what to type."""
    try:
        spec, _ = selfcheck.trusted(EngineSpec("", extra_bufts=True), cache)
    except QwqError as error:
        return error.message, error.hint
    return ("fast" if spec.extra_bufts else "safe"), ""


def _settings(environ: Mapping[str, str]) -> tuple[Settings | None, str, str]:
    """The settings, or why they cannot be read and what to type."""
    try:
        return config.load(environ), "", ""
    except QwqError as error:
        return None, error.message, error.hint


def _header_problem(path: Path) -> str:
    try:
        read_file_header(path)
    except QwqError as error:
        return error.message
    return ""


def _folder(use: str, path: Path) -> Folder:
    """By writing a file into the nearest folder that is there; nothing is left behind."""

    def attempt() -> str:
        try:
            with tempfile.TemporaryFile(dir=_existing(path)):
                return ""
        except OSError as error:
            return error.strerror or str(error)

    problem = Later(attempt).answer(DISK_LIMIT_S)
    return Folder(use, str(path), "its disk does not answer" if problem is None else problem)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
