"""Checkers of words: a choice among options, an exact text, all of some points, a pattern.

Contract: each is a frozen value made of the options of a prompt (ValueError says what is wrong
with them) whose `judge` takes an answer. `Regex` may take for ever on an unlucky pattern, so
`checkers.check` runs it in a child process with a time limit.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwqcli.checkers.verdict import Verdict, boxed

_MARKED = re.compile(
    r"(?:answer|choice|option|choose|pick|select|correct)(?:\s+(?:answer|choice|option))?"
    r"(?:\s+is)?\s*[:：]?\s*[(（\[\"']?\s*([A-Z])\b(?!['’])"
    r"|(?:答案|选择|应选|选项|选)(?:应该|应|就)?(?:是|为)?\s*[:：]?\s*[(（\[\"']?\s*([A-Z])(?![A-Za-z])",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![A-Za-z'’])[(（\[]?([A-Z])[)）\].:：]?(?![A-Za-z'’])")


@dataclass(frozen=True)
class Choice:
    """Right if the answer chooses the option `expected`, a letter.

    Looked at in this order: \\boxed{C}, JSON such as {"answer": "C"}, "the answer is C" or 选 C,
    a bold letter, the last letter of `options` that stands alone.
    """

    expected: str
    options: str = "ABCD"

    def __post_init__(self) -> None:
        letters = self.options
        if not (letters.isalpha() and letters.isupper() and len(set(letters)) == len(letters)):
            raise ValueError(f"options must be capital letters such as ABCD, not {letters!r}")
        if len(self.expected) != 1 or self.expected not in letters:
            raise ValueError(f"expected must be one of the options {letters}")

    def judge(self, answer: str) -> Verdict:
        found = next((c for c in self._chosen(answer) if c in self.options), "")
        if not found:
            return Verdict(False, "", f"no option of {self.options} is chosen")
        right = found == self.expected
        return Verdict(right, found, "" if right else f"expected {self.expected}")

    def _chosen(self, answer: str) -> Iterator[str]:
        box = boxed(answer)
        if box is not None:
            yield from re.findall(r"\b[A-Z]\b", re.sub(r"\\[a-z]+|[{}]", " ", box))
        yield from _in_json(answer)
        plain = answer.replace("**", " ").replace("`", " ")
        for marked in reversed([m[1] or m[2] for m in _MARKED.finditer(plain)]):
            if marked.isupper():  # "pick a" is not the option A
                yield marked
        yield from reversed(re.findall(r"\*\*\s*[(（]?([A-Z])\b", answer))
        yield from reversed(_ALONE.findall(plain))


def _in_json(answer: str) -> Iterator[str]:
    for text in re.findall(r"\{[^{}]{0,500}\}", answer):
        try:
            values = json.loads(text)
        except ValueError:
            continue
        for value in values.values() if isinstance(values, dict) else ():
            if isinstance(value, str) and len(value) == 1:
                yield value.upper()


def plain(text: str) -> str:
    """`text` as it is compared: one form of each character, lower case, single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Exact:
    """Right if the answer is `expected` and nothing else.

    Not counted: case (unless `case` is true), blanks, Markdown around it, a full stop at its end.
    A \\boxed{...} is taken for the whole answer.
    """

    expected: str
    case: bool = False

    def judge(self, answer: str) -> Verdict:
        box = boxed(answer)
        found = _stripped(answer if box is None else box)
        wanted = _stripped(self.expected)
        right = found == wanted if self.case else plain(found) == plain(wanted)
        return Verdict(right, found[:200], "" if right else f"expected {self.expected!r}")


def _stripped(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    text = re.sub(r"\A```\w*\n(.*)\n```\Z", r"\1", text, flags=re.DOTALL)
    return " ".join(text.split()).strip("*`\"'“”「」$ ").rstrip(".。!！").strip("*`\"'“”「」$ ")


@dataclass(frozen=True)
class Contains:
    """Right if every point of `expected` is in the answer; a point may be a list of wordings.

    Compared without case and with single blanks. A wording of plain letters or figures must be
    whole: "cat" is not in "category". None of `without` may be there.
    """

    expected: Sequence[str | Sequence[str]]
    without: Sequence[str] = ()

    def __post_init__(self) -> None:
        points = self.expected if isinstance(self.expected, list) else None
        if not points or not all(wordings(point) for point in points):
            raise ValueError("expected must be a list of points, each a text or a list of texts")
        listed = isinstance(self.without, list | tuple)
        if not listed or not all(len(wordings(text)) == 1 for text in self.without):
            raise ValueError("without must be a list of texts")

    def judge(self, answer: str) -> Verdict:
        text = plain(answer)
        missing = [p for p in self.expected if not any(_holds(text, w) for w in wordings(p))]
        wrong = [w for w in self.without if _holds(text, w)]
        there = f"{len(self.expected) - len(missing)} of {len(self.expected)} points"
        if missing:
            return Verdict(False, there, f"missing: {', '.join(wordings(p)[0] for p in missing)}")
        if wrong:
            return Verdict(False, there, f"wrongly there: {', '.join(wrong)}")
        return Verdict(True, there)


def wordings(point: object) -> list[str]:
    """The wordings of a point; none if it is not one."""
    words = point if isinstance(point, list) else [point]
    good = all(isinstance(word, str | int | float) and str(word).strip() for word in words)
    return [str(word) for word in words] if good else []


def _holds(text: str, wording: object) -> bool:
    wanted = plain(str(wording))
    start = r"(?<![a-z0-9])" if wanted[0].isascii() and wanted[0].isalnum() else ""
    end = r"(?![a-z0-9])" if wanted[-1].isascii() and wanted[-1].isalnum() else ""
    return re.search(start + re.escape(wanted) + end, text) is not None


@dataclass(frozen=True)
class Regex:
    """Right if the pattern `expected` (Python's `re`) is found in the answer.

    `flags` are letters of Python's inline flags; `ims` if absent.
    """

    expected: str
    flags: str = "ims"

    def __post_init__(self) -> None:
        if not set(self.flags) <= set("aimsux"):
            raise ValueError(f"flags must be some of a, i, m, s, u, x, not {self.flags!r}")
        try:
            self.pattern()
        except (re.error, OverflowError) as error:
            raise ValueError(f"expected is not a regular expression: {error}") from error

    def judge(self, answer: str) -> Verdict:
        match = self.pattern().search(answer)
        if match is None:
            return Verdict(False, "", f"the pattern {self.expected!r} is not there")
        return Verdict(True, match[0][:200])

    def pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?{self.flags}){self.expected}" if self.flags else self.expected)
