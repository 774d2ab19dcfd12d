"""The expected answer of every prompt in prompts/, worked out here by another way."""

from __future__ import annotations

import datetime
import itertools
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from solutions import SOLUTIONS

from qwqcli import checkers, prompts
from qwqcli.config import paths
from qwqcli.prompts import Prompt

LIBRARY = prompts.library(paths({"QWQ_CONFIG_DIR": "nowhere"}))
JUDGED = [prompt for prompt in LIBRARY if prompt.kind]


def days_off_gained() -> int:
    """Days off between the two dates, less the Saturdays and Sundays."""
    pattern = [(6, 3), (3, 2), (5, 1), (2, 7), (5, 1)]
    start, end = datetime.date(2024, 9, 9), datetime.date(2024, 10, 13)
    days = (end - start).days + 1
    assert sum(map(sum, pattern)) == days
    weekend = sum((start + datetime.timedelta(n)).weekday() >= 5 for n in range(days))
    return sum(off for _, off in pattern) - weekend


def cubic(best: Callable[[Iterable[float]], float]) -> float:
    """An extreme of x^3 - 3x^2 + 2x on [0, 3], on a fine grid."""
    return best(x**3 - 3 * x**2 + 2 * x for x in (n / 10_000 for n in range(30_001)))


def peak_fails(size: int) -> bool:
    """Whether binary search for a peak reads past the end in some list of this size."""

    def reads(nums: tuple[int, ...]) -> Iterator[int]:
        left, right = 0, len(nums) - 1
        while left < right:
            mid = (left + right) // 2
            yield mid + 1
            left, right = (mid + 1, right) if nums[mid] < nums[mid + 1] else (left, mid)

    return any(at >= size for nums in itertools.permutations(range(size)) for at in reads(nums))


def least_steps(
    start: Any, moves: Callable[[Any], Iterable[Any]], done: Callable[[Any], bool]
) -> int:
    """Steps of the shortest way to a state that is done."""
    seen, todo = {start}, deque([(start, 0)])
    while todo:
        state, steps = todo.popleft()
        if done(state):
            return steps
        for after in set(moves(state)) - seen:
            seen.add(after)
            todo.append((after, steps + 1))
    raise AssertionError("no way")


def jugs(state: tuple[int, int]) -> Iterator[tuple[int, int]]:
    three, five = state
    yield from ((3, five), (three, 5), (0, five), (three, 0))
    over, back = min(three, 5 - five), min(five, 3 - three)
    yield from ((three - over, five + over), (three + back, five - back))


def river(state: tuple[bool, ...]) -> Iterator[tuple[bool, ...]]:
    """Farmer, wolf, goat, cabbage: who is across."""
    farmer = state[0]
    for who in range(4):
        if state[who] == farmer:
            after = tuple(not side if n in (0, who) else side for n, side in enumerate(state))
            _, wolf, goat, cabbage = after
            if goat == after[0] or goat not in (wolf, cabbage):
                yield after


def only(found: Iterable[Any]) -> Any:
    """The one value; there must be no second."""
    (value,) = found
    return value


def knight() -> str:
    """The option that names the only knight."""
    cases = [
        (ada, ben, cleo)
        for ada, ben, cleo in itertools.product((True, False), repeat=3)
        if ada + ben + cleo == 1 and ada == (not ben) and ben == (ada == cleo) and cleo == ben
    ]
    return "ABC"[only(cases).index(True)]


def third_runner() -> str:
    names = ("Ann", "Bob", "Cid", "Dee", "Eve")
    orders = [
        order
        for order in itertools.permutations(names)
        if order.index("Bob") == order.index("Dee") + 1
        and order.index("Cid") not in (0, 4)
        and order.index("Ann") < order.index("Dee")
        and order.index("Eve") == order.index("Ann") + 1
    ]
    return str(only(orders)[2])


def thief() -> str:
    """甲 says 丙, 乙 says not 乙, 丙 says 丁, 丁 says that 丙 lies; one statement is false."""
    said = (lambda x: x == "丙", lambda x: x != "乙", lambda x: x == "丁", lambda x: x != "丁")
    return "ABCD"["甲乙丙丁".index(only(x for x in "甲乙丙丁" if sum(not s(x) for s in said) == 1))]


def box() -> str:
    signs = (lambda x: x != "red", lambda x: x == "blue", lambda x: x == "blue")
    colours = ("red", "green", "blue")
    return "ABC"[colours.index(only(x for x in colours if sum(s(x) for s in signs) == 1))]


def weighings(coins: int) -> int:
    """A balance has three outcomes, so n weighings tell 3^n coins apart."""
    return next(n for n in itertools.count() if 3**n >= coins)


def by_length() -> str:
    words = ["pear", "fig", "banana", "kiwi", "plum", "date", "cherry", "yam"]
    return ", ".join(sorted(sorted(words, reverse=True), key=len))


def steps_on_sentence() -> str:
    words = ["small", "boats", "cross", "wide", "rivers", "slowly"]
    return " ".join(reversed([word for word in words if len(word) != 5])).upper()


def register() -> int:
    n = 17 * 2
    n = n - 9 if n > 30 else n + 9
    n = int(str(n)[::-1]) + len("bridge")
    return n // 2 if n % 2 == 0 else n * 3


def second_tuesday() -> str:
    days = (datetime.date(2027, 3, day) for day in range(1, 32))
    return [day for day in days if day.weekday() == 1][1].isoformat()


def printed(program: str) -> str:
    """What a program of ours prints."""
    said: list[str] = []

    def note(*words: object, end: str = "\n") -> None:
        said.append(" ".join(map(str, words)) + end)

    exec(program, {"print": note})
    return "".join(said).strip()


def program_of(name: str) -> str:
    """The program in the text of a prompt."""
    return LIBRARY.find(name).text.partition("```python\n")[2].partition("```")[0]


def missed_by_search() -> str:
    """The line to mend: with `<=` in line 3 every element is found, without it some is not."""
    source = "\n".join(line[3:] for line in program_of("off-by-one-zh").splitlines())
    found: dict[str, Any] = {}
    mended: dict[str, Any] = {}
    exec(source, found)
    exec(source.replace("low < high", "low <= high"), mended)
    lists = [list(range(n)) for n in range(1, 9)]
    assert all(mended["find"](items, x) == x for items in lists for x in items)
    assert not all(found["find"](items, x) == x for items in lists for x in items)
    return "3"


A_WEDNESDAY = datetime.date(2024, 1, 3)
ORDER = '{"items": [{"name": "铅笔", "count": 3}, {"name": "笔记本", "count": 12}, '
ORDER += '{"name": "剪刀", "count": 1}], "total": 16}'
CONTACT = '{"name": "Lena Okafor", "age": 41, "languages": ["English", "Igbo", "Portuguese"], '
CONTACT += '"married": true}'
REDIS = "A sorted set with equal scores and ZRANGEBYLEX; both written in MULTI; memory grows."

# prompt: what is right, worked out here; for checkers of words an answer that must pass
PROOFS: dict[str, Callable[[], Any]] = {
    "holiday-shift-zh": days_off_gained,
    "holiday-shift-en": days_off_gained,
    "peak-complexity-en": lambda: "B",  # the interval halves in each step
    "peak-wrong-hint-en": lambda: "D" if any(map(peak_fails, range(1, 8))) else "C",
    "peak-wrong-hint-zh": lambda: "D" if any(map(peak_fails, range(1, 8))) else "C",
    "cubic-maximum-en": lambda: round(cubic(max), 3),
    "cubic-maximum-zh": lambda: round(cubic(max), 3),
    "cubic-minimum-en": lambda: round(cubic(min), 3),
    "redis-prefix-en": lambda: REDIS,
    "strawberry-en": lambda: "strawberry".count("r"),
    "strawberry-zh": lambda: "strawberry".count("r"),
    "trains-meet": lambda: Fraction(378 - 33, 66 + 72) + Fraction(1, 2),
    "price-down-and-up": lambda: 240 * Fraction(75, 100) * Fraction(110, 100),
    "percent-of": lambda: Fraction(18, 72),
    "last-two-digits": lambda: pow(7, 2026, 100),
    "multiples-below": lambda: sum(n for n in range(500) if n % 3 == 0 or n % 7 == 0),
    "greatest-divisor": lambda: math.gcd(2516, 1938),
    "three-fractions": lambda: Fraction(1, 2) + Fraction(1, 3) + Fraction(1, 7),
    "compound-interest": lambda: round(1500 * 1.04**3, 2),
    "two-dice": lambda: Fraction(sum(a + b >= 10 for a in range(1, 7) for b in range(1, 7)), 36),
    "letters-of-level": lambda: len(set(itertools.permutations("LEVEL"))),
    "clock-hands": lambda: abs((3 * 60 + 40) * Fraction(1, 2) - 40 * 6),
    "binary-number": lambda: int("1011011", 2),
    "large-product": lambda: 48_217 * 3_096,
    "chickens-rabbits-zh": lambda: only(n for n in range(41) if 4 * n + 2 * (40 - n) == 112),
    "work-together-zh": lambda: 1 / (Fraction(1, 12) + Fraction(1, 18)),
    "chinese-numeral-zh": lambda: 327 + 496,
    "brothers-sisters": lambda: 2 + 1,  # Alice is a sister too
    "knights-knaves": knight,
    "three-boxes": box,
    "five-runners": third_runner,
    "weekday-later": lambda: (A_WEDNESDAY + datetime.timedelta(100)).strftime("%A"),
    "wolf-goat-cabbage": lambda: least_steps((False,) * 4, river, all),
    "two-jugs": lambda: least_steps((0, 0), jugs, lambda state: 4 in state),
    "heavy-coin": lambda: weighings(27),
    "one-thief-zh": thief,
    "ages-zh": lambda: only(n for n in range(13) if 43 - n == 4 * (13 - n)),
    "shared-default": lambda: printed(program_of("shared-default")),
    "generator-order": lambda: printed(program_of("generator-order")),
    "off-by-one-zh": missed_by_search,
    "json-contact": lambda: CONTACT,
    "json-order-zh": lambda: ORDER,
    "reverse-and-capitals": steps_on_sentence,
    "sort-by-two": by_length,
    "register-machine": register,
    "iso-date": second_tuesday,
    "acrostic-points": lambda: f"START {'-'.join('AEIOU')} STOP",
    "one-plus-one": lambda: 2 + 2,
    "say-ok": lambda: "OK",
    "capital-of-france": lambda: "Paris",
    "opposite-of-hot": lambda: "cold",
    "seven-is-odd": lambda: "odd" if 7 % 2 else "even",
    "decimals-compared": lambda: max(9.9, 9.11),
    "pound-of-feathers": lambda: "C",  # a pound is a pound
    "days-in-a-week-zh": lambda: len({datetime.date(2024, 1, n).weekday() for n in range(1, 20)}),
    "repeat-a-word-zh": lambda: "收到",
    "empty-list-zh": lambda: len([]),
}


def of_the_built_in(prompt: Prompt) -> Any:
    """What is right for a prompt of the built-in model's own kind, from its variables."""
    values = prompt.variables or {}
    kind = prompt.tags[1]
    if kind == "letters":
        return str(values["word"]).count(str(values["letter"]))
    if kind == "beyond":
        return "`qwq pull` brings it"
    if kind == "cmp":
        return max((str(v) for v in values.values()), key=float)
    if kind == "chain":
        return eval(prompts.render(prompt).text.strip("计算 ?").removeprefix("What is "))
    a, b = (int(str(values[name])) for name in "ab")
    return {"add": a + b, "sub": a - b, "mul": a * b}[kind]


@pytest.mark.parametrize("prompt", JUDGED, ids=lambda prompt: prompt.id)
def test_expected_answer_is_right(prompt: Prompt) -> None:
    """The expected answer is what comes out here, and no prompt goes without such a proof."""
    if prompt.kind == "code":
        assert prompt.id in SOLUTIONS
        return
    proof = of_the_built_in(prompt) if prompt.suite == "tiny" else PROOFS[prompt.id]()
    checker = prompts.render(prompt).checker
    assert checker is not None
    assert checkers.check(checker, str(proof)).right is True
    if prompt.kind == "number":
        assert checkers.check(checker, str(Fraction(str(proof)) + 1)).right is False
    else:
        assert checkers.check(checker, "Something else: Z").right is False


@pytest.mark.parametrize("name", SOLUTIONS)
def test_code_prompts_can_be_passed_and_failed(name: str) -> None:
    """A right program passes its tests, and one with a slip fails them."""
    right, slips = SOLUTIONS[name]
    checker = prompts.render(LIBRARY.find(name)).checker
    assert checker is not None
    verdict = checkers.check(checker, f"```python\n{right}```", run_code=True)
    assert verdict.right is True, verdict
    for old, new in slips:
        assert old in right, old
        wrong = right.replace(old, new)
        assert checkers.check(checker, f"```python\n{wrong}```", run_code=True).right is False, new


def test_built_in_tasks_are_held_out() -> None:
    """The built-in model's prompts are problems that its training never saw (data.held_out)."""
    checked = 0
    for prompt in LIBRARY.suite("tiny"):
        values, kind = prompt.variables or {}, prompt.tags[1]
        key: tuple[object, ...]
        if kind in ("add", "sub", "mul"):
            key = (kind, int(str(values["a"])), int(str(values["b"])))
        elif kind == "cmp":
            key = ("cmp", values["a"], values["b"])
        elif kind == "letters":
            key = ("word", values["word"])
        else:
            continue
        assert zlib.crc32(repr(key).encode()) % 16 == 0, prompt.id
        checked += 1
    assert checked >= 30
