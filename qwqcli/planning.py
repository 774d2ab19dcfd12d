"""From what a person types to a plan: which model, which machine, what llama.cpp itself says.

Contract: `subject` finds the header that a name stands for, `machine_of` the machine that is meant,
`plan_file` plans for a file on this machine and proves the compute buffers with a dry load of it.
Nothing is downloaded and no weight is read; a dry load that fails leaves the closed form.
Non-goals: the arithmetic (plan.py), asking the system (hardware.py), drawing (tables.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

from qwqcli import catalog, hardware, quants
from qwqcli.config import nearest
from qwqcli.engine.probe import Probe
from qwqcli.errors import UsageError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.plan import Plan, Want, corrected, make_plan

Choice = TypeVar("Choice", bound=str)


def subject(name: str) -> tuple[ModelInfo, Path | None]:
    """The header that `name` stands for, and its file if it is on this machine."""
    quant = quants.BY_NAME.get(name.lower())
    if quant is not None and not Path(name).exists():
        return quants.model_info(quant), None
    path = catalog.resolve(name).path
    return read_file_header(path), path


def machine_of(
    name: str | None = None,
    vram: str | None = None,
    ram: str | None = None,
    probe: Probe | None = None,
) -> Machine:
    """The machine called so, else this one; with the cards and the RAM that were named instead."""
    if name:
        machine = hardware.known_machine(name)
    else:
        machine = hardware.probe(probe.devices if probe else None)
    return hardware.with_memory(machine, vram, ram)


def plan_file(path: Path, info: ModelInfo, want: Want, probe: Probe) -> Plan:
    """The plan for a file on this machine, with llama.cpp's own compute buffers."""
    machine = hardware.probe(probe.devices)
    plan = make_plan(info, machine, want)
    answer = probe.dry_load(path, plan.placement(), (info.architecture, info.n_vocab))
    measured = answer.get("compute")
    return corrected(info, machine, want, plan, measured) if measured else plan


def one_of(value: str | None, choices: Sequence[Choice], option: str) -> Choice | None:
    """`value` if it is one of the choices. Raises UsageError that names the nearest."""
    if value is None:
        return None
    if value.lower() not in choices:
        raise UsageError(f"{option} {value!r} is unknown.", f"{option} {nearest(value, choices)}")
    return cast(Choice, value.lower())
