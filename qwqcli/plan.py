"""Which layers go where, with how much context: a `Plan` for a model, a machine and wishes. Pure.

Contract: `make_plan` gives the first layout that fits, in the order in which a reasoner can spare
things: KV cache f16 -> q8_0, context down to 16k, layers to the CPU, context below 16k (with a
warning); `prefer` asks for another order. A plan explains each choice (`reasons`) and keeps a
margin on every device. Weights and KV cache are llama.cpp's own bytes; the compute buffer is a
closed form until `corrected` takes what a dry load measured.
Limits: what happens on a GPU when llama.cpp computes there for layers in RAM is estimated.
Non-goals: what a layout costs (layout.py), asking the machine (hardware.py), loading (engine),
drawing (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwqcli import costs, quants
from qwqcli.config import KV, FlashAttn
from qwqcli.costs import Cache
from qwqcli.errors import NoRoom, UsageError
from qwqcli.gguf import ModelInfo
from qwqcli.hardware import GiB, Machine, MiB, device_of, gib, listed
from qwqcli.layout import (
    MARGIN_BYTES,
    Case,
    Larger,
    Layout,
    Predicted,
    Share,
    Split,
    Want,
    dealt,
    placed,
    split_as,
    with_ram_margin,
)

NATIVE_CONTEXT = 32_768  # of QwQ-32B without YaRN: "original_max_position_embeddings"
YARN_FACTOR = 4.0  # QwQ's model card
ENOUGH_CONTEXT = 16_384  # tokens; below it a thought may be cut
LEAST_CONTEXT = 4_096
SHORTEST_CONTEXT = 512  # that is worth to be proposed
CONTEXT_STEP = 1_024
_ENDLESS = 1 << 60  # bytes
BATCH, SMALL_BATCH = 512, 128
# What macOS needs beside memory that the GPU has wired: it cannot be paged out.
MACOS_BYTES = 4 * GiB


@dataclass(frozen=True, slots=True)
class Yarn:
    """Rope scaling for contexts beyond the native one."""

    factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How to load a model on a machine, and why so."""

    model: str
    n_ctx: int
    type_k: KV
    type_v: KV
    flash_attn: FlashAttn
    n_batch: int
    threads: int
    gpu_layers: int  # llama.cpp's n_gpu_layers: the output layer is one of them
    layers_total: int
    cpu_ffn: tuple[int, ...]  # layers on a GPU whose feed-forward weights are in RAM
    placed_on: tuple[str, ...]  # the devices that llama.cpp is given, in order
    tensor_split: tuple[int, ...]  # layers of each of them, if there are several
    mmap: bool
    yarn: Yarn | None
    devices: tuple[Share, ...]
    predicted: Predicted
    compute_source: str  # "closed form", "estimate" or "dry load"
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def whole_layers(self) -> int:
        """Layers that are on GPUs with all their weights."""
        return self.gpu_layers - len(self.cpu_ffn)

    @property
    def split(self) -> Split:
        """How the layers are dealt."""
        counts = tuple(share.layers for share in self.devices if share.name != "CPU")
        return Split(counts, len(self.cpu_ffn))

    def placement(self) -> dict[str, Any]:
        """What `engine.native.Placement` takes."""
        return {
            "n_ctx": self.n_ctx,
            "n_batch": self.n_batch,
            "gpu_layers": self.gpu_layers,
            "devices": self.placed_on,
            "tensor_split": self.tensor_split,
            "cpu_ffn": self.cpu_ffn,
            "type_k": self.type_k,
            "type_v": self.type_v,
            "flash_attn": self.flash_attn,
            "mmap": self.mmap,
            "yarn_factor": self.yarn.factor if self.yarn else 0.0,
            "yarn_original_context": self.yarn.original_context if self.yarn else 0,
        }


@dataclass(frozen=True, slots=True)
class _Stage:
    """One thing to try: the most context in a range, with all layers on GPUs, some, or none.

    Without a GPU all three mean the same.
    """

    kv: KV
    most: int
    least: int
    where: Literal["gpus", "split", "ram"] = "gpus"


def make_plan(
    info: ModelInfo,
    machine: Machine,
    want: Want | None = None,
    *,
    surplus: Mapping[str, int] | None = None,
) -> Plan:
    """The plan for `info` on `machine`.

    Raises UsageError for a wish that cannot be meant, NoRoom if nothing fits.
    """
    case = Case(info, machine, want or Want(), surplus or {})
    _check(case)
    plan = _first_fit(case)
    if plan is None:
        raise _no_room(case)
    return _as_split(case, plan) or _with_second_cache(case, plan) or plan


def _with_second_cache(case: Case, plan: Plan) -> Plan | None:
    """`plan` with a KV cache for prompts and one for generation, and the same context.

    None if nobody asked for it, part of the model is on a GPU, or there is no room for it.
    """
    if case.want.flash_attn != "prompts" or plan.gpu_layers or plan.type_k != "f16":
        return None
    if not costs.known_architecture(case.info):
        return None
    cache = Cache(plan.n_ctx, "f16", "f16", True, case.want.n_batch or BATCH, twice=True)
    layout = placed(case, cache, case.total, 0)
    return _describe(case, layout, True) if layout else None


def _as_split(case: Case, plan: Plan) -> Plan | None:
    """`plan` with the layers on each device that were measured to be faster, and the same context.

    They may take half of the margin: that they fit has been tried, not only computed. None if
    nothing was measured, a number of layers is asked for, or they do not fit now.
    """
    want = case.want
    if want.split is None or want.gpu_layers is not None:
        return None
    flash = want.flash_attn != "off" if any(want.split.layers) else want.flash_attn == "on"
    cache = Cache(plan.n_ctx, plan.type_k, plan.type_v, flash, plan.n_batch)
    tight = replace(case, want=replace(want, margin_bytes=want.margin_bytes // 2))
    layout = split_as(tight, cache, want.split)
    return _describe(tight, layout, True) if layout else None


def _first_fit(case: Case, explained: bool = True) -> Plan | None:
    """The plan by the first stage that fits; its reasons take as long as finding it."""
    for stage in _stages(case):
        layout = _search(case, stage)
        if layout is not None:
            return _describe(case, layout, explained)
    return None


def corrected(
    info: ModelInfo, machine: Machine, want: Want, plan: Plan, measured: Mapping[str, int]
) -> Plan:
    """`plan` with the compute buffers that a dry load of it measured, by llama.cpp's names.

    Made anew where they are larger than what was left for them.
    """
    compute = _by_share(plan, measured)
    exact = _with_compute(plan, compute)
    if all(share.used_bytes + share.margin_bytes <= share.free_bytes for share in exact.devices):
        return exact
    above = {s.name: max(compute.get(s.name, 0) - s.compute_bytes, 0) for s in plan.devices}
    again = make_plan(info, machine, want, surplus=above)
    return again if again.placement() != plan.placement() else exact


def _by_share(plan: Plan, measured: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for buffer, n_bytes in measured.items():
        owner = device_of(buffer, [share.name for share in plan.devices])
        found[owner] = found.get(owner, 0) + n_bytes
    return found


def _with_compute(plan: Plan, compute: Mapping[str, int]) -> Plan:
    shares = tuple(replace(s, compute_bytes=compute.get(s.name, 0)) for s in plan.devices)
    reasons = tuple(r for r in plan.reasons if not r.startswith(_COMPUTE))
    said = f"{_COMPUTE} is llama.cpp's own figure, from a dry load."
    return replace(plan, devices=shares, compute_source="dry load", reasons=(*reasons, said))


def with_measurement(
    plan: Plan, prompt_tps: float | None, generation_tps: float, how: str = ""
) -> Plan:
    """`plan` with tokens per second that were measured in place of those that were predicted.

    `how` says with which settings, if they were not those of the plan.
    """
    speed = Predicted(prompt_tps, generation_tps, measured=True)
    reasons = tuple(r for r in plan.reasons if not r.startswith((_PREDICTED, _UNPREDICTED)))
    return replace(
        plan, predicted=speed, reasons=(*reasons, _speed_sentence(_MEASURED + how, speed))
    )


# --- another context ---------------------------------------------------------------------------


def larger(info: ModelInfo, machine: Machine, want: Want, plan: Plan, n_ctx: int) -> Larger:
    """What a context of `n_ctx` tokens would take on `machine`, beyond `plan` made for it."""
    here = _used(make_plan(info, machine, replace(want, n_ctx=plan.n_ctx)))
    try:
        other = make_plan(info, machine, replace(want, n_ctx=n_ctx))
    except NoRoom:
        return Larger(n_ctx, _grown(info, machine, want, plan, n_ctx), fits=False)
    return Larger(n_ctx, _used(other) - here, fits=True, how=", ".join(_changes(plan, other)))


def _grown(info: ModelInfo, machine: Machine, want: Want, plan: Plan, n_ctx: int) -> int:
    """Bytes by which `plan` grows with its context where memory is no matter."""
    same = replace(want, kv=plan.type_k, flash_attn=plan.flash_attn, gpu_layers=plan.gpu_layers)
    devices = tuple(replace(device, free_bytes=_ENDLESS) for device in machine.devices)
    endless = replace(machine, devices=devices, ram_free_bytes=_ENDLESS)
    now, then = (make_plan(info, endless, replace(same, n_ctx=n)) for n in (plan.n_ctx, n_ctx))
    return _used(then) - _used(now)


def _used(plan: Plan) -> int:
    return sum(share.used_bytes for share in plan.devices)


def _changes(plan: Plan, other: Plan) -> Iterator[str]:
    if other.type_k != plan.type_k:
        yield f"the KV cache in {other.type_k}"
    if other.whole_layers == plan.whole_layers:
        return  # what is slower then is only a longer thought
    yield f"{other.whole_layers} of {other.layers_total} layers whole on the GPU"
    before, after = plan.predicted.generation_tps, other.predicted.generation_tps
    if before and after and after < before:
        yield f"about {after:.1f} tokens/s instead of {before:.1f}"


# --- memory that was refused -------------------------------------------------------------------

SQUEEZE = 0.85  # of what was refused is asked for the next time


def squeezed(info: ModelInfo, machine: Machine, want: Want, times: int) -> Machine:
    """`machine` after it refused memory that it had announced as free, `times` times.

    Each time the devices that hold layers are left 15 % less than the plan took there, and the
    others 15 % less than they had. Raises NoRoom, see `refused`, as soon as nothing fits.
    """
    for time in range(1, times + 1):
        try:
            machine = _less(machine, make_plan(info, machine, want), want)
            make_plan(info, machine, want)
        except NoRoom as error:
            raise refused(info, machine, want, time) from error
    return machine


def _less(machine: Machine, plan: Plan, want: Want) -> Machine:
    took = {share.name: share.used_bytes for share in plan.devices if share.layers}
    devices = []
    for device in machine.devices:
        free = int(device.free_bytes * SQUEEZE)
        if device.name in took:
            free = min(free, int(took[device.name] * SQUEEZE) + want.margin_bytes)
        devices.append(replace(device, free_bytes=free))
    ram = int(machine.ram_free_bytes * SQUEEZE)
    if not plan.gpu_layers:  # else the RAM must take what leaves the GPUs
        ram = min(ram, with_ram_margin(int(took["CPU"] * SQUEEZE), want))
    return replace(machine, devices=tuple(devices), ram_free_bytes=ram)


def refused(info: ModelInfo, machine: Machine, want: Want, times: int) -> NoRoom:
    """The end of it: memory was refused `times` times, and `machine` is what is left of it."""
    case = Case(info, machine, want)
    hint = _smaller(case)
    if not quants.is_qwq(info) and want.n_ctx is None and (plan := _first_fit(case, False)):
        hint = f"--ctx {plan.n_ctx}"
    often = "once" if times == 1 else f"{times} times"
    return NoRoom(
        f"Memory for {_called(info)} was refused {often}, though it had seemed to be free.", hint
    )


# --- wishes ------------------------------------------------------------------------------------


def thinks(info: ModelInfo) -> bool:
    """Whether this is a reasoning model, by its chat template if there is one."""
    return quants.is_qwq(info) or "<think>" in (info.chat_template or "")


def native_context(info: ModelInfo) -> int:
    """Tokens that the model handles without rope scaling; 0 if the file does not say."""
    return min(info.n_ctx_train, NATIVE_CONTEXT) if quants.is_qwq(info) else info.n_ctx_train


def _check(case: Case) -> None:
    """Refuse wishes that cannot be meant, before anything is computed from them."""
    want, info = case.want, case.info
    if want.n_ctx is not None:
        _check_context(want.n_ctx, info)
    if want.gpu_layers is not None and want.gpu_layers < 0:
        raise UsageError("--gpu-layers cannot be negative.", "--gpu-layers 0 is the CPU alone")
    if want.kv is not None and not costs.can_hold(info, want.kv):
        raise UsageError(f"The heads of this model cannot be stored in {want.kv}.", "--kv f16")
    if want.kv not in (None, "f16") and want.flash_attn == "off":
        raise UsageError(
            f"A KV cache in {want.kv} needs flash attention.", "Leave out --flash-attn off"
        )
    if want.gpu_layers and not case.devices and case.machine.others:
        raise UsageError(
            f"Without a device there is no place for --gpu-layers {want.gpu_layers}.",
            f"--device {case.machine.others[0].name}, or leave out --gpu-layers",
        )
    if want.gpu_layers and not case.devices:
        raise UsageError(
            "There is no GPU that this build of llama.cpp can use for --gpu-layers.", "qwq doctor"
        )


def _check_context(n_ctx: int, info: ModelInfo) -> None:
    if n_ctx < 1:
        raise UsageError(f"A context of {n_ctx:,} tokens holds nothing.", "--ctx 16384")
    if 0 < info.n_ctx_train < n_ctx:
        raise UsageError(
            f"This model was trained for {info.n_ctx_train:,} tokens of context, not for"
            f" {n_ctx:,}.",
            f"--ctx {info.n_ctx_train}",
        )


def _contexts(case: Case) -> tuple[int, int, int]:
    """The context to aim at, the one that is enough, the least; all the same if one was asked."""
    asked = case.want.n_ctx
    if asked is not None:
        return asked, asked, asked
    goal = min(native_context(case.info) or ENOUGH_CONTEXT, NATIVE_CONTEXT)
    return goal, min(goal, ENOUGH_CONTEXT), min(goal, LEAST_CONTEXT)


def _stages(case: Case) -> list[_Stage]:
    """What is tried, in order."""
    goal, enough, least = _contexts(case)
    first: KV = case.want.kv or "f16"
    last: KV = case.want.kv or ("q8_0" if _may_quantize(case) else "f16")
    match case.want.prefer:
        case "context":
            order = [_Stage(first, goal, goal), _Stage(last, goal, goal)]
            return [*order, *_spill(case, last, goal, least)]
        case "speed":
            order = [_Stage(first, goal, goal), _Stage(last, goal, least)]
            return [*order, *_spill(case, last, enough, least)]
        case "quality":
            order = [_Stage(first, goal, enough), *_spill(case, first, enough, least)]
            return [*order, *_spill(case, last, enough, least)]
    order = [_Stage(first, goal, goal), _Stage(last, goal, goal), _Stage(last, goal, enough)]
    return [*order, *_spill(case, last, enough, least)]


def _spill(case: Case, kv: KV, enough: int, least: int) -> Iterator[_Stage]:
    """Into RAM, with `enough` context and then with less.

    Where the GPU shares the RAM, leaving the GPU frees nothing: there it comes last of all.
    """
    yield _Stage(kv, enough, enough, "split")
    if all(device.kind != "unified" for device in case.devices):
        yield _Stage(kv, enough, enough, "ram")
    yield _Stage(kv, enough, least, "split")
    yield _Stage(kv, enough, least, "ram")


def _may_quantize(case: Case) -> bool:
    return costs.can_hold(case.info, "q8_0") and case.want.flash_attn != "off"


def _called(info: ModelInfo) -> str:
    return " ".join(part for part in (info.name, info.quantization) if part) or "the model"


# --- the search --------------------------------------------------------------------------------


def _search(case: Case, stage: _Stage) -> Layout | None:
    """The layout with the most context that fits."""
    most, least = stage.most, stage.least
    steps = [most, *range(most - 1 - (most - 1) % CONTEXT_STEP, least, -CONTEXT_STEP), least]
    steps = sorted({step for step in steps if least <= step <= most})
    found = _fit(case, stage, steps[-1])
    if found is not None or len(steps) == 1:
        return found
    low, high = -1, len(steps) - 1  # steps[low] fits, steps[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        layout = _fit(case, stage, steps[middle])
        if layout is None:
            high = middle
        else:
            low, found = middle, layout
    return found


def _fit(case: Case, stage: _Stage, n_ctx: int) -> Layout | None:
    """A layout with this context."""
    want, kv = case.want, stage.kv
    if not case.devices or want.gpu_layers == 0 or stage.where == "ram":
        return None if want.gpu_layers else _host_layout(case, kv, n_ctx)
    cache = Cache(n_ctx, kv, kv, want.flash_attn != "off", want.n_batch or BATCH)
    if want.gpu_layers is not None:
        return placed(case, cache, max(case.total - want.gpu_layers, 0), 0)
    if stage.where == "gpus":
        return placed(case, cache, 0, 0)
    # the output layer alone on a GPU would be of no use
    layers = _fewest(case, cache, case.total - 2, lambda n: (n, 0))
    parts = _fewest(case, cache, case.info.n_layers, lambda n: (0, n))
    return _faster(layers, parts)


def _fewest(
    case: Case, cache: Cache, most: int, way: Callable[[int], tuple[int, int]]
) -> Layout | None:
    """The layout that keeps the fewest (1 to `most`) in RAM, if any fits.

    The more is in RAM, the more room is on the devices and the less in RAM: so what the devices
    can just hold is the only one that needs to be tried there. `way`: see layout.placed.
    """
    low, high = 0, most  # the devices can hold what `high` leaves them
    if dealt(case, cache, *way(high)) is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if dealt(case, cache, *way(middle)) is None:
            low = middle
        else:
            high = middle
    return placed(case, cache, *way(high))


def _faster(layers: Layout | None, parts: Layout | None) -> Layout | None:
    """Whole layers in RAM or only feed-forward weights: by predicted speed, else the former."""
    if layers is None or parts is None:
        return layers or parts
    one, other = layers.predicted.generation_tps, parts.predicted.generation_tps
    return parts if one is not None and other is not None and other > one else layers


def _host_layout(case: Case, kv: KV, n_ctx: int) -> Layout | None:
    """Everything in RAM."""
    for cache in _host_caches(case, kv, n_ctx):
        layout = placed(case, cache, case.total, 0)
        if layout is not None:
            return layout
    return None


def _host_caches(case: Case, kv: KV, n_ctx: int) -> Iterator[Cache]:
    """Without flash attention, which is slower on a CPU, as long as that fits.

    Then small batches save memory, and only K is quantized: V would need flash attention.
    """
    want = case.want
    if want.flash_attn != "on" and (kv == "f16" or want.kv is None):
        for n_batch in [want.n_batch] if want.n_batch else [BATCH, SMALL_BATCH]:
            yield Cache(n_ctx, kv, "f16", False, n_batch)
    if want.flash_attn == "on" or (kv != "f16" and want.flash_attn != "off"):
        yield Cache(n_ctx, kv, kv, True, want.n_batch or BATCH)


# --- the plan and its reasons ------------------------------------------------------------------

_COMPUTE = "The compute buffer"
_PREDICTED, _MEASURED = "Predicted", "Measured by qwq bench"
_UNPREDICTED = "No speed is predicted"


def _describe(case: Case, layout: Layout, explained: bool) -> Plan:
    info, cache, want = case.info, layout.cache, case.want
    flash: FlashAttn = "off"
    if cache.twice:
        flash = "prompts"
    elif cache.flash_attn:
        flash = "on" if cache.type_v != "f16" or want.flash_attn == "on" else "auto"
    yarn = None
    if quants.is_qwq(info) and cache.n_ctx > NATIVE_CONTEXT and info.rope.scaling == "none":
        yarn = Yarn(YARN_FACTOR, NATIVE_CONTEXT)
    unified = any(device.kind == "unified" for device in case.devices)
    in_ram = layout.start > 0 or layout.cpu_ffn > 0
    plan = Plan(
        model=_called(info),
        n_ctx=cache.n_ctx,
        type_k=cache.type_k,
        type_v=cache.type_v,
        flash_attn=flash,
        n_batch=cache.n_batch,
        threads=want.threads or case.machine.cores,
        gpu_layers=layout.gpu_layers,
        layers_total=case.total,
        cpu_ffn=tuple(range(layout.cpu_ffn)),
        placed_on=tuple(device.name for device in case.devices if layout.gpu_layers),
        tensor_split=layout.counts if len(case.devices) > 1 and layout.gpu_layers else (),
        mmap=not (unified and in_ram and layout.gpu_layers),
        yarn=yarn,
        devices=layout.shares,
        predicted=layout.predicted,
        compute_source="closed form" if costs.known_architecture(info) else "estimate",
    )
    if not explained:
        return plan
    return replace(
        plan,
        reasons=tuple(_reasons(case, layout, plan)),
        warnings=tuple(_warnings(case, plan)),
    )


def _reasons(case: Case, layout: Layout, plan: Plan) -> Iterator[str]:
    """Every choice in a sentence, the largest first."""
    yield _why_layers(case, layout, plan)
    yield _why_kv(case, plan)
    yield _why_context(case, plan)
    yield _why_flash(case, plan)
    yield from _why_rest(case, plan)
    yield _why_speed(case, plan)


def _why_layers(case: Case, layout: Layout, plan: Plan) -> str:
    names = listed([s.name for s in plan.devices if s.layers and s.name != "CPU"])
    if not case.devices and case.machine.others:
        alone = listed([device.name for device in case.machine.others])
        return f"All layers are on the CPU, as asked; {alone} is left alone."
    if not case.devices:
        return "All layers are on the CPU: llama.cpp sees no GPU here."
    if case.want.gpu_layers is not None:
        return f"{plan.gpu_layers} of {plan.layers_total} layers on the GPU, as asked."
    if case.want.split == plan.split:
        return f"{plan.gpu_layers} of {plan.layers_total} layers on the GPU, as qwq tune measured."
    if not plan.gpu_layers:
        return "All layers are on the CPU: no GPU has room for even a part of the model."
    if plan.cpu_ffn:
        return _why_ffn(case, layout, plan, names)
    if plan.gpu_layers == plan.layers_total:
        counts = " + ".join(map(str, filter(None, layout.counts)))
        spread = f", {counts} by free memory" if "+" in counts else ""
        return f"All {plan.layers_total} layers fit on {names}{spread}."
    return (
        f"{plan.gpu_layers} of {plan.layers_total} layers fit on {names}; the rest is in RAM, which"
        " sets the speed."
    )


def _why_ffn(case: Case, layout: Layout, plan: Plan, names: str) -> str:
    text = (
        f"All attention and the KV cache are on {names}; the feed-forward weights of"
        f" {len(plan.cpu_ffn)} of {plan.layers_total - 1} layers are in RAM"
    )
    other = _fewest(case, layout.cache, case.total - 2, lambda n: (n, 0))
    here = plan.predicted.generation_tps
    there = other.predicted.generation_tps if other else None
    if here and there and other:
        return (
            f"{text}: predicted {here:.1f} tokens/s, against {there:.1f} with {other.gpu_layers}"
            " whole layers on the GPU, because attention over a long thought is slow on a CPU."
        )
    return f"{text}: whole layers do not fit better."


def _why_kv(case: Case, plan: Plan) -> str:
    size = gib(sum(share.kv_bytes for share in plan.devices))
    if case.want.kv is not None:
        return f"KV cache in {plan.type_k} as asked: {size}."
    if plan.type_k == "f16":
        return f"KV cache in f16, the model's own precision: {size}."
    if plan.type_v == "f16":
        return (
            f"K of the KV cache in {plan.type_k}: {size} in all. V stays in f16, because a"
            " quantized one needs flash attention, which is slow on the CPU."
        )
    return (
        f"KV cache in {plan.type_k}: {size}, about half of f16, and nearly free of loss (KL"
        " divergence 0.001). It is the first thing to give."
    )


def _why_context(case: Case, plan: Plan) -> str:
    goal, enough, _ = _contexts(case)
    text = f"Context {plan.n_ctx:,} tokens"
    if case.want.n_ctx is not None:
        return f"{text}, as asked."
    if plan.n_ctx == goal:
        native = goal < NATIVE_CONTEXT or quants.is_qwq(case.info)
        why = "what the model handles without rope scaling" if native else "room to think"
        return f"{text}: {why}."
    if not case.devices:
        return f"{text}: the most that fits."
    if plan.n_ctx > enough:
        return f"{text}: the most that leaves all layers where they are."
    if plan.n_ctx == enough:
        return f"{text}: a reasoner should not have less, so layers moved before it."
    return f"{text}: more does not fit, whatever else gives."


def _why_flash(case: Case, plan: Plan) -> str:
    if case.want.flash_attn in ("on", "off"):
        dear = plan.flash_attn == "on" and plan.gpu_layers == 0
        price = ", though it is slow on the CPU" if dear else ""
        return f"Flash attention {plan.flash_attn}, as asked{price}."
    if plan.flash_attn == "prompts":
        return (
            "Flash attention in prompts only, where it is faster on the CPU; generation is without"
            " it and has a second KV cache."
        )
    if case.want.flash_attn == "prompts":
        return (
            f"Flash attention {plan.flash_attn}: in prompts only it takes a plain model that is all"
            " on the CPU, and room for a second KV cache in f16."
        )
    if plan.flash_attn == "off":
        return "Flash attention off: on the CPU it halves the speed in a long thought."
    if plan.gpu_layers == 0:
        return "Flash attention on: a quantized KV cache needs it, though it is slow on the CPU."
    if plan.flash_attn == "on":
        return "Flash attention on: a quantized KV cache needs it."
    return "Flash attention where the GPU can: it saves memory and time."


def _why_rest(case: Case, plan: Plan) -> Iterator[str]:
    if plan.yarn:
        yield (
            f"YaRN by {plan.yarn.factor:g}, because {plan.n_ctx:,} tokens are more than the native"
            f" {plan.yarn.original_context:,}; it costs some quality on short texts."
        )
    if plan.n_batch < BATCH and not case.want.n_batch:
        yield f"Batches of {plan.n_batch} tokens, which take less memory for their attention."
    if not plan.mmap:
        yield "The file is read, not mapped: a mapped one would count as Metal's memory whole."
    least = min((share.margin_bytes for share in plan.devices if share.used_bytes), default=0)
    yield (
        f"{gib(least)} or more is left free on each device, for the desktop, the driver and what"
        " llama.cpp does not announce."
    )
    if plan.compute_source == "closed form":
        yield f"{_COMPUTE} follows from the model's shape, within 5 %; a dry load makes it exact."
    else:
        yield (
            f"{_COMPUTE} is an estimate: the architecture '{case.info.architecture}' is not one"
            f" that qwq knows ({', '.join(costs.KNOWN_ARCHITECTURES)})."
        )
    if case.machine.ram_bandwidth is None and plan.whole_layers < plan.layers_total:
        yield "The RAM is taken for dual-channel DDR4-3200 (51 GB/s): its speed is not known."


def _why_speed(case: Case, plan: Plan) -> str:
    if plan.predicted.generation_tps is None:
        unknown = listed([d.description for d in case.devices if not d.bandwidth])
        return f"{_UNPREDICTED}: the memory bandwidth of {unknown} is not known."
    return _speed_sentence(_PREDICTED, plan.predicted)


def _speed_sentence(source: str, speed: Predicted) -> str:
    """What a speed means for a person who waits for a thought."""
    assert speed.thought_s is not None
    prompt = f", prompts at about {speed.prompt_tps:,.0f}" if speed.prompt_tps else ""
    return (
        f"{source}: about {speed.generation_tps:.1f} tokens/s{prompt}; {costs.THOUGHT:,} tokens of"
        f" thinking take about {minutes(speed.thought_s)}."
    )


def minutes(seconds: float) -> str:
    """`50 s`, `4 min 20 s`, `43 min`, `1 h 5 min`: as rough as a prediction is."""
    whole = max(round(seconds / 10) * 10, 10)
    if whole >= 600:
        whole = round(seconds / 60) * 60
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _warnings(case: Case, plan: Plan) -> Iterator[str]:
    """What a person should know before loading."""
    for problem in case.machine.problems:
        yield f"{problem}; so this plan knows of no GPU."
    short = plan.n_ctx < min(ENOUGH_CONTEXT, native_context(case.info) or ENOUGH_CONTEXT)
    if short and thinks(case.info):
        yield f"With {plan.n_ctx:,} tokens of context a long thought may be cut."
    if plan.type_k == "q4_0":
        yield "A KV cache in q4_0 makes long thoughts err more often; q8_0 does not."
    if plan.threads > 2 * case.machine.cores:  # two threads of one core are still bearable
        yield (
            f"{plan.threads} threads on {case.machine.cores} cores wait for each other; without"
            " --threads it is faster."
        )
    for unused in case.machine.unused:
        if plan.gpu_layers == 0:
            yield f"{unused.name} is here, but this build cannot use it: {unused.install}"
    for device in case.machine.devices:
        if device.free_bytes <= 0:
            yield f"{device.name} does not say how much memory it has, so nothing is put on it."
    yield from _wired(case, plan)


def _wired(case: Case, plan: Plan) -> Iterator[str]:
    """On a Mac: the line that lets the GPU have more, where that makes a difference."""
    metal = [d for d in case.machine.devices if d.backend == "MTL"]
    most = case.machine.ram_total_bytes - MACOS_BYTES
    if not metal or metal[0].total_bytes >= most or case.want.gpu_layers is not None:
        return
    raised = replace(metal[0], free_bytes=most, total_bytes=most)
    machine = replace(case.machine, devices=(raised,))
    better = _first_fit(replace(case, machine=machine), explained=False)
    if better is None:
        return
    if (better.whole_layers, better.n_ctx) <= (plan.whole_layers, plan.n_ctx):
        return
    share = better.devices[0]
    limit = -(-(share.used_bytes + share.margin_bytes) // MiB)
    yield (
        f"sudo sysctl iogpu.wired_limit_mb={limit} would allow {better.whole_layers} of"
        f" {better.layers_total} layers on the GPU and {better.n_ctx:,} tokens of context."
        f" macOS keeps {gib(case.machine.ram_total_bytes - limit * MiB)}: with more open than"
        " that, it may swap or freeze. Undo: sudo sysctl iogpu.wired_limit_mb=0 (or restart)."
    )


def _no_room(case: Case) -> NoRoom:
    """Nothing fits: say what was needed and what is there, and what to type."""
    info = case.info
    need = gib(info.tensor_bytes)
    have = [f"{d.name} has {gib(d.free_bytes)}" for d in case.devices]
    have.append(f"RAM has {gib(case.machine.ram_free_bytes)}")
    wish = f" with {case.want.n_ctx:,} tokens of context" if case.want.n_ctx else ""
    idle = case.machine.unused[:1]  # to use it comes before all else
    found = "".join(f" {gpu.name} is here, but this build cannot use it." for gpu in idle)
    return NoRoom(
        f"There is no room for {info.quantization or 'this model'}{wish}: its weights need {need};"
        f" {listed(have)} free.{found}",
        idle[0].install if idle else _smaller(case),
    )


def _smaller(case: Case) -> str:
    """What to type instead: fewer layers, another quantization of QwQ-32B, less context."""
    if case.want.gpu_layers and (most := _most_layers(case)):
        return f"--gpu-layers {most} is the most that fits; or leave it out"
    if quants.is_qwq(case.info):
        smaller = [quant for quant in quants.QUANTS if quant.file_bytes < case.info.file_bytes]
        name = recommended(options(case.machine, case.want, smaller, explained=False))
        if name:
            return f"qwq plan {name}"
    usual = replace(case, want=replace(case.want, margin_bytes=MARGIN_BYTES))
    if case.want.margin_bytes > MARGIN_BYTES and _first_fit(usual, explained=False):
        return f"--margin {MARGIN_BYTES // GiB}G, or margin_gb: {MARGIN_BYTES // GiB} as a setting"
    shorter = _shorter(case)
    return f"--ctx {shorter}" if shorter else "Close other programs, or take a smaller model"


def _shorter(case: Case) -> int | None:
    """A context that fits, found by halving; None if even a very short one does not."""
    n_ctx = case.want.n_ctx or native_context(case.info) or ENOUGH_CONTEXT
    while (n_ctx := n_ctx // 2) >= SHORTEST_CONTEXT:
        if _first_fit(replace(case, want=replace(case.want, n_ctx=n_ctx)), explained=False):
            return n_ctx
    return None


def _most_layers(case: Case) -> int:
    """The largest --gpu-layers that fits, 0 if none does."""
    for layers in range(min(case.want.gpu_layers or 0, case.total), 0, -1):
        wanted = replace(case, want=replace(case.want, gpu_layers=layers))
        if _first_fit(wanted, explained=False):
            return layers
    return 0


# --- which quantization ------------------------------------------------------------------------

# KL divergence from f16 on Llama-3-8B. Up to q6_k nobody can tell; iq3_xs (0.139) is the last
# that published comparisons still recommend, and 32B models lose less than 8B ones.
LOSSLESS_KLD, ACCEPTABLE_KLD = 0.005, 0.15
GOOD_KLD = 0.028  # of q4_k_m: where a machine is slow, nothing better is worth the wait
DOMINATED = ("q5_0", "q4_0")  # K-quants of their size lose less
PATIENCE = 1.75  # a better quantization may take so many times as long as the fastest acceptable


@dataclass(frozen=True, slots=True)
class Option:
    """A quantization of QwQ-32B and its plan; None if it does not fit."""

    quant: quants.Quant
    plan: Plan | None
    enough: int = ENOUGH_CONTEXT  # tokens; less if less was asked for

    @property
    def whole(self) -> bool:
        """All of it on GPUs, with room to think."""
        plan = self.plan
        return plan is not None and self.roomy and plan.whole_layers == plan.layers_total

    @property
    def roomy(self) -> bool:
        """Enough context for a reasoner."""
        return self.plan is not None and self.plan.n_ctx >= self.enough


def options(
    machine: Machine,
    want: Want,
    among: Sequence[quants.Quant] = quants.QUANTS,
    *,
    explained: bool = True,
) -> list[Option]:
    """Every quantization of QwQ-32B with its plan, the largest first; with reasons or without."""
    found = []
    for quant in among:
        case = Case(quants.model_info(quant), machine, want)
        _check(case)
        _, enough, _ = _contexts(case)
        found.append(Option(quant, _first_fit(case, explained), min(enough, ENOUGH_CONTEXT)))
    return found


def recommended(found: Sequence[Option]) -> str | None:
    """The name of the one to take; None if nothing fits.

    The best that fits the GPUs whole, up to where the loss ends; else the best, from q4_k_m down,
    that is not much slower than the fastest acceptable one, with room to think if any has that;
    else the best that fits at all.
    """
    known = [o for o in found if o.plan and o.quant.kld is not None]
    sensible = [
        option
        for option in known
        if LOSSLESS_KLD <= (option.quant.kld or 0) <= ACCEPTABLE_KLD
        and option.quant.name not in DOMINATED
    ]
    whole = [o for o in sensible if o.whole]
    if whole:
        return whole[0].quant.name
    slow = [option for option in sensible if (option.quant.kld or 0) >= GOOD_KLD]
    slow = [option for option in slow if option.roomy] or slow
    if slow:
        fastest = max(_speed(option) for option in slow)
        return next(o.quant.name for o in slow if _speed(o) * PATIENCE >= fastest)
    return known[0].quant.name if known else None


def _speed(option: Option) -> float:
    return (option.plan.predicted.generation_tps if option.plan else None) or 0.0
