"""Commands that look at and change how the model is used: /set and /context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from qwqcli import config
from qwqcli.errors import UsageError
from qwqcli.inputs import Attachment, with_attachments
from qwqcli.messages import Message
from qwqcli.render import tokens
from qwqcli.repl.chat import Chat

# what has a command of its own, or is settled when qwq starts
AT_START = (
    "system",
    "model",
    "ctx",
    "threads",
    "rpc",
    "gpu_layers",
    "kv",
    "flash_attn",
    "device",
    "prefer",
    "margin_gb",
    "display",
    "editing",
)
NAMES = tuple(f.name for f in fields(config.Settings) if f.name not in AT_START)
BAR = 40  # cells of the picture of the window at most


def change(chat: Chat, argument: str) -> None:
    """Change a setting for this chat, or show one or all."""
    name, _, text = argument.partition(" ")
    if not name:
        for known in NAMES:
            chat.say(f"  {known:12} {config.shown(getattr(chat.settings, known))}")
        return
    if name in AT_START:
        raise UsageError(f"/set cannot change {name} in a chat.", _at_start(name))
    if name not in NAMES:
        raise UsageError(f"There is no setting '{name}'.", f"/set {config.nearest(name, NAMES)}")
    if text.strip():
        wanted = replace(chat.settings, **{name: config.typed(name, text.strip(), "/set")})
        chat.check(wanted)
        chat.settings = wanted
    chat.say(f"{name}: {config.shown(getattr(chat.settings, name))}{_range(name)}")


def context(chat: Chat, argument: str) -> None:
    """What fills the context window: system prompt, conversation, files; and what is free."""
    n_ctx = chat.engine.info().n_ctx
    parts = _parts(chat)
    parts["free"] = max(n_ctx - sum(parts.values()), 0)
    columns = chat.screen.out.size()[0]
    chat.say(_bar(list(parts.values()), n_ctx, min(BAR, max(columns - 3, 1))))
    for (name, count), mark in zip(parts.items(), MARKS, strict=True):
        row = f"  {mark} {name:10} {count:8,} tokens  {100 * count / n_ctx:5.1f} %"
        chat.say(row if len(row) < columns else f"{mark} {name}: {count:,}")
    used = sum(parts.values()) - parts["free"]
    chat.say(
        f"{used:,} of {tokens(n_ctx)} are used; a reply, thought and all, must fit into the rest."
    )
    if chat.last and (sent := chat.last.stats.prompt_tokens):
        reused = chat.last.stats.reused_tokens
        chat.say(
            f"Of the {tokens(sent)} of the last prompt {reused:,} were reused from the cache,"
            f" {sent - reused:,} processed."
        )


MARKS = ("S", "H", "F", "+", ".")


def _parts(chat: Chat) -> dict[str, int]:
    """Tokens of each part; what was thought is never sent back, so it takes no room."""

    def count(messages: list[Message]) -> int:
        return chat.engine.count_tokens([*messages, Message("user", "?")])

    talk = [turn for turn in chat.talk.path() if turn.answered]
    bare, with_files = list[Message](), list[Message]()
    for turn in talk:
        answer = Message("assistant", turn.answer)
        bare += [Message("user", turn.question), answer]
        with_files += [Message("user", turn.prompt), answer]
    system = [Message("system", chat.settings.system)] if chat.settings.system else []
    nothing, history, files = count([]), count(bare), count(with_files)
    pending = count_files(chat, chat.attached)
    return {
        "system": max(count([*system, *with_files]) - files, 0),
        "history": history - nothing,
        "files": files - history,
        "next files": pending,
    }


def count_files(chat: Chat, files: Sequence[Attachment]) -> int:
    """Tokens that files add to a question."""
    alone, together = ("?", with_attachments("?", files))
    count = chat.engine.count_tokens
    return count([Message("user", together)]) - count([Message("user", alone)]) if files else 0


def _bar(counts: list[int], n_ctx: int, width: int) -> str:
    cells = [round(width * count / n_ctx) for count in counts]
    drawn = "".join(mark * n for mark, n in zip(MARKS, cells, strict=True))
    return f"[{drawn[:width]:{width}}]"


def _range(name: str) -> str:
    if name not in config.RANGES:
        return ""
    low, high = config.RANGES[name]
    return f"  ({low:.10g} to {high:.10g})"


def _at_start(name: str) -> str:
    return f"/{name}" if name in ("model", "system") else f"qwq config set {name} VALUE"
