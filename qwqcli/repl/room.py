"""When the window is full: what fills it, and the ways to make room. Nothing happens unasked.

What is left out goes on nowhere but is not lost: the shorter conversation is a new session, and the
old one stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwqcli.conversation import Conversation, Turn, branch
from qwqcli.engine import larger_for, prompt_room
from qwqcli.errors import UsageError
from qwqcli.inputs import Attachment, with_attachments
from qwqcli.messages import Message
from qwqcli.render import cut_line, larger_option, tokens
from qwqcli.repl.chat import Chat
from qwqcli.repl.window import count_files
from qwqcli.sessions import new_session, new_turn_id
from qwqcli.trim import oldest

LISTED = 12  # of the oldest turns
SUMMARY = (
    "Sum up our conversation so far, so that it can go on from your summary alone: the facts,"
    " decisions, names, numbers and code that matter, and what is still open. Only the summary."
)
RECALL = "What have we said so far?"


def choices(chat: Chat) -> None:
    """Show what fills the window, and what to type to make room for the question that waits."""
    sizes = [(turn, tokens_of(chat, turn)) for turn in chat.talk.path() if turn.answered]
    n_ctx = chat.engine.info().n_ctx
    left = _room(chat) - _size(chat, (), chat.attached)
    for at, (turn, size) in enumerate(sizes[:LISTED], 1):
        chat.say(f"{at:4}  {size:8,} tokens  {' '.join(turn.question.split())[:48]}{_files(turn)}")
    if len(sizes) > LISTED:
        chat.say(f"      and {len(sizes) - LISTED} later ones")
    if not sizes or left <= 0:
        chat.say("It is the question alone that is too long.")
    else:
        count = enough([size for _, size in sizes], min(left, n_ctx // 2))
        gained = sum(size for _, size in sizes[:count])
        chat.say(f"/drop {count} goes on without the oldest {count}: {gained:,} tokens less.")
    _say_files(chat)
    if sizes and left > 0:
        _say_compact(chat)
    _say_larger(chat)


def _files(turn: Turn) -> str:
    count = len(turn.attachments)
    return f" + {count} file{'' if count == 1 else 's'}" if count else ""


def _say_files(chat: Chat) -> None:
    """What /shorten could cut."""
    turns = [turn for turn in chat.talk.path() if turn.answered]
    files = [*(file for turn in turns for file in turn.attachments), *chat.attached]
    if not files:
        return
    total = tokens(count_files(chat, files))
    names = ", ".join(dict.fromkeys(file.name for file in files))
    chat.say(f"/shorten cuts the files, the oldest first, as far as needed: {names}, {total}.")


def _say_compact(chat: Chat) -> None:
    if _can_sum_up(chat):
        chat.say("/compact goes on with a summary instead of all that was said.")
    else:
        chat.say("/compact, a summary by the model, has no room itself: /drop or /shorten first.")


def _say_larger(chat: Chat) -> None:
    """A larger context, and what the plan says that it costs."""
    path = chat.talk.path()
    larger = larger_for(chat.engine, _size(chat, path, chat.attached))
    if larger is None:
        most = chat.engine.info().n_ctx_train
        chat.say(f"There is no larger context for this: the model was trained for {tokens(most)}.")
        return
    again = "qwq chat --continue" if chat.record.store.path else "qwq chat"
    chat.say(f"{again} {larger_option(larger)}")


def _room(chat: Chat) -> int:
    """Tokens that a prompt may have."""
    return prompt_room(chat.engine.info().n_ctx, chat.settings.budget.reserve)


def _size(chat: Chat, turns: Sequence[Turn], files: Sequence[Attachment]) -> int:
    """Tokens of a prompt of these turns and of the question that waits, with these files."""
    sent = Conversation(tuple(turns), turns[-1].id if turns else None)
    waiting = with_attachments(_waiting(chat), files)
    asked = Message("user", waiting or "?")
    messages = [*sent.messages(chat.settings.system), asked]
    return chat.engine.count_tokens(messages, thinking=chat.settings.thinks)


def _waiting(chat: Chat) -> str:
    """The question that found no room; empty if there is none."""
    turns = [t for t in chat.talk.turns if t.parent == chat.talk.head and t.stop == "context"]
    return turns[-1].question if turns and not turns[-1].answered else ""


def enough(sizes: list[int], wanted: int) -> int:
    """How many of the oldest turns to leave out so that the others take at most `wanted`."""
    count = 0
    while count < len(sizes) and sum(sizes[count:]) > wanted:
        count += 1
    return max(count, 1)


def tokens_of(chat: Chat, turn: Turn) -> int:
    """What a turn takes of the window: its question, files and answer, never its thought."""
    ask = Message("user", "?")
    said = [Message("user", turn.prompt), Message("assistant", turn.answer)]
    return chat.engine.count_tokens([*said, ask]) - chat.engine.count_tokens([ask])


def drop(chat: Chat, argument: str) -> None:
    """Go on without the oldest turns, in a new session."""
    path = chat.talk.path()
    answered = [at for at, turn in enumerate(path) if turn.answered]
    if not answered:
        raise UsageError("There is no turn to leave out.", "/undo takes back the last question")
    if not argument.isdecimal() or not 1 <= int(argument) <= len(answered):
        raise UsageError(f"/drop takes a number from 1 to {len(answered)}.", "/drop 1")
    first = answered[int(argument) - 1] + 1
    _go_on_with(chat, path[first:], _waiting(chat))
    chat.say(f"This is now session {chat.session.id}; the old one is kept with all its turns.")


def compact(chat: Chat, argument: str) -> None:
    """Let the model sum up the conversation, and go on from that in a new session."""
    if not any(turn.answered for turn in chat.talk.path()):
        raise UsageError("There is nothing to sum up yet.", "Type a question")
    if not _can_sum_up(chat):
        raise UsageError("There is no room for a summary.", "/drop N, or /shorten, first")
    head, waiting, attached = chat.talk.head, _waiting(chat), chat.attached
    chat.attached = []  # they are for the next question, not for this
    try:
        chat.ask(SUMMARY)
    finally:
        chat.attached, chat.draft = attached, waiting
    last = chat.last
    if last is None or not last.answered or last.stop != "end":
        chat.talk = chat.talk.at(head)
        chat.save()
        chat.say("[there is no whole summary, so nothing was changed]")
        return
    recalled = replace(last, question=RECALL, attachments=(), reasoning="")
    _go_on_with(chat, (recalled,), waiting)
    chat.say(f"This is now session {chat.session.id}, with the summary; the old one is kept.")


def _can_sum_up(chat: Chat) -> bool:
    sent = [*chat.talk.messages(chat.settings.system), Message("user", SUMMARY)]
    return chat.engine.count_tokens(sent, thinking=chat.settings.thinks) <= _room(chat)


def shorten(chat: Chat, argument: str) -> None:
    """Cut attached files at their beginning, the oldest first, until the question has room."""
    path = chat.talk.path()
    files = [*(file for turn in path for file in turn.attachments), *chat.attached]
    if not files:
        raise UsageError("There are no files to shorten.", "/drop N, or /compact")
    texts = [file.text for file in files]
    cuts = oldest(texts, lambda texts: _size(chat, *_with_texts(chat, texts)), _room(chat))
    if cuts is None:
        raise UsageError("Without its files it is still too long.", "/drop N, or /compact")
    turns, attached = _with_texts(chat, [cut.text for cut in cuts])
    chat.attached = attached
    told = [cut_line(cut, file.name) for file, cut in zip(files, cuts, strict=True) if cut.left_out]
    chat.say(f"Left out: {'; '.join(told)}." if told else "All files have room; none was cut.")
    chat.draft = _waiting(chat)
    if turns != path:
        _go_on_with(chat, turns, chat.draft)
        chat.say(f"This is now session {chat.session.id}; the old one is kept with all its files.")


def _with_texts(chat: Chat, texts: Sequence[str]) -> tuple[tuple[Turn, ...], list[Attachment]]:
    """The turns and the files of the next question, with `texts` in their files' places."""
    following = iter(texts)

    def same(files: Sequence[Attachment]) -> list[Attachment]:
        return [replace(file, text=next(following)) for file in files]

    path = chat.talk.path()
    turns = tuple(replace(turn, attachments=tuple(same(turn.attachments))) for turn in path)
    return turns, same(chat.attached)


def _go_on_with(chat: Chat, turns: tuple[Turn, ...], waiting: str) -> None:
    """A new session of these turns; the question that waits comes back into the prompt."""
    old, talk, attached = chat.session, Conversation(), chat.attached
    if turns:
        whole = Conversation((replace(turns[0], parent=None), *turns[1:]), turns[-1].id)
        talk = branch(whole, [new_turn_id() for _ in turns])
    chat.begin(new_session(chat.settings.model, chat.settings.system, old.id), talk)
    chat.attached, chat.draft = attached, waiting
    chat.n_ctx = 0  # the figures of its last turn are those of the longer conversation
    chat.save(*talk.turns)
