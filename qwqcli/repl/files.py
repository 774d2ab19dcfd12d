"""Commands between the chat and what is outside: attach files, save, copy, the editor."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path

from qwqcli import clipboard, export, inputs
from qwqcli.errors import QwqError, UsageError
from qwqcli.inputs import Attachment
from qwqcli.markdown import code_blocks
from qwqcli.portable import typed_path
from qwqcli.render import tokens
from qwqcli.repl.chat import Chat
from qwqcli.repl.window import count_files

WHAT = ("answer", "code", "thought")
# `@path` at the beginning of a word; a backslash keeps a blank in the path
_MENTION = re.compile(r"(?:^|(?<=\s))@((?:\\.|[^\s\\])+)")


def attach(chat: Chat, argument: str) -> None:
    """Attach files to the next question, or list what is attached; `none` takes all back."""
    if argument == "none":
        chat.attached = []
    elif argument:
        for word in words(argument):
            _add(chat, typed_path(word))
    if not chat.attached:
        chat.say("No files are attached; /file PATH attaches one to the next question.")
        return
    for file in chat.attached:
        chat.say(f"  {file.name}: {len(file.text):,} characters")
    chat.say(f"{tokens(count_files(chat, chat.attached))} go with the next question.")


def ask(chat: Chat, text: str) -> None:
    """Send a question, with the files that it mentions as @path."""
    found, missing = mentioned(text)
    # a question that comes back into the prompt has its files already, maybe shortened
    had = {file.name: file for file in chat.attached}
    found = [had.get(file.name, file) for file in found]
    for word in missing:
        chat.say(f"[@{word} is no file: sent as text]")
    if found:
        chat.say(f"[attached: {', '.join(file.name for file in found)},")
        chat.say(f" {tokens(count_files(chat, found))}]")
    chat.ask(text, [file for file in found if file.name not in had])


def mentioned(text: str) -> tuple[list[Attachment], list[str]]:
    """The files that `@path` names, and the words that look like files and are none.

    Raises UsageError for a file that is no text.
    """
    found: dict[str, Attachment] = {}
    missing: list[str] = []
    for word in _MENTION.findall(text):
        path = _path(word)
        if path is not None:
            found[str(path)] = Attachment(str(path), inputs.read_file(path))
        elif re.search(r"[./\\]\w", word):
            missing.append(word)
    return list(found.values()), missing


def save(chat: Chat, argument: str) -> None:
    """Write the conversation into a file, in the format that its extension names."""
    if not argument:
        raise UsageError("/save needs a file.", "/save talk.md, .html or .json")
    path = typed_path(*words(argument)[:1])
    text = export.export(chat.session, chat.talk, path.suffix.lower())
    if os.path.exists(path) and not yes(chat, f"{path} exists. Write over it?"):
        chat.say("Nothing was written.")
        return
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise QwqError(f"{path} cannot be written: {error.strerror}.", "/save ELSEWHERE") from error
    chat.say(f"Saved in {path}.")


def copy(chat: Chat, argument: str) -> None:
    """Copy the last answer, its last block of code, or the thought."""
    what = argument or "answer"
    if what not in WHAT:
        raise UsageError(f"/copy knows no '{what}'.", f"/copy {'|'.join(WHAT)}")
    text = _wanted(chat, what)
    if not text:
        raise UsageError(f"There is no {what} to copy.", "/copy answer")
    ways = clipboard.copy(text, chat.screen.out, chat.screen.environ)
    if not ways:
        raise QwqError("There is no clipboard to copy to.", "/save FILE")
    chat.say(f"Copied {len(text):,} characters of {what} with {' and '.join(ways)}.")


def editor(chat: Chat, argument: str) -> None:
    """Write the next question in the editor; it then waits in the prompt."""
    last = chat.last.question if argument == "last" and chat.last else ""
    with chat.lend() if chat.lend else contextlib.nullcontext():
        chat.draft = chat.prompt.edit(last)


def words(argument: str) -> list[str]:
    """The paths in what was typed; quotes and backslashes keep blanks. Raises UsageError."""
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"That is not a list of files: {error}.", "/file 'a name.txt'") from error


def yes(chat: Chat, question: str) -> bool:
    """Whether the person says so; no is the default."""
    return chat.prompt.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _add(chat: Chat, path: Path) -> None:
    if not os.path.isdir(path):  # Path.is_dir raises of a name that is too long
        chat.attached.append(Attachment(str(path), inputs.read_file(path)))
        return
    files = inputs.text_files(path)
    size = sum(len(file.text) for file in files)
    if not files:
        raise UsageError(f"{path} holds no text files.", "/file PATH")
    if yes(chat, f"{path} holds {len(files)} text files of {size:,} characters. Attach all?"):
        chat.attached += files


def _path(word: str) -> Path | None:
    """The file that a word means, without the punctuation that may follow it."""
    plain = re.sub(r"\\(.)", r"\1", word)
    for name in (plain, plain.rstrip(".,;:!?)'\"")):
        path = typed_path(name)
        if name and os.path.isfile(path):  # Path.is_file raises of a name that no file can have
            return path
    return None


def _wanted(chat: Chat, what: str) -> str:
    if chat.last is None:
        return ""
    if what == "code":
        return next(reversed(code_blocks(chat.last.answer)), "")
    return (chat.last.answer if what == "answer" else chat.last.reasoning).strip()
