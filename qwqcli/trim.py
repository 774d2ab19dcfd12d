"""Texts that are too long for the context: the oldest lines go, and a line says how much did.

Contract: `oldest` takes texts in the order in which they were given and leaves out whole lines from
their beginning, as few as possible, until the prompt fits. In the place of what is gone stands a
line that the model reads too: `[1,234 tokens left out here]`. The end of the last text always
stays; where its last line alone is too long, the beginning of that line goes.

Non-goals: counting tokens (the caller's `size`), telling the person.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Size = Callable[[Sequence[str]], int]  # tokens of the whole prompt with these texts in it


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of a text, and how many tokens of it are left out."""

    text: str
    left_out: int = 0
    gone: bool = False  # nothing is left of it


def oldest(texts: Sequence[str], size: Size, room: int) -> list[Cut] | None:
    """`texts` cut to a prompt of at most `room` tokens; None where no cut is enough."""
    cuts = [Cut(text) for text in texts]
    filled = [at for at, text in enumerate(texts) if text.strip()]

    def with_text(at: int, text: str) -> int:
        return size([cut.text if other != at else text for other, cut in enumerate(cuts)])

    total = size(texts)
    for at in filled:
        if total <= room:
            break
        sized = functools.partial(with_text, at)
        shorter = _shortened(texts[at], sized, room, last=at == filled[-1])
        after = sized(shorter.text)
        if after < total:  # else the line that says so would take more than what it stands for
            cuts[at], total = shorter, after
    return cuts if total <= room else None


def _shortened(text: str, size: Callable[[str], int], room: int, last: bool) -> Cut:
    """The end of `text` that fits, from the beginning of a line; of a `last` text some stays."""
    whole = size(text)

    def cut(start: int) -> Cut:
        left_out = whole - size(text[start:])
        told = f"[{left_out:,} tokens left out here]\n{text[start:]}".rstrip("\n")
        return Cut(told, left_out, gone=start == len(text))

    def fits(start: int) -> bool:
        return size(cut(start).text) <= room

    lines = [match.end() for match in re.finditer(r"\n(?=[^\n])", text)]
    at = bisect.bisect_left(lines, True, key=fits)
    if at < len(lines):
        return cut(lines[at])
    if not last:
        return cut(len(text))
    line = range(lines[-1] if lines else 0, len(text) - 1)
    at = bisect.bisect_left(line, True, key=fits)
    return cut(line[at] if at < len(line) else len(text) - 1)
