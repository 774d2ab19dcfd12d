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
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Speeds, last_object, report, smollm, speeds, turns

GOAL_DEEP, GOAL_ANYWHERE = 1.8, 0.98
DEEP = 2048
PROMPT, GENERATED = 512, 32


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
        environ = {"QWQ_CACHE_DIR": folder, "QWQ_DATA_DIR": folder}
        chosen = last_object("tune", "--model", model, **environ)["setting"]
        print("chosen:", chosen)
        repack = ["--repack", str(int(bool(chosen["extra_bufts"])))]
        default = [str(args.llama_bench), "-m", model, "-o", "json", *repack, *tests]

        def ours() -> Speeds:
            command = ["bench", "--model", model, "--no-chat", *tests]
            runs = [last_object(*command, "-d", depth, **environ) for depth in depths]
            return speeds([row for run in runs for row in run["tests"]])

        def theirs() -> Speeds:
            runs = [
                subprocess.run([*default, "-d", depth], capture_output=True, check=True).stdout
                for depth in depths
            ]
            return speeds([row for run in runs for row in json.loads(run)])

        found = turns(ours, theirs, args.rounds)
    missed = 0
    for test, measured in found.items():
        goal = GOAL_DEEP if test == f"tg{GENERATED} @ d{DEEP}" else GOAL_ANYWHERE
        missed += report(test, measured, "tokens/s", f">= {goal}") < goal
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
