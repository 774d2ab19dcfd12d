"""Text as a full-text index should see it, and what a person types as a query that cannot fail.

SQLite's tokenizer `unicode61` finds words between blanks. Chinese, Japanese and Korean are written
without (enough of) them, so a run of such characters is indexed as every pair of neighbours and
the last one alone: 很好吃 becomes 很好 好吃 吃. A phrase of pairs then finds any part of a run, and
a single character is found as the beginning of a pair.

Limits: Thai, Lao, Khmer and Burmese are found only by what stands between blanks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_CJK = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_RUN = re.compile(f"[{_CJK}]+")
_PIECE = re.compile(f"[{_CJK}]+|[^{_CJK}]+")
_ACCENTED = re.compile("[\u00c0-\u1fff]")  # letters that may have accents: no pictures, no CJK
EXCERPT = 120  # characters of a text that are shown around what was found


def indexed(text: str) -> str:
    """`text` as it is given to the index."""
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", text)


def query(text: str) -> str:
    """An FTS5 expression that finds texts with all words of `text`; "" if it has none.

    Words in double quotes must follow each other; a `*` at the end of a word stands for any end.
    """
    return " AND ".join(_phrase(term) for term in terms(text))


def terms(text: str) -> list[str]:
    """The words and quoted phrases of what a person typed, but for those without a letter."""
    found = [quoted or word for quoted, word in re.findall(r'"([^"]*)"|([^\s"]+)', text)]
    return [term for term in found if any(map(str.isalnum, term))]


def excerpt(text: str, typed: str, around: int = EXCERPT) -> str:
    """The part of `text` where the first of the words that were typed stands, in one line."""
    places = [_find(text, term) for term in terms(typed)]
    place = min((at for at in places if at >= 0), default=0)
    begin = max(place - around // 3, 0)
    part = " ".join(text[begin : begin + around].split())
    return ("…" if begin else "") + part + ("…" if begin + around < len(text) else "")


def holds(text: str, typed: str) -> bool:
    """Whether one of the words that were typed stands in `text`."""
    return any(_find(text, term) >= 0 for term in terms(typed))


def _find(text: str, term: str) -> int:
    words = [re.escape(word) for word in re.findall(r"\w+", _bare(term))]
    match = re.search(r"\W+".join(words), _bare(text), re.IGNORECASE)
    return match.start() if match else -1


def _bare(text: str) -> str:
    """`text` without accents, as the index has it; each character stays in its place."""
    return _ACCENTED.sub(lambda match: unicodedata.normalize("NFD", match[0])[0], text)


def _phrase(term: str) -> str:
    pieces = list(_pieces(term.rstrip("*")))
    starts = term.endswith("*") or (len(pieces[-1]) == 1 and _RUN.match(pieces[-1]) is not None)
    words: list[str] = []
    for at, piece in enumerate(pieces):
        if not _RUN.match(piece):
            words.append(piece)
        elif at == len(pieces) - 1 and len(piece) > 1:
            words += _pairs(piece)
        else:
            words += [*_pairs(piece), piece[-1]]
    return '"' + " ".join(words).replace("\0", " ") + '"' + ("*" if starts else "")


def _pieces(term: str) -> Iterator[str]:
    """Runs of unspaced characters and what stands between them, if it holds a letter."""
    for piece in _PIECE.findall(term):
        if any(map(str.isalnum, piece)):
            yield piece.replace('"', " ")


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]
