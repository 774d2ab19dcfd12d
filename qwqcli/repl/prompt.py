"""Where the next line comes from: a line editor, or plain lines. Sole owner of prompt_toolkit.

Contract: what was typed is never lost: it is in the history on disk, also when Ctrl-C cleared the
line. A paste of a megabyte is one prompt. Non-goals: what a line means (`commands`).
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from qwqcli import atomic
from qwqcli.errors import UsageError
from qwqcli.terminal import PICTURES, Output, clip, visible

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent

# what may follow a text: (the word that ends it, complete; what that does)
Complete = Callable[[str], list[tuple[str, str]]]

FOLD_CHARACTERS = 5_000  # a longer paste is one word in the line: laying it out would take seconds
LONG_HISTORY = 4_000_000  # bytes; reading that many takes about 0.1 s
PROMPT = "> "
REPLY_KEYS = ("c-c", "c-n", "c-o")  # stop, answer now, fold: as prompt_toolkit names them
QUOTES = '"""'
SHOWN = 200  # cells of a text that waits where the line cannot hold it
TTY_LINE = 4096  # bytes of a line with its end: Linux' terminals drop what is more
CUT = (
    "[the terminal cut that line at 4,095 bytes: break it with \\, or attach a file: /file PATH]\n"
)


class Prompt(Protocol):
    """Where the next line comes from."""

    def read(self, default: str = "") -> str:
        """Wait for one submitted text. Raises EOFError to leave, KeyboardInterrupt for Ctrl-C."""
        ...

    def ask(self, question: str) -> str:
        """One short answer, which is not kept. Raises KeyboardInterrupt if there is none."""
        ...

    def edit(self, text: str) -> str:
        """`text` after the person changed it in an editor. Raises UsageError."""
        ...


class NoPrompt:
    """Nobody types anything."""

    def read(self, default: str = "") -> str:
        raise EOFError

    def ask(self, question: str) -> str:
        raise KeyboardInterrupt

    def edit(self, text: str) -> str:
        return text


class PlainPrompt:
    """Lines from a pipe or a dumb terminal; a backslash at the end of a line continues it."""

    def __init__(self, stdin: TextIO, out: Output) -> None:
        self._stdin = stdin
        self._out = out

    def read(self, default: str = "") -> str:
        lines: list[str] = []
        typed = self._stdin.isatty()
        if default and typed:
            draft = clip(" ".join(default.split()), SHOWN)
            self._out.write(visible(f"{PROMPT}{draft}\n[Enter alone sends this]\n"))
        while True:
            if typed:
                self._out.write("  " if lines else PROMPT)
            line = self._stdin.readline()
            if not line and not lines:
                raise EOFError
            if typed and len(line.encode("utf-8", "replace")) == TTY_LINE:
                self._out.write(CUT)
                continue
            if typed and default and line == "\n" and not lines:
                return default
            text = line.rstrip("\n")
            whole = "\n".join([*lines, text])
            if line and open_quotes(whole):
                lines.append(text)
            elif line and text.endswith("\\"):
                lines.append(text[:-1])
            else:
                return whole

    def ask(self, question: str) -> str:
        self._out.write(visible(question))
        line = self._stdin.readline()
        if not line:
            raise KeyboardInterrupt
        return line.rstrip("\n")

    def edit(self, text: str) -> str:
        raise UsageError("The editor needs a terminal.", "Type the question")


def open_quotes(text: str) -> bool:
    """Whether `text` begins with triple quotes that nothing has closed yet."""
    return text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1


def ask_line(question: str) -> str:
    """`Prompt.ask` on a terminal."""
    from prompt_toolkit import PromptSession

    try:
        return PromptSession[str]().prompt(question)
    except EOFError:
        raise KeyboardInterrupt from None


class Pastes:
    """Stands a short word in the line for each huge paste, and puts the paste back at the end."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        if len(text) <= FOLD_CHARACTERS:
            return text
        lines = text.count("\n") + 1
        word = f"[paste {len(self._texts) + 1}: {len(text):,} characters, {lines:,} lines]"
        self._texts[word] = text
        return word

    def unfold(self, text: str) -> str:
        """Put back all pastes, and forget them."""
        for word, paste in self._texts.items():
            text = text.replace(word, paste)
        self._texts.clear()
        return text


class TerminalPrompt:
    """A line editor with history, completion, several lines and pastes of any size."""

    def __init__(
        self,
        history: Path,
        say: Callable[[str], None],
        complete: Complete = lambda text: [],
        *,
        vi: bool = False,
    ) -> None:
        from prompt_toolkit.layout.screen import Char

        # the library shows control characters itself, but not what reverses or hides text
        hidden = {chr(code): picture for code, picture in PICTURES.items()}
        Char.display_mappings = {**hidden, **Char.display_mappings}
        self._say = say
        self._offers = complete
        self._history = _open_history(history, say)
        self._trouble: OSError | None = None
        self._pastes = Pastes()
        self.show_thought: Callable[[], None] = lambda: None  # what Ctrl+O does
        self.status: Callable[[], str] = lambda: ""  # what stands below the line
        self._session = self._editor(vi)

    def _editor(self, vi: bool) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application.current import get_app
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.styles import Style

        return PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation="  ",
            history=self._history,
            completer=_completer(self._offers),
            # room for the menu is only taken where there can be one
            complete_while_typing=Condition(
                lambda: _may_complete(get_app().current_buffer.document.text_before_cursor)
            ),
            auto_suggest=AutoSuggestFromHistory(),
            vi_mode=vi,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            key_bindings=self._bindings(),
            enable_suspend=True,
            # a grey of its own: a terminal's palette may give its grey the colour of the ground
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:#808080"}),
        )

    def read(self, default: str = "") -> str:
        if self._trouble:
            self._say(f"What you type is not kept on disk: {self._trouble.strerror}.")
            self._trouble = None
        self._session.bottom_toolbar = self.status() or None
        return self._session.prompt(default=self._pastes.fold(default))

    def ask(self, question: str) -> str:
        return ask_line(question)

    def pressed(self) -> list[str]:
        """Keys typed since the last prompt that act on a reply; all others wait for the next.

        Read by the prompt's own input, so that half a paste or half a key goes on in the prompt.
        """
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead

        source = self._session.app.input
        typed = get_typeahead(source)
        while select.select([source.fileno()], [], [], 0)[0] and not source.closed:
            typed += source.read_keys()
        kept, answer = _without_answer([p for p in typed if p.key not in REPLY_KEYS])
        store_typeahead(source, kept)
        return [*answer, *(key for press in typed for key in REPLY_KEYS if press.key == key)]

    def edit(self, text: str) -> str:
        return edit_text(text)

    def _submit(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if open_quotes(buffer.text):
            buffer.insert_text("\n")
            return
        if buffer.text.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        event.app.exit(result=self._remember(buffer.text))

    def _interrupt(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            self._remember(buffer.text)
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    def _paste(self, event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        event.current_buffer.insert_text(self._pastes.fold(text))

    def _newline(self, event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def _complete(self, event: KeyPressEvent) -> None:
        """Add what all offers have in common; once that is there, go through them."""
        buffer = event.current_buffer
        text = buffer.document.text_before_cursor
        words = [word for word, _ in self._offers(text)]
        common = os.path.commonprefix(words)  # noqa: RUF071  words, not paths
        missing = common[len(last_word(text)) :]
        if missing:
            buffer.insert_text(missing)
        elif buffer.complete_state:
            buffer.complete_next()

    def _remember(self, line: str) -> str:
        """Keep what stands in the line in the history; return it with its pastes."""
        # a byte that is no UTF-8 arrives as half a surrogate pair, which nothing can encode
        text = self._pastes.unfold(line).encode("utf-8", "replace").decode("utf-8")
        if text.strip() and self._history.get_strings()[-1:] != [text]:
            try:
                self._history.append_string(text)
            except OSError as error:
                self._trouble = error
        return text

    def _bindings(self) -> KeyBindings:
        from prompt_toolkit.application import run_in_terminal
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        bindings = KeyBindings()
        line = has_focus(DEFAULT_BUFFER)  # not while Ctrl-R searches, where they end the search
        bindings.add("enter", filter=line)(self._submit)
        bindings.add("tab", filter=line)(self._complete)
        bindings.add("c-c", filter=line)(self._interrupt)
        bindings.add("c-o")(lambda event: run_in_terminal(self.show_thought))
        bindings.add("<sigint>", filter=line)(self._interrupt)
        bindings.add(Keys.BracketedPaste)(self._paste)
        # the mouse is off; what looks like it was typed or pasted, and the library fails on it
        bindings.add(Keys.Vt100MouseEvent)(lambda event: None)
        for keys in (("escape", "enter"), ("c-j",)):
            bindings.add(*keys, filter=line)(self._newline)
        return bindings


def _without_answer(typed: list[KeyPress]) -> tuple[list[KeyPress], list[str]]:
    """What is typed ahead, and Ctrl+N for each line of it that is `/answer`."""
    begins = 0  # the line that the key stands in
    for at, press in enumerate(typed):
        if press.key == "c-m":
            if "".join(p.data for p in typed[begins:at]) == "/answer":
                rest, more = _without_answer(typed[at + 1 :])
                return typed[:begins] + rest, ["c-n", *more]
            begins = at + 1
    return typed, []


def edit_text(text: str) -> str:
    """`text` after the person changed it in an editor. Raises UsageError."""
    handle, path = tempfile.mkstemp(suffix=".md")  # only its owner may read it
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        run_editor(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    finally:
        os.unlink(path)


def run_editor(path: str) -> None:
    """Wait until $VISUAL, $EDITOR or what is there was left. Raises UsageError."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    command = shlex.split(named) or [next(filter(shutil.which, ("nano", "vi", "notepad")), "vi")]
    try:
        subprocess.run([*command, path], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"The editor {command[0]} failed: {error}.", "export EDITOR=nano"
        ) from error


def forget(history: Path, is_gone: Callable[[str], bool]) -> None:
    """Take every text that is to be gone out of the history of the prompt."""
    try:
        entries = history.read_text(encoding="utf-8", errors="replace").split("\n# ")
    except OSError:
        return
    kept = [entry for entry in entries if not is_gone(_entry_text(entry))]
    if len(kept) < len(entries):
        atomic.write_text(history, "\n# ".join(kept), mode=0o600)  # only its owner may read it


def _entry_text(entry: str) -> str:
    """What was typed, of an entry of prompt_toolkit's FileHistory: lines that begin with +."""
    lines = entry.split("\n")
    return "\n".join(line[1:] for line in lines if line.startswith("+"))


def _may_complete(text: str) -> bool:
    return text.startswith("/") or last_word(text).startswith("@")


def last_word(text: str) -> str:
    """What stands after the last blank that no backslash keeps."""
    at = len(text)
    while at and not (text[at - 1].isspace() and text[at - 2 : at - 1] != "\\"):
        at -= 1
    return text[at:]


def _open_history(path: Path, say: Callable[[str], None]) -> History:
    """What was typed before, from a file that only its owner reads; in memory if need be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory, ThreadedHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        say(f"What you type is not kept on disk: {error.strerror}.")
        return InMemoryHistory()
    history = FileHistory(path)
    # read before the first key, so that arrow-up works at once, unless that would hold it up
    return history if path.stat().st_size < LONG_HISTORY else ThreadedHistory(history)


def _completer(complete: Complete) -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class CommandCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            start = -len(last_word(text))
            for word, meta in complete(text):
                yield Completion(word, start, display_meta=meta)

    return CommandCompleter()
