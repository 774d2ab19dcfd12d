"""A child that measures: requests and answers are JSON, errors are ours, a death is one sentence.

Contract: a `Measurer` starts `python -m MODULE`, which answers over `pipes.answers`, with `failure`
where it raised an error of ours. While an answer is waited for, `stop` is asked.
Not here: what is measured.
"""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from qwqcli.engine import pipes, wire
from qwqcli.errors import EngineError, QwqError

POLL_S = 0.05  # how often `stop` is asked; it costs 20 us each


class Measurer:
    """The parent's side. Not for use from more than one thread."""

    def __init__(self, module: str, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pipes = pipes.Pipes(module, self._lines.put)

    @property
    def pid(self) -> int:
        return self._pipes.process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a dead child is found when its answer is missing
            self._pipes.send(json.dumps(request).encode() + b"\n")

    def next(self) -> dict[str, Any] | None:
        """What the child says next; None if `stop` said so meanwhile.

        Raises the child's error, or EngineError when it has ended.
        """
        while not self._stop():
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if not line:
                raise self._death()
            said = dict(json.loads(line))
            if "failed" in said:
                raise wire.Failed(*said["failed"]).error()
            return said
        return None

    def close(self) -> None:
        """End the child, wherever it is: it keeps nothing. Safe to call twice."""
        self._pipes.process.kill()
        self._pipes.close()

    def _death(self) -> EngineError:
        code, words = self._pipes.process.wait(), self._pipes.last_words()
        said = f": {words[:200]}" if words else ""
        return EngineError(f"The process that measures ended with code {code}{said}.", "qwq doctor")


def failure(error: QwqError) -> dict[str, Any]:
    """In the child: what it says instead of an answer."""
    return {"failed": astuple(wire.Failed.of(error))}
