"""The parent's side of the measuring child: load, run a test, survive its death.

Contract: `load` and `run` yield what the child says as it comes and give up when `cancel` says so.
A child that dies raises `EngineError` with the reason in one sentence; `start` begins another.
"""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwqcli.bench import Test
from qwqcli.bench.drill import Mix
from qwqcli.engine import Control, wire
from qwqcli.engine.pipes import Pipes

POLL_S = 0.05  # how often `cancel` is asked while the child measures; it costs 20 us each


class Interrupted(Exception):
    """`cancel` said stop; the child is closed."""


class Child:
    """A process that measures one model at a time; use it as a context manager."""

    def __init__(self, cancel: Control) -> None:
        self._cancel = cancel
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pipes = Pipes("qwqcli.bench.worker", self._lines.put)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._pipes.process.pid

    def load(
        self, path: Path, placement: Mapping[str, Any], extra_bufts: bool, rpc: str | None = None
    ) -> dict[str, Any]:
        """Load a model; what the child knows of it then: seconds, placement, n_params, ..."""
        self._send(
            {
                "load": {
                    "path": str(path),
                    "placement": placement,
                    "extra_bufts": extra_bufts,
                    "rpc": rpc,
                }
            }
        )
        return dict(self._next()["loaded"])

    def run(
        self,
        test: Test,
        repetitions: int,
        threads: int,
        placement: Mapping[str, Any] | None = None,
        keep: bool = False,
    ) -> Iterator[tuple[str, int]]:
        """("filled", tokens) while the depth is processed, ("sample_ns", n) for each repetition."""
        request = {
            "test": asdict(test),
            "repetitions": repetitions,
            "threads": threads,
            "placement": placement or {},
            "keep": keep,
        }
        self._send({"test": request})
        while "done" not in (said := self._next()):
            yield from said.items()

    def mix(
        self, mix: Mix, threads: int, placement: Mapping[str, Any]
    ) -> tuple[int, tuple[int, ...]]:
        """Nanoseconds of the prompt, and of the tokens at each depth."""
        self._send({"mix": {"mix": asdict(mix), "threads": threads, "placement": placement}})
        prompt_ns, depths_ns = self._next()["mix"]
        return int(prompt_ns), tuple(map(int, depths_ns))

    def close(self) -> None:
        """Let the child go, wherever it is; safe to call twice."""
        self._pipes.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a dead child is found when its answer is missing
            self._pipes.send(json.dumps(request).encode() + b"\n")

    def _next(self) -> dict[str, Any]:
        while True:
            if self._cancel():
                self.close()
                raise Interrupted
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if not line:
                raise self._pipes.death()
            said = dict(json.loads(line))
            if "failed" in said:
                raise wire.Failed(*said["failed"]).error()
            return said
