"""What `qwq doctor` says: is everything there that qwq needs, and is the machine made use of?

Contract: `examine` judges what a checkup saw, purely. Each check passes, warns or fails, and says
what to type. Nothing in it names the person or holds a secret: paths start at ~, and the user's
name is taken out of the others.
Non-goals: asking the world (checkup.py), repairing anything.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qwqcli import __version__, hardware, quants
from qwqcli.checkup import Reached, Seen
from qwqcli.engine import selfcheck
from qwqcli.hardware import GiB, gib
from qwqcli.plan import ACCEPTABLE_KLD

Status = Literal["pass", "warn", "fail"]
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


def examine(seen: Seen) -> list[Check]:
    """The checks, in the order in which one thing needs the other."""
    checks = [
        _check_python(seen),
        _check_engine(seen),
        _check_self(seen),
        _check_built_in(seen),
        *_check_gpus(seen),
        *_check_driver(seen),
        *_check_use(seen),
        *_check_memory(seen),
        _check_disk(seen),
        *_check_models(seen),
        *_check_network(seen),
        *_check_token(seen),
        _check_settings(seen),
        *_check_folders(seen),
        _check_sessions(seen),
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
        home = str(Path.home())
        if home != os.sep:
            text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
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
        remote = "RPC server" in why  # that is none of the build's faults
        fix = "Start the server, or leave out --rpc" if remote else selfcheck.REINSTALL
        return Check("engine", "fail", f"{detail}: {why}", fix)
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
        if "CUDA" in seen.machine.backends and "NVIDIA" in unused.name:
            detail = (
                f"{unused.name} was found, but llama.cpp, though built for CUDA, does not see it"
            )
        yield Check("gpu", "fail", detail, unused.install)
    if not seen.machine.devices and not seen.machine.unused:
        yield Check("gpu", "pass", f"none; {seen.machine.cores} CPU cores compute")


def _check_driver(seen: Seen) -> Iterator[Check]:
    """NVIDIA's driver against what builds for CUDA need."""
    driver = seen.machine.driver
    if not driver:
        return
    newest = hardware.newest_cuda(driver)
    if newest is None:
        least = min(hardware.CUDA_DRIVERS.values())
        detail = f"NVIDIA {driver} is older than {least}, which the oldest build for CUDA needs"
        yield Check("driver", "fail", detail, "Install a newer driver: nvidia.com/drivers")
        return
    detail = f"NVIDIA {driver} runs builds for CUDA {newest} and older"
    cards = [d for d in seen.machine.devices if d.backend == "CUDA"]
    if "CUDA" in seen.machine.backends and not cards:
        detail += "; the one that is installed finds no card and may need a newer driver"
        yield Check("driver", "fail", detail, hardware.wheel_for(newest))
    else:
        yield Check("driver", "pass", detail)


def _check_use(seen: Seen) -> Iterator[Check]:
    """Settings that leave a part of the machine idle."""
    settings, machine = seen.settings, seen.machine
    if settings is None:
        return
    if machine.devices and (settings.gpu_layers == 0 or settings.device == "none"):
        name = "gpu_layers" if settings.gpu_layers == 0 else "device"
        detail = (
            f"the setting {name} keeps everything on the CPU; {machine.devices[0].name} is idle"
        )
        yield Check("use", "warn", detail, _take_out(name))
    if settings.threads and not machine.cores <= settings.threads <= 2 * machine.cores:
        detail = (
            f"the setting threads is {settings.threads}; this machine has {machine.cores} cores"
        )
        yield Check("use", "warn", detail, _take_out("threads"))


def _take_out(setting: str) -> str:
    return f"Take {setting} out of config.yaml, or unset QWQ_{setting.upper()}"


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


def _check_models(seen: Seen) -> Iterator[Check]:
    """Those that qwq brought; what other tools brought is theirs to check."""
    if seen.models is None:
        detail = "the folders of models do not answer"
        yield Check("models", "fail", detail, "Set HF_HOME to a folder on another disk")
        return
    for model in seen.models.damaged:
        again = f"qwq pull {model.name}"
        fix = again if model.can_be_pulled else f"qwq rm {model.name}, and import it again"
        yield Check("models", "fail", f"{model.name}: {model.problem}", fix)
    whole = seen.models.count - len(seen.models.damaged)
    how = "read through and intact" if seen.models.read_through else "of the right size"
    detail = f"{whole} pulled, {seen.models.n_bytes / 10**9:.1f} GB, {how}"
    if not seen.models.count:
        detail = "none pulled yet"
    if seen.models.others:
        detail += f"; {seen.models.others} of other tools"
    if whole or not seen.models.damaged:
        yield Check("models", "pass", detail)


def _check_network(seen: Seen) -> Iterator[Check]:
    hub, mirror = seen.hub, seen.mirror
    if hub is None or mirror is None:
        yield Check("hub", "pass", "not asked (offline)")
        return
    problem = hub.problem if hub.host in hub.problem else f"{hub.host}: {hub.problem}"
    if hub.seconds is not None:
        yield Check("hub", "pass", _answers(hub))
    elif mirror.seconds is not None:
        yield Check("hub", "warn", problem, "qwq pull --source modelscope")
    else:
        fix = "Check the network and its proxies; models that are here run without"
        yield Check("hub", "warn", problem, fix)
    if mirror.seconds is not None:
        yield Check("mirror", "pass", _answers(mirror))
    elif hub.seconds is not None:
        yield Check(
            "mirror", "pass", f"{mirror.host} does not answer, and need not while the hub does"
        )


def _answers(source: Reached) -> str:
    return f"{source.host} answers in {source.seconds:.1f} s"


def _check_token(seen: Seen) -> Iterator[Check]:
    """Never shown, only whether it works: with one that does not, public models are refused too."""
    if seen.token == "refused":
        detail = "the saved token, or the one in HF_TOKEN, is not valid any more"
        yield Check("token", "fail", detail, "hf auth login, or hf auth logout")
    elif seen.token == "valid":
        yield Check("token", "pass", "valid")
    elif seen.token == "none":
        yield Check("token", "pass", "none, which public models do not need")


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


def _check_sessions(seen: Seen) -> Check:
    if seen.sessions_problem is None:
        return Check("sessions", "fail", "their disk does not answer", "Set QWQ_DATA_DIR")
    if seen.sessions_problem:
        fix = "Move sessions.db away from the data folder; qwq begins a new one"
        return Check("sessions", "fail", f"cannot be read: {seen.sessions_problem}", fix)
    return Check("sessions", "pass", "can be read")


def _check_terminal(seen: Seen) -> Check:
    if seen.encoding.lower().replace("-", "") != "utf8":
        detail = f"{seen.encoding}: letters that it lacks are shown as codes"
        return Check("terminal", "warn", detail, "export LANG=C.UTF-8")
    if not seen.terminal:
        return Check("terminal", "pass", "output goes to a pipe or a file")
    live = "live rows" if seen.live else "no live rows (TERM=dumb)"
    colour = "colours" if seen.colour else "no colours"
    return Check("terminal", "pass", f"UTF-8, {live}, {colour}, {seen.columns} columns")


def _check_model(seen: Seen) -> Check:
    if seen.best is None:
        detail = "no quantization of QwQ-32B fits the memory that is free"
        return Check("QwQ-32B", "warn", detail, "qwq plan")
    loss = quants.BY_NAME[seen.best].kld
    if loss is None or loss > ACCEPTABLE_KLD:
        detail = f"only {seen.best} fits the memory that is free, and it often errs"
        return Check("QwQ-32B", "warn", detail, "Close other programs, then: qwq plan")
    return Check("QwQ-32B", "pass", f"{seen.best} suits this machine; see: qwq plan {seen.best}")
