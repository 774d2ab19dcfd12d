"""Record the picture of a chat that README shows: real keys, the real built-in model, as SVG.

    python benchmarks/picture.py [--out benchmarks/pictures/chat.svg]

`qwq chat` runs in a pseudo-terminal; a terminal emulator keeps its screen. The picture is the
screen while the model thinks about its last question, above it the answers to the first ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, ROWS = 84, 19
DIM = "7f848e"
QUESTIONS = (
    "What is 47 + 86?",
    "And minus 33?",
    "How many r's are in strawberry?",
    "48 × 76 等于多少？",
)

ANSI = "18 1a 1f e0 6c 75 98 c3 79 e5 c0 7b 61 af ef c6 78 dd 56 b6 c2 dc df e4"


def theme() -> TerminalTheme:
    """Light grey on dark, with calm colours; ANSI holds black, red, … white as hex bytes."""
    numbers = bytes.fromhex(ANSI)
    colours = [tuple(numbers[at : at + 3]) for at in range(0, 24, 3)]
    return TerminalTheme(colours[0], colours[7], colours)


class Screen(pyte.Screen):
    """A screen that knows dim text, which pyte passes over."""

    def select_graphic_rendition(self, *attrs: int, **kwargs: bool) -> None:
        """Dim is a colour here: it comes alone, and 22 ends it."""
        super().select_graphic_rendition(*attrs, **kwargs)
        if attrs in ((2,), (22,)):
            colour = DIM if attrs == (2,) else "default"
            self.cursor.attrs = self.cursor.attrs._replace(fg=colour)


class Terminal:
    """`qwq chat` behind a terminal emulator."""

    def __init__(self) -> None:
        self.screen = Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        folder = tempfile.mkdtemp(prefix="qwq-picture-")
        environ = {**os.environ, "TERM": "xterm-256color", "QWQ_DATA_DIR": folder}
        self._child = pexpect.spawn(
            str(Path(sys.executable).with_name("qwq")),
            ["chat", "--temperature", "0", "--threads", "1"],
            env=environ,
            dimensions=(ROWS, COLUMNS),
        )

    def wait(self, pattern: str, seconds: float = 60.0) -> None:
        """Feed the screen until a line on it matches `pattern`."""
        end = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self.screen.display):
            if time.monotonic() > end:
                sys.exit("\n".join(self.screen.display))
            self._feed()

    def type(self, text: str) -> None:
        """Press the keys of `text`."""
        self._child.send(text)

    def close(self) -> None:
        """Leave as a person would."""
        self._child.sendcontrol("c")
        self._child.close(force=True)

    def _feed(self) -> None:
        with contextlib.suppress(pexpect.TIMEOUT):
            self._stream.feed(self._child.read_nonblocking(256, timeout=0.05))


def styled(screen: pyte.Screen) -> Text:
    """The screen as rich text, without its cursor."""
    return Text("\n").join(_row(screen.buffer[row]) for row in range(ROWS))


def _row(cells: Mapping[int, pyte.screens.Char]) -> Text:
    text = Text()
    for column in range(COLUMNS):
        cell = cells[column]
        colour = None if cell.fg == "default" else cell.fg.replace("brown", "yellow")
        colour = f"#{colour}" if colour == DIM else colour
        text.append(cell.data, Style(color=colour, bold=cell.bold, italic=cell.italics))
    text.rstrip()
    return text


def svg(screen: pyte.Screen) -> str:
    """The picture, with no font fetched from anywhere."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(styled(screen))
    picture = console.export_svg(title="qwq chat", theme=theme(), unique_id="qwq")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


def main() -> None:
    """Play the dialogue, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "pictures" / "chat.svg"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    terminal = Terminal()
    terminal.wait("^> ")
    *answered, last = QUESTIONS
    for count, question in enumerate(answered, 1):
        terminal.type(question + "\r")
        while sum(line.startswith("Thought for") for line in terminal.screen.display) < count:
            terminal._feed()
        terminal.wait(r"^> *$")
    terminal.type(last + "\r")
    terminal.wait("Thinking.*tokens")
    out.parent.mkdir(exist_ok=True)
    out.write_text(svg(terminal.screen), encoding="utf-8")
    terminal.close()


if __name__ == "__main__":
    main()
