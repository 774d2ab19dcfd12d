"""Time to the first token of a second turn, and of a session that is gone on with.

    python benchmarks/second_turn.py [--llama-server PATH] [--model FILE] [--rounds 2] [--threads N]
                                     [--trace 3000] [--answer 600] [--read 10] [--session 6000]
    python benchmarks/second_turn.py --qwq-layers 2 ...   # QwQ-32B's shape, of so many layers

A first turn of a short question, a thought of --trace tokens and an answer of --answer tokens is in
the cache; it is put there as a prompt, because generating it would take minutes and leaves the
same. Then, in turns: a second question after --read seconds; one at once; the same with nothing
prepared; and llama-server with its prompt cache, given the same text. What is expected: prepared,
only the question is processed; all others process the answer as well.

Then a session of --session tokens is left and gone on with in a new process, from its pages on disk
and without them. Last, the CPU time of an engine that has nothing left to prepare.

A file in QwQ-32B's shape has zero weights and is sparse: it takes no disk, and a token costs what
it costs in a model of so many layers. Its vocabulary has no words: each letter is a token.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import qwq_shaped, report, smollm

from qwqcli.engine import EngineSpec, Keep, selfcheck
from qwqcli.engine.process import ProcessEngine
from qwqcli.messages import Answer, Message, Reasoning, Sampling

ONE = Sampling(temperature=0, max_tokens=1)
SECOND = "And how many of them are painted red?"  # 9 tokens in SmolLM2's vocabulary
LINE = "the keeper counts the ships and the gulls while the lamp turns over the dark water"


def first(number: int) -> Message:
    """A question of its own for each round: llama-server remembers the states of earlier ones."""
    return Message("user", f"How many lighthouses does coast {number} have?")


def second(letters: bool) -> Message:
    """The second question: as many tokens where each letter is one."""
    return Message("user", text(9, letters) if letters else SECOND)


def text(tokens: int, letters: bool = False) -> str:
    """About so many tokens: each of these words is one in common vocabularies; or each letter."""
    words = LINE.split()
    if letters:
        return (LINE * (tokens // len(LINE) + 1))[:tokens]
    return " ".join(words[at % len(words)] for at in range(tokens))


def first_token(engine: ProcessEngine, messages: Sequence[Message]) -> float:
    """Seconds from the request until the first piece of the reply is there."""
    began, first = time.perf_counter(), 0.0
    for event in engine.stream(messages, ONE):
        if isinstance(event, Reasoning | Answer) and not first:
            first = time.perf_counter() - began
    return first


class Ours:
    """The first turn in the cache of a child, and the second turn asked."""

    def __init__(self, engine: ProcessEngine, trace: str, answer: str, then: Message) -> None:
        self._engine, self._trace, self._answer, self._then = engine, trace, answer, then

    def second(self, question: Message, prepare: bool, read_s: float) -> float:
        """Seconds to the first token of the second turn."""
        list(self._engine.stream([question, Message("assistant", self._answer, self._trace)], ONE))
        history = [question, Message("assistant", self._answer)]
        if prepare:
            self._engine.prepare(history)
        time.sleep(read_s)
        return first_token(self._engine, [*history, self._then])


class Server:
    """llama-server with its prompt cache, in a slot of its own."""

    def __init__(self, path: Path, model: Path, n_ctx: int, threads: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = [
            *(str(path), "-m", str(model), "-c", str(n_ctx), "-t", str(threads), "-np", "1"),
            *("--port", str(self._port), "--no-repack", "-fa", "off", "--cache-prompt"),
        ]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health").close()
                return
            time.sleep(0.1)
        sys.exit("llama-server does not answer")

    def complete(self, prompt: str) -> float:
        """Seconds until one token has followed `prompt`."""
        body: dict[str, Any] = {"prompt": prompt, "n_predict": 1, "cache_prompt": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/completion", json.dumps(body).encode()
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            answer.read()
        return time.perf_counter() - began

    def second(
        self, question: Message, trace: str, answer: str, then: Message, read_s: float
    ) -> float:
        """The two turns as ChatML, the thought left out of the history as by QwQ's template."""
        start = f"<|im_start|>user\n{question.content}<|im_end|>\n<|im_start|>assistant\n"
        self.complete(f"{start}<think>\n{trace}\n</think>\n\n{answer}")
        time.sleep(read_s)
        ask = f"<|im_end|>\n<|im_start|>user\n{then.content}<|im_end|>\n<|im_start|>assistant\n"
        return self.complete(f"{start}{answer}{ask}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def child(spec: EngineSpec, cache: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(spec, cache)
    engine.info()
    with contextlib.closing(engine):
        yield engine


def second_turn(spec: EngineSpec, cache: Path, args: argparse.Namespace) -> None:
    """Turns of all ways, and the ratios of each to the prepared one."""
    letters = bool(args.qwq_layers)
    trace, answer, then = text(args.trace, letters), text(args.answer, letters), second(letters)
    server = None
    if args.llama_server:
        server = Server(args.llama_server, Path(spec.path), args.ctx, args.threads)
    prepared, off, once, theirs = [], [], [], []
    with child(spec, cache) as engine:
        ours = Ours(engine, trace, answer, then)
        for question in map(first, range(args.rounds)):
            prepared.append(ours.second(question, True, args.read))
            off.append(ours.second(question, False, 0))
            once.append(ours.second(question, True, 0))
            if server:
                theirs.append(server.second(question, trace, answer, then, args.read))
    if server:
        server.close()
    pairs = list(zip(prepared, off, strict=True))
    report(f"prepared for {args.read} s over not prepared", pairs, "s", "<= 0.15")
    report("asked at once over not prepared", list(zip(once, off, strict=True)), "s", "<= 1")
    if theirs:
        pairs = list(zip(prepared, theirs, strict=True))
        report("prepared over llama-server", pairs, "s", "<= 0.15")
        pairs = list(zip(once, theirs, strict=True))
        report("asked at once over llama-server", pairs, "s", "<= 1")


def continued(spec: EngineSpec, cache: Path, args: argparse.Namespace) -> None:
    """A session left, and gone on with."""
    half = text(args.session // 2, bool(args.qwq_layers))
    talk, then = [Message("user", half), Message("assistant", half)], second(bool(args.qwq_layers))
    with tempfile.TemporaryDirectory() as folder:
        keep = Keep(str(Path(folder) / "session" / "kv"), 64 << 30)
        with child(spec, cache) as engine:
            anew = first_token(engine, [*talk, then])
            engine.prepare(talk, keep)
            wait(engine)
            rest = cpu_share(engine.pid)
        with child(spec, cache) as engine:
            began = time.perf_counter()
            engine.prepare(talk, keep)
            first_token(engine, [*talk, then])
            again = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(keep.folder).iterdir())
    report("going on from disk over processing again", [(again, anew)], "s", "<= 0.05")
    print(f"{size / 2**20:.0f} MiB on disk; {rest:.2%} of a core used while idle for 5 s")


def wait(engine: ProcessEngine) -> None:
    while not engine.prepared:
        time.sleep(0.05)


def cpu_share(pid: int, seconds: float = 5.0) -> float:
    """CPU seconds a second that a process takes, from /proc."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--qwq-layers", type=int, default=0)
    for name, value in (("rounds", 2), ("threads", 2), ("trace", 3000), ("answer", 600)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--read", type=float, default=10)
    parser.add_argument("--session", type=int, default=6000, help="0 leaves this part out")
    parser.add_argument("--ctx", type=int, default=8192)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        model = args.model or smollm()
        if args.qwq_layers:
            model = qwq_shaped(folder, args.qwq_layers)
        wish = EngineSpec(str(model), n_ctx=args.ctx, threads=args.threads)
        spec, _ = selfcheck.trusted(wish, cache)
        if args.rounds:
            second_turn(spec, cache, args)
        if args.session:
            continued(spec, cache, args)


if __name__ == "__main__":
    main()
