"""What the machine has: devices as the engine sees them, memory, cores, and what goes unused.

Contract: `probe()` returns a `Machine` and never raises or hangs: each question to the system has a
time limit, and one without an answer leaves its fact unknown and a line in `problems`. Each fact
carries its source. `known_machine` gives machines that are not this one.
Limits: memory bandwidth is looked up, not measured: of a GPU by its name (one that is not in the
table has none), of RAM by what the firmware says of its modules, which is what they could do. An
integrated GPU is not reported as unused: it reads the same memory as the CPU.
Non-goals: what fits where (plan.py), advice beyond the one install line (doctor.py).
Sources: data sheets of NVIDIA, AMD, Intel and Apple for bandwidths; the README of llama-cpp-python
0.3.36 for the indexes of its wheels; cgroups(7), proc(5), vm_stat(1), udev's dmi_memory_id.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qwqcli.config import nearest
from qwqcli.errors import UsageError

GB, MiB, GiB = 10**9, 2**20, 2**30

# gpu: memory of its own · unified: shares the RAM with the CPU · remote: behind a network
DeviceKind = Literal["gpu", "unified", "remote"]
Run: TypeAlias = Callable[[Sequence[str], float], "str | None"]
Ask: TypeAlias = Callable[[], Mapping[str, Any]]  # Probe.devices of engine/probe.py

COMMAND_LIMIT_S = 3.0  # sysctl and nvidia-smi answer in 0.01 to 1 s
ENGINE_LIMIT_S = 10.0
_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Device:
    """A device beside the CPU that layers can be put on; bytes and bytes per second."""

    name: str  # as llama.cpp says it: CUDA0, MTL0, Vulkan0, RPC0
    description: str
    backend: str
    kind: DeviceKind
    free_bytes: int
    total_bytes: int
    bandwidth: float | None  # of its memory; None: not known
    source: str


@dataclass(frozen=True, slots=True)
class Unused:
    """A GPU that is there and that this build of llama.cpp cannot use, and what to type."""

    name: str
    install: str
    source: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan needs to know of a machine. Bytes, bytes per second, cores."""

    name: str  # "this machine", or a name of `known_machine`
    devices: tuple[Device, ...]
    ram_free_bytes: int  # what a program may still take without pushing others out
    ram_total_bytes: int
    cores: int
    ram_bandwidth: float | None = None
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    backends: tuple[str, ...] = ()  # of this build of llama.cpp
    unused: tuple[Unused, ...] = ()
    driver: str = ""  # version of NVIDIA's, such as 550.54.14
    others: tuple[Device, ...] = ()  # that llama.cpp could use as well: left alone unless named
    sources: tuple[tuple[str, str], ...] = ()  # a fact, and where it comes from
    problems: tuple[str, ...] = ()  # questions that were not answered


@dataclass(frozen=True)
class System:
    """The operating system as this module sees it; a test gives a folder and a function."""

    kind: str = sys.platform  # linux, darwin
    machine: str = field(default_factory=platform.machine)
    root: Path = Path("/")
    run: Run = field(default_factory=lambda: run_limited)

    def read(self, path: str) -> str:
        """The text of a small file below the root; "" if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        return (self.root / path.lstrip("/")).exists()

    @property
    def apple_silicon(self) -> bool:
        return self.kind == "darwin" and self.machine == "arm64"


def probe(ask: Ask | None = None, system: System | None = None) -> Machine:
    """This machine. `ask` is a running child's answer; without it one is started and ended."""
    system = system or System()
    answer = (ask or ask_engine)()
    rows = answer.get("devices", [])
    chip = _apple_chip(system)
    gpus = [row for row in rows if row["kind"] in ("gpu", "igpu")]
    usual = in_llamas_order(gpus)
    free, total, ram_source = _memory(system, rows)
    bandwidth, bandwidth_source = _ram_bandwidth(system, chip)
    swap_total, swap_free = _swap(system)
    problem = (f"llama.cpp could not be asked: {answer['error']}",) if "error" in answer else ()
    sources = (
        ("devices", problem[0] if problem else "llama.cpp (ggml_backend_dev_memory)"),
        ("RAM", ram_source),
        ("memory bandwidth", bandwidth_source),
        ("cores", "sysctl" if system.kind == "darwin" else "/sys/devices/system/cpu"),
    )
    return Machine(
        name="this machine",
        devices=tuple(_device(row, chip) for row in usual),
        ram_free_bytes=free,
        ram_total_bytes=total,
        cores=physical_cores(),
        ram_bandwidth=bandwidth,
        swap_total_bytes=swap_total,
        swap_free_bytes=swap_free,
        backends=tuple(answer.get("backends", ())),
        unused=tuple(_unused(system, [_device(row, chip) for row in gpus])),
        others=tuple(_device(row, chip) for row in gpus if row not in usual),
        driver=_nvidia_driver(system),
        sources=sources,
        problems=problem,
    )


def ask_engine(rpc: str | None = None) -> Mapping[str, Any]:
    """The first line of the probe child of the engine, which this starts and ends."""
    command = [sys.executable, "-m", "qwqcli.engine.probe", *([rpc] if rpc else [])]
    line = run_limited(command, ENGINE_LIMIT_S)
    with contextlib.suppress(ValueError, TypeError):
        answer = json.loads(line or "")
        if isinstance(answer, dict):
            return answer
    return {"error": f"its process failed or took more than {ENGINE_LIMIT_S:g} s"}


def run_limited(command: Sequence[str], limit_s: float) -> str | None:
    """What a command prints; None if it is missing, fails or takes longer than `limit_s`.

    A process that hangs inside a driver survives SIGKILL, so it is never waited for.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        abandon(process)
        return None
    return None if process.returncode else output.decode("utf-8", "replace")


def abandon(process: subprocess.Popen[bytes]) -> None:
    """Kill a process without waiting for its end; a thread collects it when that comes."""
    process.kill()
    threading.Thread(target=_collect, args=(process,), daemon=True).start()


def _collect(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


# --- devices -----------------------------------------------------------------------------------

# GB/s of the memory of a GPU, by a part of its name; the longest part that fits decides.
# Sources: NVIDIA's, AMD's and Intel's product pages of each card.
# fmt: off
GPU_BANDWIDTH = {
    "RTX 3060": 360, "RTX 3060 Ti": 448, "RTX 3070": 448, "RTX 3080": 760, "RTX 3090": 936,
    "RTX 3090 Ti": 1008, "RTX 4060": 272, "RTX 4060 Ti": 288, "RTX 4070": 504,
    "RTX 4070 Ti": 504, "RTX 4070 Ti SUPER": 672, "RTX 4080": 717, "RTX 4080 SUPER": 736,
    "RTX 4090": 1008, "RTX 4090 Laptop": 576, "RTX 4080 Laptop": 432, "RTX 4070 Laptop": 256,
    "RTX 5060 Ti": 448, "RTX 5070": 672, "RTX 5070 Ti": 896, "RTX 5080": 960, "RTX 5090": 1792,
    "RTX 2080 Ti": 616, "Tesla T4": 320, "Tesla P40": 347, "V100": 900, "A10": 600, "L4": 300,
    "L40": 864, "RTX A6000": 768, "RTX 6000 Ada": 960, "A100": 1555, "H100": 3350,
    "RX 6800 XT": 512, "RX 7800 XT": 624, "RX 7900 XT": 800, "RX 7900 XTX": 960,
    "W7900": 864, "RX 9070 XT": 640, "Arc A770": 560, "Arc B580": 456,
}
# fmt: on
# GB/s of Apple's chips. Source: Apple's technical specifications; the smaller variant of two.
# fmt: off
APPLE_BANDWIDTH = {
    "Apple M1": 68, "Apple M1 Pro": 200, "Apple M1 Max": 400, "Apple M1 Ultra": 800,
    "Apple M2": 100, "Apple M2 Pro": 200, "Apple M2 Max": 400, "Apple M2 Ultra": 800,
    "Apple M3": 100, "Apple M3 Pro": 150, "Apple M3 Max": 300, "Apple M3 Ultra": 819,
    "Apple M4": 120, "Apple M4 Pro": 273, "Apple M4 Max": 410, "Apple M5": 153,
}
# fmt: on


def in_llamas_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The devices that llama.cpp puts layers on if none is named, in its order.

    Those behind RPC first; a card that two backends see once; integrated GPUs of one backend, and
    only where there is no card (llama_prepare_model_devices in llama.cpp).
    """
    remote = [row for row in rows if row["kind"] == "gpu" and row["backend"].startswith("RPC")]
    cards: list[Mapping[str, Any]] = []
    for row in rows:
        twice = any(
            row["description"] == card["description"] and row["backend"] != card["backend"]
            for card in cards
        )
        if row["kind"] == "gpu" and row not in remote and not twice:
            cards.append(row)
    integrated = [row for row in rows if row["kind"] == "igpu"]
    integrated = [row for row in integrated if row["backend"] == integrated[0]["backend"]]
    return [*remote, *(cards or integrated)]


def chosen(machine: Machine, names: str) -> Machine:
    """`machine` with the devices that are named (`CUDA0,RPC0`), in that order; `none` for none.

    Raises UsageError, with the names that there are, for one that is not there.
    """
    there = (*machine.devices, *machine.others)
    known = {device.name.lower(): device for device in there}
    picked: list[Device] = []
    for name in [] if names.strip().lower() == "none" else names.split(","):
        device = known.get(name.strip().lower())
        if device is None:
            raise _no_such_device(name.strip(), there)
        if device not in picked:
            picked.append(device)
    others = tuple(device for device in there if device not in picked)
    return replace(machine, devices=tuple(picked), others=others)


def _no_such_device(name: str, there: Sequence[Device]) -> UsageError:
    if not there:
        return UsageError(
            f"There is no device '{name}': llama.cpp sees none beside the CPU.", "qwq doctor"
        )
    names = ", ".join(device.name for device in there)
    return UsageError(
        f"There is no device '{name}' here, but: {names}.", f"--device {there[0].name}, or none"
    )


def device_of(buffer: str, names: Iterable[str]) -> str:
    """The device that llama.cpp's buffers of this name are on, "CPU" if they are in RAM.

    CUDA0, MTL0_Mapped and MTL0_Private are devices' own; CUDA_Host is RAM.
    """
    owners = (name for name in names if re.match(rf"{re.escape(name)}(_|$)", buffer))
    return next(owners, "CPU")


def _device(row: Mapping[str, Any], chip: str) -> Device:
    """A row of the probe as a `Device`."""
    backend, description = str(row["backend"]), str(row["description"])
    kind: DeviceKind = "gpu"
    if backend.startswith("RPC"):
        kind = "remote"
    elif backend.startswith(("MTL", "Metal")) or row["kind"] == "igpu":
        kind = "unified"
    return Device(
        name=str(row["name"]),
        description=description,
        backend=backend,
        kind=kind,
        free_bytes=int(row["free_bytes"]),
        total_bytes=int(row["total_bytes"]),
        bandwidth=_bandwidth(description) or _bandwidth(chip if kind == "unified" else ""),
        source="llama.cpp",
    )


def _bandwidth(name: str) -> float | None:
    """Bytes per second of the memory of the device that is called so; None if not known."""
    if name in APPLE_BANDWIDTH:
        return APPLE_BANDWIDTH[name] * GB
    fitting = [part for part in GPU_BANDWIDTH if re.search(rf"{part}\b", name, re.IGNORECASE)]
    return GPU_BANDWIDTH[max(fitting, key=len)] * GB if fitting else None


# --- memory ------------------------------------------------------------------------------------


def _memory(system: System, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, str]:
    """Bytes of RAM that are free to take, bytes in all, and where that is from."""
    known = _darwin_memory(system) if system.kind == "darwin" else _linux_memory(system)
    if known[1]:
        return known
    # a system whose own words we do not know: llama.cpp's view of the CPU
    own: Mapping[str, Any] = next((row for row in rows if row["kind"] == "cpu"), {})
    return int(own.get("free_bytes", 0)), int(own.get("total_bytes", 0)), "llama.cpp"


def _linux_memory(system: System) -> tuple[int, int, str]:
    """What the kernel would give up, or less where a control group has a limit."""
    rows = _meminfo(system)
    total = rows.get("MemTotal", 0)
    free = rows.get("MemAvailable", rows.get("MemFree", 0))
    source = "/proc/meminfo (MemAvailable)"
    for limit, used, path in _cgroup_limits(system):
        if limit < total:
            total = limit
        if limit - used < free:
            free, source = max(limit - used, 0), f"the memory limit of this container ({path})"
    return free, total, source


def _meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", system.read("/proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def _cgroup_limits(system: System) -> Iterator[tuple[int, int, str]]:
    """Limit and use, without what is only file cache, of every cgroup that holds this process."""
    for line in system.read("/proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            yield from _limits_upwards(
                system, "/sys/fs/cgroup", path, ("memory.max", "memory.current", "inactive_file")
            )
        elif "memory" in controllers.split(","):
            yield from _limits_upwards(
                system,
                "/sys/fs/cgroup/memory",
                path,
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )


def _limits_upwards(
    system: System, mount: str, path: str, names: tuple[str, str, str]
) -> Iterator[tuple[int, int, str]]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        folder = "/".join([mount, *parts[:depth]])
        limit = system.read(f"{folder}/{names[0]}").strip()
        used = system.read(f"{folder}/{names[1]}").strip()
        if limit.isdecimal() and used.isdecimal():  # "max" is no limit
            cache = re.search(
                rf"^{names[2]} (\d+)$", system.read(f"{folder}/memory.stat"), re.MULTILINE
            )
            yield int(limit), int(used) - (int(cache[1]) if cache else 0), f"{folder}/{names[0]}"


def _darwin_memory(system: System) -> tuple[int, int, str]:
    """What can be had without swapping: free, inactive, speculative and purgeable pages."""
    text = system.run(["vm_stat"], COMMAND_LIMIT_S) or ""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages (\w+): +(\d+)\.$", text, re.MULTILINE))
    kinds = ("free", "inactive", "speculative", "purgeable")
    free = sum(int(pages.get(kind, 0)) for kind in kinds) * (int(size[1]) if size else 0)
    return free, _sysctl(system, "hw.memsize"), "vm_stat"


def _ram_bandwidth(system: System, chip: str) -> tuple[float | None, str]:
    """Bytes per second that the RAM can give, and where that is from."""
    if system.kind == "darwin":
        known = _bandwidth(chip)
        return known, f"Apple's data sheet of the {chip}" if known else "not known"
    modules = _modules(system.read("/run/udev/data/+dmi:id"))
    if not modules:
        return None, "not known"
    speed = min(speed for speed, _ in modules)
    width = sum(width for _, width in modules)
    if len(modules) <= 4 and all(width == 64 for _, width in modules):
        width = min(width, 128)  # a desktop's four modules share two channels
    return speed * 1e6 * width / 8, f"the firmware: {speed} MT/s, {width} bits (udev)"


def _modules(udev: str) -> list[tuple[int, int]]:
    """Speed in MT/s and width in bits of each memory module, as udev read them from SMBIOS."""
    found: dict[str, dict[str, int]] = {}
    for number, name, value in re.findall(r"^E:MEMORY_DEVICE_(\d+)_(\w+)=(\d+)$", udev, re.M):
        found.setdefault(number, {})[name] = int(value)
    modules = []
    for row in found.values():
        speed = row.get("CONFIGURED_SPEED_MTS") or row.get("SPEED_MTS") or 0
        if row.get("PRESENT", 1) and row.get("SIZE") and 100 <= speed <= 100_000:
            modules.append((speed, row.get("DATA_WIDTH") or 64))
    return modules


def _swap(system: System) -> tuple[int, int]:
    """Bytes of swap, all and free."""
    if system.kind == "darwin":
        text = system.run(["sysctl", "-n", "vm.swapusage"], COMMAND_LIMIT_S) or ""
        found = dict(re.findall(r"(total|free) = ([\d.]+)M", text))
        return (
            int(float(found.get("total", 0)) * MiB),
            int(float(found.get("free", 0)) * MiB),
        )
    rows = _meminfo(system)
    return rows.get("SwapTotal", 0), rows.get("SwapFree", 0)


def _sysctl(system: System, name: str) -> int:
    text = (system.run(["sysctl", "-n", name], COMMAND_LIMIT_S) or "").strip()
    return int(text) if text.isdecimal() else 0


def _apple_chip(system: System) -> str:
    """Such as Apple M4 Pro; "" on other machines."""
    if not system.apple_silicon:
        return ""
    return (system.run(["sysctl", "-n", "machdep.cpu.brand_string"], COMMAND_LIMIT_S) or "").strip()


# --- what this build cannot use ----------------------------------------------------------------

_REINSTALL = "pip install --force-reinstall --no-cache-dir"
_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"


def wheel(index: str) -> str:
    """The line that puts a prebuilt llama-cpp-python in place of the one that is there.

    Only that index is asked, so pip cannot prefer a newer source and compile it without the GPU.
    """
    return f"{_REINSTALL} --no-deps --index-url {_WHEELS}/{index} llama-cpp-python"


def from_source(option: str) -> str:
    """The line that compiles llama-cpp-python here, which needs the toolkit of the GPU's maker."""
    return f"CMAKE_ARGS=-DGGML_{option}=on {_REINSTALL} llama-cpp-python"


INSTALL = {  # backend -> what to type; README.md has the same lines
    "CPU": wheel("cpu"),
    "CUDA": wheel("cu124"),
    "CUDA, compiled here": from_source("CUDA"),
    "Metal": wheel("metal"),
    "Vulkan": wheel("vulkan"),
    "ROCm": wheel("rocm72"),
}
CUDA_WHEELS = ((11, 8), (12, 1), (12, 2), (12, 3), (12, 4), (12, 5), (13, 0), (13, 2))
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_INTEGRATED_INTEL = "0000:00:02.0"  # where every integrated Intel GPU sits


def _unused(system: System, devices: Sequence[Device]) -> Iterator[Unused]:
    """GPUs of the machine whose maker has no device in the engine."""
    used = {_vendor(device) for device in devices if device.kind != "remote"}
    if system.apple_silicon:
        if "Apple" not in used:
            yield Unused(_apple_chip(system) or "Apple GPU", INSTALL["Metal"], "sysctl")
        return
    found = dict(_pci_gpus(system))
    if system.exists("/proc/driver/nvidia/version") or system.exists("/dev/dxg"):
        found.setdefault("NVIDIA", "/proc/driver/nvidia")
    for vendor, source in found.items():
        if vendor not in used:
            name, install, said = _advice(system, vendor)
            if name:
                yield Unused(name, install, said or source)


def _vendor(device: Device) -> str:
    text = f"{device.backend} {device.description}"
    words = {"NVIDIA": "NVIDIA|CUDA|GeForce", "AMD": "AMD|ROCm|Radeon", "Apple": "Apple|MTL|Metal"}
    return next((v for v, word in words.items() if re.search(word, text)), "Intel")


def _pci_gpus(system: System) -> Iterator[tuple[str, str]]:
    """The maker of every display controller (PCI class 03) that may be worth using."""
    folder = system.root / "sys/bus/pci/devices"
    with contextlib.suppress(OSError):
        for device in sorted(folder.iterdir()):
            at = f"/sys/bus/pci/devices/{device.name}"
            vendor = _VENDORS.get(system.read(f"{at}/vendor").strip())
            display = system.read(f"{at}/class").startswith("0x03")
            if vendor and display and not _integrated(system, vendor, at):
                yield vendor, at


def _integrated(system: System, vendor: str, at: str) -> bool:
    """A GPU in the processor, which reads the same memory and is hardly faster for it."""
    if vendor == "Intel":
        return at.endswith(_INTEGRATED_INTEL)
    own = system.read(f"{at}/mem_info_vram_total").strip()  # of the amdgpu driver
    return own.isdecimal() and int(own) < 4 * GiB


def _advice(system: System, vendor: str) -> tuple[str, str, str]:
    """Name of the GPU, what to type, and a better source than the PCI bus if there is one."""
    if vendor == "NVIDIA":
        return _nvidia(system)
    if vendor == "AMD" and system.exists("/dev/kfd") and system.exists("/opt/rocm"):
        return "AMD GPU", INSTALL["ROCm"], "/opt/rocm"
    return f"{vendor} GPU", INSTALL["Vulkan"], ""


def _nvidia(system: System) -> tuple[str, str, str]:
    """By nvidia-smi, whose header names the newest CUDA that the driver runs."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = system.run(query, COMMAND_LIMIT_S)
    if not names or not names.strip():
        if system.exists("/dev/dxg") and not system.exists("/proc/driver/nvidia/version"):
            return "", "", ""  # WSL without an NVIDIA GPU
        return "NVIDIA GPU (its driver does not answer)", "nvidia-smi", ""
    header = system.run(["nvidia-smi"], COMMAND_LIMIT_S) or ""
    version = re.search(r"CUDA Version: (\d+)\.(\d+)", header)
    driver = (int(version[1]), int(version[2])) if version else (12, 4)
    fitting = [wheel for wheel in CUDA_WHEELS if wheel <= driver]
    if not fitting:
        return names.splitlines()[0].strip(), from_source("CUDA"), "nvidia-smi"
    major, minor = fitting[-1]
    return names.splitlines()[0].strip(), wheel(f"cu{major}{minor}"), "nvidia-smi"


# Major version of CUDA -> the oldest driver that runs it. Source: "Minor Version Compatibility" of
# docs.nvidia.com/deploy/cuda-compatibility, table 1.
CUDA_DRIVERS = {13: 580, 12: 525, 11: 450}


def newest_cuda(driver: str) -> int | None:
    """The newest major version of CUDA that this version of NVIDIA's driver runs."""
    major = driver.partition(".")[0]
    fitting = [cuda for cuda, least in CUDA_DRIVERS.items() if int(major) >= least]
    return max(fitting, default=None)


def wheel_for(cuda: int) -> str:
    """The line that installs the newest wheel for a major version of CUDA."""
    newest = max(version for version in CUDA_WHEELS if version[0] == cuda)
    return wheel(f"cu{newest[0]}{newest[1]}")


def _nvidia_driver(system: System) -> str:
    """Version of NVIDIA's driver; "" without one."""
    told = system.read("/proc/driver/nvidia/version")
    if not told and system.exists("/dev/dxg"):  # WSL: the driver is that of Windows
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = f"Kernel Module  {system.run(query, COMMAND_LIMIT_S) or ''}"
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\b", told)
    return found[1] if found else ""


# --- cores -------------------------------------------------------------------------------------


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads and efficiency cores not counted.

    Token generation waits for memory: a second thread on the same core only gets in the way.
    """
    return (_darwin_cores() if sys.platform == "darwin" else _linux_cores()) or os.cpu_count() or 1


def _linux_cores() -> int:
    """Distinct sets of sibling threads among the CPUs that the scheduler allows; 0 if unknown."""
    if sys.platform != "linux":
        return 0
    try:
        allowed = os.sched_getaffinity(0)
        siblings = {
            (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in allowed
        }
    except OSError:  # a container that hides the topology
        return 0
    return len(siblings)


def _darwin_cores() -> int:
    """Performance cores of Apple silicon, all cores of an Intel Mac; 0 if unknown."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        count = _sysctl(System(), name)
        if count:
            return count
    return 0


# --- machines that are not this one ------------------------------------------------------------

# A 24,576 MiB RTX 3090 without a desktop offers 23,982 MiB: the driver keeps about 600.
DRIVER_BYTES = 600 * MiB
# DDR4-3200 in two channels: 2 x 8 bytes x 3.2 GHz. With it a 5070 that holds half of a 32B model
# is predicted at 4.0 tokens/s; 4.1 to 4.4 were published.
DESKTOP_RAM_BANDWIDTH = 51.2 * GB
SYSTEM_BYTES = 4 * GiB  # what the system and a browser keep of the RAM
DESKTOP_RAM_BYTES, DESKTOP_CORES = 32 * GiB, 8

_CARDS = {  # name -> full name, MiB; bandwidths are in GPU_BANDWIDTH
    "3060-12g": ("NVIDIA GeForce RTX 3060", 12_288),
    "3090": ("NVIDIA GeForce RTX 3090", 24_576),
    "4060ti-16g": ("NVIDIA GeForce RTX 4060 Ti", 16_380),
    "4070": ("NVIDIA GeForce RTX 4070", 12_282),
    "4070ti-super": ("NVIDIA GeForce RTX 4070 Ti SUPER", 16_376),
    "4080": ("NVIDIA GeForce RTX 4080", 16_376),
    "4090": ("NVIDIA GeForce RTX 4090", 24_564),
    "5090": ("NVIDIA GeForce RTX 5090", 32_607),
    "7900xtx": ("AMD Radeon RX 7900 XTX", 24_560),
}
_MACS = {  # name -> chip, sizes in GB, GB/s (Apple's technical specifications), fast cores
    "mac-mini": ("Apple M4", (16, 24, 32), 120, 4),
    "mac-mini-pro": ("Apple M4 Pro", (24, 48, 64), 273, 8),
    "mac-studio": ("Apple M4 Max", (36, 48, 64, 128), 410, 10),
    "mac-studio-ultra": ("Apple M3 Ultra", (96, 256, 512), 819, 20),
    "macbook-air": ("Apple M4", (16, 24, 32), 120, 4),
    "macbook-pro": ("Apple M4", (16, 24, 32), 120, 4),
    "macbook-pro-m4pro": ("Apple M4 Pro", (24, 48), 273, 8),
    "macbook-pro-m4max": ("Apple M4 Max", (36, 48, 64, 128), 410, 10),
}
_CPU_SIZES = (16, 32, 64)  # GB


def machine_names() -> tuple[str, ...]:
    """Every name that `known_machine` knows."""
    macs = (f"{name}-{size}" for name, row in _MACS.items() for size in row[1])
    return (*_CARDS, *macs, *(f"cpu-{size}" for size in _CPU_SIZES))


def known_machine(name: str) -> Machine:
    """A machine by its name, as bought, without a desktop on its card. Raises UsageError."""
    plain = re.sub(r"(?<=\d)\s*gi?b?$", "", name.strip().lower())
    plain = re.sub(r"[\s_]+", "-", plain).removeprefix("nvidia-").removeprefix("rtx-")
    plain = {"3060": "3060-12g", "3060-12": "3060-12g", "4060ti-16": "4060ti-16g"}.get(plain, plain)
    if plain in _CARDS:
        return _desktop(plain, *_CARDS[plain])
    kind, _, size = plain.rpartition("-")
    if kind in _MACS and size.isdecimal() and int(size) in _MACS[kind][1]:
        return _mac(plain, kind, int(size))
    if kind == "cpu" and size.isdecimal() and int(size) in _CPU_SIZES:
        return replace(_host(plain, int(size) * GiB), sources=(("RAM", _ASSUMED),))
    raise UsageError(
        f"There is no machine called '{name}' in the table.",
        f"--machine {nearest(plain, machine_names())}",
    )


def working_set(ram_bytes: int) -> int:
    """Bytes that Metal recommends to use: two thirds of the RAM up to 32 GB, three quarters above.

    Seen: 5,727 MB of 8 GB, 28,991 MB of 36 GB, 48.0 GiB of 64 GB (ollama 2370 and 8331, llama.cpp
    5207). On a real Mac llama.cpp says it.
    """
    return ram_bytes * 2 // 3 if ram_bytes <= 32 * GiB else ram_bytes * 3 // 4


def card(index: int, total_bytes: int, name: str = "", backend: str = "CUDA") -> Device:
    """A card of that size; its free memory is what its driver leaves."""
    return Device(
        name=f"{backend}{index}",
        description=name or f"a card with {total_bytes / GiB:.0f} GiB",
        backend=backend,
        kind="gpu",
        free_bytes=max(total_bytes - DRIVER_BYTES, 0),
        total_bytes=total_bytes,
        bandwidth=_bandwidth(name),
        source="data sheet" if name else "asked for",
    )


_ASSUMED = f"assumed: all but {SYSTEM_BYTES // GiB} GiB of it is free"


def _host(name: str, ram_bytes: int) -> Machine:
    return Machine(
        name=name,
        devices=(),
        ram_free_bytes=ram_bytes - SYSTEM_BYTES,
        ram_total_bytes=ram_bytes,
        cores=DESKTOP_CORES,
        ram_bandwidth=DESKTOP_RAM_BANDWIDTH,
    )


def _desktop(name: str, full_name: str, mebibytes: int) -> Machine:
    backend = "ROCm" if full_name.startswith("AMD") else "CUDA"
    return replace(
        _host(name, DESKTOP_RAM_BYTES),
        devices=(card(0, mebibytes * MiB, full_name, backend),),
        sources=(
            ("devices", "data sheet; the driver keeps about 600 MiB"),
            ("RAM", f"assumed: {DESKTOP_RAM_BYTES // GiB} GiB of DDR4-3200"),
        ),
    )


def _mac(name: str, kind: str, size: int) -> Machine:
    chip, _, bandwidth, cores = _MACS[kind]
    budget = working_set(size * GiB)
    source = "Metal's recommended working set, inferred from published ones"
    device = Device("MTL0", chip, "MTL", "unified", budget, budget, float(bandwidth * GB), source)
    return Machine(
        name=name,
        devices=(device,),
        ram_free_bytes=size * GiB - SYSTEM_BYTES,
        ram_total_bytes=size * GiB,
        cores=cores,
        ram_bandwidth=float(bandwidth * GB),
        backends=("MTL",),
        sources=(("devices", source), ("RAM", _ASSUMED)),
    )


_UNITS = {"": GiB, "g": GiB, "gb": GiB, "gib": GiB, "m": MiB, "mb": MiB, "mib": MiB}


def gib(n_bytes: int) -> str:
    """`23.4 GiB`: memory as people read it."""
    return f"{n_bytes / GiB:.1f} GiB"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def parse_size(text: str, option: str, least: int = 256 * MiB) -> int:
    """Bytes of `24G`, `24`, `11.5GiB`, `8192M`; cards and RAM are sold in powers of two."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{option} {text!r} is not a size.", f"{option} 24G")
    size = int(float(match[1]) * _UNITS[match[2]])
    if not least <= size <= 4096 * GiB:
        raise UsageError(f"{option} {text!r} is not the size of a memory.", f"{option} 24G")
    return size


def with_memory(machine: Machine, vram: str | None, ram: str | None) -> Machine:
    """`machine` with other cards (`24G` or `24G,12G`; `0` for none) or another size of RAM."""
    if vram is not None:
        machine = replace(machine, devices=_cards(machine, vram), others=())
    if ram is not None:
        total = parse_size(ram, "--ram")
        free = max(total - SYSTEM_BYTES, total // 2)
        others = tuple(row for row in machine.sources if row[0] != "RAM")
        machine = replace(
            machine,
            ram_total_bytes=total,
            ram_free_bytes=free,
            sources=(*others, ("RAM", _ASSUMED)),
        )
    return machine


def _cards(machine: Machine, vram: str) -> tuple[Device, ...]:
    """The cards asked for, each with the name and the bandwidth of the machine's own, if any."""
    if vram.strip() == "0":
        return ()
    sizes = [parse_size(part, "--vram") for part in vram.split(",")]
    if len(sizes) > MAX_CARDS:
        raise UsageError(f"--vram names {len(sizes)} cards; llama.cpp takes 16.", "--vram 24G,24G")
    own = [device for device in machine.devices if device.kind != "remote"]
    cards = []
    for index, size in enumerate(sizes):
        made = card(index, size)
        if own:
            like = own[min(index, len(own) - 1)]
            made = replace(made, description=like.description, bandwidth=like.bandwidth)
        cards.append(made)
    return tuple(cards)


MAX_CARDS = 16  # GGML_MAX_DEVICES of llama.cpp's default build
