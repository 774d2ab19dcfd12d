"""When the window is full: what fills it, and the ways to make room. Nothing happens unasked.

What is left out goes on nowhere but is not lost: the shorter conversation is a new session, and the
old one stays as it was.
"""

from __future__ import annotations

from dataclasses import replace

from qwqcli.conversation import Conversation, Turn, branch
from qwqcli.engine import reserved
from qwqcli.errors import UsageError
from qwqcli.inputs import with_attachments
from qwqcli.messages import Message
from qwqcli.repl.chat import Chat
from qwqcli.sessions import new_session, new_turn_id

LISTED = 12  # of the oldest turns
SUMMARY = (
    "Sum up our conversation so far, so that it can go on from your summary alone: the facts,"
    " decisions, names, numbers and code that matter, and what is still open. Only the summary."
)
RECALL = "What have we said so far?"


def choices(chat: Chat) -> None:
    """Show what fills the window, and what to type to make room."""
    sizes = [(turn, tokens_of(chat, turn)) for turn in chat.talk.path() if turn.answered]
    n_ctx = chat.engine.info().n_ctx
    left = n_ctx - reserved(n_ctx, chat.settings.budget.reserve) - _asked(chat)
    if not sizes or left <= 0:
        chat.say("It is the question alone that is too long: shorten it or its files.")
        return
    for at, (turn, size) in enumerate(sizes[:LISTED], 1):
        files = f" + {len(turn.attachments)} files" if turn.attachments else ""
        chat.say(f"{at:4}  {size:8,} tokens  {' '.join(turn.question.split())[:48]}{files}")
    if len(sizes) > LISTED:
        chat.say(f"      and {len(sizes) - LISTED} later ones")
    count = enough([size for _, size in sizes], min(left, n_ctx // 2))
    gained = sum(size for _, size in sizes[:count])
    chat.say(f"/drop {count} goes on without the oldest {count}: {gained:,} tokens less.")
    chat.say("/compact goes on with a summary instead of all that was said.")
    chat.say(f"qwq chat --continue --ctx {2 * n_ctx} has more room; what that costs: qwq plan.")


def _asked(chat: Chat) -> int:
    """Tokens of the system prompt and the question that found no room."""
    system = [Message("system", chat.settings.system)] if chat.settings.system else []
    asked = with_attachments(chat.draft, chat.attached)
    return chat.engine.count_tokens([*system, Message("user", asked or "?")])


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
    _go_on_with(chat, path[first:])
    chat.say(f"This is now session {chat.session.id}; the old one is kept with all its turns.")


def compact(chat: Chat, argument: str) -> None:
    """Let the model sum up the conversation, and go on from that in a new session."""
    if not any(turn.answered for turn in chat.talk.path()):
        raise UsageError("There is nothing to sum up yet.", "Type a question")
    attached, chat.attached = chat.attached, []  # for the next question, not for this
    chat.ask(SUMMARY)
    last, chat.attached = chat.last, attached
    if last is None or not last.answered or last.stop != "end":
        chat.say("[there is no whole summary, so nothing was changed; /undo takes it back]")
        return
    recalled = replace(last, question=RECALL, attachments=(), reasoning="")
    _go_on_with(chat, (recalled,))
    chat.say(f"This is now session {chat.session.id}, with the summary; the old one is kept.")


def _go_on_with(chat: Chat, turns: tuple[Turn, ...]) -> None:
    """A new session of these turns; a question that found no room comes back into the prompt."""
    refused = [t for t in chat.talk.turns if t.parent == chat.talk.head and t.stop == "context"]
    old, talk, attached = chat.session, Conversation(), chat.attached
    if turns:
        whole = Conversation((replace(turns[0], parent=None), *turns[1:]), turns[-1].id)
        talk = branch(whole, [new_turn_id() for _ in turns])
    chat.begin(new_session(chat.settings.model, chat.settings.system, old.id), talk)
    chat.attached = attached
    chat.save(*talk.turns)
    if refused and not refused[-1].answered:
        chat.draft, chat.attached = refused[-1].question, list(refused[-1].attachments)
