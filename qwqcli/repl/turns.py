"""Commands that change the conversation: again, edit, undo, branch, name, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from qwqcli.conversation import Turn, branch
from qwqcli.errors import UsageError
from qwqcli.repl.chat import Chat
from qwqcli.sessions import Store, Summary, new_session, new_turn_id
from qwqcli.terminal import clip

LISTED = 20  # sessions that the picker shows


def regenerate(chat: Chat, argument: str) -> None:
    """Ask the last question again with a new seed; the earlier answers stay."""
    last = _last(chat)
    sampling = replace(chat.settings.sampling, seed=None)
    chat.reply_to(
        Turn(new_turn_id(), last.parent, last.question, last.attachments, sampling=sampling)
    )
    answers = len(chat.talk.alternatives())
    chat.say(f"[answer {answers} of {answers}; /alt N goes back to another]")


def go_on(chat: Chat, argument: str) -> None:
    """Let the last reply go on where it was stopped or cut."""
    last = _last(chat)
    if last.stop == "end" and last.answered:
        raise UsageError("The last answer is complete.", "/regen for another one")
    chat.go_on(last)


def alternatives(chat: Chat, argument: str) -> None:
    """List the answers to the last question, or go to one of them."""
    turns, last = chat.talk.alternatives(), _last(chat)
    if argument:
        turn = turns[number(argument, len(turns), "/alt") - 1]
        chat.talk = chat.talk.at(turn.id)
        chat.save()
        chat.show_last()
        return
    for at, turn in enumerate(turns, 1):
        here = "*" if turn.id == last.id else " "
        words = " ".join(turn.answer.split()) or "(no answer)"
        chat.say(f"{here}{at:2}  {words[:70]}")


def edit(chat: Chat, argument: str) -> None:
    """Put the last question into the prompt; what is sent then takes its place."""
    last = _last(chat)
    chat.edited, chat.draft = last, last.question
    chat.attached = list(last.attachments)
    chat.say("[Enter sends it in place of the last question; the old turn is kept]")


def undo(chat: Chat, argument: str) -> None:
    """Step back before the last question."""
    last = _last(chat)
    chat.talk = chat.talk.undo()
    chat.save()
    chat.say(f"Taken back: {' '.join(last.question.split())[:60]}")


def branch_off(chat: Chat, argument: str) -> None:
    """Go on in a new session that begins with this conversation; the old one stays as it is."""
    _last(chat)
    old = chat.session
    _free_name(chat, argument, "")  # the copy cannot have the name of this one either
    ids = [new_turn_id() for _ in chat.talk.path()]
    talk = branch(chat.talk, ids)
    chat.begin(new_session(chat.settings.model, chat.settings.system, old.id), talk)
    chat.save(*talk.turns)
    if argument:
        name(chat, argument)
    chat.say(f"This is now session {chat.session.id}; {old.name or old.id} stays as it was.")


def name(chat: Chat, argument: str) -> None:
    """Name the session, or show its name."""
    if argument:
        old = chat.session
        chat.session = replace(old, name=_free_name(chat, argument, old.id))
        if not chat.save():
            chat.session = old
            return
    chat.say(f"This is session {chat.session.id}, {chat.session.name or 'without a name'}.")


def _free_name(chat: Chat, argument: str, id: str) -> str:
    """The name that was typed. Raises UsageError if a session other than `id` has it."""
    name = " ".join(argument.split())
    if name and chat.record.store.taken(name, id):
        raise UsageError(f"Another session is called '{name}'.", f"/name {name} 2")
    return name


def resume(chat: Chat, argument: str) -> None:
    """Go on with another session."""
    store = chat.record.store
    width = chat.screen.out.size()[0]
    id = store.find(argument) if argument else pick(store, chat.say, chat.prompt.ask, width)
    session, talk = store.load(id)
    chat.begin(session, talk, session)
    tell_resumed(chat)


def tell_resumed(chat: Chat) -> None:
    """What was resumed, and where it stands."""
    session, turns = chat.session, len(chat.talk.path())
    called = f"{session.name} ({session.id})" if session.name else session.id
    chat.say(f"Session {called}, {turns} turn{'' if turns == 1 else 's'}.")
    if session.model and session.model != chat.settings.model:
        chat.say(f"It was held with {session.model}: /model {session.model} goes back to it.")
    chat.show_last()
    last = chat.last
    refused = last is not None and last.stop == "context" and not (last.answered or last.reasoning)
    if last and refused and chat.screen.out.live:
        chat.talk = chat.talk.at(last.parent)
        chat.draft, chat.attached = last.question, list(last.attachments)
        chat.say("[it found no room then; Enter sends it again]")


def pick(store: Store, say: Callable[[str], None], ask: Callable[[str], str], width: int) -> str:
    """Let the person choose a session by its number; returns its id. Raises UsageError.

    Each stands in one row of a window of `width` cells.
    """
    summaries = store.summaries(LISTED)
    if not summaries:
        raise UsageError("There are no sessions yet.", "qwq chat")
    for at, summary in enumerate(summaries, 1):
        say(clip(f"{at:3}  {line(summary)}", max(width - 1, 30)))
    answer = ask("Which one? [1] ").strip() or "1"
    return summaries[number(answer, len(summaries), "One of the list") - 1].session.id


def line(summary: Summary) -> str:
    """A session in one line."""
    when = datetime.fromtimestamp(summary.changed).strftime("%Y-%m-%d %H:%M")
    title = summary.session.name or " ".join(summary.first.split())[:50]
    turns = f"{summary.turns:3} turn{' ' if summary.turns == 1 else 's'}"
    return f"{summary.session.id}  {when}  {turns}  {title}"


def number(text: str, most: int, hint: str) -> int:
    """A number from 1 to `most`. Raises UsageError with `hint`."""
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise UsageError(f"'{text}' is not a number from 1 to {most}.", hint)
    return int(text)


def _last(chat: Chat) -> Turn:
    if chat.last is None:
        raise UsageError("Nothing has been asked yet.", "Type a question")
    return chat.last
