"""Is the time per token outside `llama_decode` the same at token 8,000 as at token 100?

    python benchmarks/flat.py [--rounds 3] [--tokens 8000] [--qwq-layers 2]

One reply that is not allowed to end, as `qwq ask` makes it: a child process is the engine, this one
draws into a pipe. Taken is all that the child does between two calls of `llama_decode`: sampling,
splitting, events, telling the parent, who draws. Each token is told by itself, as those of QwQ-32B
are, which come slower than pieces are gathered; else the number of tokens in a piece, which falls
with the speed of `llama_decode`, would be measured with it.

Of two models. One is in QwQ-32B's shape, with its width, its vocabulary and zero weights, and of
fewer layers, so that 8,000 tokens take a quarter of an hour: it reads more for each token than any
cache holds, as QwQ-32B does. The other is SmolLM2, for comparison: at token 100 it reads 100 MB a
token, at 8,000 with its KV cache 280, so what it leaves of our code and data in the caches falls
with depth, and the ratio is also one of the machine's caches.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import qwq_shaped, report, smollm
from numpy.typing import NDArray

from qwqcli.engine import EngineSpec, pipes, process, worker
from qwqcli.engine.native import Context, Model
from qwqcli.messages import Message, Sampling
from qwqcli.render import AskView, draw_reply
from qwqcli.terminal import Screen

NOTES = "QWQ_FLAT_NOTES"  # in the environment of the child: the file that it writes to
CONTEXT = 8192  # tokens; SmolLM2 was trained for as many
FIRST, LAST = slice(None, 200), slice(-200, None)  # the tokens around token 100, and the last


def serve() -> None:
    """The engine's child as it is, but that no reply ends, all is told, and times are noted."""
    notes = np.memmap(os.environ[NOTES], np.float64, "r+")
    decode, came, noted = Context.decode, 0.0, 0

    def timed(context: Context, batch: Sequence[int]) -> bool:
        nonlocal came, noted
        if came and len(batch) == 1:
            notes[noted] = time.perf_counter() - came
            noted += 1
        try:
            return decode(context, batch)
        finally:
            came = time.perf_counter() if len(batch) == 1 else 0.0

    Context.decode = timed  # type: ignore[method-assign]
    Model.ends = lambda self, token: False  # type: ignore[method-assign]
    worker.GATHER_CPU_S = 0.0
    worker.main()


def overheads(model: Path, tokens: int) -> NDArray[np.float64]:
    """Seconds outside `llama_decode` between each two tokens of one reply."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.write_bytes(bytes(8 * tokens))
        os.environ[NOTES] = str(notes)
        spec = EngineSpec(str(model), n_ctx=CONTEXT, threads=2, flash_attn="off")
        engine = process.ProcessEngine(spec, Path(folder))
        question = [Message("user", "Tell me a very long story.")]
        events = engine.stream(question, Sampling(seed=1, max_tokens=tokens))
        draw_reply(events, AskView(Screen(io.StringIO(), io.StringIO(), {})))
        engine.close()
        seconds = np.fromfile(notes)
        return seconds[seconds > 0]


def measure(name: str, model: Path, goal: str, args: argparse.Namespace) -> None:
    """Print the ratio for one model."""
    replies = [overheads(model, args.tokens) * 1e6 for _ in range(args.rounds)]
    for kind, middle in (("median", np.median), ("mean", np.mean)):
        what = f"{name}, {kind} outside llama_decode, at token {args.tokens:,} against token 100"
        measured = [(float(middle(us[LAST])), float(middle(us[FIRST]))) for us in replies]
        report(what, measured, "us", goal)


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--qwq-layers", type=int, default=2)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the child finds this file, and our qwq
    process.Pipes = lambda module, take: pipes.Pipes("flat", take)  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as folder:
        shaped = qwq_shaped(folder, args.qwq_layers)
        measure(f"QwQ-32B's shape, {args.qwq_layers} layers", shaped, "<= 1.2", args)
    measure("SmolLM2", smollm(), "none, for comparison", args)


if __name__ == "__main__":
    serve() if NOTES in os.environ else main()
