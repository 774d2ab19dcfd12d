"""From what a person types to a plan: which model, which machine, what llama.cpp itself says.

Contract: `answer` is `qwq plan` without the drawing; `measured` plans for a file on this machine
and proves the compute buffers with a dry load of it. Of a model that is not here the header is read
from the hub, of QwQ-32B's quantizations not even that. No weight is read; a dry load that fails
leaves the closed form.
Non-goals: the arithmetic (plan.py), asking the system (hardware.py), drawing (tables.py).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast, get_args

from qwqcli import catalog, hardware, quants
from qwqcli.config import KV, RANGES, FlashAttn, nearest
from qwqcli.engine.probe import Probe
from qwqcli.errors import EngineError, UsageError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.hub import Hub, Policy
from qwqcli.hub.sources import parse_want
from qwqcli.layout import PREFERENCES, Want
from qwqcli.plan import Option, Plan, corrected, make_plan, options
from qwqcli.portable import typed_path
from qwqcli.sizes import Sizes

Choice = TypeVar("Choice", bound=str)
KV_TYPES: tuple[KV, ...] = get_args(KV)
PATIENCE = Policy(
    connect_s=5.0, stall_s=8.0, metadata_s=15.0, tries=2
)  # with the hub, for one header
FLASH_ATTN: tuple[FlashAttn, ...] = get_args(FlashAttn)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was typed: a model or nothing, a machine or this one."""

    model: str | None
    want: Want
    machine: str | None = None
    vram: str | None = None
    ram: str | None = None
    rpc: str | None = None
    device: str | None = None
    offline: bool = False
    source: str = ""  # of models that are not here: hf, modelscope or the URL of a mirror

    @property
    def here(self) -> bool:
        """The question is about this machine as it is."""
        return not (self.machine or self.vram or self.ram)


def answer(
    asked: Asked,
    environ: Mapping[str, str] = os.environ,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Machine, Plan | list[Option]]:
    """The machine, and the plan for the model on it; all quantizations if none was named.

    `sizes` of quantizations, where they are known already: the hub is not asked again.
    """
    with contextlib.ExitStack() as stack:
        probe = None if asked.machine else stack.enter_context(Probe(asked.rpc))
        if asked.model is None or asked.model.lower() in ("qwq", "qwq-32b"):
            # asks while llama.cpp is asked
            kept = asked.offline or sizes is not None
            hub = Sizes(environ, source=asked.source, offline=kept)
            machine = _machine(asked, probe)
            known = quants.sized(hub.known() if sizes is None else sizes)
            return machine, options(machine, asked.want, known)
        info, path = subject(asked.model, environ, source=asked.source, offline=asked.offline)
        machine = _machine(asked, probe)
        if path is None or probe is None or not asked.here:
            return machine, make_plan(info, machine, asked.want)
        return machine, measured(path, info, machine, asked.want, probe)


def measured(path: Path, info: ModelInfo, machine: Machine, want: Want, probe: Probe) -> Plan:
    """The plan for a file, with llama.cpp's own compute buffers from a dry load."""
    plan = make_plan(info, machine, want)
    said = probe.dry_load(path, plan.placement(), (info.architecture, info.n_vocab))
    compute = said.get("compute")
    return corrected(info, machine, want, plan, compute) if compute else plan


def subject(
    name: str, environ: Mapping[str, str] = os.environ, *, source: str = "", offline: bool = False
) -> tuple[ModelInfo, Path | None]:
    """The header that `name` stands for, and its file if it is on this machine.

    Raises UsageError if it stands for nothing, NetworkError if only the hub could tell.
    """
    hub = Hub(environ, source=source, offline=offline, policy=PATIENCE)
    path = _here(name, hub)
    if path is not None:
        return read_file_header(path), path
    if (quant := quants.BY_NAME.get(name.lower())) is not None:
        # of llama.cpp's own mixes we know each byte
        sizes = Sizes(environ, source=source, offline=offline or not quant.approximate)
        named = {sized.name: sized for sized in quants.sized(sizes.known())}
        return quants.model_info(named[quant.name]), None
    if _is_remote(name):
        return hub.header(hub.choose(name)), None
    try:
        path = catalog.resolve(name, environ).path
    except UsageError as error:
        close = difflib.get_close_matches(name.lower(), quants.BY_NAME, n=1)
        raise UsageError(error.message, " ".join(["qwq plan", *close])) from error
    return read_file_header(path), path


def _here(name: str, hub: Hub) -> Path | None:
    """The file called so, else the model that was pulled under this name."""
    if os.path.isfile(path := typed_path(name)):
        return path
    with contextlib.suppress(UsageError):  # a name that no pull could have left
        model = hub.find(name)
        return model.paths[0] if model else None
    return None


def _is_remote(name: str) -> bool:
    """Whether this is OWNER/NAME, with :QUANT or :FILE, or a URL: not the path of a file."""
    try:
        want = parse_want(name)
    except UsageError:
        return False
    plain = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", want.repo) is not None
    return bool(want.source) or (plain and not want.repo.lower().endswith(".gguf"))


def _machine(asked: Asked, probe: Probe | None) -> Machine:
    """The machine called so, else this one; with the cards and the RAM that were named instead."""
    if asked.machine:
        machine = hardware.known_machine(asked.machine)
    else:
        machine = hardware.probe(probe.devices if probe else None)
        if asked.rpc and machine.problems:
            why = machine.problems[0].rstrip(".")
            raise EngineError(f"{why}.", "Start the server, or leave out --rpc")
    machine = hardware.with_memory(machine, asked.vram, asked.ram)
    return hardware.chosen(machine, asked.device) if asked.device else machine


def one_of(value: str | None, choices: Sequence[Choice], option: str) -> Choice | None:
    """`value` if it is one of the choices. Raises UsageError that names the nearest."""
    if value is None:
        return None
    if value.lower() not in choices:
        raise UsageError(f"{option} {value!r} is unknown.", f"{option} {nearest(value, choices)}")
    return cast(Choice, value.lower())


def wish(
    n_ctx: int | None = None,
    kv: str | None = None,
    flash_attn: str | None = None,
    prefer: str | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    margin: str | None = None,
) -> Want:
    """What was typed as a `Want`. Raises UsageError for what cannot be meant."""
    if threads is not None and not 1 <= threads <= RANGES["threads"][1]:
        raise UsageError(f"--threads {threads} is no number of threads.", "Leave out --threads")
    want = Want(
        n_ctx=n_ctx,
        kv=one_of(kv, KV_TYPES, "--kv"),
        prefer=one_of(prefer, PREFERENCES, "--prefer"),
        gpu_layers=gpu_layers,
        flash_attn=one_of(flash_attn, FLASH_ATTN, "--flash-attn"),
        threads=threads,
    )
    if margin is None:
        return want
    return replace(want, margin_bytes=hardware.parse_size(margin, "--margin", least=0))
