"""What is found: words, phrases and any part of unspaced text; and no query that can fail."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwqcli import fulltext


def found(text: str, typed: str) -> bool:
    """Whether SQLite finds `typed` in `text`."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='unicode61 remove_diacritics 2')")
    db.execute("INSERT INTO t VALUES (?)", (fulltext.indexed(text),))
    expression = fulltext.query(typed)
    rows = db.execute("SELECT 1 FROM t WHERE t MATCH ?", (expression,)) if expression else ()
    hit = bool(list(rows))
    db.close()
    return hit


@pytest.mark.parametrize(
    ("text", "typed", "expected"),
    [
        ("How many r's are in strawberry?", "strawberry", True),
        ("How many r's are in strawberry?", "STRAWBERRY r's", True),
        ("How many r's are in strawberry?", "straw", False),
        ("How many r's are in strawberry?", "straw*", True),
        ("How many r's are in strawberry?", '"in strawberry"', True),
        ("How many r's are in strawberry?", '"strawberry in"', False),
        ("How many r's are in strawberry?", "strawberry cake", False),
        ("un café", "cafe", True),
        ("这个苹果很好吃", "苹果", True),
        ("这个苹果很好吃", "苹果很好吃", True),
        ("这个苹果很好吃", "吃", True),
        ("这个苹果很好吃", "果苹", False),
        ("这个苹果很好吃", "苹 好", True),
        ("我用QwQ模型", "QwQ", True),
        ("我用QwQ模型", "用QwQ模", True),
        ("我用QwQ模型", "qwq模型", True),
        ("你好，世界", '"你好 世界"', True),
        ("ひらがなとカタカナ", "がなと", True),
        ("대한민국의 수도", "민국", True),
        ("a.b/c-d_e", "b/c", True),
    ],
)
def test_what_is_found(text: str, typed: str, expected: bool) -> None:
    """Words whole, without case and accents; unspaced text by any part of it."""
    assert found(text, typed) is expected


HAN = st.text("一二三四五六七八九十", min_size=1, max_size=12)


@given(HAN, HAN)
def test_unspaced_text_is_found_exactly_where_it_stands(text: str, typed: str) -> None:
    """A run of Chinese is found in another exactly if it is a part of it."""
    assert found(text, typed) == (typed in text)


@given(st.text(max_size=40))
def test_no_query_fails(typed: str) -> None:
    """Operators, quotes and control characters of SQLite's own language are only text."""
    found("some text", typed.encode("utf-8", "replace").decode())


@given(st.text(max_size=300), st.text(max_size=10))
def test_an_excerpt_is_one_short_line(text: str, typed: str) -> None:
    """Whatever was found where, what is shown of it has no newline and a bounded length."""
    shown = fulltext.excerpt(text, typed)
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= fulltext.EXCERPT + 2


def test_an_excerpt_shows_what_was_found() -> None:
    """The words that were searched stand in it, with a mark where text is left out."""
    text = "x " * 500 + "the strawberry has\nthree" + " y" * 500
    shown = fulltext.excerpt(text, "Strawberry")
    assert "the strawberry has three" in shown
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert fulltext.excerpt("short", "absent") == "short"


def test_an_accent_is_no_difference() -> None:
    """As in the index: the place that is shown is the one that was found."""
    text = "x" * 300 + " a café there, Ångström " + "y" * 300
    for typed in ("cafe", "CAFÉ", "angstrom"):
        assert fulltext.holds(text, typed)
        assert "café there, Ångström" in fulltext.excerpt(text, typed)
