"""A full window: nothing is dropped unasked, and every way out is told and works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import LlamaEngine
from qwqcli.errors import ContextFull
from qwqcli.inputs import Attachment
from qwqcli.messages import (
    Answer,
    Budget,
    Done,
    Message,
    Order,
    Reasoning,
    Room,
    Sampling,
    Stats,
)
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
    for told in (
        "901 tokens  first",
        "901 tokens  second",
        "/drop 1",
        "/compact goes",
        "--continue --ctx 8192 (7.8 MiB more: fits)",
    ):
        assert told in table.text
    assert prompt.drafts[-1] == "too much"
    assert len(table.chat.talk.path()) == 3


def test_a_question_alone_that_is_too_long() -> None:
    """Where there is nothing to drop, that is said."""
    table = Table(FULL)
    table.type("too much")
    assert "the question alone" in table.text
    assert "/drop" not in table.text
    assert "qwq chat --ctx" in table.text  # there is no session on disk to --continue


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


def test_the_question_survives_the_summary(store: Store) -> None:
    """What found no room comes back into the prompt, with its files, after a summary too."""
    table = Table(("", "1"), FULL, ("", "Sum: 1."), ("", "2"), store=store)
    table.chat.ask("first")
    table.chat.attached = [Attachment("a.txt", "a")]
    prompt = table.type("too much", "/compact", "too much")
    assert prompt.drafts[2] == "too much"
    assert "a.txt" in table.sent[-1][-1].content


def test_compact_without_a_summary() -> None:
    """A summary that was stopped or never came changes nothing; the question still waits."""
    table = Table(("", "1"), FULL, ("only thought", ""), ("", "2"))
    prompt = table.type("first", "too much", "/compact", "second")
    assert prompt.drafts[3] == "too much"
    assert [m.content for m in table.sent[3]] == ["first", "1", "second"]


def test_no_room_for_a_summary() -> None:
    """A summary is neither advised nor tried where it does not fit itself."""
    table = Table(("", "one " * 3060), FULL, ("", "2"))
    table.type("first", "too much", "/compact", "second")
    assert "/compact, a summary by the model, has no room itself" in table.text
    assert "There is no room for a summary." in table.text
    assert len(table.sent) == 3


def test_going_on_with_more_room(store: Store) -> None:
    """A session resumed, with a larger context perhaps, has the waiting question in the prompt."""
    table = Table(("", "1"), FULL, store=store)
    table.chat.ask("first")
    table.chat.attached = [Attachment("a.txt", "a")]
    table.type("too much")
    again = Table(("", "2"), store=store)
    prompt = again.type(f"/resume {table.chat.session.id}", "too much")
    assert prompt.drafts[1] == "too much"
    assert [m.content for m in again.sent[-1][:2]] == ["first", "1"]
    assert "a.txt" in again.sent[-1][-1].content


LOG = "\n".join(f"line {at}" for at in range(1500))  # 3,000 words


def test_shorten_the_files_of_the_question(store: Store) -> None:
    """Only as much goes as must, the question comes back, and the session stays."""
    table = Table(("", "1"), FULL, ("", "2"), store=store)
    table.chat.ask("first")
    table.chat.attached = [Attachment("a.log", LOG), Attachment("b.txt", "two words")]
    session = table.chat.session.id
    prompt = table.type("what is it? " + "long " * 100, "/shorten", "what is it?")
    assert "/shorten cuts the files, the oldest first, as far as needed: a.log, b.txt" in table.text
    assert prompt.drafts[2].startswith("what is it? long")
    assert table.chat.session.id == session
    sent = table.sent[-1][-1].content
    assert "tokens left out here]" in sent
    assert "line 1499" in sent
    assert "two words" in sent
    assert 2900 < len(sent.split()) < 3072
    assert "Left out: the beginning of a.log" in table.text


def test_shorten_the_files_of_earlier_turns(store: Store) -> None:
    """They are the oldest; the shorter talk is a new session, and the old one keeps them whole."""
    table = Table(("", "1"), FULL, ("", "2"), store=store)
    table.chat.ask("first", [Attachment("a.log", LOG)])
    old = table.chat.session.id
    prompt = table.type("word " * 200, "/shorten", "again")
    assert prompt.drafts[2].split() == ["word"] * 200
    assert table.chat.session.id != old
    assert store.load(old)[1].turns[0].attachments[0].text == LOG
    first = table.sent[-1][0].content
    assert "tokens left out here]" in first
    assert first.rstrip("`\n").endswith("line 1499")
    assert store.load(table.chat.session.id)[1].path()[0].prompt == first


def test_a_file_comes_back_once(tmp_path: Path) -> None:
    """A question that mentions its file is sent again with the file as it was shortened."""
    (tmp_path / "a.log").write_text(LOG + LOG)
    table = Table(FULL, ("", "2"))
    question = f"@{tmp_path / 'a.log'} what?"
    prompt = table.type(question, "/shorten", question)
    assert prompt.drafts[2] == question
    sent = table.sent[-1][-1].content
    assert sent.count("a.log:") == 1
    assert len(sent.split()) < 3072


def test_nothing_to_shorten() -> None:
    """Without files, or with files that are not the trouble, that is said."""
    table = Table(("", "one " * 3060), FULL)
    table.type("/shorten", "first")
    assert "no files to shorten" in table.text
    table.chat.attached = [Attachment("a.txt", "word " * 40)]
    table.type("word " * 100, "/shorten", "/undo", "/shorten")
    assert "Without its files it is still too long." in table.text
    assert table.chat.attached == [Attachment("a.txt", "word " * 40)]
    assert "All files have room" in table.text


def test_a_context_that_does_not_fit() -> None:
    """What a larger context would take is told, and that there is no room for it."""
    table = Table(FULL)
    table.type("word " * 9000)
    assert "qwq chat --ctx 14336 (13.7 MiB more: does not fit)" in table.text
    table.type("word " * 40_000)
    assert "the model was trained for 32,768 tokens" in table.text


def test_enough_is_as_few_as_possible() -> None:
    """The fewest of the oldest turns that bring the rest under what is wanted; one at least."""
    assert enough([10, 20, 30], 50) == 1
    assert enough([10, 20, 30], 49) == 2
    assert enough([10, 20, 30], 0) == 3
    assert enough([10], 100) == 1


def test_status_line() -> None:
    """What is used, reused and free stands below the prompt, once it is known."""
    script = [Room(4096, 31), Reasoning("hm", 5, "closed"), Answer("4", 2)]
    table = Table([*script, Done("end", Stats(31, 12, 5, 2))], ("", "?"))
    assert table.chat.status == ""
    table.type("2 + 2?")
    assert table.chat.status == "4,063 free of 4,096 tokens · 33 used · 12 reused"
    table.type("/clear")
    assert table.chat.status == ""
    table.type("2 + 2?", "/model scripted")
    assert (table.chat.n_ctx, table.chat.status) == (0, "")


def test_context_tells_what_was_reused() -> None:
    """/context shows used and free by what fills them, and how much of the last prompt was new."""
    table = Table(("", "one two three"))
    table.type("first one", "/context")
    assert "5 of 4,096 tokens are used" in table.text
    assert "Of the 31 tokens of the last prompt 12 were reused from the cache, 19" in table.text
