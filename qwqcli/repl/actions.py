"""What the commands of the chat do: functions of the chat and the text after the command."""

from __future__ import annotations

from dataclasses import replace

from qwqcli.conversation import Conversation
from qwqcli.render import stats_line
from qwqcli.repl.chat import Chat
from qwqcli.sessions import new_session


def leave(chat: Chat, argument: str) -> None:
    chat.leaving = True


def clear(chat: Chat, argument: str) -> None:
    old = chat.session.id if chat.talk.turns else ""
    chat.begin(new_session(chat.settings.model, chat.settings.system), Conversation())
    kept = f"; the old one is kept: /resume {old}" if old and chat.record.store.path else ""
    chat.say(f"A new conversation begins{kept}.")


def stats(chat: Chat, argument: str) -> None:
    chat.stats_shown = not chat.stats_shown
    chat.say(f"Figures after each reply: {'on' if chat.stats_shown else 'off'}.")
    if chat.last:
        chat.say(stats_line(chat.last.stats))


def model(chat: Chat, argument: str) -> None:
    if argument:
        name = argument.replace("\\ ", " ")  # as completion writes a path
        chat.switch(name)
        chat.say(f"The model is now {name}; the conversation goes on.")
    else:
        chat.say(f"The model is {chat.settings.model}.")


def system(chat: Chat, argument: str) -> None:
    if argument:
        text = "" if argument == "none" else argument
        chat.settings = replace(chat.settings, system=text)
        chat.session = replace(chat.session, system=text)
        chat.save()
    chat.say(f"System prompt: {chat.settings.system or 'none'}")
