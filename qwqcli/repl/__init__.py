"""`qwq chat`: lines in, replies out, one conversation.

Contract: the prompt takes keys while the model is still loading; what was typed is never lost (it
is in the history on disk, and what is typed during a reply waits for the next prompt). Ctrl-C
stops a reply and keeps what was said. An error of the engine is shown and the chat goes on.

Limits: without a terminal on both sides, or with TERM=dumb, chat reads plain lines until the end
of its input. Non-goals: drawing (`render`), finding models (the caller's `open_model`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from qwqcli.config import Paths, Settings
from qwqcli.conversation import Conversation
from qwqcli.engine import Engine
from qwqcli.errors import QwqError
from qwqcli.render import show_error, show_note
from qwqcli.repl.chat import Chat, OpenModel
from qwqcli.repl.commands import completions, obey
from qwqcli.repl.keys import Keyboard
from qwqcli.repl.prompt import PlainPrompt, TerminalPrompt, ask_line
from qwqcli.repl.record import open_store
from qwqcli.repl.thoughts import show_thought
from qwqcli.repl.turns import pick, tell_resumed
from qwqcli.sessions import Session, Store
from qwqcli.terminal import Screen

if TYPE_CHECKING:
    from qwqcli.prompts import Library

LEAVE_S = 2.0  # a second Ctrl-C on an empty line within this time leaves


@dataclass(frozen=True, slots=True)
class Opening:
    """How a chat begins: anew, or with a session; and whether it is saved."""

    save: bool = True
    latest: bool = False
    resume: str | None = None  # a name or an id; "" lets the person choose
    given: frozenset[str] = frozenset()  # settings that the person gave now, over the session's


def run_chat(
    open_model: OpenModel,
    settings: Settings,
    paths: Paths,
    screen: Screen | None = None,
    stdin: TextIO | None = None,
    opening: Opening | None = None,
    check: Callable[[Settings], None] = lambda settings: None,
) -> int:
    """Chat until the person leaves; returns the exit code.

    `open_model(name)` returns at once and loads behind the engine's back; for a name that cannot
    be opened it raises a QwqError, which passes through here for the first model. `check` raises
    one for settings that make no sense for their model.
    """
    screen = screen or Screen(sys.stdout, sys.stderr, os.environ)
    stdin = stdin or sys.stdin
    opening = opening or Opening()
    live = screen.out.live and stdin.isatty() and settings.display != "plain"
    screen = screen if live else screen.plain()
    plain = PlainPrompt(stdin, screen.out)
    with contextlib.ExitStack() as stack:
        keyboard = Keyboard(stdin, screen.out) if live else None
        if keyboard:
            stack.enter_context(keyboard.quiet())
        store = open_store(paths.sessions, opening.save, lambda error: _complain(error, screen))
        stack.enter_context(contextlib.closing(store))
        found = _found(store, opening, screen, ask_line if live else plain.ask)
        settled = _settled(settings, found, opening)
        engine, model = _opened(open_model, (settled.model, settings.model), screen)
        settled = replace(settled, model=model)
        chat = Chat(open_model, engine, settled, screen, store)
        chat.check = check
        stack.enter_context(contextlib.closing(chat))
        chat.library = lambda: _library(paths)
        if live:
            chat.greet()
        _begin(chat, found, opening)
        chat.prompt = plain
        if keyboard:
            offers = functools.partial(completions, chat)
            vi = settings.editing == "vi"
            prompt = TerminalPrompt(paths.input_history, chat.say, offers, vi=vi)
            _connect(chat, keyboard, prompt)
        converse(chat)
        return 0 if live else chat.exit_code


def _library(paths: Paths) -> Library:
    from qwqcli import prompts

    return prompts.library(paths)


def _connect(chat: Chat, keyboard: Keyboard, prompt: TerminalPrompt) -> None:
    """Let the keys of a terminal act, at the prompt and during a reply."""
    chat.prompt = prompt
    chat.keys = lambda fold: keyboard.during_reply(prompt.pressed, fold)
    chat.lend = keyboard.lent
    prompt.show_thought = lambda: show_thought(chat)
    prompt.status = lambda: chat.status


Found = tuple[Session, Conversation] | None


def _found(store: Store, opening: Opening, screen: Screen, ask: Callable[[str], str]) -> Found:
    """The session to go on with, if one is wanted and there is one."""
    id = store.latest() if opening.latest else None
    if opening.resume == "":
        say, width = (lambda text: show_note(text, screen.out)), screen.out.size()[0]
        id = pick(store, say, ask, width)
    elif opening.resume:
        id = store.find(opening.resume)
    return None if id is None else store.load(id)


def _begin(chat: Chat, found: Found, opening: Opening) -> None:
    """Go on where the session stands, if there is one."""
    if found:
        session, talk = found
        chat.begin(replace(session, system=chat.settings.system), talk, session)
        tell_resumed(chat)
    elif opening.latest:
        chat.say("There is no session to continue; this is a new one.")


def _settled(settings: Settings, found: Found, opening: Opening) -> Settings:
    """The settings, with what the session was held with where nothing else is given now."""
    if found is None:
        return settings
    session, _ = found
    if "model" not in opening.given and session.model:
        settings = replace(settings, model=session.model)
    return settings if "system" in opening.given else replace(settings, system=session.system)


def _opened(open_model: OpenModel, names: tuple[str, str], screen: Screen) -> tuple[Engine, str]:
    """The session's model, else that of the settings; and which it is."""
    wanted, otherwise = names
    try:
        return open_model(wanted), wanted
    except QwqError as error:
        if wanted == otherwise:
            raise
        _complain(error, screen)
    return open_model(otherwise), otherwise


def _complain(error: QwqError, screen: Screen) -> None:
    show_error(error, screen.out if screen.out.live else screen.err)


def converse(chat: Chat) -> None:
    """Read and obey until the person leaves."""
    interrupted = float("-inf")
    while not chat.leaving:
        draft, chat.draft = chat.draft, ""
        chat.prepare()
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
