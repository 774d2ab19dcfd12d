"""Is the time per token outside `llama_decode` the same at token 8,000 as at token 100?

    python benchmarks/flat.py [--tokens 8000]

One reply of SmolLM2 that is not allowed to end, in this process: all that the engine does for a
token (sampling, text, splitting, events) and drawing it into a pipe, less the time in
`llama_decode`. Printed as the median over 200 tokens around token 100 and around the last.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Iterator, Sequence

from common import smollm

from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import LlamaEngine
from qwqcli.engine.native import Context, Model
from qwqcli.messages import Answer, Event, Message, Reasoning, Sampling
from qwqcli.render import AskView, draw_reply
from qwqcli.terminal import Screen

WINDOW = 200


def overheads(tokens: int) -> list[float]:
    """Seconds outside `llama_decode` for each piece of one reply, which is a token or two."""
    decoded = 0.0
    decode = Context.decode

    def timed(context: Context, batch: Sequence[int]) -> bool:
        nonlocal decoded
        began = time.perf_counter()
        try:
            return decode(context, batch)
        finally:
            decoded += time.perf_counter() - began

    def noted(events: Iterator[Event]) -> Iterator[Event]:
        began, before = time.perf_counter(), decoded
        for event in events:
            yield event  # drawn in here
            now = time.perf_counter()
            if isinstance(event, Reasoning | Answer):
                spent.append(now - began - (decoded - before))
            began, before = now, decoded

    Context.decode = timed  # type: ignore[method-assign]
    Model.ends = lambda self, token: False  # type: ignore[method-assign]  # the reply must go on
    spent: list[float] = []
    engine = LlamaEngine(EngineSpec(str(smollm()), n_ctx=tokens + 200, threads=2))
    sampling = Sampling(seed=1, max_tokens=tokens)
    events = engine.stream([Message("user", "Tell me a very long story.")], sampling)
    draw_reply(noted(events), AskView(Screen(io.StringIO(), io.StringIO(), {})))
    return spent


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8000)
    spent = overheads(parser.parse_args().tokens)
    early = statistics.median(spent[100 - WINDOW // 2 : 100 + WINDOW // 2])
    late = statistics.median(spent[-WINDOW - 5 : -5])
    print(
        f"outside llama_decode: {early * 1e6:.0f} us at token 100, {late * 1e6:.0f} us at token"
        f" {len(spent)}, ratio {late / early:.3f}; goal <= 1.2"
    )


if __name__ == "__main__":
    main()
