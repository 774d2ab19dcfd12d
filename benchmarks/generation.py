"""Token generation of `qwq ask` beside llama-bench and beside llama-cpp-python's own chat call.

    python benchmarks/generation.py --llama-bench PATH [--rounds 25] [--tokens 256] [--threads N]

The figure of `qwq ask` is taken from outside, at the end of its pipe: tokens after the first byte
over the time from the first byte to the last, so sampling, splitting, both pipes and drawing are
in it. llama-bench generates as many tokens at the depth of the prompt, with the same threads, size
of context, flash attention off and repack off, and neither samples nor turns tokens into text.

A round of a shared machine may be off by 8 %, and two loads of one model differ by 1 %: five rounds
tell nothing of a percent, twenty-five are known to two or three. The interval says to how much.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from common import llama_bench, pairs, report, smollm

QUESTION = "Write a very long story about a lighthouse keeper and the sea. Do not stop."
PROMPT_TOKENS = 47  # what the question takes with SmolLM2's own system prompt


def ask(model: Path, tokens: int, threads: int) -> float:
    """Tokens per second as the reader of `qwq ask`'s pipe sees them."""
    command = [
        *(sys.executable, "-m", "qwqcli", "ask", "-m", str(model), "--stats"),
        *("--max-tokens", str(tokens), "--threads", str(threads), "--ctx", str(context(tokens))),
        *("--seed", "1", "--temperature", "0.6", QUESTION),
    ]
    times: list[float] = []
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        while os.read(child.stdout.fileno(), 65536):
            times.append(time.perf_counter())
        figures = child.stderr.read().decode()
    generated = re.search(r"answer ([\d,]+) tokens", figures)
    assert generated is not None, figures
    return (int(generated[1].replace(",", "")) - 1) / (times[-1] - times[0])


def context(tokens: int) -> int:
    """What llama-bench would take for as many tokens at this depth: padded to 256."""
    return -(-(PROMPT_TOKENS + tokens) // 256) * 256


def high_level(model: Path, tokens: int, threads: int) -> float:
    """Tokens per second of `Llama.create_chat_completion(stream=True)`, in a process of its own."""
    command = [sys.executable, __file__, "--high-level", str(model), str(tokens), str(threads)]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def measure_high_level(model: str, tokens: int, threads: int) -> float:
    """The same work through llama-cpp-python's high-level class."""
    import llama_cpp

    # the class offers no way to leave out repacked weights, which crash some builds
    defaults = llama_cpp.llama_model_default_params

    def safe() -> llama_cpp.llama_model_params:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = safe
    llama = llama_cpp.Llama(model, n_ctx=context(tokens), n_threads=threads, verbose=False)
    stream = llama.create_chat_completion(
        [{"role": "user", "content": QUESTION}],
        stream=True,
        max_tokens=tokens,
        seed=1,
        temperature=0.6,
        top_k=40,
        top_p=0.95,
        min_p=0.0,
    )
    times = [time.perf_counter() for chunk in stream if chunk["choices"][0]["delta"].get("content")]
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Parse, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    args = parser.parse_args()
    model = args.model or smollm()

    def ours() -> float:
        return ask(model, args.tokens, args.threads)

    def bench() -> float:
        return llama_bench(
            args.llama_bench,
            model,
            threads=args.threads,
            n_gen=args.tokens,
            depth=PROMPT_TOKENS,
        )

    def class_() -> float:
        return high_level(model, args.tokens, args.threads)

    report("qwq ask over llama-bench", pairs(ours, bench, args.rounds), "t/s", ">= 0.97")
    report("qwq ask over Llama()", pairs(ours, class_, args.rounds), "t/s", "none, for comparison")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--high-level"]:
        print(measure_high_level(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        main()
