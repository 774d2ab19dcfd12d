"""The loop guard: what goes in circles is seen, however it comes; honest text is let pass."""

from __future__ import annotations

import inspect
import itertools
import json

import pytest

from qwqcli.guard import EXACT, NEAR, Guard

SENTENCE = "Wait, let me check the second digit once more before I write the answer down."
HONEST = inspect.getsource(json.decoder) + inspect.getsource(json.encoder)

CIRCLES = {
    "one symbol": lambda n: "!",
    "one word": lambda n: "wait ",
    "new lines": lambda n: "\n",
    "a sentence": lambda n: f"{SENTENCE} ",
    "a paragraph": lambda n: f"{SENTENCE} But no, {SENTENCE.lower()} So I was wrong.\n\n",
    "Chinese": lambda n: "等等，我们再检查一下这个答案是不是对的，",
    "a counter": lambda n: f"Step {n}: we add the next digit to the sum and go on. ",
    "a Chinese counter": lambda n: f"第{n}步：我们把下一个数字加到总和里，然后继续。",
}


def heard(text: str, size: int = 4) -> list[int]:
    """Where the guard speaks, fed in pieces of `size` characters."""
    guard = Guard()
    return [at for at in range(0, len(text), size) if guard.feed(text[at : at + size])]


@pytest.mark.parametrize("kind", CIRCLES)
def test_circles_are_seen(kind: str) -> None:
    """After an honest beginning a text that repeats itself is seen, and not before it does."""
    loop = "".join(itertools.islice(map(CIRCLES[kind], itertools.count(1)), 20_000))[:20_000]
    found = heard(HONEST[:8_000] + loop)
    assert found
    assert found[0] > 8_000


def test_any_split_is_the_same() -> None:
    """However the text is cut into pieces, the guard speaks at the same place."""
    text = HONEST[:3_000] + (SENTENCE + " ") * 60
    places = {size: heard(text, size)[0] // 64 for size in (1, 2, 3, 5, 16, 64)}
    assert len(set(places.values())) == 1


def table(size: int) -> str:
    return "\n".join(f"{a} x {b} = {a * b}" for a in range(size) for b in range(size))


HONEST_TEXTS = {
    "code": HONEST,
    "a multiplication table": table(25),
    "a list of numbers": ", ".join(map(str, range(3_000))),
    "the same licence twice": HONEST[:4_000] * 2,
    "a ruler after each line": "\n".join(f"{n} {word}\n-----" for n, word in
                                         enumerate(HONEST.split()[:800])),
    "cases that are told apart": "\n".join(
        f"{n}: {'even' if n % 2 else 'odd'}, so {n * 7} it is." for n in range(90)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HONEST_TEXTS)
def test_honest_text_passes(kind: str) -> None:
    """What repeats a form but not itself, or itself only once, raises no alarm."""
    assert heard(HONEST_TEXTS[kind]) == []


def test_it_starts_anew() -> None:
    """Having spoken it needs as much again, so that a thought which found out is let be."""
    found = heard((SENTENCE + " ") * 400)
    assert len(found) > 1
    assert found[1] - found[0] == pytest.approx(found[0], rel=0.1)


def test_rules_are_far_from_ordinary_repeats() -> None:
    """A near repeat, which tables and lists are too, must go on much longer than an exact one."""
    assert NEAR.alarm >= 4 * EXACT.alarm
