"""What a checker says, and what all of them look for in an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is the answer right? `found` is what was taken from it, `why` what is wrong with it.

    `right` is None where nothing was judged: code that was not run, a question for a person.
    """

    right: bool | None
    found: str = ""
    why: str = ""


def boxed(answer: str) -> str | None:
    """The content of the last \\boxed{...}, whose braces may be nested; None without one."""
    start = answer.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for at in range(begin, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[at], 0)
        if depth == 0:
            return answer[begin:at]
    return None  # cut off


def code_blocks(answer: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block, in order; the last may lack its closing fence."""
    blocks: list[tuple[str, str]] = []
    fence, language = "", ""
    lines: list[str] = []
    for line in answer.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,})\s*([\w+-]*)", line)
        if not fence and mark:
            fence, language, lines = mark[1], mark[2].lower(), []
        elif fence and mark and mark[1].startswith(fence) and not mark[2]:
            blocks.append((language, "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    return [*blocks, (language, "\n".join(lines))] if fence and lines else blocks
