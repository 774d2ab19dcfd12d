"""One way to place a model on a machine: what each device then holds, and how fast it would be.

Contract: `placed` takes a context and how much goes to RAM, deals the layers to the devices by
their free memory, and gives a `Layout` with the bytes on each, or None if it does not fit. Pure.
Limits: layers are dealt in order, as llama.cpp does it; what a GPU needs beside its buffers is the
margin's business.
Non-goals: choosing between layouts, and saying why (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwqcli import costs
from qwqcli.config import KV, FlashAttn, Prefer
from qwqcli.costs import Cache, Part
from qwqcli.gguf import ModelInfo
from qwqcli.hardware import Device, GiB, Machine

PREFERENCES: tuple[Prefer, ...] = ("context", "speed", "quality")

MARGIN_BYTES = GiB  # llama.cpp's own fit keeps as much on each device
MARGIN_PART = 8  # in RAM the margin is no more than an eighth of what is free
DEFAULT_RAM_BANDWIDTH = 51.2e9  # two channels of DDR4-3200, where nothing better is known


@dataclass(frozen=True, slots=True)
class Split:
    """Layers on each device, in order, and how many feed-forward parts of the first are in RAM."""

    layers: tuple[int, ...]
    cpu_ffn: int = 0


@dataclass(frozen=True, slots=True)
class Want:
    """What a person asks for; None leaves it to the plan. Bytes and tokens."""

    n_ctx: int | None = None
    kv: KV | None = None
    prefer: Prefer | None = None
    gpu_layers: int | None = None
    flash_attn: FlashAttn | None = None
    n_batch: int | None = None
    threads: int | None = None
    margin_bytes: int = MARGIN_BYTES
    split: Split | None = None  # as measured: where it fits, it replaces that of the plan


@dataclass(frozen=True, slots=True)
class Share:
    """What one device holds; `layers` counts the output layer. The last one is the RAM ("CPU")."""

    name: str
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    margin_bytes: int
    free_bytes: int

    @property
    def used_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


@dataclass(frozen=True, slots=True)
class Larger:
    """What another context would take instead of the present one.

    `more_bytes` of memory, on all devices together; where it does not fit, as much as it would
    take with nothing else changed. `how` names what else would change so that it fits.
    """

    n_ctx: int
    more_bytes: int
    fits: bool
    how: str = ""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Tokens per second; None where a device's bandwidth is not known.

    `measured`: `qwq bench` has seen them here with this very model and placement.
    """

    prompt_tps: float | None
    generation_tps: float | None
    measured: bool = False

    @property
    def thought_s(self) -> float | None:
        """Seconds for `costs.THOUGHT` tokens of thinking."""
        return costs.THOUGHT / self.generation_tps if self.generation_tps else None


@dataclass(frozen=True, slots=True)
class Case:
    """All that a layout depends on. `surplus`: bytes by which a dry load was above the formula."""

    info: ModelInfo
    machine: Machine
    want: Want
    surplus: Mapping[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices that report memory; one with none cannot be planned for."""
        return tuple(device for device in self.machine.devices if device.free_bytes > 0)

    @property
    def total(self) -> int:
        return self.info.n_layers + 1

    @property
    def ram_budget(self) -> int:
        return self.machine.ram_free_bytes - self.ram_margin

    @property
    def ram_margin(self) -> int:
        """The margin in RAM: a part of it where it is small, so that small models load anywhere."""
        asked = self.want.margin_bytes
        usual = asked == MARGIN_BYTES
        return min(asked, self.machine.ram_free_bytes // MARGIN_PART) if usual else asked


def with_ram_margin(used_bytes: int, want: Want) -> int:
    """Bytes of free RAM in which just `used_bytes` may be used."""
    usual = want.margin_bytes == MARGIN_BYTES
    part = used_bytes // (MARGIN_PART - 1)
    return used_bytes + (min(MARGIN_BYTES, part) if usual else want.margin_bytes)


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to place a model: layers from `start` on are on the devices, `counts` on each."""

    cache: Cache
    start: int
    counts: tuple[int, ...]
    cpu_ffn: int  # of the first layers, this many feed-forward parts are in RAM
    shares: tuple[Share, ...]
    predicted: Predicted

    @property
    def gpu_layers(self) -> int:
        return sum(self.counts)


def placed(case: Case, cache: Cache, start: int, cpu_ffn: int) -> Layout | None:
    """Layers from `start` on the devices, feed-forward weights of the first `cpu_ffn` in RAM.

    None if that does not fit.
    """
    counts = dealt(case, cache, start, cpu_ffn)
    return _layout(case, cache, start, cpu_ffn, counts) if counts is not None else None


def split_as(case: Case, cache: Cache, split: Split) -> Layout | None:
    """The last layers on the devices as `split` says; None if that is not possible or too much."""
    start = case.total - sum(split.layers)
    if len(split.layers) != len(case.devices) or start < 0 or (start and split.cpu_ffn):
        return None
    layout = _layout(case, cache, start, split.cpu_ffn, split.layers)
    if layout is None or any(s.used_bytes + s.margin_bytes > s.free_bytes for s in layout.shares):
        return None
    return layout


def _layout(
    case: Case, cache: Cache, start: int, cpu_ffn: int, counts: tuple[int, ...]
) -> Layout | None:
    shares = _shares(case, cache, start, cpu_ffn, counts)
    if not _ram_suffices(case, shares):
        return None
    predicted = _predict(case, cache, shares, start, cpu_ffn)
    return Layout(cache, start, counts, cpu_ffn, shares, predicted)


def dealt(case: Case, cache: Cache, start: int, cpu_ffn: int) -> tuple[int, ...] | None:
    """How many layers each device gets; None if their memory does not suffice. RAM is not asked."""
    everything = start == 0 and cpu_ffn == 0
    items = _items(case, cache, cpu_ffn)[start:]
    compute = [_device_compute(case, cache, device, everything) for device in case.devices]
    budgets = [
        device.free_bytes - case.want.margin_bytes - reserved - _mapped(case, device, everything)
        for device, reserved in zip(case.devices, compute, strict=True)
    ]
    return _spread(items, budgets)


def _items(case: Case, cache: Cache, cpu_ffn: int) -> list[int]:
    """Bytes that each layer brings to its device, weights and KV; the output layer last."""
    info = case.info
    rows = zip(info.layer_bytes, info.layer_ffn_bytes, costs.kv_bytes(info, cache), strict=True)
    items = [
        weights - (ffn if layer < cpu_ffn else 0) + kv
        for layer, (weights, ffn, kv) in enumerate(rows)
    ]
    return [*items, costs.output_bytes(info)]


def _spread(items: Sequence[int], budgets: Sequence[int]) -> tuple[int, ...] | None:
    """How many items, in order, each device gets so that all are filled to the same share."""
    if not items:
        return (0,) * len(budgets)
    best = _fill(items, budgets, 1.0)
    if best is None or len(budgets) == 1:
        return best
    low, high = 0.0, 1.0
    for _ in range(16):  # to a share of 1/65536: finer than a layer
        middle = (low + high) / 2
        counts = _fill(items, budgets, middle)
        if counts is None:
            low = middle
        else:
            high, best = middle, counts
    return best


def _fill(items: Sequence[int], budgets: Sequence[int], share: float) -> tuple[int, ...] | None:
    counts, at = [], 0
    for budget in budgets:
        room, began = int(budget * share), at
        while at < len(items) and items[at] <= room:
            room -= items[at]
            at += 1
        counts.append(at - began)
    return tuple(counts) if at == len(items) else None


def _device_compute(case: Case, cache: Cache, device: Device, everything: bool) -> int:
    """Compute buffer of a device that has layers, with what comes on top of it."""
    info = case.info
    n_bytes = costs.device_compute(info, cache, info.n_layers, everything)
    if everything and len(case.devices) > 1:
        n_bytes += costs.pipeline_bytes(info, cache, first=device == case.devices[0])
    elif not everything and device.kind == "gpu":
        # for a batch the GPU computes with weights that are in RAM: one matrix at a time visits it
        n_bytes += max(info.layer_ffn_bytes, default=0) // 2
    return n_bytes + case.surplus.get(device.name, 0)


def _shares(
    case: Case, cache: Cache, start: int, cpu_ffn: int, counts: Sequence[int]
) -> tuple[Share, ...]:
    """What every device and the RAM hold."""
    info, kv = case.info, costs.kv_bytes(case.info, cache)
    everything = start == 0 and cpu_ffn == 0
    weights = [
        *(
            layer - (info.layer_ffn_bytes[at] if at < cpu_ffn else 0)
            for at, layer in enumerate(info.layer_bytes)
        ),
        costs.output_bytes(info),
    ]
    cells = [*kv, 0]
    shares, at = [], start
    for device, count in zip(case.devices, counts, strict=True):
        held = sum(weights[at : at + count])
        held += _mapped(case, device, everything)
        compute = _device_compute(case, cache, device, everything) if count else 0
        if count == 1 and at == info.n_layers:
            compute = costs.device_compute(info, cache, 0, False)
        shares.append(
            Share(
                device.name,
                count,
                held,
                sum(cells[at : at + count]),
                compute,
                case.want.margin_bytes if count else 0,
                device.free_bytes,
            )
        )
        at += count
    return (*shares, _host_share(case, cache, start, cpu_ffn, sum(cells[:start])))


def _mapped(case: Case, device: Device, everything: bool) -> int:
    """Metal maps the range of the file from its first to its last tensor: the embedding too."""
    info = case.info
    return info.embedding_bytes + info.other_bytes if device.backend == "MTL" and everything else 0


def _host_share(case: Case, cache: Cache, start: int, cpu_ffn: int, kv: int) -> Share:
    info = case.info
    everything = start == 0 and cpu_ffn == 0
    mapped = any(_mapped(case, device, everything) for device in case.devices)
    weights = sum(info.layer_bytes[:start]) + sum(info.layer_ffn_bytes[:cpu_ffn])
    if not mapped:
        weights += info.embedding_bytes + info.other_bytes
    if start > info.n_layers:
        weights += info.output_bytes  # a tied one is the embedding, which is counted
    layers = min(start, info.n_layers)
    compute = costs.host_compute(info, cache, layers, cpu_ffn) + case.surplus.get("CPU", 0)
    if everything and len(case.devices) > 1:
        compute += costs.pipeline_host_bytes(info, cache)
    count = start  # the output layer is the last to come to the CPU
    return Share("CPU", count, weights, kv, compute, case.ram_margin, case.machine.ram_free_bytes)


def _ram_suffices(case: Case, shares: Sequence[Share]) -> bool:
    """RAM holds its own share, and those of devices that have no memory of their own."""
    kinds = {device.name: device.kind for device in case.devices}
    used = sum(s.used_bytes for s in shares if kinds.get(s.name, "unified") == "unified")
    return used <= case.ram_budget


def _predict(
    case: Case, cache: Cache, shares: Sequence[Share], start: int, cpu_ffn: int
) -> Predicted:
    info, machine = case.info, case.machine
    per_token = costs.kv_bytes(info, replace(cache, n_ctx=256, twice=False))
    row = sum(per_token) // 256 // max(info.n_layers, 1)
    used = [share for share in shares if share.layers or share.name == "CPU"]
    parts = []
    for share in used:
        device = next((d for d in case.devices if d.name == share.name), None)
        weights = share.weights_bytes
        if device is None:
            weights -= info.embedding_bytes + info.other_bytes  # of which one row is read
            if start > info.n_layers and costs.output_bytes(info) != info.output_bytes:
                weights += info.embedding_bytes  # as the output layer, all of it
        layers = min(share.layers, info.n_layers)
        parts.append(
            Part(
                kind=device.kind if device else "cpu",
                bandwidth=_bandwidth(device, machine),
                weights=max(weights, 0),
                kv_per_token=row * layers,
                attention_layers=layers,
                params_share=max(weights, 0) / max(info.tensor_bytes, 1),
            )
        )
    switches = 2 * cpu_ffn + len([share for share in used if share.layers])
    cores = case.want.threads or machine.cores
    copies = any(device.kind != "remote" for device in case.devices) and start <= info.n_layers
    return Predicted(
        costs.prompt_tps(info, cache, parts, cores, copies),
        costs.generation_tps(info, cache, parts, cores, switches),
    )


def _bandwidth(device: Device | None, machine: Machine) -> float | None:
    """Bytes per second of a device's memory; None as `device` is the CPU."""
    if device is None:
        return ram_bandwidth(machine)
    return device.bandwidth or (ram_bandwidth(machine) if device.kind == "unified" else None)


def ram_bandwidth(machine: Machine) -> float:
    """Bytes per second; a usual desktop's where it is not known."""
    return machine.ram_bandwidth or DEFAULT_RAM_BANDWIDTH
