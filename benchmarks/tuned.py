"""What `qwq tune` chooses beside llama.cpp's defaults, in one run, by llama-bench itself.

    python benchmarks/tuned.py --llama-bench PATH [--rounds 3] [--threads N] [--model FILE]

`qwq tune --json` chooses; then llama-bench measures that and its own defaults in turns. Repack is
off on both sides where the self-check has found that it kills the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import smollm

GOAL_DEEP, GOAL_ANYWHERE = 1.8, 0.98
TESTS = (("pp512", 512, 0, 0), ("tg32", 0, 32, 0), ("tg32 @ d2048", 0, 32, 2048))


def choose(model: Path, threads: int) -> dict[str, object]:
    """The setting that `qwq tune` ends with, in a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "qwqcli", "tune", "--model", str(model), "--json"]
        environ = {**os.environ, "QWQ_CACHE_DIR": cache, "QWQ_THREADS": str(threads)}
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environ).stdout
    return dict(json.loads(output.splitlines()[-1])["setting"])


def speed(path: Path, model: Path, test: tuple[str, int, int, int], options: list[str]) -> float:
    """Tokens per second of one test of llama-bench."""
    _, n_prompt, n_gen, depth = test
    command = [
        *(str(path), "-m", str(model), "-o", "json", "-r", "2", "-p", str(n_prompt)),
        *("-n", str(n_gen), "-d", str(depth), *options),
    ]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return float(json.loads(output)[0]["avg_ts"])


def main() -> None:
    """Choose, take turns, print a ratio for each test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    args = parser.parse_args()
    model = args.model or smollm()
    chosen = choose(model, args.threads)
    print("chosen:", chosen)
    repack = ["--repack", str(int(bool(chosen["extra_bufts"])))]
    tuned = [
        *("-t", str(chosen["threads"]), "-fa", str(chosen["flash_attn"])),
        *("-ub", str(chosen["n_batch"]), "-ctk", str(chosen["kv"]), "-ctv", str(chosen["kv"])),
        *repack,
    ]
    default = ["-t", str(args.threads), *repack]
    for test in TESTS:
        pairs = [
            (
                speed(args.llama_bench, model, test, tuned),
                speed(args.llama_bench, model, test, default),
            )
            for _ in range(args.rounds)
        ]
        ratios = [a / b for a, b in pairs]
        goal = GOAL_DEEP if test[3] else GOAL_ANYWHERE
        print(
            f"{test[0]}: {statistics.median(a for a, _ in pairs):.1f} against"
            f" {statistics.median(b for _, b in pairs):.1f} tokens/s, ratio"
            f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f},"
            f" n={len(ratios)}); goal >= {goal}"
        )


if __name__ == "__main__":
    main()
