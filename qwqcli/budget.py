"""How long a reply may think, in a person's words: `auto`, `off`, `4k`, `90s`, `2m` or `0`.

`auto` lets a thought have what the context leaves it after the prompt and a reserve for the
answer, and at most LONGEST tokens with that reserve: QwQ's makers let it generate 32,768 in their
examples (model card of Qwen/QwQ-32B), so nothing is cut that their own recipe would not cut.
`off` takes away that limit and the guard against loops; the reserve stays, because a context full
of thought has no room for any answer. `0` asks for no thought at all.
"""

from __future__ import annotations

import re

from qwqcli.errors import UsageError
from qwqcli.messages import Budget

LONGEST = 32_768  # tokens of thought and answer
RESERVE = 1_500  # tokens for the answer: about two pages
_MOST_TOKENS, _MOST_SECONDS = 1 << 20, 7 * 86_400
_UNITS = {"": 1, "k": 1_024, "s": 1, "m": 60, "min": 60, "h": 3_600}
HINT = "auto, off, 0, or a length such as 4k, 4000, 90s, 10m"


def parse(text: str) -> Budget:
    """The budget that `text` names. Raises UsageError."""
    word = text.strip().lower()
    if word == "auto":
        return Budget(LONGEST - RESERVE, None, RESERVE, guard=True)
    if word == "off":
        return Budget(reserve=RESERVE)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*(k|s|m|min|h|)", word)
    if match is None:
        raise UsageError(f"'{text}' is not a budget for thinking.", HINT)
    amount, unit = float(match[1]) * _UNITS[match[2]], match[2]
    if amount > (_MOST_TOKENS if unit in ("", "k") else _MOST_SECONDS):
        raise UsageError(f"'{text}' is more than any thought needs.", HINT)
    if unit in ("", "k"):
        return Budget(int(amount), None, RESERVE, guard=True)
    return Budget(None, amount, RESERVE, guard=True)


def describe(text: str) -> str:
    """One sentence on what the budget `text` means."""
    budget = parse(text)
    if budget.tokens == 0:
        return "No thinking: replies begin with the answer."
    if not budget.guard:
        return "No budget: a thought ends by itself, or when only room for an answer is left."
    if budget.seconds is not None:
        return f"A thought is closed after {budget.seconds:g} s, and the answer asked for."
    end = f"A thought is closed after {budget.tokens:,} tokens, or when only {RESERVE:,} of the"
    return f"{end} context are left for the answer."
