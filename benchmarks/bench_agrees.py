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
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import smollm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

GOAL = 0.02  # of difference


def ours(args: argparse.Namespace, model: Path) -> dict[str, float]:
    """Tokens per second of each test by its name, from `qwq bench --json`."""
    command = [
        *(sys.executable, "-m", "qwqcli", "bench", "--model", str(model), "--json", "--no-chat"),
        *("--no-tune", "--flash-attn", "off", "--threads", str(args.threads), "-r", "1"),
        *("-p", args.p, "-n", args.n, "-d", args.d),
    ]
    environ = {**os.environ, "QWQ_DATA_DIR": tempfile.gettempdir()}
    output = subprocess.run(command, capture_output=True, check=True, env=environ).stdout
    return _speeds(json.loads(output.splitlines()[-1])["tests"])


def theirs(args: argparse.Namespace, model: Path) -> dict[str, float]:
    """The same from llama-bench."""
    command = [
        *(str(args.llama_bench), "-m", str(model), "-o", "json", "-r", "1"),
        *("-t", str(args.threads), "-fa", "0", "--repack", "0", "-b", "512", "-ub", "512"),
        *("-p", args.p, "-n", args.n, "-d", args.d),
    ]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    return _speeds(json.loads(output))


def _speeds(rows: list[dict[str, float]]) -> dict[str, float]:
    return {f"pp{r['n_prompt']} tg{r['n_gen']} d{r['n_depth']}": r["avg_ts"] for r in rows}


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
            from gguf_files import write_qwq_shaped

            model = write_qwq_shaped(Path(folder) / "qwq.gguf", layers=args.qwq_layers)
        rounds = []
        for at in range(args.rounds):
            pair = [ours, theirs] if at % 2 == 0 else [theirs, ours]
            seen = {side: side(args, model) for side in pair}
            rounds.append((seen[ours], seen[theirs]))
            print(f"round {at + 1}:", *rounds[-1], file=sys.stderr)
    return _report(rounds)


def _report(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> int:
    missed = 0
    for test in rounds[0][0]:
        ratios = [a[test] / b[test] for a, b in rounds]
        ratio = statistics.median(ratios)
        mine = statistics.median(a[test] for a, _ in rounds)
        other = statistics.median(b[test] for _, b in rounds)
        missed += abs(ratio - 1) > GOAL
        print(
            f"{test}: {mine:.2f} against {other:.2f} tokens/s, ratio {ratio:.3f}"
            f" ({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}); goal within {GOAL:.0%}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
