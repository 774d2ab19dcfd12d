"""A conversation as a tree of turns, held against a plain list of what was said."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from qwqcli.conversation import Conversation, Turn, branch
from qwqcli.inputs import Attachment
from qwqcli.messages import Message

TEXT = st.text(max_size=20)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), TEXT, TEXT),
        st.tuples(st.just("again"), TEXT, TEXT),
        st.tuples(st.just("edit"), TEXT, TEXT),
        st.tuples(st.just("undo"), TEXT, TEXT),
        st.tuples(st.just("go on"), TEXT, TEXT),
    ),
    max_size=20,
)


def step(talk: Conversation, kind: str, question: str, answer: str) -> Conversation:
    """One thing that a person can do."""
    last, id = talk.last, len(talk.turns) + 1
    if kind == "ask":
        return talk.add(Turn(id, talk.head, question, answer=answer))
    if last is None:
        return talk
    if kind == "again":
        return talk.add(replace(last, id=id, answer=answer))
    if kind == "edit":
        return talk.add(replace(last, id=id, question=question, answer=answer))
    if kind == "go on":
        return talk.put(replace(last, answer=last.answer + answer))
    return talk.undo()


def after(said: list[list[str]], kind: str, question: str, answer: str) -> list[list[str]]:
    """The same step on a list of [question, answer]."""
    if kind == "ask":
        return [*said, [question, answer]]
    if not said:
        return said
    *before, (asked, answered) = said
    changed = {
        "again": [asked, answer],
        "edit": [question, answer],
        "go on": [asked, answered + answer],
    }
    return [*before, changed[kind]] if kind in changed else before


def build(steps: list[tuple[str, str, str]]) -> tuple[Conversation, list[list[str]]]:
    talk, said = Conversation(), list[list[str]]()
    for kind, question, answer in steps:
        talk, said = step(talk, kind, question, answer), after(said, kind, question, answer)
    return talk, said


@given(STEPS)
def test_the_path_is_what_was_said_and_not_taken_back(steps: list[tuple[str, str, str]]) -> None:
    """Whatever is done, the path reads as a plain list would."""
    talk, said = build(steps)
    assert [[turn.question, turn.answer] for turn in talk.path()] == said


@given(STEPS)
def test_the_model_is_sent_answered_questions_only(steps: list[tuple[str, str, str]]) -> None:
    """The messages alternate between a question and an answer that is not empty."""
    talk, said = build(steps)
    expected = [Message("system", "Be brief.")]
    for question, answer in said:
        if answer.strip():
            asked = question if question.strip() else ""  # nobody can ask nothing
            expected += [Message("user", asked), Message("assistant", answer)]
    assert talk.messages("Be brief.") == expected
    assert talk.messages() == expected[1:]


@given(STEPS)
def test_nothing_said_is_lost(steps: list[tuple[str, str, str]]) -> None:
    """Every step keeps every turn: only the last reply may grow."""
    talk = Conversation()
    for kind, question, answer in steps:
        grown = step(talk, kind, question, answer)
        assert [turn.id for turn in grown.turns[: len(talk.turns)]] == [t.id for t in talk.turns]
        for old, new in zip(talk.turns, grown.turns, strict=False):
            assert new.question == old.question
            assert new.answer.startswith(old.answer)
        talk = grown


@given(STEPS, TEXT, TEXT)
def test_undo_takes_back_a_question(steps: list[tuple[str, str, str]], q: str, a: str) -> None:
    """To undo after asking is as if nothing had been asked."""
    talk, _ = build(steps)
    assert step(step(talk, "ask", q, a), "undo", "", "").path() == talk.path()


@given(STEPS, TEXT)
def test_alternatives_are_all_replies_to_one_question(
    steps: list[tuple[str, str, str]], answer: str
) -> None:
    """Regenerating adds to the alternatives, and each of them can be gone back to."""
    talk, _ = build(steps)
    if talk.last is None:
        assert talk.alternatives() == ()
        return
    more = step(talk, "again", "", answer)
    assert more.alternatives() == (*talk.alternatives(), more.turns[-1])
    for turn in more.alternatives():
        assert more.at(turn.id).last == turn
        assert more.at(turn.id).path()[:-1] == talk.path()[:-1]


@given(STEPS)
def test_a_branch_is_the_path_alone(steps: list[tuple[str, str, str]]) -> None:
    """A branch reads as its origin does, under other ids, and has no alternatives."""
    talk, said = build(steps)
    twin = branch(talk, [100 + at for at in range(len(said))])
    assert [[turn.question, turn.answer] for turn in twin.path()] == said
    assert twin.turns == twin.path()
    assert twin.messages() == talk.messages()


def test_a_file_is_fenced_beyond_its_own_fences() -> None:
    """What is attached follows the question under its name and cannot end its own fence."""
    turn = Turn(1, None, "What is it?", (Attachment("a.md", "```\nx\n```"), Attachment("b", "y")))
    assert turn.prompt == ("What is it?\n\na.md:\n````\n```\nx\n```\n````\n\nb:\n```\ny\n```")
    assert Conversation().add(replace(turn, answer="!")).messages()[0].content == turn.prompt
