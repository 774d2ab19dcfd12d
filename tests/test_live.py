"""The last rows of a thought: wrapped as it comes, steady, in any window."""

from __future__ import annotations

import random

import pytest

from qwqcli.live import MOST_ROWS, Tail
from qwqcli.terminal import cells

TEXTS = [
    "plain words of some length ",
    "中文思考一下再回答 ",
    "👩‍👩‍👧❤️🎉 ",
    "e\u0301\u0301 x ",
    "\ta\x1b[2J\n\n",
    "long" * 40,
]


def fed(pieces: list[str], width: int, each: bool) -> list[str]:
    """The rows after all pieces, drawn after each of them or once at the end."""
    tail = Tail()
    rows: list[str] = []
    for piece in pieces:
        tail.add(piece)
        if each:
            rows = tail.rows(width, MOST_ROWS)
    return rows if each else tail.rows(width, MOST_ROWS)


@pytest.mark.parametrize("width", [12, 19, 79, 199])
@pytest.mark.parametrize("text", TEXTS)
def test_rows_fit_and_hold_the_end(width: int, text: str) -> None:
    """No row is wider than the window or moves the cursor, and the last one ends the text."""
    rows = fed([text] * 50, width, each=True)
    assert 0 < len(rows) <= MOST_ROWS
    assert all(cells(row) <= width for row in rows)
    assert not any(char in row for row in rows for char in "\n\t\x1b")


@pytest.mark.parametrize("width", [12, 40])
def test_drawing_often_changes_nothing(width: int) -> None:
    """Drawn after each piece or only at the end, the same rows are there: nothing jumps."""
    chosen = random.Random(3)
    pieces = [
        chosen.choice(["so ", "the ", "answer\n", "中", "is 4. ", "\n\n"]) for _ in range(300)
    ]
    assert fed(pieces, width, each=True) == fed(pieces, width, each=False)


def test_full_rows_hold_still() -> None:
    """While the last row grows, those above it stay as they are."""
    tail = Tail()
    tail.add("one two three four five six seven eight nine ten ")
    before = tail.rows(20, 6)
    tail.add("eleven")
    assert tail.rows(20, 6)[: len(before) - 1] == before[:-1]


def test_another_width_wraps_anew() -> None:
    """A window of another width shows the same end, wrapped for it."""
    tail = Tail()
    tail.add("one two three four five six seven eight nine ten")
    assert tail.rows(10, 2) == ["eight nine", "ten"]
    assert tail.rows(25, 2) == ["one two three four five", "six seven eight nine ten"]
    assert tail.rows(25, 0) == []


def test_a_long_text_is_not_kept() -> None:
    """Of a hundred thousand pieces only the end is held."""
    tail = Tail()
    for n in range(100_000):
        tail.add(f"word{n} ")
        if n % 1000 == 0:
            tail.rows(80, 6)
    assert tail.rows(80, 1)[0].endswith("word99999")
    assert len(tail._kept) <= 4_000
