"""How often the loop guard cries wolf on long honest text, and how soon it sees a real loop.

    python benchmarks/guard.py                  # false alarms, then loops made up from rules
    python benchmarks/guard.py --loops          # greedy thoughts of SmolLM2 and the built-in model

Honest text is what this machine has: Python's library, the installed packages and their licences,
manual pages in English and Chinese, and tables and arithmetic written by rule, as a thought could
hold them. Documents have 4,000 to 120,000 characters (about 1,000 to 30,000 tokens); longer ones
are cut. A document counts as a false alarm if the guard speaks at all, which in a chat would bring
a presence penalty; `twice` counts those where it speaks again and so would close the thought.
"""

from __future__ import annotations

import gzip
import itertools
import random
import re
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common import smollm

from qwqcli.builtin import model_path
from qwqcli.builtin.training import data
from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import LlamaEngine
from qwqcli.guard import Guard
from qwqcli.messages import Budget, Done, Message, Notice, Reasoning, Sampling
from qwqcli.template import DEFAULT, ChatTemplate

SHORTEST, LONGEST = 4_000, 120_000
PIECE = 4  # characters fed at once, about a token
A_KIND = 400  # documents of a kind at most
CHARACTERS_A_TOKEN = 4  # of English; Chinese has 1.5 to 1.8 (Qwen's documentation, Key Concepts)
CHINESE_A_TOKEN = 1.5


def files(folder: str | Path, pattern: str, but: str = "\0") -> list[Path]:
    found = Path(folder).rglob(pattern)
    return [path for path in found if path.is_file() and but not in str(path)]


def read(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        raw = path.read_bytes()
        try:
            yield (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        except UnicodeDecodeError:
            continue


def manual(paths: Iterable[Path]) -> Iterator[str]:
    """Manual pages without their markup."""
    for text in read(paths):
        lines = (re.sub(r"^\.[A-Za-z]+ ?", "", line) for line in text.split("\n"))
        yield re.sub(r"\\f[A-Z]|\\", "", "\n".join(line for line in lines if '\\"' not in line))


def tables(random: random.Random) -> Iterator[str]:
    """Multiplication tables, Sudoku grids, lists of primes and of cases, as a thought has them."""
    while True:
        size = random.randrange(9, 26)
        cells = itertools.product(range(1, size + 1), repeat=2)
        sign = random.choice("*×x")
        yield "\n".join(f"{a} {sign} {b} = {a * b}" for a, b in cells)
        rows = (random.sample(range(1, 10), 9) for _ in range(300))
        yield "\n".join("| " + " ".join(map(str, row)) + " |" for row in rows)
        yield ", ".join(str(random.randrange(10_000)) for _ in range(2_000))
        yield "\n".join(_case(n) for n in range(random.randrange(100), random.randrange(150, 220)))


def _case(n: int) -> str:
    divisor = next((d for d in range(2, n) if n % d == 0), None)
    return f"{n}: {'prime' if divisor is None else f'divisible by {divisor}, not prime'}."


def arithmetic(random: random.Random) -> Iterator[str]:
    """Thoughts that the built-in model was trained on, in a row, and long sums by columns."""
    while True:
        items = (data.training_item(random, data.MIX) for _ in range(200))
        yield "\n".join(item.think for item in items)
        a, b = (str(random.randrange(10**149, 10**150)) for _ in range(2))
        yield column_sum(a, b)


def column_sum(a: str, b: str) -> str:
    lines, carry = [], 0
    for at, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=True), 1):
        total = int(x) + int(y) + carry
        lines.append(
            f"Column {at}: {x} + {y} + {carry} = {total}, write {total % 10}, carry {total // 10}."
        )
        carry = total // 10
    return "\n".join(lines)


def honest(random: random.Random) -> dict[str, Iterator[str]]:
    library, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    return {
        "Python's library": read(files(library, "*.py", but="site-packages")),
        "code of packages": read(files(packages, "*.py")),
        "licences, README files": read(
            [
                *files(packages, "*LICENSE*"),
                *files(packages, "METADATA"),
                *files(packages, "*.md"),
                *files(packages, "*.rst"),
                *files("/usr/share/doc", "copyright"),
                *files("/usr/share/doc", "*README*"),
                *files("/usr/share/common-licenses", "*"),
            ]
        ),
        "manual pages": manual(
            path for n in "1578" for path in files(f"/usr/share/man/man{n}", "*.gz")
        ),
        "manual pages, Chinese": manual(
            path for zh in ("zh_CN", "zh_TW") for path in files(f"/usr/share/man/{zh}", "*.gz")
        ),
        "changelogs": read(files("/usr/share/doc", "changelog*.gz")),
        "tables and lists": itertools.islice(tables(random), 200),
        "arithmetic of the built-in model": itertools.islice(arithmetic(random), 200),
    }


def alarms(text: str) -> list[int]:
    """Where in `text`, fed as a thought would come, the guard speaks."""
    guard = Guard()
    return [at + PIECE for at in range(0, len(text), PIECE) if guard.feed(text[at : at + PIECE])]


def false_alarms(random: random.Random) -> None:
    total = first = second = 0
    for kind, texts in honest(random).items():
        long = [text[:LONGEST] for text in texts if len(text) >= SHORTEST]
        chosen = random.sample(long, min(A_KIND, len(long)))
        heard = [(text, alarms(text)) for text in chosen]
        once = [(text, found) for text, found in heard if found]
        twice = sum(len(found) > 1 for _, found in once)
        characters = sum(map(len, chosen))
        print(
            f"{kind}: {len(chosen)} documents, {characters / 1e6:.1f} M characters,"
            f" {len(once)} alarms, {twice} twice",
            flush=True,
        )
        for text, found in once[:3]:
            print("    " + repr(text[max(0, found[0] - 100) : found[0]]))
        total, first, second = total + len(chosen), first + len(once), second + twice
    print(
        f"all: {total} documents, {first} alarms (1 in {total / max(first, 1):.0f}), {second} twice"
    )


WORDS = (
    "so the answer must be checked again because we have not used that each digit of this"
    " number can carry into its neighbour and then our sum would change"
)


def cycles(random: random.Random) -> dict[str, Callable[[int], str]]:
    """Ways to go in circles: from the number of the round to what is said in it."""

    def words(count: int) -> str:
        return " ".join(random.choice(WORDS.split()) for _ in range(count))

    phrase, sentence, paragraph, page = words(3), words(15), words(80), words(400)
    chinese = "".join(
        random.choice("我们需要再检查一下这个答案因为数字可能不对所以重新计算") for _ in range(40)
    )
    return {
        "one symbol": lambda n: "!",
        "one word": lambda n: "wait ",
        "new lines": lambda n: "\n",
        "a phrase": lambda n: f"{phrase}, ",
        "a sentence": lambda n: f"Wait, {sentence}. ",
        "a paragraph": lambda n: f"Wait, {paragraph}.\n\n",
        "a page": lambda n: f"{page}.\n\n",
        "Chinese": lambda n: f"等等，{chinese}。",
        "two sentences in any order": lambda n: random.choice((f"{sentence}. ", f"But {phrase}. ")),
        "a counter": lambda n: f"Step {n}: {sentence}. ",
        "a counter in a paragraph": lambda n: f"Attempt {n}. {paragraph}.\n",
        "a Chinese counter": lambda n: f"第{n}步：{chinese}。",
    }


def detection(random: random.Random) -> None:
    """After an honest beginning, how many tokens of a loop pass before the guard speaks."""
    beginnings = [text for text in manual(files("/usr/share/man/man1", "*.gz")) if len(text) > 8000]
    for kind in cycles(random):
        delays, size = [], CHINESE_A_TOKEN if "Chinese" in kind else CHARACTERS_A_TOKEN
        for _ in range(20):
            start = random.choice(beginnings)[: random.randrange(0, 8000)]
            rounds = cycles(random)[kind]
            loop = "".join(itertools.islice(map(rounds, itertools.count(1)), 40_000))[:40_000]
            found = [at for at in alarms(start + loop) if at > len(start)]
            delays.append((found[0] - len(start)) / size if found else float("inf"))
        seen = [delay for delay in delays if delay < float("inf")]
        middle = (
            f"after {statistics.median(seen):,.0f} tokens, {max(seen):,.0f} at most" if seen else ""
        )
        print(f"loop of {kind}: seen {len(seen)} of {len(delays)} times {middle}", flush=True)


def cost() -> None:
    text = "".join(manual(files("/usr/share/man/man1", "b*.gz")))[:400_000]
    for name, long in (("first", text[:40_000]), ("last", text[-40_000:])):
        guard = Guard()
        if name == "last":
            for at in range(0, len(text) - 40_000, PIECE):
                guard.feed(text[at : at + PIECE])
        began = time.process_time()
        for at in range(0, 40_000, PIECE):
            guard.feed(long[at : at + PIECE])
        each = (time.process_time() - began) / (40_000 / PIECE)
        print(f"cost in the {name} 10,000 of 100,000 tokens: {each * 1e6:.1f} us a token")


QUESTIONS = (
    "Tell me a very long story about a lighthouse.",
    "List all prime numbers.",
    "Explain how a computer works, in great detail.",
    "Count upwards in words.",
    "Write a poem of a hundred verses about the sea.",
    "What are the causes of the French Revolution?",
    "Write a Python program that plays chess, complete.",
    "Describe each day of a year on a farm.",
    "Give me a thousand ideas for a birthday party.",
    "Write a dialogue between two people who disagree about everything.",
    "How do I bake bread? Do not leave out any step.",
    "Translate the Bible into simple words.",
)
BEYOND = (
    "What is 123456789 * 987654321?",
    "Add 1 to 1 a thousand times.",
    f"How many a's are in {'ba' * 200}?",
    f"Spell {'strawberry' * 20}.",
    f"What is {'7' * 60} + {'8' * 60}?",
    f"Which is larger, 0.{'9' * 80} or 0.{'9' * 79}?",
)


def real_loops() -> None:
    """Greedy thoughts, which loop: does the guard speak, how late, and what comes of it?

    SmolLM2 does not think by itself; a template that opens a thought makes it.
    """
    for name, path, questions in (
        ("SmolLM2-135M-Instruct", smollm(), QUESTIONS),
        ("the built-in model beyond its range", model_path(), BEYOND),
    ):
        engine = LlamaEngine(EngineSpec(str(path), n_ctx=3_072, threads=1))
        engine._template = ChatTemplate(DEFAULT + "<think>\n")
        for question in questions:
            _thought(name, engine, question)
        engine.close()


def _thought(name: str, engine: LlamaEngine, question: str) -> None:
    text, starts, notices = "", [], []  # where each token begins; what was noticed and when
    end = None
    budget = Budget(reserve=256, guard=True)
    sampling = Sampling(temperature=0.0, seed=1)
    for event in engine.stream([Message("user", question)], sampling, budget=budget):
        if isinstance(event, Reasoning) and not event.end:
            starts.append(len(text))
            text += event.text
        elif isinstance(event, Notice):
            notices.append((len(starts), len(text)))
        elif isinstance(event, Done):
            end = event.thought_end
    heard, at = notices[0] if notices else (len(starts), len(text))
    begins, loops = _loop(text[:at], starts)
    late = f", noticed {heard - begins:,} tokens later" if notices else ", not noticed"
    what = f"loops from token {begins:,}{late}" if loops else f"no loop, {len(notices)} notices"
    print(f"{name}, {len(starts):,} tokens: {what}, ended: {end}: {question[:40]}", flush=True)


def _loop(text: str, starts: list[int]) -> tuple[int, bool]:
    """The token where the circle that `text` ends in was begun, and whether it is one."""
    plain = re.sub(r"\d+", lambda match: "0" * len(match.group()), text)
    end = plain[-60:]
    first = plain.find(end)
    return sum(at < first for at in starts), plain.count(end) >= 4


def main() -> None:
    if "--loops" in sys.argv:
        real_loops()
        return
    cost()
    detection(random.Random(1))
    false_alarms(random.Random(1))


if __name__ == "__main__":
    main()
