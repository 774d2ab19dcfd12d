"""Perplexity and KL divergence of `qwq bench` beside llama.cpp's own llama-perplexity.

    python benchmarks/perplexity.py --llama-perplexity PATH [--text FILE] [--windows 8]

Two quantizations of SmolLM2 are made with the engine's own quantize call; both sides measure the
same windows of the same text, flash attention and repack off. Goal: within 1 %.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from common import smollm

from qwqcli.engine import EngineSpec, perplexity
from qwqcli.engine.native import quantize

FTYPES = {"Q8_0": 7, "Q4_K_M": 15}  # enum llama_ftype


def ours(model: Path, base: Path, text: Path, windows: int, threads: int) -> perplexity.Result:
    """Both figures from the module that `qwq bench --perplexity` calls."""
    specs = [EngineSpec(str(path), threads=threads, extra_bufts=False) for path in (model, base)]
    with tempfile.TemporaryDirectory() as cache:
        steps = perplexity.measure(specs[0], text, Path(cache), windows=windows, base=specs[1])
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: perplexity.Result = end.value
                return result


def theirs(tool: Path, model: Path, text: Path, windows: int, *more: str) -> str:
    """What llama-perplexity prints."""
    command = [str(tool), "-m", str(model), "-f", str(text), "--chunks", str(windows)]
    command += ["--no-repack", "-fa", "off", "-t", "2", "-c", str(perplexity.WINDOW), *more]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return done.stdout + done.stderr


def figure(pattern: str, said: str) -> float:
    """The number behind a pattern in what llama-perplexity printed."""
    match = re.search(pattern + r"\s*[:=]?\s*([\d.]+)", said)
    assert match is not None, said[-2000:]
    return float(match[1])


def main() -> None:
    """Quantize, measure both ways, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "LICENSE")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.gguf" for name in FTYPES}
        for name, ftype in FTYPES.items():
            quantize(smollm(), paths[name], ftype, args.threads)
        base, model = paths.values()
        result = ours(model, base, args.text, args.windows, args.threads)
        assert result.base is not None
        assert result.model.kl_divergence is not None
        saved = ("--kl-divergence-base", f"{folder}/logits")
        first = theirs(args.llama_perplexity, base, args.text, args.windows, *saved)
        second = theirs(
            args.llama_perplexity, model, args.text, args.windows, *saved, "--kl-divergence"
        )
        rows = [
            ("perplexity of Q8_0", result.base.perplexity, figure("Final estimate: PPL", first)),
            ("perplexity of Q4_K_M", result.model.perplexity, figure(r"Mean PPL\(Q\)", second)),
            ("KL divergence", result.model.kl_divergence, figure("Mean    KLD", second)),
        ]
        for what, mine, their in rows:
            ratio = f"ratio {mine / their:.5f}"
            print(f"{what}: {mine:.6f} against {their:.6f}, {ratio}; goal within 1 %")


if __name__ == "__main__":
    main()
