"""Memory of `qwq ask`, parent and child, beside llama-bench on the same work (Linux).

    python benchmarks/memory.py --llama-bench PATH [--rounds 3]

The peak of the summed proportional set size (PSS) of the process tree, looked at every 20 ms. Both
use the same model, a context of the same size, flash attention off and a micro-batch of 512.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
from pathlib import Path

from common import smollm

PROMPT, TOKENS, THREADS = 512, 64, 2


def pss(pid: int) -> int:
    """Bytes of proportional set size of `pid` and all below it."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(pss(int(child)) for child in (task / "children").read_text().split())
    except OSError:  # it ended while we looked
        pass
    return total


def peak(command: list[str]) -> float:
    """The largest sum seen while `command` ran, in MiB."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **quiet)
    seen, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(pss(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    child.wait()
    over.set()
    watcher.join()
    return max(seen) / 2**20


def main() -> None:
    """Measure and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = str(smollm())
    context = PROMPT + TOKENS
    qwq = [
        *(sys.executable, "-m", "qwqcli", "ask", "-m", model, "--ctx", str(context)),
        *("--threads", str(THREADS), "--max-tokens", str(TOKENS), "word " * (PROMPT - 40)),
    ]
    bench = [
        *(str(args.llama_bench), "-m", model, "-t", str(THREADS), "-fa", "0", "--repack", "0"),
        *("-p", "0", "-n", "0", "-pg", f"{PROMPT},{TOKENS}", "-r", "1"),
    ]
    ours, theirs = zip(*((peak(qwq), peak(bench)) for _ in range(args.rounds)), strict=True)
    more = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    print(
        f"peak memory: {statistics.median(ours):.0f} MiB against"
        f" {statistics.median(theirs):.0f} MiB, {more:+.0f} MiB; goal <= +100"
    )


if __name__ == "__main__":
    main()
