"""A full window: nothing is dropped unasked, and every way out is told and works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import LlamaEngine
from qwqcli.errors import ContextFull
from qwqcli.messages import Budget, Message, Order, Sampling
from qwqcli.repl.room import RECALL, SUMMARY, enough
from qwqcli.sessions import Store
from tests.chat_table import Table

FULL = ContextFull("The conversation has 5,000 tokens and the context holds 4,096.", "Shorten it")
TALK = (("hmm", "one " * 900), ("hmm", "two " * 900), ("hmm", "3"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "sessions.db")) as store:
        yield store


def test_room_to_think_is_kept(tiny_spec: EngineSpec) -> None:
    """A prompt that leaves less than a reply needs is refused with all numbers, before anything
    is processed; a reply that goes on is not."""
    engine = LlamaEngine(tiny_spec)
    word = [Message("user", "word " * 10)]
    step = engine.count_tokens([Message("user", "word " * 11)]) - engine.count_tokens(word)
    long = [Message("user", "word " * (3400 // step))]
    length, budget = engine.count_tokens(long), Budget(reserve=1500)
    assert 4096 - 1024 < length < 4096
    with pytest.raises(ContextFull, match=rf"{length:,} tokens .* 4,096 has room for 3,072"):
        list(engine.stream(long, Sampling(), budget=budget))
    assert not engine._cached
    begun = [*long, Message("assistant", "", "So")]
    assert list(engine.stream(begun, Sampling(), lambda: Order.STOP, budget=budget))
    engine.close()


def test_choices_are_told(store: Store) -> None:
    """What fills the window is named turn by turn, with what to type and what it gains."""
    table = Table(*TALK, FULL, store=store)
    prompt = table.type("first", "second", "third", "too much")
    for told in ("901 tokens  first", "901 tokens  second", "/drop 1", "/compact", "--ctx 8192"):
        assert told in table.text
    assert prompt.drafts[-1] == "too much"
    assert len(table.chat.talk.path()) == 3


def test_a_question_alone_that_is_too_long() -> None:
    """Where there is nothing to drop, that is said."""
    table = Table(FULL)
    table.type("too much")
    assert "the question alone" in table.text
    assert "/drop" not in table.text


def test_a_long_question_after_a_short_talk() -> None:
    """Dropping turns is not advised where it would not help."""
    table = Table(("", "1"), FULL)
    table.type("first", "word " * 3500)
    assert "the question alone" in table.text
    assert "/drop" not in table.text


def test_drop(store: Store) -> None:
    """The oldest go, the rest is a session of its own, and the refused question comes back."""
    table = Table(*TALK, FULL, ("", "4"), store=store)
    prompt = table.type("first", "second", "third", "too much", "/drop 2", "too much")
    assert [m.content for m in table.sent[-1]] == ["third", "3", "too much"]
    assert prompt.drafts[5] == "too much"
    assert [summary.turns for summary in store.summaries()] == [2, 4]
    old = store.load(store.summaries()[1].session.id)[1]
    assert [turn.question for turn in old.turns] == ["first", "second", "third", "too much"]
    assert [turn.question for turn in store.load(table.chat.session.id)[1].path()] == [
        *("third", "too much")
    ]


@pytest.mark.parametrize("argument", ["", "0", "4", "x", "-1", "²"])
def test_drop_takes_a_number(argument: str) -> None:
    """Anything else is refused with what can be typed."""
    table = Table(*TALK)
    table.type("first", "second", "third", f"/drop {argument}")
    assert "/drop takes a number from 1 to 3" in table.text
    assert len(table.chat.talk.path()) == 3


def test_drop_everything() -> None:
    """All may go; then the next question is the first."""
    table = Table(("", "1"))
    table.type("first", "/drop 1", "again")
    assert [m.content for m in table.sent[-1]] == ["again"]


def test_nothing_to_drop_or_sum_up() -> None:
    """Before the first answer both say so."""
    table = Table()
    table.type("/drop 1", "/compact")
    assert "no turn to leave out" in table.text
    assert "nothing to sum up" in table.text


def test_compact(store: Store) -> None:
    """The model is asked for a summary, and a new session goes on from it."""
    table = Table(("", "1"), ("", "Sum: 1."), ("", "2"), store=store)
    table.type("first", "/compact", "second")
    assert table.sent[1][-1].content == SUMMARY
    assert [m.content for m in table.sent[2]] == [RECALL, "Sum: 1.", "second"]
    assert len(store.summaries()) == 2


def test_compact_without_a_summary() -> None:
    """A summary that was stopped or never came changes nothing."""
    table = Table(("", "1"), ("only thought", ""), ("", "2"))
    table.type("first", "/compact", "second")
    assert [m.content for m in table.sent[2]] == ["first", "1", "second"]


def test_enough_is_as_few_as_possible() -> None:
    """The fewest of the oldest turns that bring the rest under what is wanted; one at least."""
    assert enough([10, 20, 30], 50) == 1
    assert enough([10, 20, 30], 49) == 2
    assert enough([10, 20, 30], 0) == 3
    assert enough([10], 100) == 1
