"""The ways people ask and the words they ask about, read from `phrases.txt`.

A section of that file begins with `=== NAME kind`; every line after it is one phrase, or for
the kind `words` several words. All of it was written for this project. In the phrases stand
{a} {b} for the numbers of a problem, {q} for a word, {l} and {c} for a letter, {n} for a new
number; the fields of the rest are those of `data.filling`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

_HEAD = re.compile(r"^=== (\w+) (en|zh|any|words)\n", re.MULTILINE)


def _read() -> dict[tuple[str, str], tuple[str, ...]]:
    text = Path(__file__).with_name("phrases.txt").read_text(encoding="utf-8")
    _, *parts = _HEAD.split(text)
    sections = {}
    for name, kind, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        lines = body.split() if kind == "words" else body.removesuffix("\n").split("\n")
        sections[name, kind] = tuple(lines)
    return sections


_SECTIONS = _read()
Phrases = dict[str, tuple[str, ...]]
Tag = TypeVar("Tag", bool, str)


def _both(name: str) -> Phrases:
    """Return a section in both languages."""
    return {lang: _SECTIONS[name, lang] for lang in ("en", "zh")}


def _tagged(tags: dict[Tag, str]) -> dict[str, list[tuple[Tag, str]]]:
    """Return the phrases of several sections, each with the tag of its section."""
    return {
        lang: [(tag, text) for tag, name in tags.items() for text in _SECTIONS[name, lang]]
        for lang in ("en", "zh")
    }


ADD, SUB, MUL, CHAIN = _both("ADD"), _both("SUB"), _both("MUL"), _both("CHAIN")
COUNT, COUNT_ALL, SPELL = _both("COUNT"), _both("COUNT_ALL"), _both("SPELL")
FOLLOW_COUNT = _both("FOLLOW_COUNT")
GREETINGS, THANKS, UNKNOWN = _both("GREETINGS"), _both("THANKS"), _both("UNKNOWN")
# Signs of a sum of three numbers: plus and minus.
CHAIN_SIGNS = {
    "en": ((" + ", " - "), ("+", "-"), (" plus ", " minus ")),
    "zh": ((" + ", " - "), ("+", "-"), ("加", "减"), (" 加 ", " 减 ")),
}
# Which of two numbers: True asks for the larger one.
WHICH = _tagged({True: "LARGER", False: "SMALLER"})
# Yes/no comparisons: the sign that makes the answer yes.
WHETHER = _tagged({">": "ABOVE", "<": "BELOW", "=": "EQUAL"})
# What to do with the last result.
FOLLOW = _tagged(
    {op: f"FOLLOW_{op}" for op in ("add", "sub", "mul", "double", "triple", "cmp", "less")}
)
OTHER_TONGUES, SYSTEMS = _SECTIONS["OTHER_TONGUES", "any"], _SECTIONS["SYSTEMS", "any"]
PASTE_LINES, PASTE_ASKS = _SECTIONS["PASTE_LINES", "any"], _SECTIONS["PASTE_ASKS", "any"]
LETTER_FORMS, THINGS = _SECTIONS["LETTER_FORMS", "any"], _SECTIONS["THINGS", "any"]
CODE_LANGUAGES, CODE_TASKS = _SECTIONS["CODE_LANGUAGES", "any"], _SECTIONS["CODE_TASKS", "any"]
TONGUES, WORDS = _SECTIONS["TONGUES", "any"], _SECTIONS["WORDS", "words"]
NAMES, PLACES = _SECTIONS["NAMES", "words"], _SECTIONS["PLACES", "words"]
SYLLABLES, VERBS = _SECTIONS["SYLLABLES", "words"], _SECTIONS["VERBS", "words"]
NUMBER_WORDS = {
    "en": _SECTIONS["NUMBER_WORDS", "words"],
    "zh": _SECTIONS["NUMBER_WORDS_ZH", "words"],
}
