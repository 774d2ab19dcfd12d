"""What a person does with thoughts: look at them, fold them, limit them, cut them short."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, get_args

from qwqcli import budget
from qwqcli.config import Thinking
from qwqcli.conversation import Turn
from qwqcli.errors import QwqError, UsageError
from qwqcli.messages import Order
from qwqcli.render import tokens
from qwqcli.repl.chat import Chat
from qwqcli.repl.pager import page
from qwqcli.terminal import clip, visible

THINK_VALUES = (*get_args(Thinking), "on", "off")
BUDGET_VALUES = ("auto", "off", "4k", "90s", "10m")


def think(chat: Chat, argument: str) -> None:
    """`/think [N|show|fold|hide|on|off]`"""
    if argument in get_args(Thinking):
        chat.settings = replace(chat.settings, thinking=cast(Thinking, argument))
        chat.say(f"Thinking: {argument}.")
    elif argument == "off":
        set_budget(chat, "0")
    elif argument == "on":
        set_budget(chat, chat.kept_budget)
    elif argument and not argument.isdecimal():
        raise QwqError(f"/think knows no '{argument}'.", f"/think N|{'|'.join(THINK_VALUES)}")
    else:
        show_thought(chat, int(argument) if argument else None)


def show_thought(chat: Chat, number: int | None = None) -> None:
    """Show the thought of the `number`-th question, or the last one that there is."""
    path = chat.talk.path()
    thoughts = [(n, turn) for n, turn in enumerate(path, 1) if turn.reasoning.strip()]
    found = [item for item in thoughts if number in (None, item[0])]
    if number is not None and not found:
        counted = f"the questions here are 1 to {len(path)}" if path else "none was asked"
        raise QwqError(f"There is no thought to question {number}; {counted}.", "/think")
    if not found:
        chat.say(f"There is no thought to show yet. Thinking: {chat.settings.thinking}.")
        return
    text = _written(*found[-1], chat.screen.out.size()[0])
    if chat.lend:
        with chat.lend():
            page(text + "\n", chat.screen.out)
    else:
        chat.say(text)


def _written(number: int, turn: Turn, width: int) -> str:
    """A thought with a line above it that says whose it is."""
    dot = " · "
    about = f"Thought {number}{dot}{tokens(turn.stats.reasoning_tokens)}{dot}"
    about += " ".join(turn.question.split())
    return f"{clip(visible(about), max(width - 1, 20))}\n\n{visible(turn.reasoning.strip())}"


def set_budget(chat: Chat, argument: str) -> None:
    """`/budget [auto|off|4k|90s]`"""
    if argument:
        budget.parse(argument)
        chat.settings = replace(chat.settings, think_budget=argument)
        chat.kept_budget = argument if chat.settings.thinks else chat.kept_budget
    text = chat.settings.think_budget
    chat.say(
        f"Budget {text}: {budget.describe(text)}" if chat.settings.thinks else budget.describe(text)
    )


def answer(chat: Chat, argument: str) -> None:
    """`/answer`: answer from a thought that was stopped. During a reply it is as Ctrl+N."""
    last = chat.last
    if last is None or last.answered:
        raise UsageError("No question waits for its answer.", "Ctrl+N or /answer while it thinks")
    chat.go_on(last, Order.ANSWER)
