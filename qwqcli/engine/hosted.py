"""A model loaded as planned: wishes in, a loaded engine out, its real placement held to the plan.

Runs in the engine's own process, which may ask llama.cpp for its devices at no further cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from qwqcli import hardware
from qwqcli.engine import RETRIES, EngineInfo, EngineSpec, native
from qwqcli.engine.llama import LlamaEngine
from qwqcli.errors import QwqError
from qwqcli.gguf import read_file_header
from qwqcli.layout import Case, Larger
from qwqcli.plan import Plan, corrected, larger, make_plan, refused, squeezed

SLOW_TPS = 10.0  # about as fast as people read; below, they should know before they wait


class PlannedEngine(LlamaEngine):
    """A `LlamaEngine` whose info tells the plan that it was loaded by."""

    def __init__(self, spec: EngineSpec, case: Case, progress: Callable[[float], bool]) -> None:
        plan = _plan(spec, case)
        super().__init__(spec, progress, native.Placement(**plan.placement()))
        self._case, self._plan = case, plan
        self._tuned = (spec.tuned,) if spec.tuned else ()

    def info(self) -> EngineInfo:
        info = super().info()
        placement = info.placement
        if self._plan.cpu_ffn:
            placement += f" · feed-forward weights of {len(self._plan.cpu_ffn)} in RAM"
        if self._plan.flash_attn == "prompts":
            placement += " · a second KV cache for generation"
        if self._plan.type_k != "f16":
            placement += f" · KV {self._plan.type_k}"
        return replace(
            info,
            placement=placement,
            notices=(*info.notices, *_notices(self._plan, info)),
            reasons=(*self._plan.reasons, *self._tuned),
        )

    def larger(self, n_ctx: int) -> Larger | None:
        case = self._case
        return larger(case.info, case.machine, case.want, self._plan, n_ctx)


def load(spec: EngineSpec, progress: Callable[[float], bool]) -> PlannedEngine:
    """Plan for this machine as it is now, and load.

    Raises UsageError for wishes that cannot work, NoRoom if nothing fits or memory was refused too
    often, OutOfMemory if memory that seemed free was refused.
    """
    return PlannedEngine(spec, _case(spec), progress)


def planned(spec: EngineSpec) -> Plan:
    """The plan for this machine as it is now; see `load` for what it raises."""
    return _plan(spec, _case(spec))


def _case(spec: EngineSpec) -> Case:
    """The model, the machine as it is now, and what is wanted."""
    if spec.rpc:
        native.add_rpc_devices(spec.rpc)
    info = read_file_header(Path(spec.path))
    machine = hardware.probe(native.machine)
    if spec.device:
        machine = hardware.chosen(machine, spec.device)
    want = spec.want()
    machine = squeezed(info, machine, want, spec.squeeze)
    if spec.squeeze > RETRIES:
        raise refused(info, machine, want, spec.squeeze)
    return Case(info, machine, want)


def placement(spec: EngineSpec, *, n_ctx: int, n_outputs: int) -> native.Placement:
    """Where a plan puts the model, for a context and as many outputs as are wanted."""
    values = planned(replace(spec, n_ctx=n_ctx)).placement()
    return native.Placement(**{**values, "n_ctx": n_ctx, "n_outputs": n_outputs})


def _plan(spec: EngineSpec, case: Case) -> Plan:
    """The plan, with compute buffers from a dry load where a GPU could be overfilled."""
    info, machine, want = case.info, case.machine, case.want
    plan = make_plan(info, machine, want)
    if not plan.gpu_layers:
        return plan
    placement = native.Placement(**plan.placement())
    try:
        compute = native.dry_load(Path(spec.path), placement, (info.architecture, info.n_vocab))
    except QwqError:
        return plan  # the closed form is what is left; the load itself will tell
    return corrected(info, machine, want, plan, compute)


def _notices(plan: Plan, info: EngineInfo) -> Iterator[str]:
    """The plan's warnings, and what is slow or not as it was planned."""
    yield from plan.warnings
    planned = f"{plan.gpu_layers} of {plan.layers_total} layers"
    if plan.gpu_layers and not info.placement.startswith(planned):
        yield f"Planned were {planned} on the GPU; llama.cpp has {info.placement}."
    speed = plan.predicted.generation_tps
    if not speed or plan.whole_layers == plan.layers_total:
        return
    if plan.gpu_layers:
        where = f"{plan.whole_layers} of {plan.layers_total} layers are whole on the GPU"
        yield f"{where}: expect about {speed:.1f} tokens/s."
    elif speed < SLOW_TPS:
        yield f"All layers are on the CPU: expect about {speed:.1f} tokens/s."
