"""How fast a pull is beside curl and huggingface_hub, on loopback, in one run.

What to expect: on loopback nothing but the CPU and the disk limit a download, so curl, which only
copies bytes, is the ceiling. A pull also computes a sha256: `verified` is when all bytes are here
and right, without the start of Python, and is what is compared with curl. It then has the disk take
the file before it gets its name: `done`, to be compared with curl followed by sync. On a server
that limits each connection, a pull is faster by its connections.
Every program downloads the same file from the same server (sendfile from the page cache), each in a
process of its own and in turn, so that a slow minute of the machine meets all, in memory that has
just been used. CPU is user and
system time of the client, until the bytes are right and in all: to have the disk take 1 GB is
charged to who asks for it, and curl leaves it to the system. Prints a table of medians and, as its
last line, one JSON object.

    python benchmarks/pull_speed.py [--mb 1024] [--rounds 5] [--limited-mb 240]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPO, FILE = "owner/name", "model-Q4_K_M.gguf"
LIMIT = 20_000_000  # bytes per second and connection of the limited server

PULL = """
import json, resource, sys, time
from pathlib import Path
from qwqcli.hub import Hub
hub = Hub(dict(HF_ENDPOINT=sys.argv[1], HOME=sys.argv[2], QWQ_DATA_DIR=sys.argv[2] + "/d",
               QWQ_CACHE_DIR=sys.argv[2] + "/c"))
offer = hub.choose(sys.argv[3])
started = time.perf_counter()
for event in hub.pull(offer):
    if type(event).__name__ == "Progress":
        verified, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
done = time.perf_counter() - started
print(json.dumps([verified, done, used.ru_utime + used.ru_stime]))
"""
HUGGING_FACE = """
import json, os, sys, time
os.environ |= dict(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
import huggingface_hub
from huggingface_hub import hf_hub_download
started = time.perf_counter()
hf_hub_download(*sys.argv[3].split(":"), cache_dir=sys.argv[2], endpoint=sys.argv[1], token=False)
print(json.dumps([time.perf_counter() - started] * 2 + [0]))
"""


@dataclass(frozen=True)
class Run:
    """One download: seconds in all, until the bytes are right, until done; CPU seconds until the
    bytes are right, and in all; MB."""

    wall: float
    verified: float
    done: float
    verified_cpu: float
    cpu: float
    memory: float


def commands(server: dict[str, str], folder: Path) -> dict[str, list[str]]:
    """The programs, each writing into `folder`."""
    curl = ["curl", "-sSf", "-o", str(folder / "curl.gguf"), server["direct"]]
    python = [sys.executable, "-c"]
    return {
        "curl": curl,
        "curl, then sync": ["sh", "-c", f'{" ".join(curl[:-1])} "$0" && sync {curl[3]}', curl[-1]],
        "qwq": [*python, PULL, server["url"], str(folder), f"{REPO}:{FILE}"],
        "huggingface_hub": [*python, HUGGING_FACE, server["url"], str(folder), f"{REPO}:{FILE}"],
    }


def measure(command: list[str]) -> Run:
    """Run a program to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    said = process.stdout.read().decode().strip()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed")
    kilo = 1e6 if platform.system() == "Darwin" else 1e3  # ru_maxrss is in bytes there
    cpu = used.ru_utime + used.ru_stime
    verified, done, verified_cpu = json.loads(said) if said else (wall, wall, cpu)
    return Run(wall, verified, done, verified_cpu or cpu, cpu, used.ru_maxrss / kilo)


def compare(names: list[str], path: Path, rounds: int, rate: int = 0) -> dict[str, list[Run]]:
    """Every run of each program, taken in turns against one server."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "hub_server.py"), str(path), REPO, str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    address = json.loads(server.stdout.readline())
    runs: dict[str, list[Run]] = {name: [] for name in names}
    try:
        for _ in range(rounds):
            for name in names:
                folder = Path(tempfile.mkdtemp(dir=path.parent))
                warm(folder, path.stat().st_size)
                os.sync()  # nobody pays for what the one before left to write
                runs[name].append(measure(commands(address, folder)[name]))
                shutil.rmtree(folder)
    finally:
        server.communicate(b"")
    return runs


def warm(folder: Path, size: int) -> None:
    """Use and free as much memory as a run will need.

    The host of a virtual machine may take free memory back within seconds; the first use after that
    makes writing a file five times as slow (0.95 instead of 0.19 s for 1 GB), by chance.
    """
    block, path = bytes(1 << 20), folder / "warm"
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    path.unlink()


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def table(title: str, runs: dict[str, list[Run]], size: int) -> dict[str, dict[str, float]]:
    """Print and return medians; ratios are medians of the ratios to curl's run of that round."""
    print(f"\n{title}\n{'':18}{'wall s':>8}{'verified':>10}{'done':>8}{'MB/s':>8}", end="")
    print(f"{'cpu s':>8}{'MB mem':>8}{'speed/curl':>12}{'cpu/curl':>10}{'in all':>8}")
    rows: dict[str, dict[str, float]] = {}
    for name, found in runs.items():
        pairs = list(zip(runs["curl"], found, strict=True))
        row = {
            "wall_s": median(run.wall for run in found),
            "verified_s": median(run.verified for run in found),
            "done_s": median(run.done for run in found),
            "cpu_s": median(run.cpu for run in found),
            "memory_mb": max(run.memory for run in found),
            "speed": median(base.verified / run.verified for base, run in pairs),
            "verified_cpu": median(run.verified_cpu / base.cpu for base, run in pairs),
            "cpu": median(run.cpu / base.cpu for base, run in pairs),
        }
        print(
            f"{name:18}{row['wall_s']:8.2f}{row['verified_s']:10.2f}{row['done_s']:8.2f}"
            f"{size / row['verified_s'] / 1e6:8.0f}{row['cpu_s']:8.2f}{row['memory_mb']:8.0f}"
            f"{row['speed']:12.2f}{row['verified_cpu']:10.2f}{row['cpu']:8.2f}"
        )
        rows[name] = row
    return rows


def make_file(folder: Path, megabytes: int) -> Path:
    """Bytes that cannot be compressed, with the start of a model."""
    path = folder / FILE
    with path.open("wb") as file:
        file.write(b"GGUF")
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mb", type=int, default=1000, help="size on the free server")
    parser.add_argument("--limited-mb", type=int, default=240, help="size on the limited server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to be used")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        every = ["curl", "curl, then sync", "qwq", "huggingface_hub"]
        path = make_file(folder, chosen.mb)
        runs = compare(every, path, chosen.rounds)
        free = table(f"{chosen.mb} MB, no limit, {chosen.rounds} rounds", runs, path.stat().st_size)
        path = make_file(folder, chosen.limited_mb)
        runs = compare([every[0], *every[2:]], path, 1, LIMIT)
        title = f"{chosen.limited_mb} MB, 20 MB/s per connection"
        limited = table(title, runs, path.stat().st_size)
    finally:
        shutil.rmtree(folder)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({"machine": machine, "free": free, "limited": limited}))


if __name__ == "__main__":
    main()
