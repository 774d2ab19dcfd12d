"""Throw mutated GGUF headers at the reader: `python tests/fuzz_gguf.py --seconds 60`.

Contract: every input must give a coherent ModelInfo or a BadFile within a second and 64 MB.
Anything else is printed, and the input is kept in --keep so that it can join tests/corpus/gguf. The
last line of stdout is one JSON object; the exit code is 1 if something was found.
Limits: blind mutation without coverage feedback. It finds what is near the files of the corpus.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import struct
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from qwqcli.errors import BadFile
from qwqcli.gguf import ModelInfo, read_header

CORPUS = Path(__file__).parent / "corpus" / "gguf"
FINDINGS = Path(tempfile.gettempdir()) / "qwq-fuzz-gguf"
MAX_SECONDS = 1.0
MAX_BYTES = 64 << 20
MAX_FINDINGS = 20  # more of the same say nothing new
MAX_INPUT = 64 << 10  # inputs that grow slow the search down

Mutation = Callable[[random.Random, bytearray], None]
EDGES = (0, 1, 2, 7, 8, 9, 31, 32, 255, 511, 512, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62)
WIDE_EDGES = (*EDGES, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)


def flip(rng: random.Random, data: bytearray) -> None:
    """Change one bit."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def edge32(rng: random.Random, data: bytearray) -> None:
    """Write an edge value over four bytes."""
    if len(data) >= 4:
        struct.pack_into("<I", data, rng.randrange(len(data) - 3), rng.choice(EDGES) % 2**32)


def edge64(rng: random.Random, data: bytearray) -> None:
    """Write an edge value over eight bytes."""
    if len(data) >= 8:
        struct.pack_into("<Q", data, rng.randrange(len(data) - 7), rng.choice(WIDE_EDGES))


def nudge(rng: random.Random, data: bytearray) -> None:
    """Make a byte a little more or less: lengths and types that are nearly right."""
    place = rng.randrange(len(data))
    data[place] = (data[place] + rng.choice((-2, -1, 1, 2))) % 256


def cut(rng: random.Random, data: bytearray) -> None:
    """Take some bytes out."""
    place = rng.randrange(len(data))
    del data[place : place + rng.randrange(1, 32)]


def repeat(rng: random.Random, data: bytearray) -> None:
    """Put a piece in a second time."""
    place = rng.randrange(len(data))
    data[place:place] = data[place : place + rng.randrange(1, 64)]


def end(rng: random.Random, data: bytearray) -> None:
    """Stop early."""
    del data[rng.randrange(len(data)) :]


MUTATIONS: tuple[Mutation, ...] = (flip, edge32, edge64, nudge, nudge, cut, repeat, end)


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A file of the corpus with one to five mutations; rarely, with the tail of another."""
    data = bytearray(rng.choice(corpus))
    if rng.random() < 0.05:
        data[rng.randrange(len(data)) :] = rng.choice(corpus)[rng.randrange(24) :]
    for _ in range(rng.randint(1, 5)):
        if data:
            rng.choice(MUTATIONS)(rng, data)
    return bytes(data[:MAX_INPUT])


def coherent(info: ModelInfo) -> bool:
    """What the planner relies on without asking: rows of equal length, sums that add up."""
    lengths = {len(info.layer_bytes), len(info.layer_ffn_bytes), len(info.n_head_kv)}
    fits = info.tensor_bytes <= info.file_bytes - info.data_offset
    return lengths == {info.n_layers} and fits


def run(data: bytes) -> tuple[str, bool]:
    """What came out of `data`, and whether it is a finding."""
    tracemalloc.reset_peak()
    start = time.perf_counter()
    try:
        bad = not coherent(read_header(io.BytesIO(data)))
        outcome = "incoherent model" if bad else "model"
    except BadFile as error:
        outcome, bad = type(error).__name__, not (error.message and error.hint)
    except Exception as error:  # noqa: BLE001 - a foreign exception is what we look for
        outcome, bad = f"{type(error).__name__}: {error}", True
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    if seconds > MAX_SECONDS or peak > MAX_BYTES:
        return f"{outcome} after {seconds:.2f} s and {peak / 1e6:.1f} MB", True
    return outcome, bad


def fuzz(corpus: list[bytes], seconds: float, seed: int, keep: Path) -> dict[str, object]:
    """Run for `seconds`; returns the counts of each outcome and the findings."""
    rng = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    findings: list[str] = []
    slowest = 0.0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and len(findings) < MAX_FINDINGS:
        data = mutate(rng, corpus)
        start = time.perf_counter()
        outcome, bad = run(data)
        slowest = max(slowest, time.perf_counter() - start)
        outcomes["finding" if bad else outcome] += 1
        if bad:
            keep.mkdir(parents=True, exist_ok=True)
            path = keep / f"found-{len(findings):02}.gguf"
            path.write_bytes(data)
            findings.append(f"{path}: {outcome}")
            print(findings[-1], file=sys.stderr)
    return {"seed": seed, "runs": outcomes.total(), "outcomes": dict(outcomes),
            "slowest_ms": round(slowest * 1000, 1), "findings": findings}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--keep", type=Path, default=FINDINGS)
    options = parser.parse_args()
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    tracemalloc.start()
    report = fuzz(corpus, options.seconds, options.seed, options.keep)
    print(json.dumps(report))
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
