"""The parent's side of the measuring child: load, run a test, survive its death.

Contract: `load` and `run` yield what the child says as it comes and give up when `cancel` says so.
A child that dies raises `EngineError` with the reason in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwqcli.bench import Test
from qwqcli.bench.drill import Mix
from qwqcli.engine import Control
from qwqcli.engine.measurer import Measurer


class Interrupted(Exception):
    """`cancel` said stop; the child is closed."""


class Child:
    """A process that measures one model at a time; use it as a context manager."""

    def __init__(self, cancel: Control) -> None:
        self._measurer = Measurer("qwqcli.bench.worker", cancel)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._measurer.pid

    def load(
        self, path: Path, placement: Mapping[str, Any], extra_bufts: bool, rpc: str | None = None
    ) -> dict[str, Any]:
        """Load a model; what the child knows of it then: seconds, placement, n_params, ..."""
        self._measurer.send(
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
        self._measurer.send({"test": request})
        while "done" not in (said := self._next()):
            yield from said.items()

    def mix(
        self, mix: Mix, threads: int, placement: Mapping[str, Any]
    ) -> tuple[int, tuple[int, ...]]:
        """Nanoseconds of the prompt, and of the tokens at each depth."""
        request = {"mix": asdict(mix), "threads": threads, "placement": placement}
        self._measurer.send({"mix": request})
        prompt_ns, depths_ns = self._next()["mix"]
        return int(prompt_ns), tuple(map(int, depths_ns))

    def close(self) -> None:
        """Let the child go, wherever it is; safe to call twice."""
        self._measurer.close()

    def _next(self) -> dict[str, Any]:
        said = self._measurer.next()
        if said is None:
            self.close()
            raise Interrupted
        return said
