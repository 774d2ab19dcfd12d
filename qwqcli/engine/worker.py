"""The engine's child process: hosts a `LlamaEngine`, speaks `wire` over stdin and stdout.

Run as `python -m qwqcli.engine.worker`. When stdin ends, the parent is gone and so is the worker,
at once, even in the middle of a load. A reader thread takes requests in, so that an order is seen
while native code runs. What a next question will need is prepared while nothing else is asked.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from qwqcli.engine import pipes, selfcheck, wire
from qwqcli.errors import QwqError
from qwqcli.messages import Loading, Notice, Order

PROGRESS_S = 0.05  # no two loading messages closer than this
# Pieces of a reply that come closer than this are said together. On a CPU that computes on all its
# cores every line takes 0.4 ms from the model, most of it for the parent, and what the chat draws
# for it takes more; where a GPU computes, nothing.
GATHER_CPU_S, GATHER_S = 0.2, 0.03


class Worker:
    """One model, one parent. `serve` returns when there is nothing left to do."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self._requests, self._replies = requests, replies
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = self._hurried = 0  # the last request to stop, and to answer now
        self._engine: Any = None
        self._idle_work: wire.Prepare | None = None
        self._last_progress = 0.0

    def serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        load = self._queue.get()
        try:
            self._load(load)
        except QwqError as error:
            self._say(wire.Failed.of(error))
            return
        while True:
            if self._idle_work and self._queue.empty():
                self._prepare(self._idle_work)
            else:
                self._take(self._queue.get())

    def _take(self, request: Any) -> None:
        if isinstance(request, wire.Prepare):
            self._idle_work = request
            return
        if isinstance(request, wire.Leave):
            self._leave()
        if isinstance(request, wire.Ask) and self._idle_work:
            with contextlib.suppress(QwqError):
                self._engine.fetch(self._idle_work.messages, self._idle_work.keep)
            self._idle_work = None
        self._answer(request)

    def _prepare(self, work: wire.Prepare) -> None:
        """Get on with `work` until a request comes; what fails is left for the next question."""
        with contextlib.suppress(QwqError):
            if not self._engine.prepare(work.messages, work.keep, self._wanted):
                return
        self._idle_work = None
        self._say(wire.Prepared(work.id))

    def _leave(self) -> NoReturn:
        if self._idle_work and self._idle_work.keep:
            with contextlib.suppress(QwqError):
                self._engine.keep(self._idle_work.messages, self._idle_work.keep)
        os._exit(0)

    def _wanted(self) -> Order:
        return Order.GO_ON if self._queue.empty() else Order.STOP

    def _load(self, load: wire.Load) -> None:
        spec, notices = selfcheck.trusted(load.spec, Path(load.cache))
        for text in notices:
            self._say(Notice(text))
        from qwqcli.engine import hosted  # after the check: this loads the library

        self._engine = hosted.load(spec, self._progress)
        self._say(wire.Ready(self._engine.info()))

    def _answer(self, request: Any) -> None:
        try:
            if isinstance(request, wire.Count):
                counted = self._engine.count_tokens(request.messages, thinking=request.thinking)
                self._say(wire.Counted(counted))
            elif isinstance(request, wire.Suppose):
                self._say(wire.Supposed(self._engine.larger(request.n_ctx)))
            else:
                self._stream(request)
        except QwqError as error:
            self._say(wire.Failed.of(error))

    def _stream(self, ask: wire.Ask) -> None:
        events = self._engine.stream(
            ask.messages,
            ask.sampling,
            lambda: self._order(ask.id),
            thinking=ask.thinking,
            budget=ask.budget,
            apart_s=GATHER_S if self._engine.info().on_gpu else GATHER_CPU_S,
        )
        for event in events:
            self._say(event)

    def _order(self, request: int) -> Order:
        if self._stopped >= request:
            return Order.STOP
        return Order.ANSWER if self._hurried >= request else Order.GO_ON

    def _read(self) -> None:
        for line in self._requests:
            request = wire.decode(line)
            if isinstance(request, wire.Give):
                self._give(request)
            else:
                self._queue.put(request)
                if self._idle_work:
                    self._engine.abort()
        os._exit(0)  # the parent has closed us, or has died; native code may be anywhere

    def _give(self, order: wire.Give) -> None:
        if order.order == Order.ANSWER:
            self._hurried = order.id
        elif order.order == Order.STOP:
            self._stopped = order.id
            if self._engine:
                self._engine.abort()

    def _progress(self, done: float) -> bool:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_S:
            self._last_progress = now
            self._say(Loading(done))
        return True

    def _say(self, value: Any) -> None:
        self._replies.write(wire.encode(value))
        self._replies.flush()


def main() -> None:
    """Serve the one parent."""
    replies = pipes.replies()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    Worker(sys.stdin.buffer, replies).serve()


if __name__ == "__main__":
    main()
