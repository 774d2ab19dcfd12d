"""Tokens of a reply become events: whole characters, the right part, few pieces, every token."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replies import answer, thought

from qwqcli.engine.telling import Instants, Telling
from qwqcli.messages import Answer, Event, Reasoning
from qwqcli.reasoning import Splitter

Token: TypeAlias = tuple[str, float, bool]  # text, seconds before it, whether a notice follows


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("text", ["你好 🎉 é", "<think>你</think>好"])
@pytest.mark.parametrize("apart_s", [0.0, 0.004, 1000.0])
def test_bytes_of_a_reply_may_be_cut_anywhere(text: str, apart_s: float) -> None:
    """However tokens cut the bytes of a reply, the same text comes out and all tokens count."""
    data, clock = text.encode(), Hands()
    for size in range(1, 6):
        telling = Telling(Splitter(inside=False), Instants(clock), apart_s)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        events: list[Event] = []
        for piece in pieces:
            clock.now += 0.003
            events += telling.token(piece)
        events += telling.flush()
        assert thought(events) + answer(events) == text.replace("<think>", "").replace(
            "</think>", ""
        )
        assert telling.tokens == len(pieces)


@pytest.mark.parametrize("apart_s", [0.0, 1000.0])
def test_bytes_that_are_no_text_are_shown_as_such(apart_s: float) -> None:
    """Half a character at the end of a reply becomes the replacement character."""
    telling = Telling(Splitter(inside=False), Instants(), apart_s)
    assert answer([*telling.token("你".encode()[:2]), *telling.flush()]) == "\ufffd"


def test_character_is_not_cut() -> None:
    """In the middle of a character the thought isn't closed; its last bytes are waited for."""
    telling, data = Telling(Splitter(inside=True), Instants()), "你".encode()
    telling.token(b"a")
    assert telling.closable
    telling.token(data[:1])
    assert not telling.closable
    telling.token(data[1:])
    assert telling.closable


def said(tokens: list[Token], inside: bool, apart_s: float) -> list[Event | None]:
    """All events of a reply; None for a notice."""
    hands = Hands()
    telling = Telling(Splitter(inside), Instants(hands), apart_s)
    events: list[Event | None] = []
    for text, pause, noticed in tokens:
        hands.now += pause
        events += telling.token(text.encode())
        if noticed:
            events += [*telling.held(), None]
    return events + telling.flush()


def runs(events: list[Event | None]) -> list[tuple[type, str, int, str | None]]:
    """Neighbours of one kind as one, but what follows a closed thought: its text and count."""
    joined: list[tuple[type, str, int, str | None]] = []
    for event in events:
        text, count = getattr(event, "text", ""), getattr(event, "tokens", 0)
        kind, end = type(event), getattr(event, "end", None)
        if event and joined and joined[-1][0] is kind and joined[-1][3] is None:
            text = joined.pop()[1] + text
        joined.append((kind, text, count, end))
    return joined


TOKENS = st.lists(
    st.tuples(
        st.sampled_from(["<think>", "</think>", "</thi", "nk>", " ", "\n", "ab", "你", "🎉"]),
        st.floats(0, 0.1),
        st.booleans(),
    )
)


@given(TOKENS, st.booleans())
def test_gathering_changes_nothing_but_the_number(tokens: list[Token], inside: bool) -> None:
    """Pieces that come close together are joined: same texts in the same order, same counts."""
    apart, together = said(tokens, inside, 0.0), said(tokens, inside, 0.05)
    assert runs(together) == runs(apart)
    assert len(together) <= len(apart)


def test_a_token_without_text_counts() -> None:
    """It is told with what waits, and adds no piece of its own."""
    tokens = [("a", 0.0, False), ("b", 0.01, False), ("", 0.01, False), ("", 0.1, False)]
    assert said(tokens, False, 0.05) == [Answer("a", 1), Answer("b", 4)]


def test_pieces_that_come_fast_are_few() -> None:
    """A piece waits only where one was said a moment ago, and is joined to what comes meanwhile."""
    steps = [0.0, 1.0, 0.01, 0.01, 0.04, 0.01]
    tokens = [(text, pause, False) for text, pause in zip("abcdef", steps, strict=True)]
    wanted = [Answer("a", 1), Answer("b", 2), Answer("cde", 5), Answer("f", 6)]
    assert said(tokens, False, 0.05) == wanted
    thoughts = [Reasoning(event.text, event.tokens) for event in wanted]
    assert said(tokens, True, 0.05) == thoughts


def test_half_a_character_is_waited_for_while_pieces_wait() -> None:
    """What is said late is whole characters; what the rest of one waits for is no other piece."""
    hands, data = Hands(), "你".encode()
    telling = Telling(Splitter(inside=False), Instants(hands), 0.05)
    assert telling.token(b"a") == [Answer("a", 1)]
    assert telling.token(b"b" + data[:1]) == ()
    hands.now = 1.0
    assert telling.token(data[1:2]) == [Answer("b", 3)]
    hands.now = 2.0
    assert telling.token(b"") == []
    assert telling.token(data[2:]) == [Answer("你", 5)]


def test_closing_a_thought_is_never_joined_to_what_follows() -> None:
    """Why a thought ended stays on its last piece, also where another follows at once."""
    telling = Telling(Splitter(inside=True), Instants(Hands()), 1000.0)
    told = [*telling.token(b"a"), *telling.token(b"b"), *telling.token(b"</think>", "budget")]
    assert told == [Reasoning("a", 1), Reasoning("b", 3, "budget")]
    told = [*telling.token(b"<think>"), *telling.token(b"c"), *telling.flush()]
    assert told == [Reasoning("c", 5)]


def test_the_answer_is_not_joined_to_the_thought() -> None:
    """One token may end the thought and begin the answer."""
    telling = Telling(Splitter(inside=True), Instants(Hands()), 1000.0)
    told = [event for piece in (b"a", b"b</think>c", b"d") for event in telling.token(piece)]
    assert told == [Reasoning("a", 1), Reasoning("b", 2, "closed")]
    assert telling.flush() == [Answer("cd", 1)]
