"""How fast are sessions? Search over many turns with traces, and resuming a long session.

    python benchmarks/sessions.py [--turns 10000] [--rounds 7]

Builds a store of its own in a temporary folder: each turn holds a trace of about 2,000 tokens
(8,000 characters) of made-up English and Chinese. Nothing here is compared with a peer, because
none of them searches traces.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pexpect

from qwqcli.conversation import Conversation, Turn
from qwqcli.sessions import Store, new_session, new_turn_id

QUERIES = {
    "a rare word": "zebra77",
    "two common words": "wait number",
    "a phrase": '"so the"',
    "a prefix": "calc*",
    "Chinese, common": "所以",
    "Chinese, one character": "的",
    "Chinese, rare": "长颈鹿",
    "not there": "absent",
}
ENGLISH = (
    *("wait", "so", "the", "number", "is", "not", "what", "we", "first", "calculated", "let", "me"),
    *("check", "that", "again", "but", "then"),
)
CHINESE = "所以我们需要再检查一下这个数字是不是正确的答案等等让我想想"


def text(chance: random.Random, length: int) -> str:
    """About `length` characters of a thought."""
    words: list[str] = []
    size = 0
    while size < length:
        if chance.random() < 0.15:
            at = chance.randrange(len(CHINESE) - 6)
            word = CHINESE[at : at + chance.randrange(2, 7)]
        else:
            word = chance.choice(ENGLISH) + ("" if chance.random() < 0.9 else str(size % 50))
        words.append(word)
        size += len(word) + 1
    return " ".join(words)


def fill(store: Store, turns: int, per_session: int, chance: random.Random) -> str:
    """Write so many turns; returns the id of the last session."""
    for begin in range(0, turns, per_session):
        session, talk = new_session("tiny"), Conversation()
        for number in range(begin, min(begin + per_session, turns)):
            rare = f" zebra{number} 长颈鹿" if number % 1000 == 77 else ""
            thought = text(chance, 8_000) + rare
            question, answer = text(chance, 80), text(chance, 600)
            said = Turn(new_turn_id(), talk.head, question, (), thought, answer, "end")
            talk = talk.add(said)
        store.save(session, talk.head, talk.turns)
    return session.id


def timed(do: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of so many runs, after one that is not counted."""
    do()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return times


def first_key(folder: Path, id: str) -> float:
    """Seconds from the start of `qwq chat --resume` until the prompt shows a typed key."""
    environ = {**os.environ, "QWQ_DATA_DIR": str(folder), "TERM": "xterm"}
    command = ["-m", "qwqcli", "chat", "--resume", id]
    began = time.perf_counter()
    child = pexpect.spawn(sys.executable, command, env=environ, timeout=20)
    try:
        child.setecho(False)
        child.delaybeforesend = None
        while True:
            child.send("~")
            if child.expect([r"~", pexpect.TIMEOUT], timeout=0.005) == 0:
                return time.perf_counter() - began
    finally:
        child.close(force=True)


def line(what: str, times: list[float], unit: float, name: str, goal: str) -> None:
    low, middle, high = min(times), statistics.median(times), max(times)
    print(
        f"{what}: median {middle / unit:.3g} {name} ({low / unit:.3g} to {high / unit:.3g},"
        f" n={len(times)}); goal {goal}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(1)
        store = Store(folder / "sessions.db")
        began = time.perf_counter()
        id = fill(store, args.turns, 200, chance)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        took = time.perf_counter() - began
        print(f"{args.turns:,} turns, {size:.0f} MB, written in {took:.0f} s")
        for what, query in QUERIES.items():
            times = timed(functools.partial(store.search, query), args.rounds)
            line(f"search, {what}", times, 1e-3, "ms", "< 50")
        line("load 200 turns", timed(lambda: store.load(id), args.rounds), 1e-3, "ms", "")
        store.close()
        keys = [first_key(folder, id) for _ in range(args.rounds + 1)][1:]
        line("first key of a resumed session of 200 turns", keys, 1, "s", "<= 0.4")


if __name__ == "__main__":
    main()
