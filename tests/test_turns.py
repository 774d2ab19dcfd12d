"""Turns and sessions in the chat: again, edit, undo, branch, name, resume; and what is saved."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qwqcli.config import Paths, Settings
from qwqcli.conversation import Turn
from qwqcli.errors import ContextFull, EngineError, QwqError
from qwqcli.messages import Answer, Done, Message, Reasoning, Stats
from qwqcli.repl import Opening, run_chat
from qwqcli.repl.record import EVERY_S, Growing, Record, open_store
from qwqcli.repl.turns import pick
from qwqcli.sessions import Store, new_session, new_turn_id
from qwqcli.terminal import Screen, cells
from tests.chat_table import Table
from tests.fakes import Clock, ScriptedEngine

REPLIES = (("hmm", "1"), ("hmm", "2"), ("hmm", "3"), ("hmm", "4"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "sessions.db")) as store:
        yield store


def said(table: Table, at: int) -> list[str]:
    return [message.content for message in table.sent[at]]


def loaded(table: Table) -> list[tuple[str, str]]:
    """The conversation as it is on disk."""
    _, talk = table.chat.record.store.load(table.chat.session.id)
    assert talk == table.chat.talk
    return [(turn.question, turn.answer) for turn in talk.path()]


def test_every_turn_is_on_disk(store: Store) -> None:
    """With its thought, figures, sampling and model, as soon as the prompt is back."""
    table = Table(*REPLIES, store=store, settings=Settings("scripted", seed=7))
    table.type("one", "two")
    assert loaded(table) == [("one", "1"), ("two", "2")]
    turn = table.chat.talk.turns[0]
    assert (turn.reasoning, turn.stop, turn.model) == ("hmm", "end", "scripted")
    assert (turn.stats.prompt_tokens, turn.sampling.seed) == (31, 7)


def test_a_chat_without_a_word_leaves_no_session(store: Store) -> None:
    """Neither opening a chat nor its commands write anything."""
    Table(store=store).type("/name x", "/system Be brief.", "/clear", "/undo")
    assert store.summaries() == []


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        ([Reasoning("hmm", 1), Done("interrupted", Stats())], "interrupted"),
        (EngineError("The engine died."), "died"),
        (ContextFull("Too long."), "context"),
    ],
)
def test_a_question_without_an_answer_is_kept_but_not_sent(
    store: Store, reply: object, stop: str
) -> None:
    """It is in the store with how it ended, and the model does not see it again."""
    table = Table(reply, ("", "4"), store=store)  # type: ignore[arg-type]
    table.type("one", "two")
    assert said(table, 1) == ["two"]
    _, talk = store.load(table.chat.session.id)
    assert [(turn.question, turn.stop) for turn in talk.turns] == [("one", stop), ("two", "end")]


def test_regen(store: Store) -> None:
    """The same question is sent with a new seed; earlier answers can be gone back to."""
    table = Table(*REPLIES, store=store, settings=Settings("scripted", seed=7))
    table.type("one", "two", "/regen", "/regen")
    assert said(table, 3) == said(table, 1) == ["one", "1", "two"]
    assert [sampling.seed for sampling in table.engines[0].sampling] == [7, 7, None, None]
    assert "[answer 3 of 3; /alt N goes back to another]" in table.text
    table.type("/alt", "/alt 1", "three")
    assert "* 3  4" in table.text
    assert said(table, 4) == ["one", "1", "two", "2", "three"]
    assert loaded(table)[:2] == [("one", "1"), ("two", "2")]


def test_regen_after_a_failure_asks_again() -> None:
    """A question whose reply failed is asked anew without typing it."""
    table = Table(EngineError("The engine died."), ("", "4"))
    table.type("one", "/regen")
    assert said(table, 1) == ["one"]
    assert [turn.answered for turn in table.chat.talk.turns] == [False, True]


def test_continue(store: Store) -> None:
    """A stopped reply goes on from its end, in the same turn; a complete one does not."""
    stopped = [Reasoning("h", 1), Answer("It", 1), Done("interrupted", Stats())]
    table = Table(stopped, [Answer(" is 4.", 1), Done("end", Stats())], ("", "5"), store=store)
    table.type("one", "/continue", "/continue", "two")
    assert table.sent[1] == [Message("user", "one"), Message("assistant", "It", "h")]
    assert "The last answer is complete." in table.text
    assert said(table, 2) == ["one", "It is 4.", "two"]
    assert loaded(table) == [("one", "It is 4."), ("two", "5")]


def test_a_thought_that_was_stopped_goes_on(store: Store) -> None:
    """What was thought so far is sent back, so that the thought need not begin anew."""
    stopped = [Reasoning("h", 1), Done("interrupted", Stats())]
    table = Table(stopped, [Reasoning("mm", 1), Answer("4", 1), Done("end", Stats())], store=store)
    table.type("one", "/continue")
    assert table.sent[1][-1] == Message("assistant", "", "h")
    assert table.chat.talk.turns[0].reasoning == "hmm"
    assert loaded(table) == [("one", "4")]


def test_edit(store: Store) -> None:
    """The last question comes back into the prompt; what is sent then takes its place."""
    table = Table(*REPLIES, store=store)
    prompt = table.type("one", "two", "/edit", "zwei")
    assert prompt.drafts == ["", "", "", "two", ""]
    assert said(table, 2) == ["one", "1", "zwei"]
    assert loaded(table) == [("one", "1"), ("zwei", "3")]
    assert len(store.load(table.chat.session.id)[1].turns) == 3


def test_an_edit_that_is_not_sent_changes_nothing() -> None:
    """Another command, or a cleared line, leaves the conversation as it was."""
    table = Table(*REPLIES)
    table.type("one", "/edit", "/stats", "two")
    assert said(table, 1) == ["one", "1", "two"]


def test_undo(store: Store) -> None:
    """The model no longer sees what was taken back; the store keeps it."""
    table = Table(*REPLIES, store=store)
    table.type("one", "two", "/undo", "/undo", "/undo", "three")
    assert said(table, 2) == ["three"]
    assert "Taken back: two" in table.text
    assert "Nothing has been asked yet." in table.text
    assert loaded(table) == [("three", "3")]
    assert len(store.load(table.chat.session.id)[1].turns) == 3


def test_branch(store: Store) -> None:
    """The copy goes on; the original stays, and each can be resumed and removed alone."""
    table = Table(*REPLIES, store=store)
    table.type("one", "/name first")
    old = table.chat.session.id
    table.type("/branch second", "two", "/resume first", "three")
    assert said(table, 1) == ["one", "1", "two"]
    assert said(table, 2) == ["one", "1", "three"]
    second, talk = store.load(store.find("second"))
    assert second.origin == old
    assert [turn.question for turn in talk.path()] == ["one", "two"]
    store.remove(old)
    assert len(store.load(second.id)[1].turns) == 2


def test_name(store: Store) -> None:
    """A session is resumed by its name, which is its alone."""
    other = Table(*REPLIES, store=store)
    other.type("one", "/name My  sums", "/name")
    assert other.text.count("My sums") == 2
    table = Table(*REPLIES, store=store)
    table.type("two", "/name my SUMS", "/name other")
    assert "Another session is called 'my SUMS'." in table.text
    assert store.find("other") == table.chat.session.id


def test_clear_begins_a_new_session(store: Store) -> None:
    """The old one is kept and said how to come back to."""
    table = Table(*REPLIES, store=store)
    table.type("one")
    old = table.chat.session.id
    table.type("/clear", "two")
    assert f"/resume {old}" in table.text
    assert said(table, 1) == ["two"]
    assert len(store.summaries()) == 2


def test_resume_shows_where_the_conversation_stands(store: Store) -> None:
    """Its length, the last question and the last answer; alone it lets the person choose."""
    Table(("", "It is **4**."), store=store).type("What is 2+2?", "/name sums")
    Table(("", "Blue."), store=store).type("What colour?")
    table = Table(("", "5"), store=store)
    table.type("/resume", "2", "And now?")
    assert said(table, 0) == ["What is 2+2?", "It is **4**.", "And now?"]
    assert "2 turns  sums" not in table.text
    assert "1 turn   sums" in table.text
    assert "> What is 2+2?" in table.text
    table.type("/resume 1l", "/resume absent", "/resume", "7")
    assert "There is no session '1l'." in table.text
    assert "'7' is not a number from 1 to 2." in table.text


# --- how a chat begins -------------------------------------------------------------------------


def chat(folder: Path, text: str, opening: Opening, **settings: object) -> tuple[str, str]:
    """A chat through a pipe; what it wrote to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err, {"TERM": "xterm"}, Clock())
    wanted = Settings(**{"model": "scripted", **settings})  # type: ignore[arg-type]

    def open_model(name: str) -> ScriptedEngine:
        if name == "gone":
            raise QwqError("There is no model 'gone'.")
        return ScriptedEngine([("", f"{name} says hello.")])

    run_chat(open_model, wanted, Paths(folder, folder, folder), screen, io.StringIO(text), opening)
    return out.getvalue(), err.getvalue()


def test_continue_goes_on_with_the_latest_session(tmp_path: Path) -> None:
    """With the model and the system prompt it was held with, unless others are given now."""
    chat(tmp_path, "one\n", Opening(), model="first", system="Be brief.")
    out, err = chat(tmp_path, "two\n/system\n", Opening(latest=True))
    assert out.endswith("first says hello.\n")
    assert "1 turn.\n" in err
    assert "System prompt: Be brief." in err
    given = Opening(latest=True, given=frozenset(["model", "system"]))
    out, err = chat(tmp_path, "three\n/system\n", given)
    assert out.endswith("scripted says hello.\n")
    assert "It was held with first: /model first goes back to it." in err
    assert "System prompt: none" in err
    with closing(Store(tmp_path / "sessions.db")) as store:
        assert [summary.turns for summary in store.summaries()] == [3]


def test_continue_without_a_session_begins_one(tmp_path: Path) -> None:
    """It says so and goes on."""
    out, err = chat(tmp_path, "one\n", Opening(latest=True))
    assert "There is no session to continue" in err
    assert out == "scripted says hello.\n"


def test_resume_by_name_and_by_choice(tmp_path: Path) -> None:
    """`--resume sums` goes there; `--resume` alone asks which."""
    chat(tmp_path, "one\n/name sums\n", Opening())
    chat(tmp_path, "two\n", Opening())
    assert "sums" in chat(tmp_path, "", Opening(resume="sums"))[1]
    out, _ = chat(tmp_path, "2\nthree\n", Opening(resume=""))
    assert "Which one? [1] " in out
    with closing(Store(tmp_path / "sessions.db")) as store:
        assert len(store.load(store.find("sums"))[1].turns) == 2
    with pytest.raises(QwqError, match="There is no session 'absent'"):
        chat(tmp_path, "", Opening(resume="absent"))


def test_a_session_whose_model_is_gone_goes_on_with_another(tmp_path: Path) -> None:
    """The error is told and the model of the settings is used."""
    chat(tmp_path, "one\n", Opening())
    with closing(Store(tmp_path / "sessions.db")) as store:
        session, talk = store.load(store.latest() or "")
        store.save(replace(session, model="gone"), talk.head)
    out, err = chat(tmp_path, "two\n", Opening(latest=True))
    assert "There is no model 'gone'." in err
    assert "scripted says hello." in out


def test_no_save_writes_nothing(tmp_path: Path) -> None:
    """The conversation is in memory alone."""
    chat(tmp_path, "one\n/name x\n", Opening(save=False))
    assert not (tmp_path / "sessions.db").exists()


# --- keeping up --------------------------------------------------------------------------------


def test_a_reply_is_never_more_than_two_seconds_ahead_of_the_disk(store: Store) -> None:
    """Each second what is new is written, also while the engine is silent."""
    clock, session = Clock(), new_session("tiny")
    turn = Turn(new_turn_id(), None, "one")
    store.save(session, turn.id, [turn])
    growing = Growing(Record(store, fail), turn, True, clock)
    text = ""
    for event in growing.watch(Answer(f"{at} ", at) for at in range(40)):
        assert isinstance(event, Answer)
        text += event.text
        for _ in range(3):
            clock.now += 0.13
            growing.tick()
            on_disk = store.load(session.id)[1].turns[0].answer
            assert text.startswith(on_disk)
            assert len(text[len(on_disk) :].split()) * 0.39 <= EVERY_S + 0.39
    assert growing.turn.answer == text


def fail(error: QwqError) -> None:
    raise error


def test_a_store_that_fails_is_told_once_and_caught_up(tmp_path: Path) -> None:
    """The chat goes on; when writing works again, everything is written."""
    with closing(Store(tmp_path / "sessions.db")) as store:
        table = Table(*REPLIES, store=store)
        table.type("one")
        store._db.execute("PRAGMA query_only = ON")
        table.type("two", "three")
        assert table.text.count("error:") == 1
        assert table.text.count("cannot be used") == 1
        store._db.execute("PRAGMA query_only = OFF")
        table.type("four")
        assert loaded(table) == [("one", "1"), ("two", "2"), ("three", "3"), ("four", "4")]


def test_a_store_that_cannot_be_opened_does_not_stop_the_chat(tmp_path: Path) -> None:
    """It says why, and that this conversation is not saved; nothing else changes."""
    (tmp_path / "sessions.db").write_bytes(b"no database" * 500)
    out, err = chat(tmp_path, "one\n", Opening())
    assert out == "scripted says hello.\n"
    assert "are damaged" in err
    assert "This conversation is not saved." in err
    told: list[QwqError] = []
    open_store(tmp_path / "absent" / "sessions.db", True, told.append).close()
    assert told == []


def test_a_killed_reply_is_resumed_as_far_as_it_came(tmp_path: Path) -> None:
    """The question and what was said of the answer are there, marked as cut off."""
    chat(tmp_path, "one\n", Opening())
    with closing(Store(tmp_path / "sessions.db")) as store:
        session, talk = store.load(store.latest() or "")
        turn = Turn(new_turn_id(), talk.head, "two", asked=1.0)
        store.save(session, turn.id, [turn])
        store.append(turn.id, "hmm", "It is")
    out, err = chat(tmp_path, "", Opening(latest=True))
    assert out == "It is\n"
    assert "> two" in err
    assert "[cut off when qwq was ended]" in err


def test_a_session_removed_elsewhere_stays_removed(tmp_path: Path) -> None:
    """Nothing of it is written again, which is told; a branch is a whole session of its own."""
    with closing(Store(tmp_path / "s.db")) as store, closing(Store(tmp_path / "s.db")) as other:
        table = Table(*REPLIES, store=store)
        table.type("one")
        other.remove(table.chat.session.id)
        table.type("two", "three", "/undo")
        assert other.summaries() == []
        assert table.text.count("was removed meanwhile. Until that is mended nothing more") == 1
        table.type("/branch", "four")
        assert loaded(table) == [("one", "1"), ("two", "2"), ("four", "4")]
        assert len(other.summaries()) == 1


def test_two_chats_in_one_session_keep_what_the_other_has_changed(tmp_path: Path) -> None:
    """A turn writes its turn; the name and the system prompt only who changes them."""
    with closing(Store(tmp_path / "s.db")) as store, closing(Store(tmp_path / "s.db")) as other:
        one, two = Table(*REPLIES, store=store), Table(*REPLIES, store=other)
        one.type("one")
        two.type(f"/resume {one.chat.session.id}")
        one.type("/name alpha", "/system Be brief.")
        two.type("two")
        ((session, talk),) = [store.load(found.session.id) for found in store.summaries()]
        assert (session.name, session.system) == ("alpha", "Be brief.")
        assert [turn.question for turn in talk.path()] == ["one", "two"]


def test_a_name_that_is_taken_before_the_first_turn_costs_no_turn(tmp_path: Path) -> None:
    """The later session goes on without a name, and says so."""
    with closing(Store(tmp_path / "s.db")) as store, closing(Store(tmp_path / "s.db")) as other:
        one, two = Table(*REPLIES, store=store), Table(*REPLIES, store=other)
        one.type("/name beta")
        two.type("two", "/name beta")
        one.type("one")
        assert "Another session is called 'beta' by now." in one.text
        assert loaded(one) == [("one", "1")]
        assert [found.session.name for found in store.summaries()] == ["", "beta"]


def test_a_name_costs_no_reply_where_the_store_fails(store: Store) -> None:
    """Whether it is taken cannot be asked; that nothing is saved is told, and the chat goes on."""
    table = Table(*REPLIES, store=store)
    table.type("/name beta")
    store.close()
    table.type("one")
    assert table.chat.talk.turns[0].answer == "1"
    assert "nothing more is saved" in table.text


def test_a_branch_is_not_begun_under_a_name_that_is_taken(store: Store) -> None:
    """The error comes before anything has moved."""
    table = Table(*REPLIES, store=store)
    table.type("one", "/name alpha")
    before = table.chat.session.id
    table.type("/branch ALPHA")
    assert "is called 'ALPHA'" in table.text
    assert table.chat.session.id == before


def test_messages_of_a_resumed_session(store: Store) -> None:
    """The model sees exactly what it would have seen without a break."""
    Table(("hmm", "1"), store=store, settings=Settings("scripted", system="S")).type("one")
    table = Table(("", "2"), store=store)
    table.type(f"/resume {store.latest()}", "two")
    assert table.sent[0] == [
        Message("system", "S"),
        Message("user", "one"),
        Message("assistant", "1", "hmm"),
        Message("user", "two"),
    ]


def test_engine_prepares_for_what_comes_next() -> None:
    """Before each prompt the engine learns what a question would follow, also after commands."""
    table = Table(*REPLIES)
    table.type("one", "two", "/undo", "three", "/edit", "four", "/clear", "/system Be brief.", "x")
    engine = table.engines[0]
    for sent in engine.sent:
        assert sent[:-1] in engine.prepared
    assert [m.content for m in engine.prepared[5]] == ["one", "1"]
    assert [m.content for m in engine.prepared[-2]] == ["Be brief."]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_session_to_choose_is_a_row(store: Store, width: int) -> None:
    """However wide its first question is, each session stands in one row of the window."""
    Table(store=store).type("草莓里有几个字母？" * 20)
    rows: list[str] = []
    assert pick(store, rows.append, lambda question: "", width) == store.latest()
    assert len(rows) == 1
    assert cells(rows[0]) < max(width, 31)
