"""What `qwq tune` chooses beside llama.cpp's defaults, in one run.

    python benchmarks/tuned.py --llama-bench PATH [--rounds 3] [--depths 0,2048] [--model FILE]

`qwq tune` chooses and keeps; then `qwq bench`, which uses what was kept as a chat does, and
llama-bench with its own defaults take turns at the same tests. Each depth has a process of its
own on both sides: where a second context's buffers come to lie moves figures by 4 %. Repack is off
on both where the self-check has found that it kills the process. That the two programs agree at
equal settings is bench_agrees.py's matter. Goal: generation at depth 2,048 at least 1.8 times as
fast, and nothing slower than 0.98.
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
from typing import Any

from common import smollm

GOAL_DEEP, GOAL_ANYWHERE = 1.8, 0.98
DEEP = 2048
PROMPT, GENERATED = 512, 32


def last_object(command: list[str], environ: dict[str, str]) -> dict[str, Any]:
    """What a command of qwq with --json prints at its end."""
    command = [sys.executable, "-m", "qwqcli", *command, "--json"]
    output = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, env=environ
    ).stdout
    return dict(json.loads(output.splitlines()[-1]))


def speeds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens per second by test."""
    return {
        f"{'pp' if row['n_prompt'] else 'tg'}{row['n_prompt'] or row['n_gen']}"
        f" @ d{row['n_depth']}": row["avg_ts"]
        for row in rows
    }


def main() -> int:
    """Choose, take turns, print a ratio for each test; 1 if one misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depths", default=f"0,{DEEP}")
    parser.add_argument("--model", type=Path, default=None)
    args = parser.parse_args()
    model = str(args.model or smollm())
    tests = ["-p", str(PROMPT), "-n", str(GENERATED), "-r", "2"]
    depths = args.depths.split(",")
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "QWQ_CACHE_DIR": folder, "QWQ_DATA_DIR": folder}
        chosen = last_object(["tune", "--model", model], environ)["setting"]
        print("chosen:", chosen)
        repack = ["--repack", str(int(bool(chosen["extra_bufts"])))]
        default = [str(args.llama_bench), "-m", model, "-o", "json", *repack, *tests]

        def ours() -> dict[str, float]:
            command = ["bench", "--model", model, "--no-chat", *tests]
            runs = [last_object([*command, "-d", depth], environ) for depth in depths]
            return speeds([row for run in runs for row in run["tests"]])

        def theirs() -> dict[str, float]:
            runs = [
                subprocess.run([*default, "-d", depth], capture_output=True, check=True).stdout
                for depth in depths
            ]
            return speeds([row for run in runs for row in json.loads(run)])

        pairs = []
        for at in range(args.rounds):
            seen = {side: side() for side in ((ours, theirs) if at % 2 == 0 else (theirs, ours))}
            pairs.append((seen[ours], seen[theirs]))
    return max([report(test, pairs) for test in pairs[0][0]])


def report(test: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> int:
    """Print a test's ratio; 1 if it misses its goal."""
    ratios = [ours[test] / theirs[test] for ours, theirs in pairs]
    goal = GOAL_DEEP if test.startswith("tg") and test.endswith(f"d{DEEP}") else GOAL_ANYWHERE
    mine, other = (
        statistics.median(side[test] for side in sides) for sides in zip(*pairs, strict=True)
    )
    print(
        f"{test}: {mine:.1f} against {other:.1f} tokens/s, ratio {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)}); goal >= {goal}"
    )
    return int(statistics.median(ratios) < goal)


if __name__ == "__main__":
    sys.exit(main())
