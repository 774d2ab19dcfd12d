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
from qwqcli.messages import Event, Message, Sampling
from qwqcli.render import AskView, draw_reply
from qwqcli.terminal import Screen

WINDOW = 200


class TimedContext:
    """Stands in for a `Context` and notes how long each decode took."""

    def __init__(self, context: Context) -> None:
        self._context, self.seconds = context, 0.0

    def decode(self, tokens: Sequence[int]) -> bool:
        began = time.perf_counter()
        try:
            return self._context.decode(tokens)
        finally:
            self.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> object:
        return getattr(self._context, name)


def overheads(tokens: int) -> list[float]:
    """Seconds outside `llama_decode` for each token of one reply."""
    engine = LlamaEngine(EngineSpec(str(smollm()), n_ctx=tokens + 200, threads=2))
    timed = TimedContext(engine._context)
    engine._context = timed  # type: ignore[assignment]  # a stand-in with the same methods
    Model.ends = lambda self, token: False  # type: ignore[method-assign]  # the reply must go on
    spent: list[float] = []

    def noted(events: Iterator[Event]) -> Iterator[Event]:
        began, decoded = time.perf_counter(), timed.seconds
        for event in events:
            yield event
            now = time.perf_counter()
            spent.append(now - began - (timed.seconds - decoded))
            began, decoded = now, timed.seconds

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
