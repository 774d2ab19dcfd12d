"""What `qwq doctor` checks: is everything there that qwq needs, and is the machine made use of?

Contract: `look` asks the world and never hangs; `examine` judges what was seen, purely. Each check
passes, warns or fails, and says what to type. Nothing in it names the person or holds a secret:
paths start at ~, and the user's name is taken out of the others.
Non-goals: repairing anything; the hub, its mirror and its token, and the models on disk (pull).
"""

from __future__ import annotations

import contextlib
import getpass
import platform
import queue
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from qwqcli import __version__, builtin, config, hardware, quants
from qwqcli.engine import EngineSpec, selfcheck
from qwqcli.engine.probe import Probe
from qwqcli.errors import QwqError
from qwqcli.gguf import read_file_header
from qwqcli.hardware import GiB, Machine, gib
from qwqcli.layout import Want
from qwqcli.plan import ACCEPTABLE_KLD, options, recommended
from qwqcli.terminal import Output

Status = Literal["pass", "warn", "fail"]
Value = TypeVar("Value")

DISK_LIMIT_S = 3.0  # a network disk that is gone answers never
ROOM_BYTES = 20 * 10**9  # QwQ-32B in Q4_K_M
LITTLE_RAM_BYTES = 8 * GiB  # the smallest quantization, which nobody should want
LEAST_PYTHON = (3, 10)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `fix` is what to type, "" where nothing is to be done."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of ours: can it be read and written, or made?"""

    use: str
    path: str
    problem: str  # "" if there is none


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. Texts that end in a problem are "" where there is none."""

    python: tuple[int, int, int]
    system: str
    engine: str  # version of llama-cpp-python
    machine: Machine
    self_check: str  # "fast", "safe", or why the engine does not work
    self_check_fix: str
    model_folder: str
    disk_free_bytes: int | None  # None: the disk did not answer
    folders: tuple[Folder, ...]
    settings_problem: str
    settings_fix: str
    built_in_problem: str
    encoding: str
    terminal: bool
    live: bool
    colour: bool
    best: str | None  # the quantization of QwQ-32B to take here


def look(environ: Mapping[str, str], out: Output, rpc: str | None = None) -> Seen:
    """Ask the world. Takes about a second; the first self-check of a build takes a few."""
    paths = config.paths(environ)
    with Probe(rpc) as probe:
        machine = hardware.probe(probe.devices)
    models = model_folder(environ)
    verdict, verdict_fix = _self_check(paths.cache)
    settings, settings_fix = _problem(lambda: config.load(environ))
    built_in, _ = _problem(lambda: read_file_header(builtin.model_path()))
    return Seen(
        python=sys.version_info[:3],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        engine=_version("llama-cpp-python"),
        machine=machine,
        self_check=verdict,
        self_check_fix=verdict_fix,
        model_folder=str(models),
        disk_free_bytes=_within(DISK_LIMIT_S, lambda: shutil.disk_usage(_existing(models)).free),
        folders=(
            _folder("config", paths.config),
            _folder("cache", paths.cache),
            _folder("data", paths.data),
        ),
        settings_problem=settings,
        settings_fix=settings_fix,
        built_in_problem=built_in,
        encoding=out.encoding,
        terminal=out.terminal,
        live=out.live,
        colour=out.colour,
        best=recommended(options(machine, Want(), explained=False)),
    )


def examine(seen: Seen) -> list[Check]:
    """The checks, in the order in which one thing needs the other."""
    checks = [
        _check_python(seen),
        _check_engine(seen),
        _check_self(seen),
        _check_built_in(seen),
        *_check_gpus(seen),
        *_check_memory(seen),
        _check_disk(seen),
        _check_settings(seen),
        *_check_folders(seen),
        _check_terminal(seen),
        _check_model(seen),
    ]
    return [anonymous(check) for check in checks]


def exit_code(checks: Sequence[Check]) -> int:
    """1 if any check failed."""
    return int(any(check.status == "fail" for check in checks))


def anonymous(check: Check) -> Check:
    """The check without the person: the home folder is ~, the user's name is <user>."""
    return replace(check, detail=_anonymous(check.detail), fix=_anonymous(check.fix))


def _anonymous(text: str) -> str:
    with contextlib.suppress(RuntimeError):  # no home folder
        text = text.replace(str(Path.home()), "~")
    with contextlib.suppress(OSError, KeyError):  # no user
        name = re.escape(getpass.getuser())
        text = re.sub(rf"(?<=/){name}(?=[/\s]|$)", "<user>", text)
    return text


# --- the checks --------------------------------------------------------------------------------


def _check_python(seen: Seen) -> Check:
    version = ".".join(map(str, seen.python))
    detail = f"qwq {__version__} on Python {version}, {seen.system}"
    if seen.python[:2] < LEAST_PYTHON:
        return Check("python", "fail", detail, "Install Python 3.10 or newer")
    return Check("python", "pass", detail)


def _check_engine(seen: Seen) -> Check:
    if not seen.engine:
        return Check("engine", "fail", "llama-cpp-python is not installed", selfcheck.REINSTALL)
    detail = f"llama-cpp-python {seen.engine}"
    if seen.machine.problems:
        why = "; ".join(seen.machine.problems)
        return Check("engine", "fail", f"{detail}: {why}", selfcheck.REINSTALL)
    return Check("engine", "pass", f"{detail}, built for {', '.join(seen.machine.backends)}")


def _check_self(seen: Seen) -> Check:
    if seen.self_check == "fast":
        return Check("self-check", "pass", "the engine computes rightly, with repacked weights")
    if seen.self_check == "safe":
        detail = "right only without weights repacked for this CPU; qwq leaves them out"
        return Check("self-check", "pass", detail)
    return Check("self-check", "fail", seen.self_check, seen.self_check_fix)


def _check_built_in(seen: Seen) -> Check:
    if seen.built_in_problem:
        fix = "pip install --force-reinstall --no-deps qwq"
        return Check("built-in model", "fail", seen.built_in_problem, fix)
    return Check("built-in model", "pass", "its file is whole")


def _check_gpus(seen: Seen) -> Iterator[Check]:
    """What the engine can use, and what the machine has beside that."""
    for device in seen.machine.devices:
        room = f"{gib(device.free_bytes)} of {gib(device.total_bytes)} free"
        detail = f"{device.name}, {device.description}: {room}"
        if device.total_bytes and device.free_bytes < device.total_bytes // 2:
            yield Check("gpu", "warn", f"{detail}; another program uses it", _busy(device.backend))
        else:
            yield Check("gpu", "pass", detail)
    for unused in seen.machine.unused:
        built = ", ".join(seen.machine.backends) or "nothing"
        detail = f"{unused.name} was found, but this build of llama.cpp is for {built} alone"
        yield Check("gpu", "fail", detail, unused.install)
    if not seen.machine.devices and not seen.machine.unused:
        yield Check("gpu", "pass", f"none; {seen.machine.cores} CPU cores compute")


def _busy(backend: str) -> str:
    return "nvidia-smi" if backend == "CUDA" else "Close programs that draw or compute there"


def _check_memory(seen: Seen) -> Iterator[Check]:
    machine = seen.machine
    free, total = gib(machine.ram_free_bytes), gib(machine.ram_total_bytes)
    source = dict(machine.sources).get("RAM", "")
    detail = f"{free} of {total} free, by {source}"
    if machine.ram_free_bytes < LITTLE_RAM_BYTES and not machine.devices:
        yield Check("memory", "warn", f"{detail}: too little for QwQ-32B", "Close other programs")
    else:
        yield Check("memory", "pass", detail)
    used = machine.swap_total_bytes - machine.swap_free_bytes
    if used > max(GiB, machine.swap_total_bytes // 2):
        detail = f"{gib(used)} of {gib(machine.swap_total_bytes)} in use: this machine is short"
        yield Check("swap", "warn", detail, "Close other programs")
    else:
        yield Check("swap", "pass", f"{gib(machine.swap_total_bytes)}, {gib(used)} in use")


def _check_disk(seen: Seen) -> Check:
    if seen.disk_free_bytes is None:
        fix = "Set HF_HOME to a folder on another disk"
        return Check("disk", "fail", f"the disk of {seen.model_folder} does not answer", fix)
    room = f"{seen.disk_free_bytes / 10**9:.1f} GB free for models in {seen.model_folder}"
    if seen.disk_free_bytes < ROOM_BYTES:
        fix = "Make room, or set HF_HOME to a folder on another disk"
        return Check("disk", "warn", f"{room}; Q4_K_M has 20 GB", fix)
    return Check("disk", "pass", room)


def _check_settings(seen: Seen) -> Check:
    if seen.settings_problem:
        return Check("settings", "fail", seen.settings_problem, seen.settings_fix)
    return Check("settings", "pass", "valid")


def _check_folders(seen: Seen) -> Iterator[Check]:
    for folder in seen.folders:
        if folder.problem:
            fix = f"mkdir -p {folder.path} && chmod u+rwx {folder.path}"
            yield Check(folder.use, "fail", f"{folder.path}: {folder.problem}", fix)
        else:
            yield Check(folder.use, "pass", f"{folder.path} can be read and written")


def _check_terminal(seen: Seen) -> Check:
    if seen.encoding.lower().replace("-", "") != "utf8":
        detail = f"{seen.encoding}: letters that it lacks are shown as codes"
        return Check("terminal", "warn", detail, "export LANG=C.UTF-8")
    if not seen.terminal:
        return Check("terminal", "pass", "output goes to a pipe or a file")
    live = "live rows" if seen.live else "no live rows (TERM=dumb)"
    return Check("terminal", "pass", f"UTF-8, {live}, {'colours' if seen.colour else 'no colours'}")


def _check_model(seen: Seen) -> Check:
    if seen.best is None:
        detail = "no quantization of QwQ-32B fits the memory that is free"
        return Check("QwQ-32B", "warn", detail, "qwq plan")
    loss = quants.BY_NAME[seen.best].kld
    if loss is None or loss > ACCEPTABLE_KLD:
        detail = f"only {seen.best} fits the memory that is free, and it often errs"
        return Check("QwQ-32B", "warn", detail, "Close other programs, then: qwq plan")
    return Check("QwQ-32B", "pass", f"{seen.best} suits this machine; see: qwq plan {seen.best}")


# --- asking the world --------------------------------------------------------------------------


def model_folder(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face keeps models (huggingface.co/docs/huggingface_hub, environment)."""
    home = environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _within(limit_s: float, ask: Callable[[], Value]) -> Value | None:
    """What `ask` returns; None if that takes longer or the system refuses."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        with contextlib.suppress(OSError):
            answers.put(ask())

    threading.Thread(target=run, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        found: Value = answers.get(timeout=limit_s)
        return found
    return None


def _self_check(cache: Path) -> tuple[str, str]:
    """`fast`, `safe`, or what is wrong and what to type."""
    try:
        spec, _ = selfcheck.trusted(EngineSpec("", extra_bufts=True), cache)
    except QwqError as error:
        return error.message, error.hint
    return ("fast" if spec.extra_bufts else "safe"), ""


def _problem(ask: Callable[[], object]) -> tuple[str, str]:
    """Why `ask` fails, and what to type; both "" if it does not."""
    try:
        ask()
    except QwqError as error:
        return error.message, error.hint
    return "", ""


def _folder(use: str, path: Path) -> Folder:
    """By writing a file into the nearest folder that is there; nothing is left behind."""

    def attempt() -> str:
        try:
            with tempfile.TemporaryFile(dir=_existing(path)):
                return ""
        except OSError as error:
            return error.strerror or str(error)

    problem = _within(DISK_LIMIT_S, attempt)
    return Folder(use, str(path), "its disk does not answer" if problem is None else problem)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
