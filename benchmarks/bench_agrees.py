"""`qwq bench` beside llama-bench: the same tests, the same settings, in turns.

    python benchmarks/bench_agrees.py --llama-bench PATH [--rounds 5] [--threads N] [--model FILE]
    python benchmarks/bench_agrees.py --llama-bench PATH --qwq-layers 4   # QwQ-32B's shape
    python benchmarks/bench_agrees.py --llama-bench PATH --qwq-layers 64 -p 64 -n 8 -d 0 --rounds 2

Both run as commands and give one JSON object; what is compared is the mean speed of each test.
Flash attention and repack are off on both sides, the KV cache is f16, the batch 512. A file in
QwQ-32B's shape has zero weights and is sparse: it takes no disk, and a token costs what it costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Speeds, last_object, qwq_shaped, report, smollm, speeds, turns

GOAL = 0.02  # of difference


def ours(args: argparse.Namespace, model: Path) -> Speeds:
    """Tokens per second of each test by its name, from `qwq bench --json`."""
    command = [
        *("bench", "--model", str(model), "--no-chat"),
        *("--no-tune", "--flash-attn", "off", "--threads", str(args.threads), "-r", "1"),
        *("-p", args.p, "-n", args.n, "-d", args.d),
    ]
    return speeds(last_object(*command, QWQ_DATA_DIR=tempfile.gettempdir())["tests"])


def theirs(args: argparse.Namespace, model: Path) -> Speeds:
    """The same from llama-bench."""
    command = [
        *(str(args.llama_bench), "-m", str(model), "-o", "json", "-r", "1"),
        *("-t", str(args.threads), "-fa", "0", "--repack", "0", "-b", "512", "-ub", "512"),
        *("-p", args.p, "-n", args.n, "-d", args.d),
    ]
    return speeds(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))


def main() -> int:
    """Take turns and print a ratio for each test; 1 if one is further off than the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--qwq-layers", type=int, default=0)
    parser.add_argument("-p", default="512")
    parser.add_argument("-n", default="64")
    parser.add_argument("-d", default="0,2048")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or smollm()
        if args.qwq_layers:
            model = qwq_shaped(folder, args.qwq_layers)
        found = turns(lambda: ours(args, model), lambda: theirs(args, model), args.rounds)
    missed = 0
    for test, measured in found.items():
        missed += abs(report(test, measured, "tokens/s", f"within {GOAL:.0%}") - 1) > GOAL
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
