"""`qwq chat`: lines in, replies out, one conversation.

Contract: the prompt takes keys while the model is still loading; what was typed is never lost (it
is in the history on disk, and what is typed during a reply waits for the next prompt). Ctrl-C
stops a reply and keeps what was said. An error of the engine is shown and the chat goes on.

Limits: without a terminal on both sides, or with TERM=dumb, chat reads plain lines until the end
of its input. Non-goals: drawing (`render`), finding models (the caller's `open_model`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from qwqcli.config import Paths, Settings
from qwqcli.repl.chat import Chat, OpenModel
from qwqcli.repl.commands import completions, obey
from qwqcli.repl.keys import quiet, reply_keys
from qwqcli.repl.prompt import PlainPrompt, TerminalPrompt
from qwqcli.terminal import Screen

LEAVE_S = 2.0  # a second Ctrl-C on an empty line within this time leaves


def run_chat(
    open_model: OpenModel,
    settings: Settings,
    paths: Paths,
    screen: Screen | None = None,
    stdin: TextIO | None = None,
) -> int:
    """Chat until the person leaves; returns the exit code.

    `open_model(name)` returns at once and loads behind the engine's back; for a name that cannot
    be opened it raises a QwqError, which passes through here for the first model.
    """
    screen = screen or Screen(sys.stdout, sys.stderr, os.environ)
    stdin = stdin or sys.stdin
    if not (screen.out.live and stdin.isatty()):
        screen = screen.plain()
    chat = Chat(open_model, open_model(settings.model), settings, screen)
    with contextlib.closing(chat):
        if not screen.out.live:
            chat.prompt = PlainPrompt(stdin, screen.out)
            converse(chat)
            return chat.exit_code
        with quiet(stdin):
            chat.greet()
            chat.prompt = TerminalPrompt(paths.input_history, chat.say, completions)
            chat.keys = lambda: reply_keys(screen.out)
            converse(chat)
        return 0


def converse(chat: Chat) -> None:
    """Read and obey until the person leaves."""
    interrupted = float("-inf")
    while not chat.leaving:
        draft, chat.draft = chat.draft, ""
        try:
            line = chat.prompt.read(draft)
        except EOFError:
            return
        except KeyboardInterrupt:
            if chat.screen.clock() - interrupted < LEAVE_S:
                return
            interrupted = chat.screen.clock()
            chat.say("[Ctrl-C once more, or Ctrl-D, leaves]")
            continue
        # Ctrl-C outside of a reply, as in a command: the command ends, the chat does not
        with contextlib.suppress(KeyboardInterrupt):
            obey(chat, line)
