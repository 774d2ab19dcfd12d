"""The splitter: which text is thought, which is answer, however the reply is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations, groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwqcli.reasoning import CLOSE, HELD_SPACES, OPEN, Piece, Splitter

R, A = "reasoning", "answer"

# what the row is for, whether the prompt opened the thought, the reply, what comes out
CASES = [
    ("prompt opened it: the reply starts in the thought", True, "T</think>A", [(R, "T"), (A, "A")]),
    ("both tags", False, "<think>T</think>A", [(R, "T"), (A, "A")]),
    ("whitespace before the opening tag", False, " \n<think>T</think>A", [(R, "T"), (A, "A")]),
    ("newlines around both, as QwQ writes", True, "\nT\n</think>\n\nA", [(R, "T"), (A, "A")]),
    ("the reply repeats the prompt's tag", True, "<think>\nT</think>A", [(R, "T"), (A, "A")]),
    ("it repeats it once; another is text", True, "<think><think>T", [(R, "<think>T")]),
    ("no closing tag: all thought, nothing lost", True, "T and T \n", [(R, "T and T \n")]),
    ("cut off inside the closing tag", True, "T </thin", [(R, "T </thin")]),
    ("cut off inside an echoed opening tag", True, "<thi", [(R, "<thi")]),
    ("cut off inside the opening tag", False, " <thi", [(A, " <thi")]),
    ("cut off after an almost second thought", True, "T</think> <thi", [(R, "T"), (A, "<thi")]),
    ("empty thought", False, "<think>\n\n</think>\n\nA", [(A, "A")]),
    ("empty thought, opened by the prompt", True, "</think>A", [(A, "A")]),
    ("thought without an answer", True, "T</think>\n\n", [(R, "T")]),
    ("nothing at all", True, "", []),
    ("only whitespace, no thought: kept", False, " \n", [(A, " \n")]),
    ("only whitespace in a thought: dropped", True, " \n", []),
    ("nested: depth is not counted", True, "a <think> b</think>A", [(R, "a <think> b"), (A, "A")]),
    ("a second closing tag is answer", True, "T</think>A</think>B", [(R, "T"), (A, "A</think>B")]),
    ("closed twice in a row", True, "T</think></think>A", [(R, "T"), (A, "</think>A")]),
    ("a second thought at once", True, "T</think>\n<think>\nU</think>A", [(R, "TU"), (A, "A")]),
    (
        "a thought later in the answer is text",
        True,
        "T</think>A <think>U</think>",
        [(R, "T"), (A, "A <think>U</think>")],
    ),
    ("plain answer", False, "Hello", [(A, "Hello")]),
    ("its leading whitespace is kept", False, "\n  Hello\n", [(A, "\n  Hello\n")]),
    ("prose about the tag", False, "Use the <think> tag", [(A, "Use the <think> tag")]),
    ("code about the tags", False, "`<think>x</think>`", [(A, "`<think>x</think>`")]),
    ("closing tag first, thought never opened", False, "</think>A", [(A, "</think>A")]),
    ("almost an opening tag", False, "<thinking>T", [(A, "<thinking>T")]),
    ("almost a closing tag", True, "T </thinker>", [(R, "T </thinker>")]),
    ("a tag that restarts", True, "T<</think>A", [(R, "T<"), (A, "A")]),
    ("a tag that restarts inside itself", True, "T</thi</think>A", [(R, "T</thi"), (A, "A")]),
    ("whitespace inside the thought stays", True, "a\n\n b</think>A", [(R, "a\n\n b"), (A, "A")]),
    ("whitespace inside a tag makes it text", True, "T</ think>", [(R, "T</ think>")]),
    ("Chinese text", True, "思考。\n</think>\n答。", [(R, "思考。"), (A, "答。")]),
    (
        "a long run of whitespace is trimmed as far as it is held",
        True,
        "T" + "\n" * (HELD_SPACES + 3) + "</think>A",
        [(R, "T\n\n\n"), (A, "A")],
    ),
    (
        "a tag after too much whitespace is not at the start",
        False,
        " " * (HELD_SPACES + 1) + "<think>",
        [(A, " " * (HELD_SPACES + 1) + "<think>")],
    ),
]

# pieces that meet each other in the nastiest ways
texts = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "think>", ">", " ", "\n", "a", "思", "\n" * 40]),
    max_size=12,
).map("".join)


def split(chunks: Iterable[str], inside: bool) -> list[tuple[str, str]]:
    """The reply as runs of one kind each."""
    splitter = Splitter(inside)
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += splitter.feed(chunk)
    pieces += splitter.flush()
    runs = groupby(pieces, key=lambda piece: piece.kind)
    return [(kind, "".join(piece.text for piece in run)) for kind, run in runs]


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted(places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize(("why", "inside", "reply", "expected"), CASES, ids=[c[0] for c in CASES])
def test_rules(why: str, inside: bool, reply: str, expected: list[tuple[str, str]]) -> None:
    """Each rule holds for the whole reply, character by character, and cut at any two places."""
    assert split([reply], inside) == expected, why
    assert split(reply, inside) == expected, why
    for places in combinations(range(min(len(reply), 40) + 1), 2):
        assert split(cut(reply, places), inside) == expected, (why, places)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reply", ["<think>a</think>b", " <think>\n</think>", "a </think>\n<"])
def test_every_split(reply: str, inside: bool) -> None:
    """All the ways to cut a short reply, thousands of them, come to the same."""
    expected = split([reply], inside)
    size = min(len(reply), 12)
    for bits in range(1 << size):
        places = [place for place in range(size) if bits >> place & 1]
        assert split(cut(reply, places), inside) == expected


@given(texts, st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_any_split(reply: str, inside: bool, data: st.DataObject) -> None:
    """However a reply is cut, each kind's text and the order are those of the whole."""
    places = data.draw(st.lists(st.integers(0, len(reply)), max_size=12))
    assert split(cut(reply, places), inside) == split([reply], inside)


@given(texts, st.booleans())
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost(reply: str, inside: bool) -> None:
    """What is missing between the pieces, in order, is tags and whitespace and nothing else."""
    splitter = Splitter(inside)
    pieces = splitter.feed(reply) + splitter.flush()
    gap = rf"(?:\s|{OPEN}|{CLOSE})*"
    pattern = gap.join(["", *(re.escape(piece.text) for piece in pieces), ""])
    assert re.fullmatch(pattern, reply)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_no_thought_no_change(reply: str) -> None:
    """A reply that does not begin with the tag comes out unchanged, all of it answer."""
    reply = "x" + reply
    assert split(reply, False) == [(A, reply)]


@pytest.mark.parametrize("char", ["a", "\n", "<"])
@pytest.mark.parametrize("inside", [True, False])
def test_what_waits_is_bounded(char: str, inside: bool) -> None:
    """However long the reply, no more waits than whitespace and one unfinished tag."""
    splitter = Splitter(inside)
    splitter.feed("a")
    for _ in range(20_000):
        splitter.feed(char)
        assert splitter.held <= HELD_SPACES + len(CLOSE) - 1


def test_text_is_not_held_back() -> None:
    """What cannot become a tag goes out at once, in a thought and in an answer."""
    splitter = Splitter(inside=True)
    assert splitter.feed("So") == [Piece("reasoning", "So")]
    assert splitter.feed(", a < b") == [Piece("reasoning", ", a < b")]
    assert splitter.feed("</think>A") == [Piece("answer", "A")]
    assert splitter.feed(" <") == [Piece("answer", " <")]
    assert splitter.held == 0


def test_inside_follows_the_stream() -> None:
    """`inside` says where the next text belongs: it turns with the last character of a tag."""
    splitter = Splitter(inside=False)
    seen = []
    for chunk in ("<thin", "k>", "T", "</think", ">", "\n<think>", "U</think>", "A"):
        splitter.feed(chunk)
        seen.append(splitter.inside)
    assert seen == [False, True, True, True, False, True, False, False]


def test_flush_is_final() -> None:
    """A second flush has nothing more to give."""
    splitter = Splitter(inside=True)
    splitter.feed("T </th")
    assert splitter.flush() == [Piece("reasoning", " </th")]
    assert splitter.flush() == []
