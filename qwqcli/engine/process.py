"""An `Engine` in a child process: native code may die there, the conversation stays here.

The child is started at once and loads while the person types. When it dies, the reason is said in
one sentence and it is started again, with safer settings where there are any; a reply that had
said nothing yet is asked for again, one that had ends with what it said and `Done("died")`.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwqcli.config import Settings
from qwqcli.engine import (
    MEMORY_WORDS,
    RETRIES,
    UNLIMITED,
    Control,
    EngineInfo,
    EngineSpec,
    Keep,
    never,
    tuned,
    wire,
)
from qwqcli.engine.pipes import Pipes
from qwqcli.errors import EngineError, OutOfMemory, QwqError
from qwqcli.hardware import GiB, physical_cores
from qwqcli.layout import Larger
from qwqcli.messages import (
    Answer,
    Budget,
    Done,
    Event,
    Loaded,
    Message,
    Notice,
    Order,
    Prompting,
    Reasoning,
    Sampling,
    Stats,
    ThoughtEnd,
)

TELLING = 64  # tokens of a prompt that tell well how fast prompts are processed
POLL_S = 0.15  # how often `control` is asked while the child is silent; pieces come more often
RESTARTS = 3  # of one request that keeps dying before it is given up
PATIENCE_S = 30.0  # a stopped reply ends within one prompt batch; a child that hangs is killed
_AGAIN = "The engine died again and again at the same place."
LEAVE_S = 5.0  # how long a child that is left may go on writing


def open_engine(
    path: Path, settings: Settings, cache: Path, *, repeatable: bool = False
) -> ProcessEngine:
    """Start the engine for a model with a person's settings; returns at once, loading goes on.

    `repeatable`: nothing tuned makes a reply depend on what the KV cache held before.
    """
    spec = tuned.applied(stock_spec(path, settings), settings, cache)
    if repeatable and settings.flash_attn is None and spec.flash_attn == "prompts":
        spec = replace(spec, flash_attn=None)
    return ProcessEngine(spec, cache)


def stock_spec(path: Path, settings: Settings) -> EngineSpec:
    """A person's settings for a model, and what we take where they say nothing."""
    return EngineSpec(
        path=str(path),
        n_ctx=settings.ctx,
        threads=settings.threads or physical_cores(),
        kv=settings.kv,
        flash_attn=settings.flash_attn,
        prefer=settings.prefer,
        margin_bytes=round(settings.margin_gb * GiB),
        gpu_layers=settings.gpu_layers,
        extra_bufts=True,
        rpc=settings.rpc,
        device=settings.device,
    )


class Died(Exception):
    """The child is gone; the text says why, in one sentence."""

    def __init__(self, why: str, starved: bool = False) -> None:
        super().__init__(why)
        self.starved = starved  # for want of memory, as far as can be told


class ProcessEngine:
    """See `Engine`. Not for use from more than one thread."""

    def __init__(self, spec: EngineSpec, cache: Path, patience_s: float = PATIENCE_S) -> None:
        self._spec, self._cache, self._patience_s = spec, cache, patience_s
        self._wished, self._failed = spec, False  # the load ended in an error of ours
        self._info: EngineInfo | None = None
        self._last_id = self._prepares = 0
        self._prepare: wire.Prepare | None = None  # the last one
        self._last = Stats()  # of the last reply
        self._prompt_tps: float | None = None  # as last measured
        self._unsaid: list[Event] = []  # came while nobody was listening
        self._child = _Child(spec, cache, patience_s)

    def info(self) -> EngineInfo:
        """Waits for the load. Raises the load's error."""
        for event in self._loaded(never):
            if isinstance(event, Notice | Loaded):
                self._unsaid.append(event)
        assert self._info is not None
        return self._info

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def prepare(self, messages: Sequence[Message], keep: Keep | None = None) -> bool:
        """See `Engine`. Returns at once; the child may still be loading."""
        self._prepares += 1
        self._prepare = wire.Prepare(self._prepares, tuple(messages), keep)
        with contextlib.suppress(Died):  # said when the next request finds it out
            self._child.send(self._prepare)
        return False

    @property
    def prepared(self) -> bool:
        """Whether all is done that `prepare` was last asked for."""
        return self._child.prepared == self._prepares

    def count_tokens(self, messages: Sequence[Message], *, thinking: bool = True) -> int:
        counted = self._asked(wire.Count(tuple(messages), thinking))
        return int(counted.tokens)

    def larger(self, n_ctx: int) -> Larger | None:
        supposed = self._asked(wire.Suppose(n_ctx))
        assert isinstance(supposed, wire.Supposed)
        return supposed.larger

    def _asked(self, value: Any) -> Any:
        """The one answer to a question about the model, from a new child if this one is dead."""
        for _ in range(RESTARTS):
            self.info()
            try:
                return self._child.request(value)
            except Died as death:
                self._unsaid.append(self._died(death))
        raise EngineError(_AGAIN, "Try another model or qwq doctor")

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        control: Control = never,
        *,
        thinking: bool = True,
        budget: Budget = UNLIMITED,
    ) -> Iterator[Event]:
        while self._unsaid:
            yield self._unsaid.pop(0)
        for _ in range(RESTARTS):
            said = _Said()
            try:
                yield from self._loaded(control)
                if self._info is None:  # stopped while loading, which goes on
                    yield Done("interrupted", Stats())
                    return
                self._last_id += 1
                ask = wire.Ask(self._last_id, tuple(messages), sampling, thinking, budget)
                yield from self._reply(ask, control, said)
                return
            except Died as death:
                if said.anything:
                    self._last = said.stats()
                    self._prompt_tps = self._prompt_tps or self._last.prompt_tps
                yield self._died(death)
                if said.anything:
                    yield Done("died", said.stats(), said.thought_end)
                    return
        raise EngineError(_AGAIN, "Try another model or qwq doctor")

    def close(self) -> None:
        if self._prepare and self._prepare.keep and self._info and not self.prepared:
            self._prepare = None
            self._child.leave()
        self._child.close()

    def _reply(self, ask: wire.Ask, control: Control, said: _Said) -> Iterator[Event]:
        self._child.send(ask)
        over = False
        try:
            for event in self._child.events(control, ask.id):
                said.note(event)
                over = isinstance(event, Done)
                if isinstance(event, Done):
                    self._measured(event.stats)
                yield event
                if over:
                    return
        except GeneratorExit:
            if not over:  # the caller has heard enough; bring the child to rest
                self._child.drain(ask.id)
            raise

    def _loaded(self, control: Control) -> Iterator[Event]:
        """Yield progress until the child is ready or `control` says stop; restart it if it dies."""
        if self._info is not None:
            return
        if self._failed:  # what was in the way may be gone by now
            self._start(self._wished)
        for _ in range(RETRIES + 2):  # the last one only says what would fit
            try:
                yield from self._progress(control)
                return
            except Died as death:
                yield Notice(f"{death} {self._restart(death.starved)}")
            except OutOfMemory as error:
                yield Notice(f"{error} {self._restart(starved=True)}")
            except QwqError:
                self._failed = True
                raise
        self._failed = True
        raise EngineError(
            f"The engine died again and again while loading {Path(self._spec.path).name}.",
            "qwq plan, to see what fits",
        )

    def _progress(self, control: Control) -> Iterator[Event]:
        """What the child says while it loads, and once it has loaded."""
        for value in self._child.events(control, None):
            if isinstance(value, wire.Ready):
                self._info = value.info
                yield Loaded(value.info.placement)
                for text in value.info.notices:
                    yield Notice(text)
                return
            yield value

    def _measured(self, stats: Stats) -> None:
        self._last = stats
        if stats.prompt_tokens - stats.reused_tokens >= TELLING or not self._prompt_tps:
            self._prompt_tps = stats.prompt_tps

    def _rebuilding(self) -> str:
        """How long it takes to bring the conversation back into the cache; empty if unknown."""
        tokens = self._last.prompt_tokens + self._last.answer_tokens
        if not (tokens and self._prompt_tps):
            return ""
        seconds = max(1, round(tokens / self._prompt_tps))
        kept = self._prepare is not None and self._prepare.keep is not None
        unless = ", unless they are on disk" if kept else ""
        return f" {tokens:,} tokens are processed again first{unless}: {seconds:,} s."

    def _died(self, death: Died) -> Notice:
        """Start a new child after the death of a loaded one; what there is to say of it."""
        return Notice(f"{death} {self._restart(death.starved)}{self._rebuilding()}")

    def _restart(self, starved: bool) -> str:
        """Start a new child; returns the sentence that says how."""
        on_gpu = self._info is None or self._info.on_gpu
        spec, how = safer(self._spec, starved, on_gpu)
        self._start(spec)
        return how

    def _start(self, spec: EngineSpec) -> None:
        self._child.close()
        self._info, self._failed, self._spec = None, False, spec
        self._child = _Child(spec, self._cache, self._patience_s)
        if self._prepare:
            with contextlib.suppress(Died):
                self._child.send(self._prepare)


def safer(spec: EngineSpec, starved: bool, on_gpu: bool) -> tuple[EngineSpec, str]:
    """The next safer settings after a death, and a sentence that names the change."""
    if starved and spec.squeeze <= RETRIES:
        tries = spec.squeeze + 1
        less = f"It is started again with less memory ({tries} of {RETRIES})."
        return replace(spec, squeeze=tries), less if tries <= RETRIES else "That was the last try."
    if spec.rpc:
        alone = replace(spec, rpc=None, device="none", gpu_layers=0)
        return alone, "It is started again without the RPC device."
    if spec.gpu_layers != 0 and on_gpu:
        return replace(spec, gpu_layers=0), "It is started again on the CPU."
    if spec.flash_attn == "prompts":
        return replace(spec, flash_attn=None), "It is started again with one KV cache."
    if spec.extra_bufts:
        return replace(spec, extra_bufts=False), "It is started again without repacked weights."
    return spec, "It is started again."


class _Said:
    """What a reply has said so far, for its figures when the engine dies in the middle."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first: float | None = None
        self._answer: float | None = None
        self.thought_end: ThoughtEnd | None = None
        self._reasoning_tokens = self._answer_tokens = self._prompt_tokens = 0
        self._prompt_s = 0.0
        self.anything = False

    def note(self, event: Event) -> None:
        now = time.perf_counter() - self._began
        if isinstance(event, Prompting):
            self._prompt_tokens, self._prompt_s = event.total, now
        if isinstance(event, Reasoning | Answer):
            self.anything = True
            self._first = self._first or now
        if isinstance(event, Reasoning):
            self._reasoning_tokens = event.tokens
            self.thought_end = event.end
        elif isinstance(event, Answer):
            self._answer_tokens = event.tokens
            self._answer = self._answer or now

    def stats(self) -> Stats:
        return Stats(
            prompt_tokens=self._prompt_tokens,
            prompt_s=self._prompt_s,
            reasoning_tokens=self._reasoning_tokens,
            answer_tokens=self._answer_tokens,
            time_to_first_token_s=self._first,
            time_to_answer_s=self._answer,
        )


class _Child:
    """The process and the two pipes to it. Every way in or out raises `Died` once it is dead."""

    def __init__(self, spec: EngineSpec, cache: Path, patience_s: float) -> None:
        self._patience_s, self._hangs = patience_s, False
        self.prepared = 0  # the id of the last `Prepare` that is done
        self._values: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pipes = Pipes("qwqcli.engine.worker", self._take)
        with contextlib.suppress(Died):  # said when the first answer is waited for
            self.send(wire.Load(spec, str(cache)))

    @property
    def pid(self) -> int:
        return self._pipes.process.pid

    def send(self, value: Any) -> None:
        try:
            self._pipes.send(wire.encode(value))
        except OSError as error:
            raise self._death() from error

    def request(self, value: Any) -> Any:
        """Send, and wait for the one value that answers. Raises `Failed` as our error."""
        self.send(value)
        return next(self.events(never, None))

    def events(self, control: Control, request: int | None) -> Iterator[Any]:
        """What the child says, until the caller has enough; `control` is asked while waiting.

        A stopped request ends by itself; with `request=None` (a load) the iterator just ends.
        """
        deadline, told = math.inf, Order.GO_ON
        while True:
            order = control()
            if order == Order.STOP and request is None:
                return
            if order != told and request is not None:
                self.send(wire.Give(request, order))
                told = order
                if order == Order.STOP:
                    deadline = time.monotonic() + self._patience_s
            try:
                value = self._values.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    self._hangs = True
                    self._pipes.process.kill()
                    deadline = math.inf
                continue
            if value is None:
                self._values.put(None)  # dead for whoever asks next, too
                raise self._death()
            if isinstance(value, wire.Failed):
                raise value.error()
            yield value

    def drain(self, request: int) -> None:
        """Stop `request` and pass over what is left of its reply; nothing once it is closed."""
        if self._pipes.closed:
            return
        with contextlib.suppress(Died):
            self.send(wire.Give(request, Order.STOP))
            for value in self.events(never, request):
                if isinstance(value, Done):
                    return

    def leave(self) -> None:
        """Let the child keep what it has, for a while at most, and end."""
        with contextlib.suppress(Died, subprocess.TimeoutExpired):
            self.send(wire.Leave())
            self._pipes.process.wait(LEAVE_S)

    def close(self) -> None:
        """Let the child go; safe to call twice."""
        self._pipes.close()

    def _take(self, line: bytes) -> None:
        value = wire.decode(line) if line else None
        if isinstance(value, wire.Prepared):
            self.prepared = value.id
        else:
            self._values.put(value)

    def _death(self) -> Died:
        """Why the process ended, in one sentence."""
        code, words = self._pipes.process.wait(), self._last_words()
        if self._hangs:
            return Died(f"The engine did not stop within {self._patience_s:.0f} s and was ended.")
        if code == -9:  # SIGKILL, which Windows lacks
            why = "The engine was killed by the system, most likely for want of memory."
            return Died(why, starved=True)
        starved = any(said in words.lower() for said in MEMORY_WORDS)
        if code < 0:
            return Died(f"The engine crashed ({signal.Signals(-code).name}{words}).", starved)
        return Died(f"The engine stopped with code {code}{words}.", starved)

    def _last_words(self) -> str:
        # an abort begins with the source file that it stands in, as the build machine named it
        said = re.sub(r"^.*?[^ ]+:[0-9]+: ", "", self._pipes.last_words())[:200].rstrip(".")
        return f": {said}" if said else ""
