"""What goes on beside a measurement: memory, energy, and whatever disturbs it.

Contract: a `Watch` looks several times a second while it is open, and `close` gives `Seen`. What
the machine does not tell is None, never a guess: watts come from NVML (through `nvidia-smi`), from
RAPL where this person may read it, or on a Mac from powermetrics, which answers root alone.
Limits: the memory is the sum of resident pages of our processes, so pages that two of them share
count twice (some 20 MB). Energy is the whole package's or card's, not the model's.
"""

from __future__ import annotations

import contextlib
import plistlib
import threading
import time
import xml.parsers.expat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from qwqcli.hardware import System

LOOK_S = 0.2  # a look takes 0.1 ms
GPU_LOOK_S = 1.0  # nvidia-smi itself takes 0.05 s
OTHERS_SHARE = 0.05  # of all cores; what a quiet desktop does is below it
SLOWER_CLOCK = 0.9  # of the clock at the start
SMI = (
    "nvidia-smi",
    "--query-gpu=memory.used,power.draw,utilization.gpu,clocks_throttle_reasons.active",
    "--format=csv,noheader,nounits",
)
# nvmlClocksThrottleReasons: idle (1) and set by applications (2) are no brakes
BRAKES = ~0x3
RAPL = "/sys/class/powercap"
POWERMETRICS = (
    *("powermetrics", "--samplers", "cpu_power", "--format", "plist"),
    *("--sample-rate", "1000", "--sample-count", "1"),  # over a second, once
)


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the time that a `Watch` was open. Bytes, joules, seconds; None: not told."""

    seconds: float
    peak_ram_bytes: int
    peak_gpu_bytes: int | None = None
    joules: float | None = None
    others_share: float = 0.0  # of all cores' time that other processes took
    stolen_share: float = 0.0  # that the hypervisor took
    clock_share: float | None = None  # slowest over first clock of the CPU
    gpu_brakes: bool = False

    @property
    def watts(self) -> float | None:
        return self.joules / self.seconds if self.joules is not None and self.seconds else None

    def noise(self) -> Iterator[str]:
        """A sentence for each thing that makes the figures doubtful."""
        if self.others_share > OTHERS_SHARE:
            yield f"Other processes took {self.others_share:.0%} of the CPU."
        if self.stolen_share > OTHERS_SHARE:
            yield f"The hypervisor took {self.stolen_share:.0%} of the CPU away."
        if self.clock_share is not None and self.clock_share < SLOWER_CLOCK:
            yield f"The CPU slowed down to {self.clock_share:.0%} of its clock."
        if self.gpu_brakes:
            yield "The GPU was slowed down by its power or temperature limit."


class Watch:
    """Looks at this process and `pids` until it is closed; see `Seen`."""

    def __init__(
        self,
        pids: Sequence[int] = (),
        system: System | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._system, self._clock = system or System(), clock
        self._processes = [psutil.Process(), *_processes(pids)]
        self._peak, self._clocks = 0, [mhz] if (mhz := _mhz()) else []
        self._spent: dict[int, float] = {}  # seconds of CPU of each process
        self._look()
        self._before = sum(self._spent.values())
        self._began, self._cpu = clock(), psutil.cpu_times()
        self._energy = rapl_joules(self._system)
        self._gpu: list[tuple[int, float | None, bool]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, daemon=True)]
        self._mac: list[float] = []  # watts
        if any(self._gpu_rows()):
            self._threads.append(threading.Thread(target=self._watch_gpu, daemon=True))
        if self._system.kind == "darwin":
            self._threads.append(threading.Thread(target=self._watch_mac, daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def close(self) -> Seen:
        """Stop looking, and say what was seen."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._look()
        seconds = self._clock() - self._began
        busy, stolen = _busy(self._cpu, psutil.cpu_times())
        own = sum(self._spent.values()) - self._before
        capacity = max(seconds, 1e-9) * (psutil.cpu_count() or 1)
        return Seen(
            seconds=seconds,
            peak_ram_bytes=self._peak,
            peak_gpu_bytes=max((row[0] for row in self._gpu), default=None),
            joules=self._joules(seconds),
            others_share=max(busy - own, 0.0) / capacity,
            stolen_share=stolen / capacity,
            clock_share=min(self._clocks) / self._clocks[0] if self._clocks else None,
            gpu_brakes=any(row[2] for row in self._gpu),
        )

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()
            if mhz := _mhz():
                self._clocks.append(mhz)

    def _look(self) -> None:
        memory = 0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):  # it has ended: its last figures stay
                spent = process.cpu_times()
                self._spent[process.pid] = spent.user + spent.system
                memory += process.memory_info().rss
        self._peak = max(self._peak, memory)

    def _watch_gpu(self) -> None:
        while not self._over.wait(GPU_LOOK_S):
            rows = list(self._gpu_rows())
            if rows:
                watts = [row[1] for row in rows if row[1] is not None]
                drawn = sum(watts) if len(watts) == len(rows) else None
                self._gpu.append((sum(row[0] for row in rows), drawn, any(r[2] for r in rows)))

    def _watch_mac(self) -> None:
        while not self._over.is_set():
            watts = mac_watts(self._system.run(POWERMETRICS, 5.0) or "")
            if watts is None:
                return
            self._mac.append(watts)

    def _gpu_rows(self) -> Iterator[tuple[int, float | None, bool]]:
        """Bytes in use, watts, and whether it is slowed down, of each NVIDIA GPU."""
        for line in (self._system.run(SMI, 3.0) or "").splitlines():
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) == 4 and cells[0].isdecimal():
                busy = cells[2].isdecimal() and int(cells[2]) > 50
                reasons = int(cells[3], 16) if cells[3].startswith("0x") else 0
                yield int(cells[0]) << 20, _number(cells[1]), busy and bool(reasons & BRAKES)

    def _joules(self, seconds: float) -> float | None:
        """Of the GPUs, else of the Mac's chip, else of the CPU packages."""
        watts = [row[1] for row in self._gpu if row[1] is not None]
        if watts and len(watts) == len(self._gpu):
            return sum(watts) / len(watts) * seconds
        if self._mac:
            return sum(self._mac) / len(self._mac) * seconds
        after = rapl_joules(self._system)
        if self._energy is None or after is None or after < self._energy:  # or it began again at 0
            return None
        return after - self._energy


def rapl_joules(system: System) -> float | None:
    """What the CPU packages have used since some time, if this person may know (powercap)."""
    total, zone = 0.0, 0
    while text := system.read(f"{RAPL}/intel-rapl:{zone}/energy_uj").strip():
        total, zone = total + int(text) / 1e6, zone + 1
    return total if zone else None


def mac_watts(text: str) -> float | None:
    """What CPU, GPU and neural engine of a Mac drew together, by powermetrics' property list.

    It is in milliwatts; Intel Macs have other keys, and for those there is no answer here.
    """
    try:
        found = plistlib.loads(text.strip("\0\n ").encode())
        return float(found["processor"]["combined_power"]) / 1000
    except (plistlib.InvalidFileException, xml.parsers.expat.ExpatError):
        return None  # it is said on stderr that only root may ask
    except (KeyError, TypeError, ValueError):
        return None


def _busy(before: Any, after: Any) -> tuple[float, float]:
    """Seconds of all cores that were used, and that a hypervisor took, between two looks."""
    idle = ("idle", "iowait", "guest", "guest_nice", "steal")
    spent = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    used = sum(seconds for name, seconds in spent.items() if name not in idle)
    return used, spent.get("steal", 0.0)


def _processes(pids: Sequence[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # it has ended already
            yield psutil.Process(pid)


def _mhz() -> float | None:
    """The clock of the CPU; None where the system does not tell."""
    with contextlib.suppress(NotImplementedError, OSError, RuntimeError):
        frequency = psutil.cpu_freq()
        return float(frequency.current) if frequency and frequency.current else None
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def free_bytes() -> int:
    """RAM that a program may still take."""
    return int(psutil.virtual_memory().available)
