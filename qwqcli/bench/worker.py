"""The child that measures: a model and its contexts, asked over stdin, answering on stdout.

Run as `python -m qwqcli.bench.worker`. Requests and answers are one JSON object a line: first
`{"load": ...}`, then `{"test": ...}` or `{"mix": ...}` as often as wanted. When stdin ends, the
parent has stopped or is gone, and the child leaves at once. Each test gets a context of its own
with as many tokens as it needs, as llama-bench does it: the size of a cache is part of its speed.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwqcli.bench import Test, drill
from qwqcli.bench.watch import free_bytes
from qwqcli.engine import pipes
from qwqcli.engine.llama import layers_line
from qwqcli.engine.measurer import failure
from qwqcli.engine.native import Model, Placement, add_rpc_devices, buffer_owners, log
from qwqcli.engine.twin import opened
from qwqcli.errors import EngineError, QwqError

STATE_SHARE = 0.25  # of the free memory is what a copy of the KV cache may take
POOL = 4096  # random tokens that are drawn before anything is timed


class Target:
    """A context of one test; see `drill.Target`. `state` is a copy of the cache at a depth."""

    def __init__(
        self,
        model: Model,
        placement: Placement,
        threads: int,
        state: Any = None,
        *,
        copies: bool = False,
    ) -> None:
        self._context = opened(model, placement, threads, copies=copies)
        self._forgets, self._state = model.forgets, state
        tokens = random.Random(0).choices(range(model.n_vocab), k=POOL)
        first = model.bos
        self._first, self._pool = tokens[0] if first is None else first, tokens
        self._filled = 0  # the depth that the cache can be cut back to

    def prompt(self, count: int) -> None:
        for at in range(0, count, self._context.n_batch):
            size = min(self._context.n_batch, count - at)
            self._decode(self._pool[:size] if at else [self._first, *self._pool[1:size]])
        self._context.synchronize()

    def generate(self, count: int) -> None:
        for index in range(count):
            self._decode([self._pool[index % POOL]])
            self._context.synchronize()

    def rewind(self, depth: int) -> bool:
        if depth and self._filled == depth and not self._forgets:
            return self._context.cut(depth)
        self._context.clear()
        self._filled = depth
        return not depth or (self._state is not None and self._context.restore(self._state))

    def state(self, depth: int) -> Any:
        """A copy of the cache at `depth`, to which it has been filled; None if it is too large."""
        if not depth or not self.rewind(depth):
            return None
        free = free_bytes()
        return self._context.saved() if self._context.state_bytes < STATE_SHARE * free else None

    def deepen(self, depth: int, prompt: int) -> None:
        if self._state is None:
            self._context.cut(prompt)
            self._state = self._context.saved()
        self._context.clear()
        held = 0
        while held < depth and self._context.append(self._state, held):
            held += prompt
        if held >= depth and (self._forgets or not self._context.cut(depth)):
            self._context.clear()
            held = 0
        while held < depth:  # a model that cannot shift, or forget only the end
            size = min(depth - held, drill.STEP)
            self.prompt(size)
            held += size

    def close(self) -> None:
        self._context.close()

    def _decode(self, tokens: list[int]) -> None:
        if not self._context.decode(tokens):
            raise EngineError("llama.cpp stopped in the middle of a measurement.")


class Worker:
    """One model after another, one test after another."""

    def __init__(self, say: pipes.Say) -> None:
        self._say = say
        self._model: Model | None = None
        self._placement = Placement(n_ctx=0)
        self._state: tuple[Any, Any] = (None, None)  # what it is a copy of, and the copy

    def answer(self, request: dict[str, Any]) -> None:
        try:
            if "load" in request:
                self._load(**request["load"])
            elif "mix" in request:
                self._mix(**request["mix"])
            else:
                self._test(**request["test"])
        except QwqError as error:
            self._say(failure(error))

    def _load(
        self, path: str, placement: dict[str, Any], extra_bufts: bool, rpc: str | None
    ) -> None:
        if rpc:
            add_rpc_devices(rpc)
        began = time.perf_counter()
        self._placement = _placement(placement)
        self._model = Model(Path(path), self._placement, extra_bufts, lambda done: True)
        loaded = {
            "seconds": time.perf_counter() - began,
            "placement": layers_line(log.text(), buffer_owners()),
            "n_params": self._model.n_params,
            "size_bytes": self._model.size_bytes,
        }
        self._say({"loaded": loaded})

    def _test(
        self,
        test: dict[str, int],
        repetitions: int,
        threads: int,
        placement: dict[str, Any],
        keep: bool,
    ) -> None:
        """`placement` replaces fields of the load's; `keep` the cache for a test as deep."""
        assert self._model is not None
        what = Test(**test)
        wanted = replace(self._placement, n_ctx=what.n_ctx, **placement)
        key = (what.n_depth, replace(wanted, n_ctx=0, n_batch=0))
        state = self._state[1] if self._state[0] == key else None
        target = Target(self._model, wanted, threads, state)
        try:
            fill: drill.Fill = lambda done: self._say({"filled": done})  # noqa: E731
            clock = time.perf_counter_ns
            for nanoseconds in drill.run(target, what, repetitions, clock, fill):
                self._say({"sample_ns": nanoseconds})
            self._state = (key, target.state(what.n_depth) if keep else None)
        finally:
            target.close()
        self._say({"done": True})

    def _mix(self, mix: dict[str, Any], threads: int, placement: dict[str, Any]) -> None:
        assert self._model is not None
        what = drill.Mix(**{**mix, "depths": tuple(mix["depths"])})
        # one prompt more than is needed: copies are whole before they are cut
        wanted = replace(self._placement, n_ctx=what.n_ctx + what.n_prompt, **placement)
        target = Target(self._model, wanted, threads, copies=True)
        try:
            prompt_ns, depths_ns = drill.run_mix(target, what, time.perf_counter_ns)
        finally:
            target.close()
        self._say({"mix": [prompt_ns, list(depths_ns)]})


def _placement(values: dict[str, Any]) -> Placement:
    tuples = {key: tuple(values[key]) for key in ("tensor_split", "cpu_ffn")}
    return Placement(**{**values, **tuples})


def main() -> None:
    """Take requests in beside the work, so that the end of stdin is seen at once."""
    say = pipes.answers()
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # native code may be anywhere

    threading.Thread(target=read, daemon=True).start()
    worker = Worker(say)
    while True:
        worker.answer(requests.get())


if __name__ == "__main__":
    main()
