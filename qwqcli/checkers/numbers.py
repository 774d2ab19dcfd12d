"""Numbers in an answer, read as a person would: exact values, from English, Chinese or LaTeX.

Contract: `final_number` finds the number that an answer ends in: in the last \\boxed{}, else after
the last "answer is", else in bold, else the last one of the text. `read` gives each number of a
text as an exact fraction: 1,234.5 · 1,0000 · 3/4 · 2 1/2 · \\frac{3}{4} · ½ · 1.2e5 ·
1.2 × 10^5 · 50% · 百分之五十 · 一百二十三 · 3.5万 · twenty-one · full-width digits.
Limits: a comma is for thousands, never for decimals; number words are looked at only where there
are no digits; of an answer that gives several numbers without saying which, the last is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from qwqcli.checkers.verdict import Verdict, boxed

MAX_DIGITS = 400  # nobody's answer is longer; Python needs quadratic time to read a long one
MAX_EXPONENT = 400

_SIGNS = str.maketrans(
    "０１２３４５６７８９＋－−–．，％／：（）",
    "0123456789+---.,%/:()",
)
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_LATEX = (  # what stands for what, in this order
    (r"\\[dt]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\(?:left|right|displaystyle)\b", ""),
    (r"\\(?:text|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}", r" \1"),
    (r"\{,\}", ","),
    (r"\\[,;:! ]|~", "\u202f"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\%", "%"),
    (r"\\\$|\\[()\[\]]|\$", ""),
    (r"\^\s*\{?\s*\\circ\s*\}?", "°"),
    (r"\\approx\b|≈", "="),
)
_FRACTION = r"\\frac\s*\{\s*(?P<top>-?[\d,.]{1,60})\s*\}\s*\{\s*(?P<bottom>[\d,.]{1,60})\s*\}"
_DECIMAL = (
    r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d{1,4}(?:,\d{4})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
)
_NUMBER = re.compile(
    rf"""
    (?<![A-Za-z0-9_.^])(?P<sign>(?<![\d)\]}}%A-Za-z])[-+]\s?)?
    (?: (?:(?P<whole_latex>\d{{1,20}})\s*)?{_FRACTION}
      | (?P<whole>\d{{1,20}})\s+(?P<n2>\d{{1,20}})\s?/\s?(?P<d2>\d{{1,20}})(?![\d/])
      | (?P<n>\d{{1,20}})\s?/\s?(?P<d>\d{{1,20}})(?![\d/])
      | (?P<decimal>{_DECIMAL})
        (?:[eE](?P<e>[+-]?\d{{1,4}})(?!\d) | \s?[×x*]\s?10\s?\^\s?\{{?(?P<p>[+-]?\d{{1,4}})\}}?)?
    )
    (?P<scale>\s?(?:万|亿|thousand\b|million\b|billion\b))?
    (?P<percent>\s?(?:%|per\ ?cent\b))?
    """,
    re.VERBOSE,
)
_SCALES = {"万": 10**4, "亿": 10**8, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_ANSWER = re.compile(
    r"(?:final\s+answer|the\s+answer|\banswer)\s*(?:is|are|=|:|：)+\s*|答案\s*(?:就?是|为|：|:)+\s*",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_LIST_MARK = re.compile(r"\s*\d+\s*[.)、:]\s*\D")


@dataclass(frozen=True, slots=True)
class Read:
    """A number in a text: its value, and the text that stands right behind it."""

    value: Fraction
    behind: str
    start: int
    end: int
    percent: bool = False  # it was written as a percentage; the value is not one


def clean(text: str) -> str:
    """`text` with LaTeX and full-width characters in plain form."""
    text = text.translate(_SIGNS)
    for sign, plain in _VULGAR.items():
        text = re.sub(rf"(?<=\d){sign}", f" {plain}", text).replace(sign, plain)
    for pattern, plain in _LATEX:
        text = re.sub(pattern, plain, text)
    return text


def read(text: str) -> list[Read]:
    """Every number in a cleaned text: those in digits, else those in words."""
    found = list(_in_digits(text))
    return found or sorted((*_in_chinese(text), *_in_english(text)), key=lambda r: r.start)


def final_number(answer: str) -> Read | None:
    """The number that an answer gives as its result; None if it gives none."""
    for spot in _spots(answer):
        numbers = read(spot)
        if numbers:
            return _of_statement(spot, numbers)
    numbers = read(clean(answer).replace("**", ""))
    return numbers[-1] if numbers else None


def _spots(answer: str) -> Iterator[str]:
    """Where the result is said to stand, the surest place first."""
    box = boxed(answer)
    if box is not None:
        yield clean(box)
    plain = clean(answer)
    marks = list(_ANSWER.finditer(plain.replace("**", "  ")))
    if marks:
        rest = plain.replace("**", "  ")[marks[-1].end() :].lstrip()
        yield re.split(r"\n|[.。;；](?:\s|$)|。", rest, maxsplit=1)[0]
    for bold in reversed(_BOLD.findall(plain)):
        if re.match(r"[\s=€£¥~(]*(?:[a-z]\s*=\s*)?[-+]?[\d.\\]", bold) and not _LIST_MARK.match(
            bold
        ):
            yield bold
            return
        if not re.search(r"\d", bold) and (words := read(bold)) and len(words) == 1:
            yield bold
            return


def _of_statement(text: str, numbers: list[Read]) -> Read:
    """The result of `6 * 7 = 42` is 42; of `4 days, as 14 - 10 = 4` the first number."""
    first = numbers[0]
    equals = text.rfind("=")
    if re.match(r"\s*[-+*/×÷^=]", first.behind) and equals > first.end:
        return next((n for n in numbers if n.start > equals), first)
    return first


def _in_digits(text: str) -> Iterator[Read]:
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield Read(
                value,
                text[match.end() : match.end() + 40],
                match.start(),
                match.end(),
                bool(match["percent"]),
            )


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if len(match[0]) > MAX_DIGITS:
        return None
    try:
        if part["top"]:
            value = Fraction(_bare(part["top"])) / Fraction(_bare(part["bottom"]))
            value += int(part["whole_latex"] or 0)
        elif part["n2"]:
            value = int(part["whole"]) + Fraction(int(part["n2"]), int(part["d2"]))
        elif part["n"]:
            value = Fraction(int(part["n"]), int(part["d"]))
        else:
            value = Fraction(_bare(part["decimal"]))
    except (ValueError, ZeroDivisionError):
        return None
    exponent = int(part["e"] or part["p"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    value *= _SCALES.get((part["scale"] or "").strip(), 1)
    value /= 100 if part["percent"] else 1
    return -value if (part["sign"] or "").startswith("-") else value


def _bare(figures: str) -> str:
    return re.sub("[,\u00a0\u2009\u202f]", "", figures)


# --- in words ----------------------------------------------------------------------------------

_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "俩": 2}
_TENS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(
    r"(?P<minus>负)?(?P<percent>百分之)?(?P<whole>[零〇一二两三四五六七八九十百千万亿]+)"
    r"(?:点(?P<rest>[零〇一二三四五六七八九]+))?"
)
# 一共, 一样, 一些, 第一 … are words with a numeral in them
_NOT_AFTER, _NOT_BEFORE = "第每之某统唯万", "共样些般起定直下旦致切步点者旁边"


def chinese(text: str) -> Fraction | None:
    """The value of a Chinese numeral such as 一百二十三, 两千零五, 三点一四, 二〇二四."""
    match = _CHINESE.fullmatch(text)
    return _chinese_value(match) if match else None


def _in_chinese(text: str) -> Iterator[Read]:
    for match in _CHINESE.finditer(text):
        before, behind = text[: match.start()][-1:], text[match.end() : match.end() + 40]
        if (before and before in _NOT_AFTER) or (behind and behind[0] in _NOT_BEFORE):
            continue
        value = _chinese_value(match)
        if value is not None:
            yield Read(value, behind, match.start(), match.end(), bool(match["percent"]))


def _chinese_value(match: re.Match[str]) -> Fraction | None:
    whole = _chinese_whole(match["whole"])
    if whole is None:
        return None
    value = Fraction(whole)
    for place, figure in enumerate(match["rest"] or "", 1):
        value += Fraction(_DIGITS[figure], 10**place)
    value /= 100 if match["percent"] else 1
    return -value if match["minus"] else value


def _chinese_whole(text: str) -> int | None:
    if len(text) > 30:
        return None
    if all(c in _DIGITS for c in text):  # figures one by one: 二〇二四
        return int("".join(str(_DIGITS[c]) for c in text))
    total = section = figure = 0
    last_unit = 1
    for char in text:
        if char in _DIGITS:
            figure, last_unit = _DIGITS[char], 1 if char in "零〇" else last_unit
        elif char in _TENS:
            section += (figure or (1 if section == 0 else 0)) * _TENS[char]
            figure, last_unit = 0, _TENS[char]
        else:
            scale = 10**4 if char == "万" else 10**8
            total = (total + section + figure) * scale
            section, figure, last_unit = 0, 0, scale
    if figure and last_unit > 10:  # 一百二 is 120, 三万五 is 35,000
        figure *= last_unit // 10
    return total + section + figure


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_DECADES = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: at for at, word in enumerate(_ONES)}
_WORDS |= {word: 20 + 10 * at for at, word in enumerate(_DECADES)}
_BIG = {"hundred": 100, "thousand": 1000, "million": 10**6}
_ANY = "|".join(sorted((*_WORDS, *_BIG), key=len, reverse=True))
_ENGLISH = re.compile(
    rf"\b(?P<minus>minus\s+|negative\s+)?(?P<words>(?:{_ANY})(?:(?:\s+and\s+|[\s-]+)(?:{_ANY}))*)\b"
    r"(?P<percent>\s+per\s?cent\b)?",
    re.IGNORECASE,
)


def _in_english(text: str) -> Iterator[Read]:
    for match in _ENGLISH.finditer(text):
        value = Fraction(_english_value(re.findall("[a-z]+", match["words"].lower())))
        value /= 100 if match["percent"] else 1
        behind = text[match.end() : match.end() + 40]
        value = -value if match["minus"] else value
        yield Read(value, behind, match.start(), match.end(), bool(match["percent"]))


def _english_value(words: list[str]) -> int:
    total = section = 0
    for word in words:
        if word in _WORDS:
            section += _WORDS[word]
        elif word == "hundred":
            section = (section or 1) * 100
        elif word in _BIG:
            total, section = total + (section or 1) * _BIG[word], 0
    return total + section


# --- the checker -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """Right if the answer's number is `expected`, up to `tolerance`.

    `tolerance` is a number, or a share such as "1%". `units` gives what one of each unit is in the
    first of them (`{km: 1, m: 1/1000}`): a number with such a unit behind it is converted, one
    without is taken as it is. With an expected percentage, 50 is as right as 50% or 0.5.
    """

    expected: str
    tolerance: str = "0"
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in (
            ("expected", self.expected),
            ("tolerance", self.tolerance),
            *(("units", factor) for factor in self.units.values()),
        ):
            if _single(text) is None:
                raise ValueError(f"{name} must be a number, not {text!r}")

    def judge(self, answer: str) -> Verdict:
        found = final_number(answer)
        if found is None:
            return Verdict(False, "", "there is no number in the answer")
        value = found.value * self._factor(found.behind)
        shown = _shown(value)
        if any(abs(value - right) <= self._allowed(right) for right in self._right(found)):
            return Verdict(True, shown)
        return Verdict(False, shown, f"expected {self.expected}")

    def _right(self, found: Read) -> list[Fraction]:
        right = _single(self.expected)
        assert right is not None
        without_sign = "%" in clean(str(self.expected)) and not found.percent
        return [right, right * 100] if without_sign else [right]

    def _allowed(self, right: Fraction) -> Fraction:
        share = _single(self.tolerance)
        assert share is not None
        return abs(right) * share if "%" in clean(str(self.tolerance)) else share

    def _factor(self, behind: str) -> Fraction:
        behind = behind.lstrip()
        for unit in sorted(self.units, key=len, reverse=True):
            rest = behind[len(unit) :]
            letter_goes_on = unit[-1:].isascii() and rest[:1].isascii() and rest[:1].isalpha()
            if behind.startswith(unit) and not letter_goes_on:
                factor = _single(self.units[unit])
                assert factor is not None
                return factor
        return Fraction(1)


def _single(text: object) -> Fraction | None:
    """The value of a text that is one number and nothing else."""
    numbers = read(clean(str(text)))
    whole = clean(str(text)).strip()
    if len(numbers) == 1 and numbers[0].end - numbers[0].start == len(whole):
        return numbers[0].value
    return None


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):g}" if abs(value) < 10**300 else "a very large number"
