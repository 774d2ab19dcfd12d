"""What may follow in the line: values of commands, names of sessions, paths of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Literal, get_args, get_origin, get_type_hints

from qwqcli import catalog, config
from qwqcli.errors import UsageError
from qwqcli.portable import typed_path
from qwqcli.repl.chat import Chat
from qwqcli.repl.prompt import last_word
from qwqcli.repl.window import NAMES

# what may follow as the last word of an argument: a fixed choice, or found when it is asked for
Values = tuple[str, ...] | Callable[[Chat, str], Iterable[str]]

MOST = 200  # offers; a folder may hold millions


def values(offered: Values, chat: Chat, argument: str) -> list[str]:
    """The words that may complete the last one of `argument`."""
    found = offered if isinstance(offered, tuple) else offered(chat, argument)
    word = last_word(argument)
    return list(islice((value for value in found if value.startswith(word)), MOST))


def paths(chat: Chat, argument: str) -> Iterator[str]:
    """Files and folders that the last word may become; blanks in them get a backslash."""
    typed = last_word(argument)
    folder, _, beginning = typed.replace("\\ ", " ").rpartition("/")
    base = f"{folder}/" if "/" in typed else ""
    try:
        with os.scandir(typed_path(base or ".")) as entries:
            found = [
                entry.name + ("/" if entry.is_dir() else "")
                for entry in islice(entries, 10_000)
                if entry.name.startswith(beginning)
                and (beginning.startswith(".") or not entry.name.startswith("."))
            ]
    except OSError:
        return
    for name in sorted(found):
        yield (base + name).replace(" ", "\\ ")


def models(chat: Chat, argument: str) -> Iterator[str]:
    """Names of models that are here, and paths."""
    yield from catalog.names(chat.screen.environ)
    yield from paths(chat, argument)


def sessions(chat: Chat, argument: str) -> list[str]:
    """Names of sessions, and the ids of those without, from where the last word begins."""
    typed = len(argument) - len(last_word(argument))
    found = chat.record.store.summaries(MOST)
    names = [summary.session.name or summary.session.id for summary in found]
    return [name[typed:] for name in names if name.startswith(argument)]


def prompts(chat: Chat, argument: str) -> list[str]:
    """Ids of the library's prompts."""
    try:
        return [prompt.id for prompt in chat.library()]
    except UsageError:  # a file of the person's own that is not valid; /prompt says so
        return []


def settings(chat: Chat, argument: str) -> tuple[str, ...]:
    """Names of settings; after one that has a choice of values, these."""
    name, blank, _ = argument.partition(" ")
    if not blank:
        return NAMES
    hint = get_type_hints(config.Settings).get(name)
    return get_args(hint) if get_origin(hint) is Literal else ()
